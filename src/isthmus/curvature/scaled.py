"""The variables of the second-order methods: ``√ρ_ℓ W_ℓ`` (learned ends as they are), as one flat vector.

In them the penalty of (E3) is ``(μ/2)‖·‖²``: its Hessian is a multiple of the unit matrix.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.curvature.base import Target


def pieces(v: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """A flat vector as views of the parameters' shapes, in their order."""
    parts = v.split([p.numel() for p in parameters])
    return [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]


class ScaledParameters:
    """The parameters of a problem, and what belongs to them, read and written in scaled variables.

    Made anew where ρ may have changed: it holds the scales.

    Args:
        target: whose parameters are meant.

    Attributes:
        mu: weight decay μ: the curvature of the penalty in these variables.
    """

    def __init__(self, target: Target) -> None:
        self.parameters, self._scales, self.mu = list(target.parameters), list(target.scales), target.mu

    def inverse_metric(self) -> list[Tensor]:
        """``1/ρ_ℓ`` for the weight, 1 for learned ends: a gradient times it is a step of steepest descent in them."""
        ones = self.parameters[0].new_ones(())
        return [ones / (scale * scale) for scale in self._scales]

    def values(self) -> Float[Tensor, "variables"]:
        """The parameters, scaled."""
        return self.flatten([p.data for p in self.parameters])

    def gradient(self) -> Float[Tensor, "variables"]:
        """The gradient of the last evaluation in scaled variables."""
        gradients = [p.grad for p in self.parameters]
        assert all(g is not None for g in gradients)
        return self.flatten([g for g in gradients if g is not None], gradient=True)

    def flatten(self, tensors: Sequence[Tensor], gradient: bool = False) -> Tensor:
        """Tensors of the parameters' shapes as one vector: values, or (covariantly) gradients."""
        pairs = zip(tensors, self._scales, strict=True)
        pieces = [(t / scale if gradient else t * scale).flatten() for t, scale in pairs]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def unflatten(self, v: Tensor) -> list[Tensor]:
        """A vector of scaled values as tensors of the parameters' shapes, unscaled."""
        return [part / scale for part, scale in zip(pieces(v, self.parameters), self._scales, strict=True)]

    def write(self, v: Tensor) -> None:
        """Set the parameters from a vector of scaled values."""
        for p, part, scale in zip(self.parameters, pieces(v, self.parameters), self._scales, strict=True):
            torch.div(part, scale, out=p.data)  # as `unflatten`, without a copy
