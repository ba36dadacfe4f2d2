"""What a study computes: networks by the paper's recipe, branches of critical points, paths for pictures.

Each kind is a function of a job's settings. `work` is what `isthmus.sweeps` calls, in a process of its own.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isthmus.activations import ReLU, SmoothReLU
from isthmus.branches import Branch, follow
from isthmus.certificate import kind_of
from isthmus.claims.minima import search
from isthmus.claims.numbers import network_numbers
from isthmus.mesh import Adaptive, Equidistant, Irregular, MeshScheduler
from isthmus.model import LeakyResNet
from isthmus.problem import Problem
from isthmus.solve import Trainer, recipe, solve
from isthmus.status import Status
from isthmus.sweeps import Job
from isthmus.tasks import make_task

Stop = Callable[[], bool]

RULES = {"equidistant": Equidistant(), "irregular": Irregular(), "adaptive": Adaptive()}
"""Choices of step-sizes, with the paper's names."""


DECAY_STEP = 0.3
"""Step of log μ on the way down, where what happens between the points is not asked: a third of the time."""


class Unfinished(Exception):
    """Somebody asked to stop."""


def work(job: Job, scratch: Path, should_stop: Stop) -> Any:
    """Compute a job; None where it was stopped. See `isthmus.sweeps.engine.Work`."""
    try:
        return KINDS[job.kind](job.settings, scratch, should_stop)
    except Unfinished:
        return None


def trained(settings: Mapping[str, Any], scratch: Path, should_stop: Stop) -> dict[str, Any]:
    """One network by the paper's recipe: Adam, then SGD at a smaller rate; ReLU, float32."""
    problem = _trained(settings, settings["rule"], should_stop)
    return network_numbers(problem.geodesic(), _zero_cost(problem), problem.test()[0], spectra=settings["spectra"])


def ways(settings: Mapping[str, Any], scratch: Path, should_stop: Stop) -> dict[str, Any]:
    """The same network under each choice of step-sizes: its numbers, and its path in the plane that holds most of all.

    The plane is spanned by the two leading directions of all states of all networks, about their common mean.
    """
    paths, found = [], {}
    for rule in RULES:
        problem = _trained(settings, rule, should_stop)
        geodesic = problem.geodesic()
        found[rule] = network_numbers(geodesic, _zero_cost(problem), problem.test()[0], spectra=True)
        paths.append(geodesic.A.flatten(1))
    together = torch.cat(paths)
    together = together - together.mean(0)
    u, s, _ = torch.linalg.svd(together, full_matrices=False)
    plane = (u * s)[:, :2] / max(float(s[0]), 1e-300)
    for rule, part in zip(RULES, plane.split([len(path) for path in paths]), strict=True):
        found[rule]["way"] = [[float(f"{v:.5g}") for v in row] for row in part.T.tolist()]
    found["kept"] = {"share": float(s[:2].square().sum() / s.square().sum())}
    return found


