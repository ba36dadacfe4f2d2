"""Richardson's extrapolation: a value on several meshes, carried on to infinitely many layers."""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Extrapolated(NamedTuple):
    """A limit and how far it may be off; unpacks as the pair.

    Args:
        limit: the value at L = ∞, in the unit of the values.
        error: an estimate of ``|limit − true limit|``, no bound; same unit.
    """

    limit: float
    error: float


def richardson(values: Sequence[float], layers: Sequence[int], order: int = 1) -> Extrapolated:
    """The limit L → ∞ of a value whose error is a series in 1/L that begins at a known power (Richardson 1911).

    With n meshes the value is taken as ``limit + c_0 L^{-order} + … + c_{n−2} L^{-(order+n−2)}``, and the n equations
    are solved. The error is estimated by the step from the n − 1 finest meshes to all n: that from the finest value
    where there are two. It is that of the shorter series, hence as a rule too large. The meshes must be refinements of
    one mesh function, and the values of one branch: neither can be seen from the numbers.

    Args:
        values: one a mesh, in any unit.
        layers: numbers of layers L of the meshes, all different, any ratios.
        order: of the first error term, 1 for quantities of the layers (E2).

    Raises:
        ValueError: fewer than two meshes, equal ones, one value too many or too few, an order below 1, or values that
            are not finite.

    >>> round(richardson([1 + 1 / L + 2 / L**2 for L in (10, 20, 40)], [10, 20, 40]).limit, 12)
    1.0
    """
    if len(values) != len(layers):
        raise ValueError(f"one value a mesh: got {len(values)} values for {len(layers)} numbers of layers")
    if len(layers) < 2 or len(set(layers)) < len(layers) or min(layers) < 1:
        raise ValueError(f"at least two different numbers of layers, 1 or more, are needed, got {list(layers)}")
    if order < 1:
        raise ValueError(f"order must be 1 or more, got {order}")
    L = torch.tensor(layers, dtype=torch.float64)
    v = torch.tensor(values, dtype=torch.float64)
    if not bool(torch.isfinite(v).all()):
        raise ValueError(f"values must be finite, got {list(values)}")
    finest = L.argsort(descending=True)
    x, v = (L.max() / L)[finest], v[finest]
    limit, shorter = (_limit(x[:n], v[:n], order) for n in (len(v), len(v) - 1))
    return Extrapolated(limit, abs(limit - shorter))


def _limit(x: torch.Tensor, v: torch.Tensor, order: int) -> float:
    """The constant of the series through ``v`` at the step-sizes ``x``, in units of the finest."""
    if len(v) == 1:
        return float(v[0])
    powers = torch.tensor([0, *range(order, order + len(v) - 1)], dtype=torch.float64)
    return float(torch.linalg.solve(x[:, None] ** powers, v)[0])
