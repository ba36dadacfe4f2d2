"""``W_p`` between layers: weights known at some positions, read at others."""

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._types import StepSizesVector, Weights


def layer_midpoints(rho: Float[Tensor, "layers"]) -> Float[Tensor, "layers"]:
    """The midpoint of every layer: where a piecewise constant ``W_ℓ`` is second-order accurate."""
    return rho.cumsum(0) - rho / 2


def weights_at(
    W: Weights, at: Float[Tensor, "layers"], p: Float[Tensor, "points"]
) -> Float[Tensor, "points width width_in"]:
    """Weights at any positions: linear between the known ones, and beyond the outermost as the nearest two go on.

    Constant weights beyond the ends would be of first order only: a network read at its own ends, as every finer mesh
    reads it, would be off by half a layer's change.

    Args:
        W: weights ``(layers, width, width_in)``.
        at: where they are known, increasing, in units of p.
        p: where they are wanted.
    """
    if len(at) == 1:
        return W.expand(len(p), *W.shape[1:]).clone()
    at, p = at.double().contiguous(), p.double()
    right = torch.searchsorted(at, p.contiguous()).clamp(1, len(at) - 1)
    t = ((p - at[right - 1]) / (at[right] - at[right - 1])).to(W)[:, None, None]
    return torch.lerp(W[right - 1], W[right], t)


def interpolate_weights(
    W: Weights, old: StepSizesVector, new: Float[Tensor, "points"]
) -> Float[Tensor, "points width width_in"]:
    """Move the weights with p: ``W_p`` as `weights_at` reads it off the old layers' midpoints, at the new ones."""
    return weights_at(W, layer_midpoints(old.double()), layer_midpoints(new.double()))
