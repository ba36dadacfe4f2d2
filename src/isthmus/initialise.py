"""Named initialisations of the weights ``W_ℓ``; `docs/notes/initialisation.md` has the numbers that chose the default.

Two ways to go wrong are known: too small, and at large L̃ the signal decays as ``e^{−L̃}`` and
training ends in the zero network, which is a local minimum; too large, and the interior starts with full rank and
keeps a tail of small singular values for thousands of steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._types import Weights


@dataclass(frozen=True)
class Shape:
    """What an initialisation may look at.

    Args:
        depth: L.
        width: w.
        extra: appended features, 0 or 1.
        effective_depth: L̃.
        ends: the larger of the input and output dimensions (at most the width).
    """

    depth: int
    width: int
    extra: int
    effective_depth: float
    ends: int


Initialisation = Callable[[Shape, torch.Generator], Weights]


def _gaussian(shape: Shape, std: float, generator: torch.Generator) -> Float[Tensor, "layers width width_in"]:
    size = (shape.depth, shape.width, shape.width + shape.extra)
    return std * torch.randn(size, generator=generator, dtype=torch.float64)


def small(shape: Shape, generator: torch.Generator) -> Float[Tensor, "layers width width_in"]:
    """Gaussian, ``std = 0.58/√w``: exactly low-rank interiors, but the zero network from L̃ ≈ 10 on."""
    return _gaussian(shape, 0.58 / shape.width**0.5, generator)


def kaiming(shape: Shape, generator: torch.Generator) -> Float[Tensor, "layers width width_in"]:
    """Gaussian, ``std = L̃√(2/w)`` (at L̃ < 1: ``√(2/w)``): full rank, leaves a tail in the spectrum."""
    return _gaussian(shape, max(shape.effective_depth, 1.0) * (2 / shape.width) ** 0.5, generator)


def carrier(shape: Shape, generator: torch.Generator) -> Float[Tensor, "layers width width_in"]:
    """One constant low-rank non-negative projection, scaled by L̃, carries a signal through; plus `small`.

    ``W_ℓ = L̃ Q Qᵀ + small``: the columns of Q are the normalised indicators of ``r = min(ends, w/4)`` disjoint groups
    of neurons. On the cone ``A = Qz, z ≥ 0`` the carrier undoes the leak exactly, ``L̃QQᵀσ(A) = L̃A``, so that r
    features arrive at the outputs whatever L̃ is, and everything else decays as it does from `small`.
    """
    w = shape.width
    rank = max(1, min(shape.ends, w // 4))
    groups = torch.arange(w) % rank
    Q = torch.zeros((w, rank), dtype=torch.float64)
    Q[torch.randperm(w, generator=generator), groups] = 1
    Q /= Q.norm(dim=0)
    W = small(shape, generator)
    W[:, :, :w] += shape.effective_depth * Q @ Q.T
    return W


INITIALISATIONS: dict[str, Initialisation] = {"small": small, "kaiming": kaiming, "carrier": carrier}
DEFAULT_INITIALISATION = "carrier"


def initialise(name: str, shape: Shape, seed: int) -> Float[Tensor, "layers width width_in"]:
    """Weights by a named initialisation, in float64, from a generator of its own.

    Raises:
        ValueError: an unknown name.
    """
    if name == "default":
        name = DEFAULT_INITIALISATION
    if name not in INITIALISATIONS:
        raise ValueError(f"unknown initialisation {name!r}: expected one of {', '.join(INITIALISATIONS)} or default")
    return INITIALISATIONS[name](shape, torch.Generator().manual_seed(seed))
