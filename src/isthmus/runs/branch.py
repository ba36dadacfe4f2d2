"""A branch followed into a folder: where it starts, how it is taken up again, what is written.

The start is the network of a run, or one that is solved here. What the folder holds is in `isthmus.runs.branch_folder`.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.branches import PARAMETERS, Branch, BranchPoint, ProblemFamily, follow, points_of
from isthmus.branches.follower import AtFold, Settings
from isthmus.problem import Problem
from isthmus.runs.branch_folder import (
    BRANCH,
    END,
    START,
    STATE,
    VERSION,
    check_startable,
    clear,
    is_branch,
    load_branch,
    read_branch,
    write_tables,
)
from isthmus.runs.build import build, build_task, restore_model, restore_problem
from isthmus.runs.config import RunConfig
from isthmus.runs.environment import describe_environment, resumed
from isthmus.runs.execution import threads
from isthmus.runs.folder import RunFolder
from isthmus.runs.problems import show_value
from isthmus.runs.products import reading_summary
from isthmus.runs.saved import read_saved
from isthmus.runs.state import save_state
from isthmus.solve import Solution, recipe, solve
from isthmus.status import ADVICE, Status
from isthmus.thresholds import BRANCH_START

if TYPE_CHECKING:
    from isthmus.geodesic import Geodesic
    from isthmus.solve import Record

SOLVER = "geodesic"
"""The recipe that makes a critical point of a start that is none."""
KEYS = {"mu": "train.mu", "effective_depth": "model.effective_depth", "sharpness": "model.sharpness"}
"""Where the configuration has each parameter."""


@dataclass(frozen=True)
class Following:
    """What is followed, and how; see `isthmus.branches.follow`.

    Args:
        parameter: ``mu``, ``effective_depth`` or ``sharpness``.
        to: its value at the end.
        at: values between that must have a point.
        step: the first step.
        tolerance: on the residual of every point.
        at_fold: what to do where a branch of minima ends.
        eigenvalues: compute the least eigenvalue at every point.
        weights: keep every point's weights.
    """

    parameter: str
    to: float
    at: tuple[float, ...] = ()
    step: float | None = None
    tolerance: float = 1e-5
    at_fold: AtFold = "jump"
    eigenvalues: bool = True
    weights: bool = True

    @classmethod
    def given(cls, values: Mapping[str, Any]) -> "Following":
        """From those that were given; the others take their defaults.

        Raises:
            ValueError: no parameter, or no end.
        """
        if "parameter" not in values:
            raise ValueError(f"--parameter is missing: give one of {', '.join(PARAMETERS)}")
        if "to" not in values:
            raise ValueError(f"--to is missing: the value of {values['parameter']} at which to end")
        return cls(**values)

    def check(self, family: ProblemFamily) -> None:
        """Whether the numbers fit the start.

        Raises:
            ValueError: they do not; the message names the option.
        """
        start, name = family.present(), self.parameter
        family.check(self.to, "--to")
        for value in self.at:
            family.check(value, "--at")
        if self.to == start:
            raise ValueError(f"--to must differ from where the branch starts, {name} = {start:g}")
        low, high = sorted((start, self.to))
        outside = [value for value in self.at if not low <= value <= high]
        if outside:
            raise ValueError(f"--at must lie between the start and --to, {low:g} and {high:g}; got {outside[0]:g}")
        settings = Settings(start, self.to, self.at, self.step, self.tolerance, self.at_fold)
        settings.checked(family)


@dataclass(frozen=True)
class Origin:
    """Where the first network comes from, as it was given.

    Args:
        run: the folder of a run, or its model.safetensors.
        config: a configuration to solve from its initial weights.
        sharpness: of a smooth ReLU that replaces the network's own ReLU.
    """

    run: Path | None = None
    config: RunConfig | None = None
    sharpness: float | None = None


class Watcher:
    """Is told what happens; this one does nothing with it."""

    def begin(self, folder: Path, data: Mapping[str, Any]) -> None:
        """The folder, and the content of branch.json, before anything is computed."""

    def solving(self, residual: float, steps: int) -> None:
        """The start's residual is too large: it is solved, in at most these steps."""

    def record(self, row: "Record") -> None:
        """A row of that solution's history."""

    def solved(self, solution: Solution) -> None:
        """The start was solved, or not."""

    def point(self, point: BranchPoint) -> None:
        """A point was found."""

    def should_stop(self) -> bool:
        """Whether to stop, saved."""
        return False


