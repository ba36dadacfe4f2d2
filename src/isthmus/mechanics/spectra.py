"""Singular values of states and weights, and ranks made of them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def spectra(X: Float[Tensor, "*batch rows columns"]) -> Float[Tensor, "*batch modes"]:
    """Singular values, descending, one matrix after the other (their number is the smaller dimension)."""
    return torch.linalg.svdvals(X)


def stable_rank(s: Float[Tensor, "*batch modes"]) -> Float[Tensor, "*batch"]:
    """``‖X‖_F²/‖X‖_op²`` from singular values; 0 for the zero matrix."""
    top = s[..., 0].square()
    return torch.where(top > 0, s.square().sum(-1) / top, 0.0)


def nuclear_rank(s: Float[Tensor, "*batch modes"]) -> Float[Tensor, "*batch"]:
    """``‖X‖_*²/‖X‖_F²`` from singular values: between the stable rank and the rank; 0 for the zero matrix."""
    total = s.square().sum(-1)
    return torch.where(total > 0, s.sum(-1).square() / total, 0.0)


def rank(s: Float[Tensor, "*batch modes"], threshold: float) -> Int[Tensor, "*batch"]:
    """Number of singular values above ``threshold`` times the largest; 0 for the zero matrix.

    Raises:
        ValueError: a threshold outside (0, 1).
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must lie in (0, 1), relative to the largest singular value, got {threshold}")
    return ((s > threshold * s[..., :1]) & (s > 0)).sum(-1)
