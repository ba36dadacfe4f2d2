"""The cost of identity, ``COI = ‖A‖_K²``: a measure of dimension (E6), (E7)."""

import math

from isthmus._types import Rows
from isthmus.activations import Activation
from isthmus.mechanics.metric import FeatureMetric


def cost_of_identity(A: Rows, activation: Activation, gamma0: float | None = None, *, outside: str = "drop") -> float:
    """``‖A‖_K²`` with ``K = σ(A)ᵀσ(A)``, arXiv:2405.17573, (E6); stable with ``γ = γ_0‖K‖_op`` (E7).

    Equals ``rank A`` where A ≥ 0 and σ is a ReLU without appended 1. The appended 1 never raises the strict and the
    stable cost; it can raise the part in the image (docs/theory.md).

    Args:
        A: states, batch-first ``(samples, width)``, any scale.
        activation: σ, which says whether a 1 is appended.
        gamma0: γ_0 of the stable version (1e-3 in the trials); None for the exact one.
        outside: of the exact version, where A leaves the image of K: ``drop`` that part, or ``inf`` for the strict
            definition, which is infinite beyond a relative 1e-7.

    Returns:
        A dimension: pure number ≥ 0.

    Raises:
        ValueError: γ_0 not positive, or an unknown ``outside``.

    >>> import torch
    >>> from isthmus.activations import ReLU
    >>> A = torch.rand(50, 3, dtype=torch.float64) @ torch.rand(3, 8, dtype=torch.float64)
    >>> round(cost_of_identity(A, ReLU(append_one=False)), 6)
    3.0
    """
    if gamma0 is not None and not gamma0 > 0:
        raise ValueError(f"gamma0 must be positive, got {gamma0}; None asks for the exact cost of identity")
    if outside not in ("drop", "inf"):
        raise ValueError(f"outside must be 'drop' or 'inf', got {outside!r}")
    metric = FeatureMetric.from_features(activation.features(A))
    if gamma0 is not None:
        if float(metric.singular_values[0]) == 0:
            return 0.0
        return metric.norm_squared(A, metric.gamma(gamma0))
    if outside == "inf" and metric.outside(A) > 1e-7:
        return math.inf
    return metric.norm_squared(A)
