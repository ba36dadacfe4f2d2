"""The Hamiltonian, in momenta (E10) and in velocities (E11), and the identity between them (E13)."""

from isthmus._types import Rows
from isthmus.activations import Activation
from isthmus.mechanics.metric import FeatureMetric


def _positive(effective_depth: float) -> None:
    if not effective_depth > 0:
        raise ValueError(
            f"the Hamiltonian needs an effective depth > 0, got {effective_depth}; "
            "scaled_hamiltonian (L̃H) is finite at 0"
        )


def scaled_hamiltonian(A: Rows, M: Rows, effective_depth: float, activation: Activation) -> float:
    """``L̃H = ½‖Mσ(A)ᵀ‖_F² − L̃ Tr[M Aᵀ]`` with ``M = L̃B``: (E10) times L̃, finite at L̃ = 0.

    Args:
        A: states *before* a layer, ``(samples, width)``.
        M: momenta ``−(1/μ)∂C/∂A`` *after* that layer, same shape (staggered: docs/theory.md).
        effective_depth: L̃ ≥ 0.
        activation: σ.
    """
    features = M.T @ activation.features(A)
    return float(0.5 * features.square().sum() - effective_depth * (M * A).sum())


def hamiltonian(A: Rows, B: Rows, effective_depth: float, activation: Activation) -> float:
    """``H(A, B) = (L̃/2)‖Bσ(A)ᵀ‖_F² − L̃ Tr[B Aᵀ]`` (E10), arXiv:2405.17573; constant in p on a geodesic.

    Args:
        A: states *before* a layer, ``(samples, width)``.
        B: momenta ``−(1/λ)∂C/∂A`` *after* that layer, same shape.
        effective_depth: L̃ > 0.
        activation: σ.

    Raises:
        ValueError: L̃ = 0.
    """
    _positive(effective_depth)
    return scaled_hamiltonian(A, effective_depth * B, effective_depth, activation) / effective_depth


def hamiltonian_from_velocity(
    A: Rows, velocity: Rows, effective_depth: float, metric: FeatureMetric, gamma: float = 0.0
) -> float:
    """``H = (1/2L̃)‖∂_pA‖_K² − (L̃/2)‖A‖_K²`` (E11); with γ the stable version.

    Args:
        A: states ``(samples, width)``.
        velocity: ``∂_pA``, same shape.
        effective_depth: L̃ > 0.
        metric: of the features σ(A).
        gamma: γ ≥ 0.

    Raises:
        ValueError: L̃ = 0.
    """
    _positive(effective_depth)
    kinetic = metric.norm_squared(velocity, gamma) / (2 * effective_depth)
    return kinetic - 0.5 * effective_depth * metric.norm_squared(A, gamma)


def flow_velocity(A: Rows, B: Rows, effective_depth: float, activation: Activation) -> Rows:
    """``∂_pA = L̃(B σ(A)ᵀσ(A) − A)``: the first of Hamilton's equations (E9)."""
    S = activation.features(A)
    return effective_depth * (S @ (S.T @ B) - A)


def energy_identity_defect(A: Rows, B: Rows, effective_depth: float, activation: Activation, gamma0: float) -> float:
    """Relative defect of (E13), which holds for *every* (A, B): a check of the arithmetic, not of the network.

    ``−(2/L̃)H = ‖A‖²_{(K+γI)} − ‖∂_pA/L̃ + γB‖²_{(K+γI)} + γ‖B‖²`` with ``∂_pA`` by (E9). The scale is the largest
    of the four terms.

    Args:
        A: states ``(samples, width)``.
        B: momenta, same shape.
        effective_depth: L̃ > 0.
        activation: σ.
        gamma0: γ = γ_0‖K‖_op, positive.

    Raises:
        ValueError: L̃ = 0 or γ_0 not positive.
    """
    if not gamma0 > 0:
        raise ValueError(f"gamma0 must be positive, got {gamma0}")
    metric = FeatureMetric.from_features(activation.features(A))
    gamma = metric.gamma(gamma0)
    left = -2 / effective_depth * hamiltonian(A, B, effective_depth, activation)
    shifted = flow_velocity(A, B, effective_depth, activation) / effective_depth + gamma * B
    terms = (
        metric.norm_squared(A, gamma),
        -metric.norm_squared(shifted, gamma),
        gamma * float(B.square().sum()),
    )
    return abs(left - sum(terms)) / max(abs(left), *map(abs, terms), 1e-300)
