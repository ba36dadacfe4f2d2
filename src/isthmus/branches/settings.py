"""How a branch is to be followed: the settings of `follow`, checked."""

import math
from dataclasses import dataclass
from typing import Literal

from isthmus.branches.family import Family
from isthmus.thresholds import BRANCH_START

AtFold = Literal["jump", "locate", "turn", "stop"]

_FIRST = 0.15  # first step: of log t, or of the way
_SHORTEST = 1 / 64  # of the first step: where folds are looked for, below it steps are taken along the branch
_RESOLUTION = 1 / 4  # of the first step: where they are not, a disagreement on it is a jump


@dataclass(frozen=True)
class Settings:
    """See `isthmus.branches.follow`."""

    start: float
    stop: float
    at: tuple[float, ...] = ()
    step: float | None = None
    tolerance: float = 1e-5
    at_fold: AtFold = "jump"
    resolution: float | None = None
    eigenvalues: bool = True
    most: int = 1000

    def checked(self, family: Family) -> None:
        """Whether the numbers fit together.

        Raises:
            ValueError: they do not.
        """
        if self.stop == self.start:
            raise ValueError(f"stop must differ from where the branch starts, {family.name} = {self.start:g}")
        low, high = sorted((self.start, self.stop))
        outside = [v for v in self.at if not low <= v <= high]
        if outside:
            raise ValueError(f"at must lie between start and stop, {low:g} and {high:g}; got {outside[0]:g}")
        if self.step is not None and not 0 < self.step < math.inf:
            raise ValueError(f"step must be positive (its sign follows from stop), got {self.step}")
        if not 0 < self.tolerance <= BRANCH_START:
            raise ValueError(f"tolerance must lie in (0, {BRANCH_START:g}], got {self.tolerance}")
        if self.at_fold not in ("jump", "locate", "turn", "stop"):
            raise ValueError(f"at_fold must be 'jump', 'locate', 'turn' or 'stop', got {self.at_fold!r}")
        if self.resolution is not None and not 0 < self.resolution <= self.first(family):
            raise ValueError(
                f"resolution (the shortest step) must lie in (0, {self.first(family):g}] (the first step), got "
                f"{self.resolution}"
            )
        if self.most < 2:
            raise ValueError(f"most (points) must be at least 2, got {self.most}")

    def first(self, family: Family) -> float:
        """The first step in the coordinate, positive."""
        if self.step is not None:
            return self.step
        way = abs(family.coordinate(self.stop) - family.coordinate(self.start))
        return min(_FIRST, way) if family.logarithmic else _FIRST * way

    def shortest(self, family: Family) -> float:
        """The shortest step at a fixed value, in the coordinate."""
        if self.resolution is not None:
            return self.resolution
        return self.first(family) * (_RESOLUTION if self.at_fold == "jump" else _SHORTEST)