@dataclass(frozen=True)
class Followed:
    """How it ended.

    Args:
        status: of the branch, or of the solution of its start.
        advice: what to do about that; "" for nothing.
        folder: where everything is.
        branch: what was found; None where there was no start.
    """

    status: Status
    advice: str
    folder: Path
    branch: Branch | None


@dataclass
class _Plan:
    """A start, and what to do with it."""

    following: Following
    config: RunConfig
    problem: Problem
    fingerprint: str | None
    start: dict[str, Any]
    before: dict[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> ProblemFamily:
        return ProblemFamily(self.problem, self.following.parameter)


def execute_branch(
    folder: str | Path,
    origin: Origin,
    given: Mapping[str, Any],
    *,
    seconds: float | None = None,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> Followed:
    """Follow a critical point into a folder; a branch that is there already is taken up.

    A start whose residual is beyond `isthmus.thresholds.BRANCH_START` is solved first. A branch that was cut off goes
    on to the same points as one that was not; one that has ended goes on to a further ``to``.

    Args:
        folder: absent or empty, or that of a branch.
        origin: where the first network comes from; may be left out where the folder holds a branch.
        given: fields of `Following`, as far as they are not to be the defaults or those of the branch in the folder.
        seconds: wall-clock budget of this call; what was reached is saved.
        overwrite: delete the branch in the folder first.
        watcher: is told what happens.

    Raises:
        ValueError: options that are missing, out of range, or other than those of the branch in the folder; nothing to
            start from; an activation with kinks (see `Origin`).
        FolderError: the folder is busy, or holds something else.
        StateError, ConfigError: a start that cannot be read; see `isthmus.runs.saved.read_saved`.
    """
    place, watcher = RunFolder(folder), watcher or Watcher()
    if seconds is not None and not seconds > 0:
        raise ValueError(f"--seconds must be positive, got {seconds:g}")
    there = is_branch(place.path) and not overwrite
    if not there:
        check_startable(place, overwrite=overwrite)
    plan = _further(place, origin, given) if there else _new(origin, given)
    with threads(plan.config.train.threads), place.lock():
        if not there:
            check_startable(place, overwrite=overwrite)  # again: another process may have been faster
            clear(place)
        return _Session(place, plan, watcher, seconds).run()


def _new(origin: Origin, given: Mapping[str, Any]) -> _Plan:
    """From a run, or from a configuration."""
    following = Following.given(given)
    notes: list[str] = []
    if origin.run is not None:
        saved = read_saved(origin.run)
        if saved.config.train.dtype != "float64":
            notes.append(f"weights of {saved.config.train.dtype}, taken to float64")
        config = _suited(saved.config, origin.sharpness, str(origin.run), notes)
        problem, digest = restore_problem(replace(saved, config=config)), saved.fingerprint
        start: dict[str, Any] = {"run": str(origin.run.resolve()), "step": saved.step}
    elif origin.config is not None:
        config = _suited(origin.config, origin.sharpness, "the configuration", notes).resolved()
        built = build(config, None if config.model.init_from is None else read_saved(config.model.init_from))
        problem, digest, start = built.trainer.problem, built.fingerprint, {"run": None}
    else:
        raise ValueError("there is nothing to start from: give the folder of a run, or --config FILE")
    plan = _Plan(following, config.merge({"model.init_from": None}), problem, digest, start | {"notes": notes})
    following.check(plan.family)
    return plan


def _suited(config: RunConfig, sharpness: float | None, where: str, notes: list[str]) -> RunConfig:
    """A configuration with a smooth σ, in float64 on the CPU; what was changed is noted.

    Raises:
        ValueError: a ReLU, and no sharpness for a smooth one; a sharpness of the identity.
    """
    model = config.model
    values: dict[str, Any] = {"train.dtype": "float64", "train.device": "cpu", "train.extend": ()}
    values |= {"train.recipe": SOLVER, "train.steps": None, "train.rate": None, "train.batch_size": None}
    if model.activation == "relu" and sharpness is None:
        raise ValueError(
            f"{where} has a ReLU, and a branch needs a smooth σ: at ReLU's kinks a minimum is no root of the gradient. "
            "--sharpness 20 puts a smooth ReLU of that sharpness in its place, and solves again from the same weights"
        )
    if sharpness is not None:
        if model.activation == "identity":
            raise ValueError(f"--sharpness is for networks with a ReLU or a smooth one; {where} has the identity")
        if (model.activation, model.sharpness) != ("smooth_relu", sharpness):
            notes.append(f"{model.activation} replaced by a smooth ReLU of sharpness {sharpness:g}")
        values |= {"model.activation": "smooth_relu", "model.sharpness": sharpness}
    return config.merge(values)


def _further(place: RunFolder, origin: Origin, given: Mapping[str, Any]) -> _Plan:
    """The branch in a folder, taken up.

    Raises:
        ValueError: options that differ from those of the branch, or an end that lies behind.
    """
    data = load_branch(place.path)
    stored = data.settings | {"at": tuple(data.settings["at"])}
    names = {f.name for f in fields(Following)}
    following = Following(**{name: value for name, value in stored.items() if name in names})
    saved = read_saved(place / START)
    differing = [
        f"--{name.replace('_', '-')} {show_value(value)}, and not {show_value(stored[name])}"
        for name, value in given.items()
        if name not in ("to", "at") and value != stored[name]
    ]
    if origin.run is not None and str(origin.run.resolve()) != data.start.get("run"):
        differing.append(f"the start {origin.run}, and not {data.start.get('run') or 'a configuration'}")
    if origin.config is not None:
        theirs = _suited(origin.config, origin.sharpness, "the configuration", []).resolved()
        keys = theirs.merge({"model.init_from": None}).differences(saved.config)
        differing += [f"another {key}" for key in keys if key not in ("name", "train.threads")]
    elif origin.sharpness is not None and origin.sharpness != saved.config.model.sharpness:
        differing.append(f"--sharpness {origin.sharpness:g}, and not {saved.config.model.sharpness:g}")
    if differing:
        raise ValueError(
            f"{place.path} holds another branch than the one asked for: {'; '.join(differing)}. Leave that out to go "
            "on with it, choose another --out, or replace it with --overwrite"
        )
    following = replace(following, **{name: value for name, value in given.items() if name in ("to", "at")})
    plan = _Plan(following, saved.config, restore_problem(saved), saved.fingerprint, data.start)
    plan.before = read_branch(place.path)
    following.check(plan.family)
    _check_ahead(plan, stored["to"], data.values)
    return plan


def _check_ahead(plan: _Plan, before: float, values: list[float]) -> None:
    """The end may move ahead, not back."""
    start, to = plan.family.present(), plan.following.to
    way = before - start
    if (to - start) * way < 0:
        raise ValueError(
            f"--to {to:g} lies on the other side of the start, {start:g}: follow that way into another folder by --out"
        )
    if to != before and values and (to - values[-1]) * way <= 0:
        raise ValueError(f"--to {to:g} lies behind the last point of the branch, {values[-1]:g}: nothing is left to do")


class _Session:
    """One call of `execute_branch`, under the folder's lock."""

    def __init__(self, place: RunFolder, plan: _Plan, watcher: Watcher, seconds: float | None) -> None:
        self.place, self.plan, self.watcher, self.seconds = place, plan, watcher, seconds
        self.began = time.monotonic()
        before = plan.before
        now = describe_environment(device="cpu", dtype="float64", seed=plan.config.seed)
        self.content: dict[str, Any] = {
            "version": VERSION,
            "settings": asdict(plan.following) | {"start": plan.family.present()},
            "start": plan.start,
            "config": plan.config.model_dump(mode="json"),
            "environment": resumed(before.get("environment", {}), now),
            "points": before.get("points", []),
            "events": before.get("events", []),
            "status": Status.UNKNOWN.value,
            "advice": "",
            "reading": before.get("reading", {}),
            "seconds": before.get("seconds", 0.0),
        }
        self.spent = float(self.content["seconds"])

    def run(self) -> Followed:
        """To the end, or as far as it goes."""
        if not (self.place / START).is_file():
            self._write_network(START, self.plan.family.present())
        self._write()
        self.watcher.begin(self.place.path, self.content)
        if not (self.place / STATE).is_file():
            failed = self._solve()
            if failed is not None:
                return failed
        left = self._left()
        if left is not None and left <= 0:
            return self._ended(Status.BUDGET_SPENT, ADVICE[Status.BUDGET_SPENT], None)
        following = self.plan.following
        branch = follow(
            self.plan.family,
            stop=following.to,
            at=following.at,
            step=following.step,
            tolerance=following.tolerance,
            at_fold=following.at_fold,
            eigenvalues=following.eigenvalues,
            keep=following.weights,
            seconds=left,
            should_stop=self.watcher.should_stop,
            on_point=self._point,
            checkpoint=self.place / STATE,
        )
        return self._finish(branch)

    def _left(self) -> float | None:
        return None if self.seconds is None else self.seconds - (time.monotonic() - self.began)

    def _write(self, **values: Any) -> None:
        self.content |= values | {"seconds": self.spent + time.monotonic() - self.began}
        self.place.write_json(BRANCH, self.content)

    def _write_network(self, name: str, value: float) -> None:
        """The model's present parameters, with the configuration that has this value of the parameter."""
        config = self.plan.config.merge({KEYS[self.plan.following.parameter]: value})
        rebuild = {"config": config.model_dump(mode="json"), "step": 0, "fingerprint": self.plan.fingerprint}
        state = {**self.plan.problem.model.state_dict(), "rebuild": rebuild}
        self.place.write_bytes(name, save_state(state, "model"))

    def _solve(self) -> Followed | None:
        """Make a critical point of the start where it is none; how it ended where that failed."""
        problem, tolerance = self.plan.problem, self.plan.following.tolerance
        problem.evaluate()
        residual = float(problem.residual().max())
        if residual <= BRANCH_START:
            return None
        self.watcher.solving(residual, sum(stage.steps for stage in recipe(SOLVER)))
        solution = solve(
            problem,
            SOLVER,
            tolerance=tolerance,
            seconds=self._left(),
            on_record=self.watcher.record,
            should_stop=self.watcher.should_stop,
        )
        reached = solution.certificate.residual_max
        self._write_network(START, self.plan.family.present())
        about = {"residual_before": residual, "residual": reached, "objective": solution.objective}
        about |= {"status": solution.status.value, "seconds": solution.statistics["seconds"]}
        self.plan.start["solved"] = about
        self._write(start=self.plan.start)
        self.watcher.solved(solution)
        if solution.status is Status.INTERRUPTED:
            return self._ended(solution.status, ADVICE[solution.status], None)
        if not reached <= BRANCH_START:
            name, value = self.plan.following.parameter, self.plan.family.present()
            advice = (
                f"no critical point was found at the start, {name} = {value:g}: the residual is {reached:.2g} after "
                f"{self.plan.start['solved']['seconds']:.0f} s of solving, and must come below {BRANCH_START:g}. Give "
                "the same command again to solve on from there, or start where it is easier: with a larger train.mu, a "
                "smaller model.effective_depth, or a lower sharpness"
            )
            status = solution.status if solution.status is not Status.CONVERGED else Status.STALLED
            return self._ended(status, advice, None)
        return None

    def _point(self, point: BranchPoint) -> None:
        row = Branch(self.plan.family, (point,), (), Status.UNKNOWN).rows()[0]
        self._write(points=[*self.content["points"], row])
        self.watcher.point(point)

    def _finish(self, branch: Branch) -> Followed:
        """The tables, the last network and what it shows; branch.json last."""
        rows = branch.rows()
        reading: dict[str, Any] = {}
        if rows:
            write_tables(self.place, list(rows))
            self._write_network(END, branch.values[-1])
            if branch.status is not Status.INTERRUPTED:
                reading = read_end(self.place.path)
        events = [asdict(event) | {"kind": event.kind.value} for event in branch.events]
        self._write(points=rows, events=events, reading=reading)
        return self._ended(branch.status, branch.advice, branch)

    def _ended(self, status: Status, advice: str, branch: Branch | None) -> Followed:
        self._write(status=status.value, advice=advice)
        return Followed(status, advice, self.place.path, branch)


def read_end(folder: Path) -> dict[str, Any]:
    """What the network of the last point shows: costs, residual, verdict.

    Args:
        folder: of a branch.
    """
    from isthmus.bottleneck import bottleneck
    from isthmus.mechanics import mechanics

    saved = read_saved(folder / END)
    config = saved.config
    task = build_task(config)
    tested = len(task.x_test) > 0
    problem = Problem(
        restore_model(saved),
        task.x_train,
        task.y_train,
        loss=task.loss,
        mu=config.train.mu,
        x_test=task.x_test if tested else None,
        y_test=task.y_test if tested else None,
    )
    geodesic: Geodesic = problem.geodesic(Status.CONVERGED)
    table = mechanics(geodesic, gamma0=config.analysis.gamma0, rank_threshold=config.analysis.rank_threshold)
    test_cost = problem.test()[0]
    nothing = problem.y.new_zeros(problem.model.out_features, len(problem.x), dtype=geodesic.A.dtype)
    zero_cost = float(problem.loss.evaluate(nothing, problem.y)[0])
    reading = bottleneck(geodesic, table, config.analysis.rank_threshold, test_cost, zero_cost)
    scores = {"objective": geodesic.objective, "data_cost": geodesic.data_cost, "test_cost": test_cost}
    return scores | table.summary() | reading_summary(reading)


@dataclass(frozen=True)
class PointSpectra:
    """Singular values of the states of one point.

    Args:
        index: of the point.
        value: of the parameter.
        p: of the states ``A_0 … A_L``.
        values: those of each state, in falling order.
    """

    index: int
    value: float
    p: list[float]
    values: list[list[float]]


def branch_spectra(folder: str | Path, most: int = 40) -> list[PointSpectra]:
    """Spectra of the states of a branch's points, from the weights that were kept; empty where they were not.

    Args:
        folder: of a branch.
        most: points at most, at even distances, the first and the last among them.

    Raises:
        RunFolderError, StateError, ValueError: files that are missing or cannot be read.
    """
    from isthmus.mechanics import spectra

    data, place = load_branch(folder), RunFolder(folder)
    if not data.settings["weights"] or not (place / STATE).is_file():
        return []
    points = points_of(place / STATE)
    kept = [i for i, point in enumerate(points) if point.parameters is not None]
    if not kept:
        return []
    number = min(most, len(kept))
    chosen = sorted({kept[round(k * (len(kept) - 1) / max(number - 1, 1))] for k in range(number)})
    family = ProblemFamily(restore_problem(read_saved(place / START)), data.parameter)
    branch = Branch(family, tuple(points), (), Status.UNKNOWN)
    found = []
    for index in chosen:
        geodesic = branch.geodesic(index)
        values = [spectra(state).tolist() for state in geodesic.A]
        found.append(PointSpectra(index, points[index].value, geodesic.positions.tolist(), values))
    return found
