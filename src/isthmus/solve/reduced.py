"""The objective with fewer unknowns: layers that share weights, and a last layer that is always at its optimum.

*Shared weights.* A bottleneck's slow stretch is long, and weights vary little along it; they vary fast at both ends.
Weights shared in groups that double from both ends inwards are few (7 for 20 layers), so that what a quasi-Newton step
does beside the two sweeps costs a third, and the metric sees the layers of a group act together. To untie them later
changes nothing in the network: there is no jump, as there is where layers are added.

*The last layer.* With fixed ends the squared error is quadratic in ``W_L``, so that its minimum is one linear system.
Put in at every evaluation, it leaves a function of the other layers with the same minima and the same gradient there
(variable projection: Golub and Pereyra 1973), which L-BFGS brings down in a third of the iterations.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from isthmus.flow import FlowWorkspace, RecomputeWorkspace
from isthmus.loss import SquaredError
from isthmus.problem import Evaluation, Problem


def doubling(layers: int) -> tuple[int, ...]:
    """Sizes of groups that double from both ends inwards, and what is left in the middle.

    >>> doubling(20)
    (1, 2, 4, 6, 4, 2, 1)
    """
    ends: list[int] = []
    size, left = 1, layers
    while left >= 3 * size:
        ends.append(size)
        left -= 2 * size
        size *= 2
    return (*ends, *((left,) if left else ()), *reversed(ends))


def can_project(problem: Problem) -> bool:
    """Whether the last layer's optimum is a linear system that leaves something to train.

    The end map must have orthonormal rows, as models are made with; one that somebody set to other values has not.
    """
    model = problem.model
    if not isinstance(problem.loss, SquaredError) or model.ends != "fixed" or model.depth < 2:
        return False
    gram = (model.out_map @ model.out_map.T).double()
    return bool((gram - torch.eye(len(gram), dtype=gram.dtype, device=gram.device)).abs().max() < 1e-4)


class ReducedProblem(Problem):
    """The objective (E3) as a function of one weight for each group of layers, the last layer solved for or not.

    It writes the model's weights at every evaluation. Made from a network whose layers differ within a group, it
    begins at their mean by step-size; made from one that it left, at exactly its weights.

    Args:
        problem: the same model, data, loss, μ, σ and L̃; without the test part.
        tied: whether layers share weights, in groups by `doubling`; else every layer is a group.
        projected: whether the last layer is solved for, where `can_project`.

    Attributes:
        weights: what is trained of the layers, ``(groups, width, width_in)``.
        projects: whether the last layer is solved for.
    """

    def __init__(self, problem: Problem, tied: bool, projected: bool) -> None:
        super().__init__(
            problem.model,
            problem.x,
            problem.y,
            loss=problem.loss,
            mu=problem.mu,
            memory=problem.memory,
            activation=problem.activation,
            effective_depth=problem.effective_depth,
        )
        model, W = self.model, self.model.weight.detach()
        self.projects = projected and can_project(problem)
        trained = model.depth - self.projects
        sizes = doubling(model.depth) if tied else (1,) * model.depth
        if self.projects:  # the last group is the last layer, but in a network of two
            sizes = sizes[:-1] if sizes[-1] == 1 else (trained,)
        counts = torch.tensor(sizes, device=W.device)
        self._group = torch.repeat_interleave(torch.arange(len(sizes), device=W.device), counts)
        first = W[counts.cumsum(0) - counts]
        self._rho = model.rho[:trained]
        self._steps = self._sum(self._rho, len(sizes))
        # as a difference from the group's first layer: exact where all are equal, as after a resume
        self.weights = nn.Parameter(first + self.pooled(W[:trained] - first[self._group]))
        self.weights.grad = torch.zeros_like(self.weights)
        self._expand()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The groups' weights, then learned ends where there are any."""
        return [self.weights, *super().parameters[1:]]

    @property
    def scales(self) -> list[Tensor | float]:
        """The roots of the groups' summed step-sizes; 1 for learned ends."""
        return [self._steps.sqrt()[:, None, None], *super().scales[1:]]

    def pooled(self, per_layer: Float[Tensor, "layers ..."]) -> Float[Tensor, "groups ..."]:
        """The mean over each group, weighted by step-size; what is had of a last layer solved for is left out."""
        share = self._rho / self._steps[self._group]
        part = per_layer[: len(self._group)]
        return self._sum(part * share.view(-1, *[1] * (part.ndim - 1)), len(self._steps))

    def evaluate(self, batch: Tensor | None = None, gradient: bool = True) -> Evaluation:
        """Write the model's weights, evaluate there, and sum the gradient over each group.

        On a batch the last layer stays what it is.
        """
        self._expand()
        evaluation = super().evaluate(batch, gradient)
        if gradient:
            assert self.model.weight.grad is not None and self.weights.grad is not None
            self.weights.grad.copy_(self._sum(self.model.weight.grad[: len(self._group)], len(self._steps)))
        return evaluation

    def _sum(self, per_layer: Tensor, groups: int) -> Tensor:
        sums = per_layer.new_zeros((groups, *per_layer.shape[1:]))
        return sums.index_add_(0, self._group, per_layer)

    @torch.no_grad()
    def _expand(self) -> None:
        torch.index_select(self.weights, 0, self._group, out=self.model.weight.data[: len(self._group)])

    def _sweep(self, flow: FlowWorkspace | RecomputeWorkspace, x: Tensor, rho: Sequence[float]) -> Tensor:
        if not self.projects or x is not self.x or not isinstance(flow, FlowWorkspace):
            return super()._sweep(flow, x, rho)
        torch.mm(self.model.in_map, x.T, out=flow.start)
        return flow.forward(self.model.weight, rho, visit=self._solve_last)

    def _solve_last(self, layer: int, state: Tensor, features: Tensor) -> None:
        """``W_L = Oᵀ Z`` with ``Z ((2ρ/N) S Sᵀ + μ) = (2/N)(Y − (1 − ρL̃) O A_{L−1}) Sᵀ``, for O Oᵀ = 1."""
        if layer < self.model.depth:
            return
        out_map, r = self.model.out_map, float(self.model.rho[-1])
        share = 2 / self.x.shape[0]
        missing = self.y.T - (1 - r * self.effective_depth) * (out_map @ state)
        normal = (features @ features.T).double().mul_(share * r)
        normal.diagonal().add_(self.mu)
        Z, _ = torch.linalg.solve_ex(normal, (features @ missing.T).double().mul_(share))
        self.model.weight.data[-1] = out_map.T @ Z.T.to(out_map.dtype)
