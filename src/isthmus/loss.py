"""Data costs C of (E3): value, gradient and curvature in the outputs. One class a cost, used by every solver.

Outputs are columns, ``(…, out, samples)``; leading axes are members of an ensemble. Targets are batch-first:
``(…, samples, out)``, or class indices ``(…, samples)``. Costs are means over the samples of one member, summed in
float64. Another cost is another class here: docs/architecture.md.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

Outputs = Float[Tensor, "*members out samples"]


@dataclass(frozen=True)
class Loss(ABC):
    """A data cost ``C = (1/N) Σ_i c(f(x_i), y_i)`` whose Hessian in the outputs does not depend on the targets.

    Attributes:
        name: in configs, tables and messages.
        classes: whether the targets are class indices.
        curvature_factor: the Hessian of a sample's cost in its outputs is this times the covariance of `sample`.
    """

    name: ClassVar[str]
    classes: ClassVar[bool]
    curvature_factor: ClassVar[float]

    @abstractmethod
    def check(self, y: Tensor, samples: int, out: int, part: str) -> None:
        """Check targets against sizes; ``part`` names them in messages.

        Raises:
            ValueError: another shape, dtype or range than this cost takes.
        """

    @abstractmethod
    def convert(self, y: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """The targets in the dtype, device and memory layout that `evaluate` reads fastest; values unchanged."""

    @abstractmethod
    def evaluate(self, outputs: Outputs, y: Tensor) -> tuple[Float[Tensor, "*members"], Outputs]:
        """The cost in float64, and its gradient in the outputs (in their dtype). ``outputs`` may be overwritten."""

    @abstractmethod
    def curvature(self, outputs: Outputs, tangent: Outputs) -> Outputs:
        """The Hessian of the cost in the outputs times a tangent; block diagonal, one block a sample."""

    @abstractmethod
    def root(self, outputs: Float[Tensor, "out samples"]) -> Float[Tensor, "samples out columns"]:
        """Roots R of each sample's block of that Hessian: ``R Rᵀ``."""

    @abstractmethod
    def sample(self, outputs: Float[Tensor, "out samples"], generator: torch.Generator) -> Float[Tensor, "out samples"]:
        """Random columns whose covariance is the Hessian of each sample's own cost over `curvature_factor`."""

    def accuracy(self, outputs: Float[Tensor, "out samples"], y: Tensor) -> float | None:
        """Fraction of the samples whose largest output is their class; None where there are no classes."""
        return None

    def colours(self, y: Tensor) -> Float[Tensor, "samples"]:
        """One number a sample for pictures: the class, or the first output coordinate."""
        return (y if self.classes else y[:, 0]).double()


