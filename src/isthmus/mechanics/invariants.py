"""What holds at critical points: stationarity (E9), balance (E4) and the paper's Theorem 4 (E12)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._types import Path, PerLayer, StepSizesVector, Weights
from isthmus.activations import Activation


def relative_residual(
    off: Float[Tensor, "*members layers"], W: Float[Tensor, "*members layers width width_in"]
) -> Tensor:
    """``off/‖W‖_F`` per layer: 0 where both are 0, infinity where only the weights are. The one rule for residuals.

    Args:
        off: norms of what a layer's gradient lacks to 0, in units of the weights: ``‖∂/∂W_ℓ‖/(μρ_ℓ)``.
        W: weights.
    """
    return torch.where(off == 0, off, off / W.norm(dim=(-2, -1)))


def stationarity_residual(A: Path, M: Path, W: Weights, activation: Activation) -> PerLayer:
    """``‖W_ℓ − M_ℓσ(A_{ℓ−1})ᵀ‖_F/‖W_ℓ‖_F`` per layer, the certificate of everything else (E9).

    The numerator is the gradient of the objective over ``μρ_ℓ``. 0 at a critical point; of order 1 where the energies
    and H describe the optimiser rather than the theory. A layer with W = 0 and no gradient counts as 0; with W = 0
    and a gradient, infinity.

    Args:
        A: path ``(layers + 1, samples, width)``.
        M: scaled momenta, same shape.
        W: weights ``(layers, width, width_in)``.
        activation: σ.
    """
    optimal = M[1:].mT @ activation.features(A[:-1])
    return relative_residual((W - optimal).norm(dim=(1, 2)), W)


def balancedness_defect(W: Weights, rho: StepSizesVector, effective_depth: float) -> PerLayer:
    """Defect of the balance law along p, relative to ``‖W_ℓ‖²``; 0 at layer 1 by definition.

    ``‖W_p‖² = ‖W_0‖² + 2L̃ ∫_0^p ‖b_q‖² dq`` (E4) for homogeneous σ, b the bias column and ``‖W‖²`` including it.
    The paper's proof loses the factor 2: from (E9), (E10) ``∂_p‖W‖² = 2L̃² ∂_p Tr[BAᵀ] = 2L̃‖b‖²`` (docs/theory.md). The
    integral is the trapezoidal rule between the layers' midpoints; the law itself holds up to O(ρ).

    Args:
        W: weights with the bias as last column ``(layers, width, width + 1)``; without the appended 1 use
            `norm_defect`.
        rho: step-sizes ``(layers,)``.
        effective_depth: L̃.
    """
    squares = W.square().sum(dim=(1, 2))
    bias = W[:, :, -1].square().sum(dim=1)
    between = 0.5 * (rho[1:] + rho[:-1]) * 0.5 * (bias[1:] + bias[:-1])
    integral = torch.cat((between.new_zeros(1), between.cumsum(0)))
    return _relative(squares - squares[0] - 2 * effective_depth * integral, squares)


def norm_defect(W: Weights) -> PerLayer:
    """(E4) without biases: ``‖W_p‖²`` is constant; relative defect per layer."""
    squares = W.square().sum(dim=(1, 2))
    return _relative(squares - squares[0], squares)


def _relative(defect: PerLayer, size: PerLayer) -> PerLayer:
    return torch.where(defect == 0, defect, defect / size)


@dataclass(frozen=True)
class Theorem4:
    """Both sides of the first bound of (E12): ``lower ≤ value ≤ upper``, for a geodesic.

    Args:
        value: ``−(2/L̃)H − min_p ‖A_p‖²_{(K+γI)}``.
        lower: ``−(ℓ/L̃ + √(γc))²``.
        upper: ``γc``.
    """

    value: float
    lower: float
    upper: float

    @property
    def holds(self) -> bool:
        """Whether the value lies between the bounds."""
        return self.lower <= self.value <= self.upper


def theorem4(
    hamiltonian: float,
    min_coi: float,
    path_length: float,
    max_b_squared: float,
    gamma: float,
    effective_depth: float,
) -> Theorem4:
    """The first bound of (E12), arXiv:2405.17573, Theorem 4.

    Args:
        hamiltonian: H.
        min_coi: ``min_p ‖A_p‖²_{(K+γI)}``.
        path_length: ``ℓ = ∫‖∂_pA‖_{(K+γI)} dp``.
        max_b_squared: ``c ≥ ‖B_p‖²``.
        gamma: γ, one for all p.
        effective_depth: L̃ > 0.
    """
    spill = (gamma * max_b_squared) ** 0.5
    return Theorem4(
        value=-2 * hamiltonian / effective_depth - min_coi,
        lower=-((path_length / effective_depth + spill) ** 2),
        upper=spill**2,
    )
