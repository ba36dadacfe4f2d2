"""`Geodesic`: weights, step-sizes, path and momenta of one network, in float64, and what can be asked of them."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._types import Path, StepSizesVector, Weights
from isthmus.activations import Activation
from isthmus.status import Status


@dataclass(frozen=True, repr=False)
class Geodesic:
    """A path with its momenta. The name is a promise only where the stationarity residual is small.

    Args:
        W: weights ``(layers, width, width_in)``.
        rho: step-sizes ``(layers,)``.
        A: path ``(layers + 1, samples, width)``, batch-first.
        M: scaled momenta ``M = L̃B = −(1/μ) ∂C/∂A``, same shape; ``M[ℓ]`` belongs after layer ℓ (E8).
        effective_depth: L̃.
        weight_decay: μ = λ/L̃.
        activation: σ.
        objective: data cost plus penalty (E3).
        data_cost: C.
        colours: one number a sample for pictures: the class, or the first output coordinate.
        status: how the weights came about.
    """

    W: Weights
    rho: StepSizesVector
    A: Path
    M: Path
    effective_depth: float
    weight_decay: float
    activation: Activation
    objective: float = float("nan")
    data_cost: float = float("nan")
    colours: Float[Tensor, "samples"] | None = field(default=None, repr=False)
    status: Status = Status.UNKNOWN

    @property
    def depth(self) -> int:
        """Number of layers L."""
        return self.W.shape[0]

    @property
    def positions(self) -> Float[Tensor, "layers_plus_1"]:
        """``p_0 = 0, …, p_L``."""
        return torch.cat((self.rho.new_zeros(1), self.rho.cumsum(0)))

    def __repr__(self) -> str:
        """Shapes and numbers, not the tensors."""
        layers, width, _ = self.W.shape
        return (
            f"{type(self).__name__}(layers={layers}, samples={self.A.shape[1]}, width={width}, "
            f"effective_depth={self.effective_depth:g}, weight_decay={self.weight_decay:g}, "
            f"objective={self.objective:.6g}, status={self.status.value!r})"
        )
