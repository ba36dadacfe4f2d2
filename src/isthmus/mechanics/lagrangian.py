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


@dataclass(frozen=True)
class OffImage:
    """What share of each stable energy lies off the image of K: ``|off|/(|on| + |off|)``, from 0 to 1.

    Args:
        kinetic: of the kinetic energy.
        potential: of the potential energy, and so of the stable cost of identity.
        cross: of the cross term, whose two parts may differ in sign.
    """

    kinetic: float
    potential: float
    cross: float


def share(on: float, off: float) -> float:
    """``|off|/(|on| + |off|)``; 0 where both are 0."""
    return abs(off) / total if (total := abs(on) + abs(off)) > 0 else 0.0


def off_image(A: Rows, velocity: Rows, metric: FeatureMetric, gamma: float) -> OffImage:
    """How much of the stable energies (E6), (E7) comes from where K says nothing, arXiv:2405.17573.

    Off the image layers have ``∂_pA = −L̃A``, whatever their weights are. There the three terms of the Lagrangian are
    ``L̃‖A‖²/γ`` times ½, −½ and −1, infinite as γ → 0, and cancel. A share near 1 says that the column shows γ.

    Args:
        A: states ``(samples, width)``.
        velocity: ``∂_pA``, same shape.
        metric: of the features σ(A).
        gamma: γ > 0.

    Raises:
        ValueError: a γ that is not positive.
    """
    pairs = ((velocity, velocity), (A, A), (velocity, A))
    kinetic, potential, cross = (share(*metric.parts(left, right, gamma)) for left, right in pairs)
    return OffImage(kinetic, potential, cross)


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
