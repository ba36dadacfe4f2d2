"""What becomes of a step of Newton's method: tried, corrected, shortened, taken or refused, and the radius after it.

A step that conjugate gradients found in a ball is tried; second-order corrections bring back what moved against its
linear prediction (Conn, Gould and Toint 2000, section 15.3.2.3); where it brings too little of the decrease that was
predicted, the solutions in smaller balls, which cost no products, are tried as well.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from isthmus.optimise.truncated_cg import TruncatedStep

SMALLER = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Balls inside the trust region, as shares of its radius, whose solutions are kept."""

# As fractions of the predicted decrease: from the first on, a trial is not corrected any more; below the second, a
# shorter step is tried; below the last, every trial is refused.
_GOOD, _ACCEPTABLE, _ANY = 0.9, 0.25, 1e-3

Restorer = Callable[[Tensor], Callable[[], Tensor]]
"""Takes a step; returns a function for what to add to the last evaluated point so that it is where the step aimed."""


@dataclass(frozen=True)
class _Trial:
    """A point that a step led to: the step with its corrections, and the part of the predicted decrease it brings."""

    x: Tensor
    step: TruncatedStep
    ratio: float


def choose(
    found: TruncatedStep,
    x: Tensor,
    before: float,
    noise: float,
    value: Callable[[Tensor], float],
    restorer: Restorer | None = None,
    corrections: int = 0,
) -> tuple[Tensor | None, float | None]:
    """Where to go, and the new radius.

    Args:
        found: the step, with the shorter ones in it.
        x: the present point.
        before: the objective there.
        noise: its rounding: steps whose predicted decrease is not above ten times that are not tried.
        value: the objective at a point; infinite where it is not finite.
        restorer: see `Restorer`; None: no corrections.
        corrections: of a trial at most.

    Returns:
        The point, None where every trial is refused; and the new radius, None where it stays.
    """
    best: _Trial | None = None
    for step in (found, *found.shorter):
        if step.decrease <= 10 * noise:
            break
        trial = _try(step, x, before, value, restorer, corrections)
        if best is None or trial.ratio * trial.step.decrease > best.ratio * best.step.decrease:
            best = trial
        if trial.ratio >= _ACCEPTABLE:
            break
    if best is None or best.ratio <= _ANY:
        return None, 0.5 * min(step.length for step in (found, *found.shorter))
    if best.ratio < _ACCEPTABLE:
        return best.x, 0.5 * best.step.length
    if best.step is not found:  # longer ones failed just now
        return best.x, best.step.length
    return best.x, 2 * found.length if best.ratio > 0.75 and found.limited else None


def _try(
    step: TruncatedStep,
    x: Tensor,
    before: float,
    value: Callable[[Tensor], float],
    restorer: Restorer | None,
    corrections: int,
) -> _Trial:
    """Go along a step, and correct it while that helps."""
    corrected = x + step.x
    now = value(corrected)
    best = _Trial(corrected, step, (before - now) / step.decrease)
    if restorer is None or best.ratio >= _GOOD or not math.isfinite(now):
        return best
    restoration = restorer(step.x)
    for count in range(corrections):
        corrected = corrected + restoration()
        ratio = (before - value(corrected)) / step.decrease
        if math.isfinite(ratio) and ratio > best.ratio:
            best = _Trial(corrected, step, ratio)
        elif count > 0:
            break
        if best.ratio >= _GOOD:
            break
    return best
