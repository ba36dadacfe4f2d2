"""Muon: momentum whose every step is orthogonalised (Jordan et al., 2024), for all layers in one batch.

`torch.optim.Muon` does the same, a layer at a time and in bfloat16: 11.7 ms a step against 6.6 ms here on two cores for
20 layers of 100 × 101 (docs/notes/solver.md). The test compares the two.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.optimise.optimiser import Closure, Optimiser, Run
from isthmus.problem import Evaluation, Problem

# Jordan's quintic: drives every singular value into about [0.7, 1.2] in five iterations.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(G: Float[Tensor, "layers rows columns"], iterations: int = 5) -> Float[Tensor, "layers rows columns"]:
    """The nearest matrices with all singular values near 1, by Newton–Schulz, in the dtype of ``G``."""
    a, b, c = _QUINTIC
    X = G / (G.norm(dim=(1, 2), keepdim=True) + 1e-30)
    transposed = X.shape[1] > X.shape[2]
    if transposed:
        X = X.mT
    for _ in range(iterations):
        XX = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(XX, XX, XX, beta=b, alpha=c), X, beta=a)
    return X.mT if transposed else X


@dataclass(frozen=True)
class Muon(Optimiser):
    """Muon on the stacked weight; learned end maps, which are no hidden layers, go by Adam at a tenth of the rate.

    The rate is the operator norm of one step of ``W_ℓ``, in units of ``max(L̃, 1)``: the size of W at a critical point.

    Args:
        momentum: of the running mean of gradients; Nesterov. 0.95 is the authors' value.
    """

    name = "muon"
    rises = "objective"
    momentum: float = 0.95

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"Muon: momentum must lie in [0, 1), got {self.momentum}")

    def start(self, problem: Problem, tolerance: float = 0.0) -> Run:
        """Begin, with no momentum."""
        return MuonRun(problem, self.momentum)

    def unit(self, effective_depth: float) -> float:
        """``max(L̃, 1)``."""
        return max(effective_depth, 1.0)


class MuonRun(Run):
    """See `Muon`; here a step's rate is the operator norm itself."""

    def __init__(self, problem: Problem, momentum: float) -> None:
        self.weight, *others = problem.parameters
        self.momentum, self.buffer = momentum, torch.zeros_like(self.weight.data)
        self.adam = torch.optim.Adam(others, lr=1.0) if others else None

    @torch.no_grad()
    def step(self, closure: Closure, rate: float) -> Evaluation:
        """One evaluation, one orthogonalised step of operator norm ``rate``."""
        evaluation = closure()
        gradient = self.weight.grad
        assert gradient is not None
        self.buffer.lerp_(gradient, 1 - self.momentum)
        self.weight.data.add_(orthogonalise(gradient.lerp(self.buffer, self.momentum)), alpha=-rate)
        if self.adam is not None:
            self.adam.param_groups[0]["lr"] = 0.1 * rate
            self.adam.step()
        return evaluation

    def state_dict(self) -> dict[str, Any]:
        """The momentum, and Adam's state where there are learned ends."""
        return {"buffer": self.buffer, "adam": None if self.adam is None else self.adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a state back."""
        self.buffer.copy_(state["buffer"])
        if self.adam is not None:
            self.adam.load_state_dict(copy.deepcopy(state["adam"]))  # torch keeps the tensors it is given
