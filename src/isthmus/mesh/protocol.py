"""What a `MeshScheduler` asks of a model: step-sizes and states, and two things that are optional."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Stepped(Protocol):
    """A model that goes through its depth, or through time, in steps that can be changed.

    `isthmus.LeakyResNet`, `ResidualSteps` and `ODEMesh` are such models. A model that also has ``effective_depth``, the
    L̃ of (E2) in docs/theory.md, gets the caps of `Adaptive` on ``ρL̃``; without it there are none.
    """

    rho: Tensor
    """Step-sizes ``(steps,)`` as shares of the whole: positive, summing to 1."""

    def trajectory(self, x: Tensor) -> Tensor:
        """The states before the first and after each step, ``(steps + 1, samples, …)``."""

    def set_step_sizes(self, rho: Tensor) -> None:
        """Replace the shares."""


@runtime_checkable
class MovesWeights(Protocol):
    """A model whose weights can follow their position when steps move."""

    def move_weights(self, old: Tensor, new: Tensor) -> None:
        """Read the weights of the steps ``new`` off those of the steps ``old``, both ``(steps,)``."""


def check_shares(rho: Tensor, steps: int) -> None:
    """Shares must be ``(steps,)``, positive, finite, and sum to 1.

    Raises:
        ValueError: which of these fails.
    """
    if rho.shape != (steps,):
        raise ValueError(f"one step-size a step: expected ({steps},), got {tuple(rho.shape)}")
    if not bool((rho.isfinite() & (rho > 0)).all()):
        raise ValueError(f"every step-size must be positive and finite, got {rho.tolist()}")
    total = float(rho.double().sum())
    if abs(total - 1) > 1e-5:
        raise ValueError(f"step-sizes are shares and must sum to 1, got a sum of {total:.6g}: divide them by it")
