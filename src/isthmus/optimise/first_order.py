"""Adam and gradient descent from `torch.optim`: the two halves of the paper's recipe."""

import copy
from dataclasses import dataclass
from typing import Any

import torch

from isthmus.optimise.optimiser import Closure, Optimiser, Run
from isthmus.problem import Evaluation, Problem


class FirstOrderRun(Run):
    """A `torch.optim` optimiser whose rate is given anew at every step.

    The weight decay is part of the gradient (E3), not decoupled as in AdamW: critical points stay those of (E3).

    Args:
        optimiser: any whose groups have an ``lr``.
    """

    def __init__(self, optimiser: torch.optim.Optimizer) -> None:
        self.optimiser = optimiser

    def step(self, closure: Closure, rate: float) -> Evaluation:
        """One evaluation, one update."""
        evaluation = closure()
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        return evaluation

    def state_dict(self) -> dict[str, Any]:
        """PyTorch's own."""
        return self.optimiser.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a state back."""
        self.optimiser.load_state_dict(copy.deepcopy(state))  # torch keeps the tensors it is given


@dataclass(frozen=True)
class Adam(Optimiser):
    """Adam, with PyTorch's default moments, which the paper does not state.

    Args:
        betas: decay of the means of gradients and of their squares.
        eps: added to the root of the latter.
    """

    name = "adam"
    rises = "objective"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def start(self, problem: Problem, tolerance: float = 0.0) -> Run:
        """Begin, with no memory of gradients."""
        return FirstOrderRun(torch.optim.Adam(problem.parameters, lr=0.0, betas=self.betas, eps=self.eps))


@dataclass(frozen=True)
class SGD(Optimiser):
    """Plain gradient descent, no momentum: the paper does not state any."""

    name = "sgd"
    rises = "objective"

    def start(self, problem: Problem, tolerance: float = 0.0) -> Run:
        """Begin."""
        return FirstOrderRun(torch.optim.SGD(problem.parameters, lr=0.0))
