"""The interface of one optimiser: an iteration at a time, explicit state, no knowledge of files or screens."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from isthmus.problem import Evaluation

Closure = Callable[[], Evaluation]


class Optimiser(ABC):
    """One iteration at a time on the parameters of a problem.

    A closure evaluates the objective at the current parameters and fills their ``.grad``. First-order methods call it
    once and report the value *before* their update; line-search methods report the value at the accepted point.
    """

    @abstractmethod
    def step(self, closure: Closure, rate: float) -> Evaluation:
        """Do one iteration at this rate (ignored where a line search finds it)."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that the next iteration depends on, besides the parameters: nested plain values and tensors."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a state back."""

    def parameters_moved(self) -> None:  # noqa: B027 - most optimisers need do nothing
        """Tell the optimiser that somebody else changed the parameters or the objective (a mesh update)."""

    @property
    def finished(self) -> bool:
        """Whether further iterations would change nothing (a line search that cannot go on)."""
        return False
