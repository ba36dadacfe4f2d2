"""Adam and gradient descent from `torch.optim`: the two halves of the paper's recipe."""

from typing import Any

import torch
from torch import nn

from isthmus.optimise.optimiser import Closure, Optimiser
from isthmus.problem import Evaluation


class FirstOrder(Optimiser):
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
        self.optimiser.load_state_dict(state)


def adam(parameters: list[nn.Parameter]) -> FirstOrder:
    """Adam with PyTorch's default moments, which the paper does not state."""
    return FirstOrder(torch.optim.Adam(parameters, lr=0.0))


def sgd(parameters: list[nn.Parameter]) -> FirstOrder:
    """Plain gradient descent, no momentum: the paper does not state any."""
    return FirstOrder(torch.optim.SGD(parameters, lr=0.0))
