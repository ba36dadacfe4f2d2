"""Optimisers' updates on stacked parameters: the arithmetic of `isthmus.solve`'s, with a rate for every member."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isthmus.optimise.muon import orthogonalise

Rates = Float[Tensor, "members"]


def _along(rates: Rates, parameter: Tensor) -> Tensor:
    """The rates, shaped to multiply a stacked parameter."""
    return rates.to(parameter.dtype).view(-1, *[1] * (parameter.ndim - 1))


class Update(ABC):
    """One step of every member from the gradients in ``.grad``, and the memory it needs."""

    @abstractmethod
    def step(self, parameters: list[Tensor], rates: Rates) -> None:
        """Change the parameters in place."""

    def keep(self, positions: Int[Tensor, "kept"]) -> None:  # noqa: B027 - gradient descent has no memory
        """Forget all but these members."""


class GradientDescent(Update):
    """``θ ← θ − rate · g``."""

    def step(self, parameters: list[Tensor], rates: Rates) -> None:
        """Change the parameters in place."""
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.addcmul_(parameter.grad, _along(rates, parameter), value=-1)


class Adam(Update):
    """Adam with PyTorch's default moments, as `isthmus.optimise.first_order.adam`.

    Args:
        parameters: whose shapes its memory takes.
    """

    def __init__(self, parameters: list[Tensor], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.betas, self.eps, self.count = betas, eps, 0
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    def step(self, parameters: list[Tensor], rates: Rates) -> None:
        """Change the parameters in place."""
        self.count += 1
        (b1, b2), count = self.betas, self.count
        for parameter, m, v in zip(parameters, self.first, self.second, strict=True):
            assert parameter.grad is not None
            m.lerp_(parameter.grad, 1 - b1)
            v.mul_(b2).addcmul_(parameter.grad, parameter.grad, value=1 - b2)
            size = (v.sqrt() / (1 - b2**count) ** 0.5).add_(self.eps)
            parameter.addcmul_(m / size, _along(rates, parameter), value=-1 / (1 - b1**count))

    def keep(self, positions: Int[Tensor, "kept"]) -> None:
        """Forget all but these members."""
        self.first, self.second = [m[positions] for m in self.first], [v[positions] for v in self.second]


class Muon(Update):
    """Muon on the weights, Adam at a tenth of the rate on learned ends, as `isthmus.optimise.Muon`.

    Args:
        parameters: weight ``(members, layers, width, width_in)``, then learned ends.
        group: members orthogonalised at a time.
        momentum: of the running mean of gradients; Nesterov.
    """

    def __init__(self, parameters: list[Tensor], group: int, momentum: float = 0.95) -> None:
        self.group, self.momentum = group, momentum
        self.buffer = torch.zeros_like(parameters[0])
        self.ends = Adam(parameters[1:])

    def step(self, parameters: list[Tensor], rates: Rates) -> None:
        """Change the parameters in place."""
        weight = parameters[0]
        assert weight.grad is not None
        self.buffer.lerp_(weight.grad, 1 - self.momentum)
        scale = _along(rates, weight)
        for first in range(0, weight.shape[0], self.group):
            part = slice(first, first + self.group)
            ahead = weight.grad[part].lerp(self.buffer[part], self.momentum)
            direction = orthogonalise(ahead.flatten(0, 1)).view_as(ahead)
            weight[part].addcmul_(direction, scale[part], value=-1)
        self.ends.step(parameters[1:], 0.1 * rates)

    def keep(self, positions: Int[Tensor, "kept"]) -> None:
        """Forget all but these members."""
        self.buffer = self.buffer[positions]
        self.ends.keep(positions)


def update_for(name: str, parameters: list[Tensor], group: int) -> Update:
    """The update of a stage's optimiser (see `isthmus.solve.Stage`), for so many members at a time where it matters."""
    if name == "muon":
        return Muon(parameters, group)
    return Adam(parameters) if name == "adam" else GradientDescent()
