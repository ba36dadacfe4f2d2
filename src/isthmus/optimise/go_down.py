"""Away from a saddle: along a direction of negative curvature, both ways."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

# Of the length of the variables, the first step: a saddle is left for good where the objective is no longer quadratic.
_FIRST = 0.1
_HALVINGS, _DOUBLINGS = 20, 10


def go_down(
    value: Callable[[Tensor], float],
    x: Float[Tensor, "variables"],
    direction: Float[Tensor, "variables"],
    before: float,
    noise: float,
) -> Tensor | None:
    """The lower of the points that a search finds along a direction and against it; None where neither is lower.

    Each way steps are halved until the objective is lower than here, then doubled while it falls further.

    Args:
        value: the objective at a point.
        x: the saddle.
        direction: of norm 1.
        before: the objective at the saddle.
        noise: its rounding: only what is lower by more counts.
    """
    best, lowest = None, before - noise
    for sign in (1.0, -1.0):
        step = sign * _FIRST * max(float(x.norm()), 1.0)
        for _ in range(_HALVINGS):
            now = value(x + step * direction)
            if now < before - noise:
                break
            step *= 0.5
        else:
            continue
        for _ in range(_DOUBLINGS):
            further = value(x + 2 * step * direction)
            if not further < now:
                break
            now, step = further, 2 * step
        if now < lowest:
            best, lowest = x + step * direction, now
    return best
