"""A claim's rule, and the verdict that follows from it by code alone."""

import math
from dataclasses import dataclass
from enum import StrEnum

from isthmus.claims.intervals import Interval


class Verdict(StrEnum):
    """What the data say about a claim."""

    HOLDS = "holds"
    """The whole interval lies where the rule wants it."""
    FAILS = "fails"
    """The whole interval lies outside."""
    UNDECIDED = "undecided"
    """The interval reaches over the rule's border, or there are too few seeds for one."""


FEWEST = 3
"""Seeds below which there is no interval, and so no verdict."""


@dataclass(frozen=True)
class Rule:
    """Where the estimate has to lie, written before it is measured.

    Args:
        low: least value, included; −inf for none.
        high: largest value, included; inf for none.

    Raises:
        ValueError: an empty range, or one without any border.
    """

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low <= self.high or (self.low, self.high) == (-math.inf, math.inf):
            raise ValueError(f"a rule needs a range with a border, low ≤ high, got {self.low} to {self.high}")

    def __str__(self) -> str:
        low, high = (f"{border:g}".replace("-", "−") for border in (self.low, self.high))
        if self.low == -math.inf:
            return f"≤ {high}"
        if self.high == math.inf:
            return f"≥ {low}"
        return f"= {low}" if self.low == self.high else f"{low} to {high}"

    def judge(self, interval: Interval) -> Verdict:
        """The verdict on an estimate with its interval.

        >>> Rule(high=0.1).judge(Interval(0.05, 0.02, 0.08, 10))
        <Verdict.HOLDS: 'holds'>
        """
        if interval.seeds < FEWEST or not (math.isfinite(interval.low) and math.isfinite(interval.high)):
            return Verdict.UNDECIDED
        if self.low <= interval.low and interval.high <= self.high:
            return Verdict.HOLDS
        if interval.high < self.low or interval.low > self.high:
            return Verdict.FAILS
        return Verdict.UNDECIDED


@dataclass(frozen=True)
class Row:
    """A line of the table of claims.

    Args:
        key: short name of the claim.
        statement: a sentence that a run can contradict.
        source: where the claim is made.
        reading: which networks it was measured on, a key of `isthmus.claims.pictures.READINGS`.
        measure: what is measured on each seed.
        rule: where the estimate has to lie.
        estimate: median over seeds.
        low: lower end of the 95 % interval; NaN for none.
        high: upper end.
        seeds: those that the claim could be measured on.
        networks: how many networks were read.
        certified: how many of them are certified critical points.
        verdict: what follows.
        command: what reproduces the row.
        note: what to know about it; "" for nothing.
    """

    key: str
    statement: str
    source: str
    reading: str
    measure: str
    rule: str
    estimate: float
    low: float
    high: float
    seeds: int
    networks: int
    certified: int
    verdict: Verdict
    command: str
    note: str = ""
