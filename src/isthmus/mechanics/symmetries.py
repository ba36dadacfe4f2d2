"""Transformations that leave the path unchanged or scale it (docs/theory.md, after (E3)), for whole networks."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._types import StepSizesVector, Weights


@dataclass(frozen=True)
class Transformed:
    """A transformed network, and what its path is multiplied by.

    Args:
        W: weights.
        rho: step-sizes; they sum to the new range of p.
        effective_depth: L̃.
        factors: ``(layers + 1,)``: new ``A_ℓ`` over old ``A_ℓ``.
    """

    W: Weights
    rho: StepSizesVector
    effective_depth: float
    factors: Float[Tensor, "layers_plus_1"]


def stretch(W: Weights, rho: StepSizesVector, effective_depth: float, c: float) -> Transformed:
    """Stretch the range of p to ``[0, c]`` with ``L̃ → L̃/c``, ``W → W/c``: the path is unchanged, exactly.

    Raises:
        ValueError: c not positive.
    """
    if not c > 0:
        raise ValueError(f"c must be positive, got {c}")
    return Transformed(W / c, rho * c, effective_depth / c, torch.ones(rho.shape[0] + 1, dtype=rho.dtype))


def raise_effective_depth(W: Weights, rho: StepSizesVector, effective_depth: float, c: float) -> Transformed:
    """Raise L̃ by c: without biases and for homogeneous σ the path is multiplied by ``e^{−cp}``.

    In layers, ``W_ℓ → r_ℓW_ℓ`` with ``r_ℓ = (1 − ρ_ℓ(L̃+c))/(1 − ρ_ℓL̃)`` multiplies it by ``Π r_ℓ`` exactly; as
    ρ → 0 the weights are unchanged and the product tends to ``e^{−cp}``.

    Raises:
        ValueError: ``ρ_ℓL̃ = 1`` at some layer (no skip to scale), or a factor ``r_ℓ ≤ 0`` (too few layers for c).
    """
    skip = 1 - rho * effective_depth
    if bool((skip == 0).any()):
        raise ValueError("a layer with rho * effective_depth = 1 has no skip connection: its leak cannot be raised")
    ratio = (skip - rho * c) / skip
    if bool((ratio <= 0).any()):
        raise ValueError(f"raising the effective depth by {c:g} needs more layers: a skip would vanish or change sign")
    factors = torch.cat((ratio.new_ones(1), ratio.cumprod(0)))
    return Transformed(ratio[:, None, None] * W, rho, effective_depth + c, factors)
