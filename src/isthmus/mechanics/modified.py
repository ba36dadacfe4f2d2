"""The modified Hamiltonian of the layers (E15): what symplectic Euler conserves, where H itself drifts by O(ρ).

Layers step the scaled pair (A, M), ``M = L̃B``, by symplectic Euler for ``ℋ = L̃H``. Backward error analysis (Hairer,
Lubich and Wanner 2006, section IX.3) gives a series in ρ that the layers conserve to every order. Two of its terms are
here, in closed form: every second derivative of ℋ that they need is a product of two matrices of the network's width.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._types import PerLayer, Rows
from isthmus.activations import Activation
from isthmus.geodesic import Geodesic

ORDERS = (1, 2, 3)
"""The power of ρ at which the spread over layers falls at a critical point. 1: the staggered H itself."""


@dataclass(frozen=True)
class _Derivatives:
    """ℋ and what the series needs of its derivatives at one pair (A, M); u is ``ℋ_M``, v is ``ℋ_A``.

    Args:
        value: ℋ.
        first: ``⟨u, v⟩``.
        squares: ``ℋ_MM[v, v] + ℋ_AA[u, u]``.
        mixed: ``ℋ_AM[u, v]``.
    """

    value: float
    first: float
    squares: float
    mixed: float

    def staggered(self, rho: float) -> tuple[float, ...]:
        """The series at ``(A_{ℓ−1}, M_ℓ)``, one value for each of `ORDERS`."""
        second = self.value + 0.5 * rho * self.first
        return self.value, second, second + rho**2 * (self.squares - 2 * self.mixed) / 12


def _derivatives(A: Rows, M: Rows, effective_depth: float, activation: Activation) -> _Derivatives:
    """``ℋ = ½‖MᵀS‖² − L̃⟨M, A⟩``, ``S = σ(A)`` (batch-first), and its derivatives along its own flow."""
    S, slope = activation.features(A), activation.derivative(A)
    width = A.shape[1]
    W = M.T @ S
    pulled = M @ W[:, :width]  # the gradient of ½‖MᵀS‖² in S, without the appended 1's
    u, v = S @ W.T - effective_depth * A, slope * pulled - effective_depth * M
    value = float(0.5 * W.square().sum() - effective_depth * (M * A).sum())
    first = float((u * v).sum())
    turned = slope * u  # how the features move with A along u; the appended 1 does not
    moved, V = M.T @ turned, v.T @ S
    bend = activation.bend(A)
    curved = 0.0 if bend is None else float((pulled * bend * slope * u.square()).sum())
    squares = float(V.square().sum() + moved.square().sum()) + curved
    crossed = (V[:, :width] * moved).sum() + (W[:, :width] * (v.T @ turned)).sum()
    mixed = float(crossed) - effective_depth * first
    return _Derivatives(value, first, squares, mixed)


def modified_series(geodesic: Geodesic) -> Float[Tensor, "orders layers"]:
    """``L̃H̃`` of each layer, cut off at each of `ORDERS` (E15), arXiv:2405.17573; finite at L̃ = 0.

    The first row is ``L̃H(A_{ℓ−1}, B_ℓ)`` (E10). The others are constant over the layers of a critical point up to
    O(ρ²) and O(ρ³), on any mesh: where ρ changes from layer to layer the conserved quantity jumps by a known amount,
    which is taken away such that the jumps have mean 0 over p.

    Args:
        geodesic: a path, in its dtype, float64. Without kinks: the third row needs σ̈, and takes a ReLU's as 0.
    """
    rho, A, M = geodesic.rho.tolist(), geodesic.A, geodesic.M
    layers = [_derivatives(A[i], M[i + 1], geodesic.effective_depth, geodesic.activation) for i in range(len(rho))]
    levels = A.new_tensor([at.staggered(step) for at, step in zip(layers, rho, strict=True)])
    jumps = torch.zeros_like(levels)
    for i in range(1, len(rho)):
        if rho[i] != rho[i - 1]:
            node = _derivatives(A[i], M[i], geodesic.effective_depth, geodesic.activation)
            jumps[i] = jumps.new_tensor(_jump(rho[i - 1], rho[i], layers[i - 1], node, layers[i]))
    gathered, weight = jumps.cumsum(0), geodesic.rho.to(levels) / geodesic.rho.to(levels).sum()
    return (levels - gathered + weight @ gathered).T


def _jump(
    rho: float, following: float, before: _Derivatives, node: _Derivatives, after: _Derivatives
) -> tuple[float, ...]:
    """By how much the conserved quantity changes between two layers, one value for each of `ORDERS`.

    At ``(A_ℓ, M_ℓ)`` the series is ``ℋ − (ρ/2)⟨u, v⟩ + (ρ²/12)(ℋ_MM[v, v] + ℋ_AA[u, u] + 4ℋ_AM[u, v])``. The second
    order reads ``⟨u, v⟩`` from the layers on either side as well, and so has half of what is left to the third: three
    times less remains on the meshes of docs/notes/theory.md.
    """
    change, total = following - rho, following + rho
    slopes = (before.first - node.first) / rho + (after.first - node.first) / following
    second = -0.5 * change * (node.first + total / 6 * slopes)
    return 0.0, second, -0.5 * change * node.first + change * total * (node.squares + 4 * node.mixed) / 12


def modified_hamiltonians(geodesic: Geodesic) -> Float[Tensor, "orders layers"]:
    """``−2H̃/L̃`` of each layer for every one of `ORDERS`, see `modified_hamiltonian`.

    Raises:
        ValueError: L̃ = 0.
    """
    if not geodesic.effective_depth > 0:
        raise ValueError(
            f"−2H/L̃ needs an effective depth > 0, got {geodesic.effective_depth}; modified_series (L̃H̃) is finite at 0"
        )
    return -2 / geodesic.effective_depth**2 * modified_series(geodesic)


def modified_hamiltonian(geodesic: Geodesic, order: int = 3) -> PerLayer:
    """``−2H̃/L̃`` of each layer, by the modified Hamiltonian of the layers (E15), arXiv:2405.17573.

    What is taken away is the drift over the layers. The constant that is left says what one more layer of the same step
    would be worth (E14). It tends to ``−2H/L̃`` of the continuous flow at first order in ρ, as the raw values do:
    `isthmus.mechanics.richardson` on two meshes or more gives the limit.

    Args:
        geodesic: a path at L̃ > 0.
        order: the power of ρ at which the spread over layers falls at a critical point, one of `ORDERS`. 3 left less
            than 2 from 20 or 40 layers on where steps were equal, from 40 to 80 where they were not
            (docs/notes/theory.md). A ReLU's kinks leave the first power whatever the order.

    Returns:
        Dimensions, as −2H/L̃.

    Raises:
        ValueError: L̃ = 0, or another order.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(map(str, ORDERS))}, got {order}")
    return modified_hamiltonians(geodesic)[order - 1]


def hamiltonian_drift(geodesic: Geodesic) -> PerLayer:
    """By how much the staggered ``−2H/L̃`` departs from a constant at a critical point, to first order in ρ (E15).

    ``−2H/L̃`` less `modified_hamiltonian` of order 2. At a critical point ``ρH_B = ΔA`` and ``ρH_A = −ΔB``, so that on
    equal steps this is ``−⟨ΔA, ΔB⟩/(ρL̃)``; on others the jumps between layers are part of it.

    Args:
        geodesic: a path at L̃ > 0.

    Raises:
        ValueError: L̃ = 0.
    """
    raw, second, _ = modified_hamiltonians(geodesic)
    return raw - second
