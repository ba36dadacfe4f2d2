"""Closed forms: the minima of (E3) of linear networks, mode by mode (arXiv:2405.17573, σ = identity).

Setting. σ(z) = z; inputs of mean 0 and covariance ``XᵀX/N = 1``; end maps U with orthonormal columns and V with
orthonormal rows. The end maps are aligned: they carry the k-th pair of singular directions of the least-squares map
``Z`` to the same unit vector, so that ``VU = Σ_k l_k r_kᵀ``. With ``T = Π_ℓ B_ℓ``, ``B_ℓ = κ + ρW_ℓ``,
``κ = 1 − ρL̃ ≥ 0``, ρ = 1/L, the objective is ``unexplained + ‖Z − VTU‖_F² + (μ/2)L Σ_ℓ ‖B_ℓ − κ‖_F²``. Biases are 0,
because the means are right without them.

Lower bound. ``‖B − κ‖² ≥ Σ_i (σ_i(B) − κ)² ≥ Σ_i g(log σ_i(B))``, ``g(y) = (e^y − κ)_+²`` (von Neumann's trace
inequality). g is convex and never falls, and the singular values of T are weakly log-majorised by the products of
those of the B_ℓ (Horn), hence ``Σ_ℓ Σ_i g(log σ_i(B_ℓ)) ≥ L Σ_i g(log σ_i(T)/L)``. Also
``‖Z − VTU‖² ≥ Σ_i (s_i − σ_i(VTU))²`` and ``σ_i(VTU) ≤ σ_i(T)``. Where no ``s_k`` is below the bare leak ``κ^L``, the
objective is therefore at least the sum over modes of the least value of

    F(R) = (s − R)² + (μ/2)L²(R^{1/L} − κ)²      over κ^L ≤ R,

and diagonal weights, equal in all layers, ``w = L(R^{1/L} − κ)``, reach it. In the limit L → ∞, the continuous flow,
``F(R) = (s − R)² + (μ/2)(L̃ + log R)²``, ``w = L̃ + log R``. F has one or two minima: *kept* near s, and *dropped*
near the leak. It is dropped where the mode is worth less, s², than the ``(μ/2)(L̃ + log s)²`` that carrying it costs.

Modes below the leak are not covered: to shrink a mode further than the leak does, turning it out of the outputs' sight
into unused neurons is cheaper than damping it (measured: s = 0, L = 8, L̃ = 1).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class LinearMinimum:
    """The least value of (E3) of a linear network, and where it is taken.

    Args:
        objective: ``data_cost + penalty``.
        data_cost: C, with the unexplained part.
        penalty: ``(μ/2) Σ_ℓ ρ_ℓ‖W_ℓ‖²``.
        gains: R_k, by which the network multiplies each mode.
        weights: singular values w_k of every ``W_ℓ``.
        scaled_hamiltonian: ``L̃H = ½Σw² − L̃Σw`` (E10), staggered, the same in every layer.
        kept: whether a mode's gain is nearer, in its logarithm, to its target than to the bare leak.
    """

    objective: float
    data_cost: float
    penalty: float
    gains: Float[Tensor, "modes"]
    weights: Float[Tensor, "modes"]
    scaled_hamiltonian: float
    kept: Bool[Tensor, "modes"]


@dataclass(frozen=True)
class _Mode:
    """``F`` of one mode as a function of ``y = log R``; depth None is the continuous flow."""

    s: float
    depth: int | None
    effective_depth: float
    mu: float

    @property
    def kappa(self) -> float:
        return 1 - self.effective_depth / self.depth if self.depth else 1.0

    @property
    def leak(self) -> float:
        """``log κ^L``, the gain without weights; −∞ where there is no skip."""
        if self.depth is None:
            return -self.effective_depth
        return self.depth * math.log(self.kappa) if self.kappa > 0 else -math.inf

    def weight(self, y: float) -> float:
        if self.depth is None:
            return self.effective_depth + y
        return self.depth * (math.exp(y / self.depth) - self.kappa)

    def penalty(self, y: float) -> float:
        return 0.5 * self.mu * self.weight(y) ** 2

    def cost(self, y: float) -> float:
        return (self.s - math.exp(y)) ** 2 + self.penalty(y)

    def slope(self, y: float) -> float:
        growth = 1.0 if self.depth is None else math.exp(y / self.depth)  # dw/dy
        return -2 * math.exp(y) * (self.s - math.exp(y)) + self.mu * self.weight(y) * growth

    def minima(self) -> list[float]:
        """All local minima in y, ascending: sign changes of the slope on a grid from the leak to s, then bisection."""
        high = math.log(self.s)
        low = max(self.leak, high - 700.0)
        grid = [low + (high - low) * i / 4000 for i in range(4001)]
        slopes = [self.slope(y) for y in grid]
        found = [_bisect(self.slope, grid[i], grid[i + 1]) for i in range(4000) if slopes[i] < 0 <= slopes[i + 1]] or [
            low
        ]
        # without a skip (κ = 0) a gain of 0 can be a minimum of its own, beyond the grid
        return [-math.inf, *found] if self.kappa == 0 and slopes[0] > 0 else found


def _bisect(f: Callable[[float], float], a: float, b: float) -> float:
    for _ in range(200):
        middle = 0.5 * (a + b)
        if middle in (a, b):
            break
        a, b = (middle, b) if f(middle) < 0 else (a, middle)
    return 0.5 * (a + b)


def _mode(s: float, depth: int | None, effective_depth: float, mu: float) -> _Mode:
    if depth is not None and depth < 1:
        raise ValueError(f"depth must be at least 1, or None for the continuous flow, got {depth}")
    if not 0 <= effective_depth < math.inf:
        raise ValueError(f"effective_depth must be finite and not negative, got {effective_depth}")
    if depth is not None and effective_depth > depth:
        raise ValueError(
            f"the closed form needs rho * effective_depth <= 1: {depth} layers carry an effective depth of at most "
            f"{depth}, got {effective_depth:g}"
        )
    if not 0 < mu < math.inf:
        raise ValueError(f"mu (weight decay) must be positive and finite, got {mu}")
    mode = _Mode(float(s), depth, float(effective_depth), float(mu))
    if not 0 < s < math.inf or math.log(s) < mode.leak:
        raise ValueError(
            f"singular values must be finite, positive and at least the bare leak, {math.exp(mode.leak):.4g} here, got "
            f"{s:g}: for modes to be shrunk below it there is no closed form"
        )
    return mode


def linear_minimum(
    singular_values: Sequence[float],
    depth: int | None,
    effective_depth: float,
    mu: float,
    unexplained: float = 0.0,
) -> LinearMinimum:
    """The global minimum of (E3), arXiv:2405.17573, of a linear network of equal layers; the proof is in the module.

    Args:
        singular_values: s_k of the least-squares map from whitened inputs to outputs, one for every input direction.
        depth: L, or None for the continuous flow.
        effective_depth: L̃, at most L.
        mu: weight decay μ.
        unexplained: the part of C that no linear map removes.

    Raises:
        ValueError: a number out of range; a singular value below the bare leak ``(1 − L̃/L)^L`` (``e^{−L̃}``).

    >>> round(linear_minimum([2.0], None, 3.0, 0.01).objective, 4)  # a little below (0.01/2)(3 + log 2)²
    0.0681
    """
    if len(singular_values) == 0:
        raise ValueError("singular_values must hold at least one mode, got none")
    modes = [_mode(s, depth, effective_depth, mu) for s in singular_values]
    best = [min(mode.minima(), key=mode.cost) for mode in modes]
    gains, weights = (
        torch.tensor(values, dtype=torch.float64)
        for values in ([math.exp(y) for y in best], [m.weight(y) for m, y in zip(modes, best, strict=True)])
    )
    data = unexplained + sum((m.s - math.exp(y)) ** 2 for m, y in zip(modes, best, strict=True))
    penalty = sum(m.penalty(y) for m, y in zip(modes, best, strict=True))
    kept = [2 * y > math.log(m.s) + max(m.leak, -700.0) for m, y in zip(modes, best, strict=True)]
    return LinearMinimum(
        objective=data + penalty,
        data_cost=data,
        penalty=penalty,
        gains=gains,
        weights=weights,
        scaled_hamiltonian=float(0.5 * weights.square().sum() - effective_depth * weights.sum()),
        kept=torch.tensor(kept),
    )


def linear_gains(singular_value: float, depth: int | None, effective_depth: float, mu: float) -> list[float]:
    """Gains R of all local minima of one mode's ``F``, ascending: where there are two, dropped first, kept last.

    Raises:
        ValueError: see `linear_minimum`.

    >>> [round(R, 3) for R in linear_gains(0.35, None, 6.0, 0.01)]
    [0.003, 0.261]
    """
    return [math.exp(y) for y in _mode(singular_value, depth, effective_depth, mu).minima()]