def branch(settings: Mapping[str, Any], scratch: Path, should_stop: Stop) -> dict[str, Any]:
    """Critical points: solved at a large μ, followed down in μ at the least L̃, then up in L̃ at the last μ.

    The state of both branches is kept in the scratch folder after every point.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    problem = _critical(settings)
    decays, leaks, tolerance = settings["decays"], settings["leaks"], settings["tolerance"]
    _start(problem, scratch / "start.pt", tolerance, should_stop)
    down = _followed(problem, "mu", decays, tolerance, scratch / "down.state", should_stop, DECAY_STEP)
    lowered = Problem(
        problem.model, problem.x, problem.y, mu=decays[-1], x_test=problem.x_test, y_test=problem.y_test
    )  # fmt: skip
    up = None
    if down.status is Status.CONVERGED:
        up = _followed(lowered, "effective_depth", leaks, tolerance, scratch / "up.state", should_stop)
    return {
        "mu": _read(down, decays, problem, settings, should_stop),
        "effective_depth": None if up is None else _read(up, leaks, lowered, settings, should_stop),
    }


def minima(settings: Mapping[str, Any], scratch: Path, should_stop: Stop) -> dict[str, Any]:
    """Minima of the cost of identity; see `isthmus.claims.minima`."""
    return search(settings["width"], settings["rows"], settings["starts"], settings["seed"])


KINDS: dict[str, Callable[[Mapping[str, Any], Path, Stop], dict[str, Any]]] = {
    "trained": trained,
    "ways": ways,
    "branch": branch,
    "minima": minima,
}
VERSIONS = {"trained": 1, "ways": 1, "branch": 1, "minima": 1}
"""Raised where the numbers of a kind change: they are then computed again."""


def _task(settings: Mapping[str, Any]) -> Any:
    return make_task(
        "teacher",
        dims=tuple(settings["dims"]),
        network=settings["teacher"],
        train=settings["rows"],
        test=settings["rows"],
        seed=settings["seed"],
    )


def _trained(settings: Mapping[str, Any], rule: str, should_stop: Stop) -> Problem:
    task = _task(settings)
    model = LeakyResNet(
        task.inputs,
        task.outputs,
        width=settings["width"],
        depth=settings["depth"],
        effective_depth=settings["effective_depth"],
        activation=ReLU(),
        seed=settings["seed"],
    )
    problem = Problem(
        model, task.x_train, task.y_train, mu=settings["mu"], x_test=task.x_test, y_test=task.y_test
    )  # fmt: skip
    stages = recipe("paper", settings["steps"])
    scheduler = MeshScheduler(model, RULES[rule], freeze_after=round(0.8 * settings["steps"]))
    result = Trainer(problem, stages, scheduler, log_every=500).run(should_stop=should_stop)
    if result.status is Status.INTERRUPTED:
        raise Unfinished
    if result.status is Status.DIVERGED:
        raise ArithmeticError(f"training diverged: {result.message}")
    return problem


def _critical(settings: Mapping[str, Any]) -> Problem:
    task = _task(settings)
    model = LeakyResNet(
        task.inputs,
        task.outputs,
        width=settings["width"],
        depth=settings["depth"],
        effective_depth=settings["leaks"][0],
        activation=SmoothReLU(sharpness=settings["sharpness"]),
        seed=settings["seed"],
        dtype=torch.float64,
    )
    wide = [None if part is None else part.double() for part in (task.x_test, task.y_test)]
    return Problem(
        model, task.x_train.double(), task.y_train.double(), mu=settings["decays"][0], x_test=wide[0], y_test=wide[1]
    )


def _start(problem: Problem, file: Path, tolerance: float, should_stop: Stop) -> None:
    """Solve the branch's first network, or read it back."""
    if file.exists():
        problem.model.load_state_dict(torch.load(file, weights_only=True))
        return
    found = solve(problem, "geodesic", tolerance=tolerance, should_stop=should_stop)
    if should_stop():  # asked of the solver's last steps as well: it may have ended earlier than it would have
        raise Unfinished
    assert found.certificate is not None
    if found.certificate.residual_max > tolerance:
        raise ArithmeticError(
            f"no critical point to start from at mu = {problem.mu:g}: residual {found.certificate.residual_max:.2g}"
        )
    temporary = file.with_suffix(".tmp")
    torch.save(problem.model.state_dict(), temporary)
    temporary.replace(file)


def _followed(
    problem: Problem,
    parameter: str,
    values: list[float],
    tolerance: float,
    state: Path,
    should_stop: Stop,
    step: float | None = None,
) -> Branch:
    """A branch through all of the values; where a step is given, no step is shortened below it."""
    found = follow(
        problem,
        parameter,
        values[-1],
        start=values[0],
        at=values[1:-1],
        step=step,
        resolution=step,
        tolerance=tolerance,
        eigenvalues=False,
        should_stop=should_stop,
        checkpoint=state,
    )
    if found.status is Status.INTERRUPTED:
        raise Unfinished
    return found


def _read(
    found: Branch, values: list[float], problem: Problem, settings: Mapping[str, Any], should_stop: Stop
) -> dict[str, Any]:
    """The numbers of the networks at the values that were asked for, and what happened between all points."""
    points = []
    for value in values:
        index = found.nearest(value)
        if abs(found.points[index].value - value) > 1e-9 * value:
            continue
        if should_stop():
            raise Unfinished
        here = found.restore(index)
        kind = kind_of(here).kind.value
        assert problem.x_test is not None and problem.y_test is not None
        test = here.score(problem.x_test, problem.y_test)[0]
        spectra = found.parameter == "effective_depth" and value == settings["shown"]
        points.append(network_numbers(here.geodesic(), _zero_cost(here), test, kind, spectra=spectra))
    return {
        "points": points,
        "all": [
            {
                "value": p.value,
                "branch": p.branch,
                "objective": p.objective,
                "residual": p.residual,
                **_bare(p.readings),
            }
            for p in found.points
        ],
        "events": [{"kind": e.kind.value, "value": e.value, "message": e.message} for e in found.events],
        "status": found.status.value,
        "products": found.products,
    }


def _bare(readings: Mapping[str, float]) -> dict[str, float]:
    kept = ("minus_2h_over_l", "coi_least", "k_star", "rank", "collapsed")
    return {name: float(f"{readings[name]:.5g}") for name in kept if name in readings}


@torch.no_grad()
def _zero_cost(problem: Problem) -> float:
    """Data cost of the network whose outputs are 0."""
    zero: Tensor = problem.x.new_zeros((problem.model.out_features, problem.x.shape[0]))
    return float(problem.loss.evaluate(zero, problem.y)[0])
