"""`Branch`: the critical points that were followed, what happened on the way, and what can be asked of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import Tensor

from isthmus.branches.family import Family, ProblemFamily
from isthmus.geodesic import Geodesic
from isthmus.problem import Problem
from isthmus.status import Status


class EventKind(StrEnum):
    """What can happen on a branch. Equal to its text: ``event.kind == "fold"``."""

    FOLD = "fold"
    """The branch turns back: beyond this value of the parameter it has no critical point."""
    BIFURCATION = "bifurcation"
    """The least eigenvalue of the Hessian changes its sign while the branch goes on."""
    SWITCH = "switch"
    """A branch that leaves from a bifurcation was entered."""
    JUMP = "jump"
    """The branch's end: the minimum that was found next lies on another one."""
    RANK = "rank"
    """The bottleneck's rank changed between two points."""
    COLLAPSE = "collapse"
    """The outputs no longer depend on the inputs."""


@dataclass(frozen=True)
class Event:
    """Something that happened between two points of a branch.

    Args:
        kind: see `EventKind`.
        value: of the parameter where it happened.
        after: index of the last point before it.
        message: what, in words and numbers.
        error: of the value: it lies within this; NaN where it was not located.
    """

    kind: EventKind
    value: float
    after: int
    message: str
    error: float = math.nan


@dataclass(frozen=True)
class BranchPoint:
    """A critical point.

    Args:
        branch: number of the branch it lies on: 0 is the first, one more after each jump or switch.
        value: of the parameter.
        objective: data cost plus penalty.
        data_cost: C.
        penalty: the rest.
        residual: largest stationarity residual.
        stable: whether it is a minimum as far as was seen: no negative eigenvalue met. False is proven, True is not.
        least: the least eigenvalue of the Hessian met, relative to the metric of Newton's method.
        speed: ``‖dx/dτ‖/‖x‖``, how fast the parameters change with the coordinate (log t, or t); infinite at folds.
        direction: +1 where the branch goes up in t, −1 where down.
        steps: of Newton's method.
        products: Hessian products, all that this point has cost.
        seconds: wall-clock.
        readings: what was read from its path: see `isthmus.branches.readings`.
        parameters: copies of the trained tensors; None where they were not kept.
    """

    branch: int
    value: float
    objective: float
    data_cost: float
    penalty: float
    residual: float
    stable: bool
    least: float
    speed: float
    direction: int
    steps: int
    products: int
    seconds: float
    readings: dict[str, float] = field(default_factory=dict)
    parameters: tuple[Tensor, ...] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Branch:
    """What `follow` found.

    Args:
        family: what was followed.
        points: in the order in which they were found.
        events: likewise.
        status: how it ended.
        advice: what to do about that; empty where it reached the end.
    """

    family: Family
    points: tuple[BranchPoint, ...]
    events: tuple[Event, ...]
    status: Status
    advice: str = ""

    @property
    def parameter(self) -> str:
        """The name of what was followed."""
        return self.family.name

    @property
    def values(self) -> list[float]:
        """The parameter at every point."""
        return [p.value for p in self.points]

    @property
    def products(self) -> int:
        """Hessian products spent on all points."""
        return sum(p.products for p in self.points)

    def column(self, name: str) -> list[float]:
        """A field of the points, or a reading; NaN where a point lacks it.

        Raises:
            KeyError: neither.
        """
        if name in BranchPoint.__dataclass_fields__ and name not in ("readings", "parameters"):
            return [float(getattr(p, name)) for p in self.points]
        if not any(name in p.readings for p in self.points):
            known = sorted({k for p in self.points for k in p.readings})
            raise KeyError(f"no column {name!r}; there are the fields of BranchPoint and {', '.join(known)}")
        return [p.readings.get(name, math.nan) for p in self.points]

    def nearest(self, value: float) -> int:
        """The index of the point whose parameter is nearest to a value."""
        return min(range(len(self.points)), key=lambda i: abs(self.points[i].value - value))

    def restore(self, index: int) -> Problem:
        """Set the model's parameters to those of a point, and return its problem.

        Raises:
            RuntimeError: parameters were not kept (``keep=False``).
            TypeError: the family is not of problems.
        """
        point = self.points[index]
        if point.parameters is None:
            raise RuntimeError("parameters were not kept: follow with keep=True, or follow again to this value")
        if not isinstance(self.family, ProblemFamily):
            raise TypeError("only branches of problems have networks to restore")
        problem = self.family.at(point.value)
        for p, kept in zip(problem.parameters, point.parameters, strict=True):
            p.data.copy_(kept)
        return problem

    def geodesic(self, index: int) -> Geodesic:
        """The path of a point; sets the model's parameters to it."""
        return self.restore(index).geodesic(Status.CONVERGED)

    def rows(self) -> list[dict[str, Any]]:
        """A row of plain values a point, for tables and JSON; NaN and infinity as None."""
        found = []
        for p in self.points:
            row = {name: getattr(p, name) for name in BranchPoint.__dataclass_fields__}
            del row["readings"], row["parameters"]
            found.append({k: _plain(v) for k, v in (row | p.readings).items()})
        return found

    def __str__(self) -> str:
        return table(self.parameter, self.points, self.events)

    def __repr__(self) -> str:
        span = f"{self.values[0]:.4g} to {self.values[-1]:.4g}, " if self.points else ""
        events = f", {len(self.events)} events" if self.events else ""
        return f"Branch({self.parameter}: {span}{len(self.points)} points{events}, status={self.status.value!r})"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


_SHOWN = {"minus_2h_over_l": "−2H/L̃", "coi_least": "COI", "k_star": "k*"}


def table(parameter: str, points: Sequence[BranchPoint], events: Sequence[Event]) -> str:
    """Points as lines of text, each event after the point that it follows."""
    shown = [name for name in _SHOWN if any(name in p.readings for p in points)]
    heads = ["branch", parameter, "objective", "residual", "kind", *(_SHOWN[n] for n in shown), "Newton", "products"]
    lines = ["".join(f"{head:>12}" if head != parameter else f"{head:>16}" for head in heads)]
    for i, p in enumerate(points):
        kind = "minimum" if p.stable else "saddle"
        read = "".join(f"{p.readings.get(n, math.nan):>12.4g}" for n in shown)
        lines.append(
            f"{p.branch:>12}{p.value:>16.6g}{p.objective:>12.6g}{p.residual:>12.1e}{kind:>12}{read}"
            f"{p.steps:>12}{p.products:>12}"
        )
        lines += [f"    {e.kind.value} at {e.value:.6g}: {e.message}" for e in events if e.after == i]
    return "\n".join(lines)


def copied(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copies, detached."""
    return tuple(t.detach().clone() for t in tensors)