@dataclass(frozen=True)
class SquaredError(Loss):
    """``c = ‖y − f‖²``, summed over the outputs: the cost of arXiv:2405.17573, section 1."""

    name = "mse"
    classes = False
    curvature_factor = 2.0

    def check(self, y: Tensor, samples: int, out: int, part: str) -> None:
        """Targets ``(samples, out)`` of any numbers."""
        if tuple(y.shape) != (samples, out):
            raise ValueError(f"{part} targets must be {(samples, out)} for {self.name}, got {tuple(y.shape)}")

    def convert(self, y: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """Columns in memory, as the states are: to subtract rows from columns takes a whole pass over a state."""
        return y.to(dtype=dtype, device=device).mT.contiguous().mT

    def evaluate(self, outputs: Outputs, y: Tensor) -> tuple[Float[Tensor, "*members"], Outputs]:
        """``(1/N)‖F − Y‖²`` and ``(2/N)(F − Y)``."""
        samples, error = outputs.shape[-1], outputs - y.mT
        over: Any = None if error.ndim == 2 else (-2, -1)  # all of one matrix at once is the faster reduction
        cost = torch.linalg.vector_norm(error, dim=over, dtype=torch.float64).square() / samples
        return cost, error.mul_(2 / samples)

    def curvature(self, outputs: Outputs, tangent: Outputs) -> Outputs:
        """``2/N`` times the tangent."""
        return tangent * (2 / outputs.shape[-1])

    def root(self, outputs: Float[Tensor, "out samples"]) -> Float[Tensor, "samples out columns"]:
        """``√(2/N)`` times the unit matrix."""
        out, samples = outputs.shape
        eye = torch.eye(out, dtype=outputs.dtype, device=outputs.device)
        return (eye * math.sqrt(2 / samples)).expand(samples, out, out)

    def sample(self, outputs: Float[Tensor, "out samples"], generator: torch.Generator) -> Float[Tensor, "out samples"]:
        """Standard normal."""
        return torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype).to(outputs.device)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """``c = −log softmax(f)_y``."""

    name = "cross_entropy"
    classes = True
    curvature_factor = 1.0

    def check(self, y: Tensor, samples: int, out: int, part: str) -> None:
        """Class indices ``(samples,)`` in 0..out − 1."""
        if tuple(y.shape) != (samples,):
            raise ValueError(f"{part} targets must be {(samples,)} for {self.name}, got {tuple(y.shape)}")
        if y.is_floating_point() or y.dtype == torch.bool:
            raise ValueError(f"{part} targets must be integer class indices for {self.name}, got {y.dtype}")
        if int(y.min()) < 0 or int(y.max()) >= out:
            raise ValueError(f"{part} class indices must lie in 0..{out - 1}, got {int(y.min())}..{int(y.max())}")

    def convert(self, y: Tensor, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """int64 on the device."""
        return y.to(dtype=torch.int64, device=device)

    def evaluate(self, outputs: Outputs, y: Tensor) -> tuple[Float[Tensor, "*members"], Outputs]:
        """``−(1/N)Σ log p_y`` and ``(p − e_y)/N``."""
        log_p, index = torch.log_softmax(outputs, dim=-2), y.unsqueeze(-2)
        cost = -log_p.gather(-2, index).squeeze(-2).mean(dim=-1, dtype=torch.float64)
        gradient = log_p.exp()
        gradient.scatter_add_(-2, index, gradient.new_full((), -1.0).expand(index.shape))
        return cost, gradient / outputs.shape[-1]

    def curvature(self, outputs: Outputs, tangent: Outputs) -> Outputs:
        """``(diag(p) − ppᵀ)/N`` times the tangent."""
        p = torch.softmax(outputs, dim=-2)
        v = p * tangent
        return (v - p * v.sum(dim=-2, keepdim=True)) / outputs.shape[-1]

    def root(self, outputs: Float[Tensor, "out samples"]) -> Float[Tensor, "samples out columns"]:
        """``diag(√p)(1 − √p√pᵀ)/√N``: the second factor is its own square."""
        out, samples = outputs.shape
        eye = torch.eye(out, dtype=outputs.dtype, device=outputs.device)
        root_p = torch.softmax(outputs, dim=0).sqrt().T
        return root_p[:, :, None] * (eye - root_p[:, :, None] * root_p[:, None, :]) / math.sqrt(samples)

    def sample(self, outputs: Float[Tensor, "out samples"], generator: torch.Generator) -> Float[Tensor, "out samples"]:
        """``p − e_c`` with a class c drawn from p: covariance ``diag(p) − ppᵀ``."""
        p = torch.softmax(outputs, dim=0)
        drawn = torch.multinomial(p.T.cpu(), 1, generator=generator)[:, 0].to(outputs.device)
        p[drawn, torch.arange(p.shape[1], device=outputs.device)] -= 1
        return p

    def accuracy(self, outputs: Float[Tensor, "out samples"], y: Tensor) -> float:
        """Fraction of the samples whose largest output is their class."""
        return float((outputs.argmax(dim=0) == y).double().mean())


LOSSES: dict[str, Loss] = {loss.name: loss for loss in (SquaredError(), CrossEntropy())}


def loss_of(loss: str | Loss) -> Loss:
    """A loss by its name, or the loss itself.

    Raises:
        ValueError: an unknown name.

    >>> loss_of("mse")
    SquaredError()
    """
    if isinstance(loss, Loss):
        return loss
    if loss not in LOSSES:
        raise ValueError(f"loss must be {' or '.join(map(repr, LOSSES))} or a Loss, got {loss!r}")
    return LOSSES[loss]
