"""Conjugate gradients for a step of Newton's method inside a trust region (Steihaug 1983, Toint 1981)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True)
class TruncatedStep:
    """An approximate minimiser of ``⟨g, x⟩ + ½⟨x, Hx⟩`` over a ball of the metric.

    Args:
        x: the step, flat.
        decrease: of the quadratic model, ≥ 0.
        length: of the step in the metric ``⟨x, P x⟩^½``, P the preconditioner.
        limited: whether it ended on the ball's boundary: too long, or along negative curvature.
        products: Hessian products spent.
        shorter: the steps to the boundaries of the smaller balls asked for, where it went beyond, longest first.
    """

    x: Tensor
    decrease: float
    length: float
    limited: bool
    products: int
    shorter: tuple["TruncatedStep", ...] = ()


def truncated_cg(
    product: Callable[[Tensor], Tensor],
    gradient: Tensor,
    inverse: Callable[[Tensor], Tensor],
    radius: float,
    accuracy: float,
    limit: int,
    smaller: Sequence[float] = (),
) -> TruncatedStep:
    """Go to the boundary where curvature is negative or the step too long; else until the residual is small.

    Args:
        product: ``v ↦ Hv``.
        gradient: g, flat.
        inverse: ``v ↦ P⁻¹v``, positive definite.
        radius: of the ball in the metric of P.
        accuracy: the residual's norm, relative to its first, at which to stop.
        limit: products at most.
        smaller: radii of smaller balls, ascending: the way to the step passes their own solutions, which are kept for
            the case that it is refused.
    """
    x, r = gradient.new_zeros(gradient.shape), -gradient
    z = inverse(r)
    d = z.clone()
    rz = start = float((r * z).sum())
    decrease, xx, xd, dd = 0.0, 0.0, 0.0, rz  # inner products in the metric, by recurrence
    shorter: list[TruncatedStep] = []
    if not start > 0:  # a gradient of zero, or one whose square underflows
        return TruncatedStep(x, 0.0, 0.0, False, 0)
    for count in range(1, limit + 1):
        Hd = product(d)
        curvature = float((d * Hd).sum())
        step = rz / curvature if curvature > 0 else math.inf
        for ball in (*smaller[len(shorter) :], radius):
            if xx + 2 * step * xd + step * step * dd < ball * ball:
                break
            to = (-xd + math.sqrt(xd * xd + dd * (ball * ball - xx))) / dd
            gained = decrease + to * rz - 0.5 * to * to * curvature
            shorter.append(TruncatedStep(x.add(d, alpha=to), gained, ball, True, count))
        if len(shorter) > len(smaller):
            *kept, last = shorter
            return replace(last, shorter=tuple(reversed(kept)))
        x.add_(d, alpha=step)
        r.add_(Hd, alpha=-step)
        decrease += 0.5 * step * rz
        xx += 2 * step * xd + step * step * dd
        z = inverse(r)
        rz, before = float((r * z).sum()), rz
        if rz <= accuracy**2 * start:
            break
        beta = rz / before
        d.mul_(beta).add_(z)
        xd, dd = beta * (xd + step * dd), rz + beta * beta * dd
    return TruncatedStep(x, decrease, math.sqrt(xx), False, count, tuple(reversed(shorter)))
