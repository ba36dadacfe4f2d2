"""`follow`: from one critical point along its branch to another value of a parameter, and what happens on the way.

While the branch is a minimum, points are found at fixed values: a prediction by the tangent, its outputs brought back
to where it aimed, then Newton's method. The next step follows from how well the last one went. A point counts as one of
the same branch where the way to it agrees with the tangents at both its ends (the trapezoidal rule). Where it does not,
the step is refused and shortened. A disagreement that the shortest step leaves is the branch's end: the point found is
the first of a new branch, and an event says so. On request, folds are looked for by steps along the branch
(`isthmus.branches.correct.beside`), which pass them and keep to a branch that has lost its stability.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from isthmus.branches.branch import Branch, BranchPoint
from isthmus.branches.family import Family, ProblemFamily
from isthmus.branches.follower import Follower
from isthmus.branches.saved import load, save
from isthmus.branches.settings import AtFold, Settings
from isthmus.problem import Problem
from isthmus.status import Status


def follow(
    problem: Problem | Family,
    parameter: str | Callable[[float], Problem] | None = None,
    stop: float | None = None,
    *,
    start: float | None = None,
    at: Sequence[float] = (),
    step: float | None = None,
    tolerance: float = 1e-5,
    at_fold: AtFold = "jump",
    resolution: float | None = None,
    eigenvalues: bool = True,
    keep: bool = True,
    budget: int | None = None,
    seconds: float | None = None,
    most: int = 1000,
    should_stop: Callable[[], bool] | None = None,
    on_point: Callable[[BranchPoint], None] | None = None,
    checkpoint: str | Path | None = None,
) -> Branch:
    """Follow a critical point as a parameter changes.

    The model is written in place, and holds the last point's parameters afterwards; the problem itself keeps its own
    value of the parameter: `Branch.restore` gives the problem that belongs to a point.

    Args:
        problem: at a critical point (`isthmus.solve` finds one), in float64, with a smooth σ; or any
            `isthmus.branches.Family`.
        parameter: ``mu``, ``effective_depth`` (at fixed μ), ``sharpness``, or a function from a number to problems of
            the same model. None for a family.
        stop: the value at which to end.
        start: the value to begin with: the problem's own by default; needed for functions and families.
        at: values between at which there must be points (of minima: on the way round a fold there may be none).
        step: first step: in log t for ``mu`` and ``sharpness``, else in t; by default 0.15, or 0.15 of the way.
        tolerance: on the residual of every point.
        at_fold: where a branch of minima ends. ``jump``: the minimum found beyond begins a new branch, and an event
            says between which points the old one ended. ``locate``: the same, after the fold was found to 1e-6 or
            better. ``turn`` round, and follow the saddle. ``stop``.
        resolution: shortest step, in the units of ``step``: a point that still disagrees with the tangents on it lies
            on another branch. A quarter of the first step by default, a 64th where folds are to be located.
        eigenvalues: compute the least eigenvalue of the Hessian at every point, as far as its sign. Without, a loss of
            stability is seen only where the tangent's solve meets it: a third cheaper, and less sure.
        keep: keep every point's parameters in the branch.
        budget: Hessian products at most.
        seconds: wall-clock budget; the step at hand is given up.
        most: points at most.
        should_stop: asked after every step of Newton's method.
        on_point: is given every point.
        checkpoint: a file to which the state is written after every point; where it exists, the branch is taken up from
            it, to the same points as if nothing had interrupted it.

    Raises:
        TypeError: a σ with kinks, float32 parameters, or a parameter of another kind.
        ValueError: an unknown parameter; a start or stop out of its range, or equal; values in `at` that are not
            between; a start that is no critical point; a checkpoint of another branch.

    >>> import torch
    >>> from isthmus import Identity, LeakyResNet, Problem, solve
    >>> x = torch.eye(2, dtype=torch.float64)
    >>> linear = Identity(append_one=False)
    >>> model = LeakyResNet(2, 2, width=2, depth=4, effective_depth=1.0, activation=linear, dtype=torch.float64)
    >>> problem = Problem(model, x, 2 * x, mu=0.1)
    >>> _ = solve(problem, tolerance=1e-7)
    >>> follow(problem, "mu", 0.05).status.value
    'converged'
    """
    family = problem if isinstance(problem, Family) else _family(problem, parameter)
    if stop is None:
        raise ValueError(f"stop must be given: the value of {family.name} at which to end")
    if start is None:
        if not isinstance(family, ProblemFamily):
            raise ValueError("start must be given: the value whose critical point the family's parameters are at")
        start = family.present()
    settings = Settings(
        start=family.check(start, "start"),
        stop=family.check(stop, "stop"),
        at=tuple(family.check(v, "at") for v in at),
        step=step,
        tolerance=tolerance,
        at_fold=at_fold,
        resolution=resolution,
        eigenvalues=eigenvalues,
        most=most,
    )
    settings.checked(family)
    if budget is not None and budget < 1:
        raise ValueError(f"budget (Hessian products) must be at least 1, got {budget}")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    began, stopped = time.monotonic(), False

    def late() -> bool:
        return seconds is not None and time.monotonic() - began >= seconds

    def halt() -> bool:
        nonlocal stopped  # once asked for, it stays: the step that it cut off must not count as one that failed
        stopped = stopped or late() or (should_stop is not None and should_stop())
        return stopped

    follower = Follower(family, settings, keep=keep, should_stop=halt)
    file = None if checkpoint is None else Path(checkpoint)
    if file is not None and file.exists():
        load(follower, file)
    else:
        follower.begin()
        if follower.status is Status.INTERRUPTED and late():
            follower.end(Status.BUDGET_SPENT, _MORE)
        if follower.points:
            _told(follower, on_point, file, 0)
    try:
        _go_on(follower, on_point, file, budget, late, halt)
    except BaseException:
        follower.put_back()  # not where the step at hand had come to
        raise
    return follower.branch()


_MORE = "out of seconds, products or points: give it more, with the same checkpoint where there is one"


def _go_on(
    follower: Follower,
    on_point: Callable[[BranchPoint], None] | None,
    file: Path | None,
    budget: int | None,
    late: Callable[[], bool],
    halt: Callable[[], bool],
) -> None:
    """Step by step to the end."""
    while follower.status is None:
        before = len(follower.points)
        if budget is not None and follower.products >= budget:
            follower.end(Status.BUDGET_SPENT, _MORE)
        elif halt():
            follower.end(*((Status.BUDGET_SPENT, _MORE) if late() else (Status.INTERRUPTED,)))
        else:
            follower.advance()
        _told(follower, on_point, file, before)


def _family(problem: object, parameter: str | Callable[[float], Problem] | None) -> ProblemFamily:
    if not isinstance(problem, Problem):
        raise TypeError(f"follow needs a Problem or a Family, got {type(problem).__name__}")
    if parameter is None:
        raise ValueError("parameter must be given: 'mu', 'effective_depth', 'sharpness' or a function")
    return ProblemFamily(problem, parameter)


def _told(follower: Follower, on_point: Callable[[BranchPoint], None] | None, file: Path | None, before: int) -> None:
    new = follower.points[before:]
    if file is not None and (new or follower.changed):
        save(follower, file)
    if on_point is not None:
        for point in new:
            on_point(point)
