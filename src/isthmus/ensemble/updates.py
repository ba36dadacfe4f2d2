"""Optimisers' updates on stacked parameters: the arithmetic of `isthmus.optimise`, with a rate for every member."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isthmus.optimise import SGD, Adam, Muon, Optimiser, orthogonalise

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

    def state_dict(self) -> dict[str, Any]:
        """The memory: what the next step depends on, besides parameters and gradients."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - as above
        """Take such a memory back."""


class GradientDescent(Update):
    """``θ ← θ − rate · g``."""

    def step(self, parameters: list[Tensor], rates: Rates) -> None:
        """Change the parameters in place."""
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.addcmul_(parameter.grad, _along(rates, parameter), value=-1)


class AdamUpdate(Update):
    """As `isthmus.optimise.Adam`.

    Args:
        settings: the moments.
        parameters: whose shapes its memory takes.
    """

    def __init__(self, settings: Adam, parameters: list[Tensor]) -> None:
        self.betas, self.eps, self.count = settings.betas, settings.eps, 0
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

    def state_dict(self) -> dict[str, Any]:
        """Both moments and the count of steps."""
        return {"count": self.count, "first": list(self.first), "second": list(self.second)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a memory back."""
        self.count = state["count"]
        self.first, self.second = ([m.clone() for m in state[name]] for name in ("first", "second"))


class MuonUpdate(Update):
    """Muon on the weights, Adam at a tenth of the rate on learned ends, as `isthmus.optimise.Muon`.

    Args:
        settings: the momentum.
        parameters: weight ``(members, layers, width, width_in)``, then learned ends.
        group: members orthogonalised at a time.
    """

    def __init__(self, settings: Muon, parameters: list[Tensor], group: int) -> None:
        self.group, self.momentum = group, settings.momentum
        self.buffer = torch.zeros_like(parameters[0])
        self.ends = AdamUpdate(Adam(), parameters[1:])

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

    def state_dict(self) -> dict[str, Any]:
        """The momentum, and the moments of the ends."""
        return {"buffer": self.buffer, "ends": self.ends.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a memory back."""
        self.buffer = state["buffer"].clone()
        self.ends.load_state_dict(state["ends"])


BATCHED = (Adam, SGD, Muon)
"""The settings of optimisers that go in step."""


def update_for(optimiser: Optimiser, parameters: list[Tensor], group: int) -> Update:
    """The update of an optimiser of `BATCHED`, for ``group`` members at a time where it matters."""
    if isinstance(optimiser, Muon):
        return MuonUpdate(optimiser, parameters, group)
    return AdamUpdate(optimiser, parameters) if isinstance(optimiser, Adam) else GradientDescent()
