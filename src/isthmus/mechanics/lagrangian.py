"""Best weights, Lagrangian and its three parts (E5), (E6)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._types import Rows
from isthmus.activations import Activation
from isthmus.mechanics.metric import FeatureMetric


@dataclass(frozen=True)
class Energies:
    """The parts of the Lagrangian at one point, ``kinetic + cross − potential`` in all.

    Args:
        kinetic: ``(1/2L̃)‖∂_pA‖_K²``.
        potential: ``−(L̃/2)‖A‖_K²`` (negative: minus the cost of identity).
        cross: ``⟨∂_pA, A⟩_K``.
    """

    kinetic: float
    potential: float
    cross: float

    @property
    def lagrangian(self) -> float:
        """``(1/2L̃)‖L̃A + ∂_pA‖_K²`` (E6): kinetic plus cross term minus potential energy."""
        return self.kinetic + self.cross - self.potential


def energies(A: Rows, velocity: Rows, effective_depth: float, metric: FeatureMetric, gamma: float = 0.0) -> Energies:
    """Kinetic energy, potential energy and cross term (E6), exact or stable, arXiv:2405.17573.

    Args:
        A: states ``(samples, width)``.
        velocity: ``∂_pA``, same shape.
        effective_depth: L̃ > 0.
        metric: of the features σ(A).
        gamma: γ of the stable version, 0 for the exact one.

    Raises:
        ValueError: L̃ = 0, where the energies are not defined.
    """
    if not effective_depth > 0:
        raise ValueError(f"the energies need an effective depth > 0, got {effective_depth}")
    return Energies(
        kinetic=metric.norm_squared(velocity, gamma) / (2 * effective_depth),
        potential=-0.5 * effective_depth * metric.norm_squared(A, gamma),
        cross=metric.inner(velocity, A, gamma),
    )


def best_weights(
    A: Rows, velocity: Rows, effective_depth: float, activation: Activation
) -> Float[Tensor, "width width_in"]:
    """``W = (L̃A + ∂_pA) σ(A)⁺``, the least weights that give this velocity (E5), arXiv:2405.17573.

    Args:
        A: states ``(samples, width)``.
        velocity: ``∂_pA``, same shape.
        effective_depth: L̃ ≥ 0.
        activation: σ.
    """
    target = effective_depth * A + velocity
    # gelsd: minimal norm also where features are dependent, as dead neurons make them
    return torch.linalg.lstsq(activation.features(A).cpu(), target.cpu(), driver="gelsd").solution.T.to(A.device)
