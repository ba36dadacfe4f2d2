"""Centring and scaling, fitted on the training part and applied to both."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isthmus._types import Rows


def varying_columns(x: Rows) -> Bool[Tensor, " columns"]:
    """Which columns take more than one value, beyond what rounding can make of a constant."""
    if len(x) == 0:
        return torch.zeros(x.shape[1], dtype=torch.bool)
    spread = x.amax(0) - x.amin(0)
    return spread > 16 * torch.finfo(x.dtype).eps * x.abs().amax(0)


@dataclass(frozen=True)
class Scaling:
    """The affine map `(x − mean) / scale`, with 0 in columns that are constant on the training part.

    Attributes:
        mean: what is subtracted, `(columns,)`.
        scale: the divisor, `(columns,)`, or one number for all of them, `()`.
        varying: which columns are kept, `(columns,)`; the others become 0, in the test part too, because
            training says nothing about directions that it never saw.
    """

    mean: Float[Tensor, " columns"]
    scale: Tensor
    varying: Bool[Tensor, " columns"]

    def __call__(self, x: Rows) -> Rows:
        """Apply the map to `(N, columns)`."""
        return torch.where(self.varying, (x - self.mean) / self.scale, torch.zeros((), dtype=x.dtype))

    def notes(self, prefix: str) -> Mapping[str, list | float]:
        """Return the map as plain numbers, `{prefix}_mean` and `{prefix}_scale`."""
        return {f"{prefix}_mean": self.mean.tolist(), f"{prefix}_scale": self.scale.tolist()}


def fit_scaling(x: Rows, normalise: str, centre: bool = True) -> Scaling:
    """Fit a `Scaling` on the training part `(N, columns)`.

    "coordinate" divides each column by its population standard deviation (its root mean square where `centre`
    is false); "global" divides all by one number that makes the mean squared norm of a row equal the number
    of columns that vary; "none" divides by 1.
    """
    varying = varying_columns(x)
    mean = x.mean(0)
    mean = mean + (x - mean).mean(0)  # a second pass: columns with a mean far above their spread
    if not centre:
        mean = torch.zeros_like(mean)
    rest = torch.where(varying, x - mean, torch.zeros_like(x))
    if normalise == "coordinate":
        largest = torch.where(varying, rest.abs().amax(0), torch.ones_like(mean))  # squares must not under- or overflow
        scale = largest * (rest / largest).square().mean(0).sqrt()
        scale = torch.where(varying, scale, torch.ones_like(scale))
    elif normalise == "global" and bool(varying.any()):
        peak = rest.abs().amax()
        scale = peak * ((rest / peak).square().sum() / (len(x) * varying.sum())).sqrt()
    else:
        scale = torch.ones((), dtype=x.dtype)
    return Scaling(mean, scale, varying)
