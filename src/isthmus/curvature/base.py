"""What the second-order methods ask of a problem, of its Hessian and of a preconditioner."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from isthmus.loss import Loss
from isthmus.problem import Evaluation


@runtime_checkable
class Target(Protocol):
    """What is minimised: `isthmus.Problem`, or another discretisation of its flow.

    Attributes:
        mu: weight decay μ.
        loss: the data cost.
    """

    mu: float
    loss: Loss

    @property
    def parameters(self) -> Sequence[Tensor]:
        """What is trained: weights ``(layers, width, width_in)``, then learned ends; gradients in ``.grad``."""

    @property
    def scales(self) -> Sequence[Tensor | float]:
        """Factors that make the penalty ``(μ/2)‖·‖²``: ``√ρ_ℓ`` for ``W_ℓ``, 1 for learned ends."""

    def last_outputs(self) -> Float[Tensor, "out samples"]:
        """The outputs of the last evaluation."""

    def evaluate(self, batch: Tensor | None = None, gradient: bool = True) -> Evaluation:
        """Value, and gradient to ``.grad``, at the present parameters."""

    def residual(self) -> Float[Tensor, "layers"]:
        """Stationarity residuals of the last evaluation with a gradient."""


@runtime_checkable
class SecondOrder(Protocol):
    """The Hessian of a target at the point of the last `linearise`."""

    @property
    def outputs(self) -> Float[Tensor, "out samples"]:
        """The outputs at the point."""

    def linearise(self) -> None:
        """Take the present parameters as the point, after an evaluation with its gradient there."""

    def product(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """``H V``: a tensor a parameter."""

    def tangent(self, direction: Sequence[Tensor]) -> Float[Tensor, "out samples"]:
        """The derivative of the outputs along a direction."""


class Preconditioner(ABC):
    """An approximate inverse Hessian in the scaled variables of `isthmus.curvature.ScaledParameters`.

    Attributes:
        restores: whether `restoration` is to be had.
        stiff: whether curvatures were met beside which the rounding of float32 hides that of the penalty.
    """

    restores: bool = False
    stiff: bool = False

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether `refresh` has been called."""

    @abstractmethod
    def refresh(self) -> None:
        """Measure at the present parameters."""

    @abstractmethod
    def apply(self, v: Float[Tensor, "variables"]) -> Float[Tensor, "variables"]:
        """The approximate inverse times a flat vector."""

    def restoration(self, excess: Float[Tensor, "out samples"]) -> Float[Tensor, "variables"]:
        """What to add to the variables so that the outputs lose ``excess``, at least cost to first order."""
        raise NotImplementedError(f"{type(self).__name__} cannot say what moves the outputs")

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that `apply` depends on."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a state back."""
