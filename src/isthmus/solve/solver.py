"""`solve`: from a problem to a certified path, with a status that says how it ended."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from isthmus.certificate import Certificate, certify, kind_of
from isthmus.geodesic import Geodesic
from isthmus.problem import Problem
from isthmus.solve.recipes import Stage, recipe
from isthmus.solve.trainer import Record, Trainer
from isthmus.status import ADVICE, Status
from isthmus.thresholds import CRITICAL, CRITICAL_AT_KINKS


@dataclass(frozen=True, repr=False)
class Solution(Geodesic):
    """A geodesic with its certificate.

    Args:
        certificate: how critical it is, checked in float64.
        advice: what to try; empty where it converged.
        statistics: steps, seconds, the stages with their steps; of a last stage of Newton's the Hessian products, and
            the saddles that it came to and left.
        history: rows of `Trainer.history`.
    """

    certificate: Certificate | None = None
    advice: str = ""
    statistics: dict[str, Any] = field(default_factory=dict)
    history: list[Record] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        """As of a geodesic, with the residual."""
        residual = float("nan") if self.certificate is None else self.certificate.residual_max
        return f"{super().__repr__()[:-1]}, residual={residual:.2g})"


def _status(certificate: Certificate, ended: Status, tolerance: float) -> Status:
    if ended is Status.DIVERGED:
        return Status.DIVERGED
    if certificate.collapsed:
        return Status.COLLAPSED
    if certificate.residual_max <= tolerance:
        return Status.CONVERGED
    if certificate.kink_residual is not None and certificate.kink_residual <= max(tolerance, CRITICAL_AT_KINKS):
        return Status.STALLED_AT_KINKS
    return Status.INTERRUPTED if ended is Status.INTERRUPTED else Status.BUDGET_SPENT


def solve(
    problem: Problem,
    stages: str | Sequence[Stage] = "geodesic",
    *,
    steps: int | None = None,
    tolerance: float = CRITICAL,
    seconds: float | None = None,
    on_record: Callable[[Record], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    log_every: int = 20,
    kink_width: float = 1e-3,
) -> Solution:
    """Train a problem's model towards a critical point of (E3), and certify what was reached.

    The model is changed in place, and may be one that was trained before. Where it is a smooth one and critical, the
    certificate says minimum, saddle or undecided; recipe ``geodesic`` goes on at saddles.

    Args:
        problem: model, data, weight decay.
        stages: name of a recipe, or stages: optimisers with their conditions, see `isthmus.solve.Stage`.
        steps: of the whole recipe; None for its own number. Not for stages given one by one.
        tolerance: on every layer's stationarity residual, at which to stop.
        seconds: wall-clock budget; the step at hand is finished.
        on_record: is given every history row.
        should_stop: asked after every step.
        log_every: steps between history rows, at which the tolerance is checked.
        kink_width: see `isthmus.certificate.certify`.

    Raises:
        ValueError: an unknown recipe, or arguments out of range; `steps` beside stages.

    >>> from isthmus import Identity, LeakyResNet, Problem, make_task
    >>> import torch
    >>> task = make_task("teacher", dims=(3, 1, 3), train=30, test=5)
    >>> model = LeakyResNet(3, 3, width=4, depth=4, effective_depth=2.0, activation=Identity(), dtype=torch.float64)
    >>> solve(Problem(model, task.x_train, task.y_train, mu=0.01), steps=400).status.value
    'converged'
    """
    if isinstance(stages, str):
        chosen: Sequence[Stage] = recipe(stages, steps)
    elif steps is not None:
        raise ValueError("steps go with the name of a recipe; stages have their own")
    else:
        chosen = stages
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    trainer = Trainer(problem, chosen, log_every=log_every, tolerance=tolerance)
    started, spent = time.perf_counter(), False

    def stop() -> bool:
        nonlocal spent
        spent = spent or (seconds is not None and time.perf_counter() - started >= seconds)
        return spent or (should_stop is not None and should_stop())

    ended = trainer.run(on_record=on_record, should_stop=stop)
    elapsed = time.perf_counter() - started
    geodesic = problem.geodesic()
    kind = kind_of(problem, start=trainer.least_direction)
    certificate = certify(geodesic, kink_width, kind=kind)
    how = Status.DONE if spent and ended.status is Status.INTERRUPTED else ended.status
    status = _status(certificate, how, tolerance)
    values = {f.name: getattr(geodesic, f.name) for f in fields(geodesic)} | {"status": status}
    return Solution(
        **values,
        certificate=certificate,
        advice=ended.advice if status is Status.DIVERGED else ADVICE[status],
        statistics={
            "steps": trainer.step_count,
            "seconds": elapsed,
            "stages": [f"{stage.optimiser.name} {stage.steps}" for stage in chosen],
            "hessian_products": trainer.hessian_products,
            "saddles_left": trainer.saddles_left,
        },
        history=trainer.history,
    )
