"""Where on a branch something happens: folds and changes of stability, between two points that lie on either side."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.branches.correct import Direction, Here, Local, beside
from isthmus.branches.family import Family
from isthmus.curvature import Lowest, lowest, sign_is_clear, spectrum

_STEPS = 25
_COUNTED = 200  # variables up to which all eigenvalues are computed
_FINE = 1e-9  # residual of located points
_ACCURACY = 2e-8  # of the coordinate


@dataclass(frozen=True)
class Located:
    """A place on a branch.

    Args:
        here: the point.
        along: the branch's direction there.
        error: of the coordinate.
        vector: the eigenvector of the eigenvalue that vanishes; None at folds, where it is the direction.
        products: spent.
    """

    here: Here
    along: Direction
    error: float
    vector: Float[Tensor, "variables"] | None
    products: int


def least_eigenvalue(
    local: Local, start: Tensor | None = None, accuracy: float | None = None, limit: int = 200
) -> Lowest:
    """The least eigenvalue of the Hessian at a point, as accurate as its sign needs.

    Args:
        local: the point.
        start: an eigenvector near.
        accuracy: wanted, in units of the weight decay; by default the sign alone.
        limit: products at most.
    """
    x, mu = local.here.x, local.scaled.mu
    if len(x) <= _COUNTED:
        values, vectors, error = spectrum(local.exact(), x)
        return Lowest(values[:1], vectors[:, :1].T.contiguous(), x.new_tensor([error]), mu, len(x), True)
    given = None if start is None or not 0 < float(start.norm()) < math.inf else start
    if accuracy is not None:
        return lowest(local.hessian, local.scaled, local.metric, 1, accuracy, limit, given)
    # a neighbour's eigenvector alone never shows what is orthogonal to it
    chance = torch.randn(len(x), dtype=x.dtype, generator=torch.Generator().manual_seed(0)).to(x.device)
    chance = local.metric.apply(chance)
    chance = chance / chance.norm()
    mixed = chance if given is None else given / given.norm() + chance
    return lowest(local.hessian, local.scaled, local.metric, 1, 1e-3, limit, mixed, enough=sign_is_clear(mu))


def seen(ritz: float, local: Local) -> Lowest:
    """In place of the least eigenvalue, the least Ritz value that a tangent's solve met, in units of the metric."""
    x = local.here.x
    return Lowest(x.new_tensor([ritz]), x.new_zeros((1, len(x))), x.new_zeros(1), 1.0, 0, False)


def _root(f: Callable[[float], float | None], a: float, b: float, fa: float, fb: float, small: float) -> float | None:
    """The zero of a function between two points, by the Illinois method; None where it cannot be evaluated."""
    side = 0
    for _ in range(_STEPS):
        c = (fa * b - fb * a) / (fa - fb)
        if abs(b - a) < 1e-12 * max(abs(a), abs(b)):
            return c
        fc = f(c)
        if fc is None:
            return None
        if abs(fc) <= small:
            return c
        if (fc > 0) == (fb > 0):
            b, fb = c, fc
            fa *= 0.5 if side == -1 else 1.0
            side = -1
        else:
            a, fa = c, fc
            fb *= 0.5 if side == 1 else 1.0
            side = 1
    return c


def fold(family: Family, here: Here, along: Direction, step: float, end: Direction) -> Located | None:
    """Where the branch turns back, between a point and the one that a step along the branch leads to.

    The coordinate is stationary there, so that its error is of the square of the place's.

    Args:
        family: what is followed.
        here: the point before.
        along: the direction there.
        step: to the point after.
        end: the direction there.
    """
    best: list[tuple[Here, Direction]] = []
    products = 0

    def turning(s: float) -> float | None:
        nonlocal products
        found, direction = beside(family, here, along, s, _FINE, most=15)
        products += found.products
        if found.here is None or direction is None:
            return None
        best.append((found.here, direction))
        return direction.tau

    # τ″ along the branch, by the two ends: an error t of τ′ is one of t²/2τ″ in τ
    bend = max(abs(along.tau - end.tau) / step, 1e-3)
    small = math.sqrt(2 * bend * 0.1 * _ACCURACY)
    if _root(turning, 0.0, step, along.tau, end.tau, small) is None or not best:
        return None
    at, direction = min(best, key=lambda pair: abs(pair[1].tau))
    return Located(at, direction, max(direction.tau**2 / (2 * bend), _ACCURACY * 1e-2), None, products)


def bifurcation(
    family: Family, here: Here, along: Direction, step: float, before: float, after: float, shift: float = 0.0
) -> Located | None:
    """Where the least eigenvalue vanishes, between a point and the one that a step along the branch leads to.

    Args:
        family: what is followed.
        here: the point before.
        along: the direction there.
        step: to the point after.
        before: the eigenvalue at the point before.
        after: at the point after, of the other sign.
        shift: look for the value ``−shift`` in place of 0: where another eigenvalue is 0 by a symmetry. What that
            misses by is in the error.
    """
    found: list[tuple[float, Here, Direction, Lowest]] = []
    products = 0

    def eigenvalue(s: float) -> float | None:
        nonlocal products
        corrected, direction = beside(family, here, along, s, _FINE, most=15)
        products += corrected.products
        if corrected.here is None or direction is None:
            return None
        near = found[-1][3].vectors[0] if found else None
        least = least_eigenvalue(Local(family, corrected.here, rough=False), near, 1e-8, 400)
        products += least.products
        found.append((float(least.values[0]), corrected.here, direction, least))
        return float(least.values[0]) + shift

    slope = abs(before - after) / (step * max(abs(along.tau), 1e-3))
    if _root(eigenvalue, 0.0, step, before + shift, after + shift, slope * _ACCURACY) is None or not found:
        return None
    value, at, direction, least = min(found, key=lambda entry: abs(entry[0] + shift))
    if abs(value + shift) > 100 * slope * _ACCURACY:
        return None  # it does not vanish between them: it jumps
    error = (abs(value) + float(least.errors[0])) / max(slope, 1e-300)
    return Located(at, direction, error, least.vectors[0], products)
