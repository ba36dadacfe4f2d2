"""The interface of optimisers: settings, which are values, and runs, which have state and make one step at a time."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from isthmus.problem import Evaluation, Problem

Closure = Callable[[], Evaluation]


class Run(ABC):
    """An optimiser at work on the parameters of a problem: explicit state, no knowledge of files or screens.

    A closure evaluates the objective at the current parameters and fills their ``.grad``. First-order methods call it
    once and report the value *before* their update; line-search methods report the value at the accepted point.
    """

    products: int = 0
    """Hessian products spent; 0 for methods that need none."""
    left: int = 0
    """Saddles left; 0 for methods that do not look for them."""
    least: Tensor | None = None
    """Eigenvector of the Hessian's least eigenvalue, in scaled variables, where it was looked for at the end."""

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


@dataclass(frozen=True)
class Optimiser(ABC):
    """The settings of one optimiser, which know how to start it.

    Attributes:
        name: in tables, histories and configs.
        full_batch: whether it needs one objective throughout: the full batch, and step-sizes that stay.
        needs_features: whether it reads the features of all layers, so that ``memory="store"`` is needed.
        rises: what may rise from one iteration to the next and is low where the stage was best; None where the
            objective never rises. A stage leaves its best iterate by this: see `isthmus.solve.Trainer`.
    """

    name: ClassVar[str]
    full_batch: ClassVar[bool] = False
    needs_features: ClassVar[bool] = False
    rises: ClassVar[Literal["objective", "residual_max"] | None] = None

    @abstractmethod
    def start(self, problem: Problem, tolerance: float = 0.0) -> Run:
        """Begin on a problem; ``tolerance``, on the largest stationarity residual, is for those that stop at one."""

    @property
    def leaves_saddles(self) -> bool:
        """Whether it looks, at the end, for a direction in which the objective bends down, and goes along it."""
        return False

    def unit(self, effective_depth: float) -> float:
        """What a stage's rate is a multiple of."""
        return 1.0

    def _check_positive(self, *names: str, counts: tuple[str, ...] = ()) -> None:
        for name in (*names, *counts):
            value, kind = getattr(self, name), int if name in counts else int | float
            if isinstance(value, bool) or not isinstance(value, kind):
                wanted = "a whole number (int)" if name in counts else "a number"
                raise TypeError(f"{type(self).__name__}: {name} must be {wanted}, got {value!r}")
            if not 0 < value < float("inf"):
                raise ValueError(f"{type(self).__name__}: {name} must be positive, got {value}")
