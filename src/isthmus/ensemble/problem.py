"""`EnsembleProblem`: the objectives (E3) of many problems of one shape, evaluated together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isthmus.ensemble.flow import EnsembleFlow, LayerScalars
from isthmus.mechanics.invariants import relative_residual
from isthmus.problem import Problem

# Bytes of one state of a group of members on a CPU: beyond this the buffers leave the cache, and groups in turn are
# faster. Fewer than four members are not worth a group: by itself, a member's skip and ρ ride on the products.
# Tuned: benchmarks/ensemble.py --groups 1 4 16 64.
CPU_GROUP_BYTES, CPU_GROUP_LEAST = 800_000, 4


@dataclass(frozen=True)
class EnsembleEvaluation:
    """One evaluation of every member, in float64.

    Args:
        objective: data cost plus penalty.
        data_cost: C of (E3).
        penalty: ``(μ/2)(Σ_ℓ ρ_ℓ‖W_ℓ‖² + ‖learned ends‖²)``.
    """

    objective: Float[Tensor, "members"]
    data_cost: Float[Tensor, "members"]
    penalty: Float[Tensor, "members"]


def _differences(first: Problem, other: Problem) -> list[str]:
    """What two problems must share, and do not."""
    found = []
    for name in ("depth", "width", "in_features", "out_features", "ends"):
        mine, theirs = getattr(first.model, name), getattr(other.model, name)
        if mine != theirs:
            found.append(f"{name} ({mine} and {theirs})")
    for name, mine, theirs in (
        ("activation", first.activation, other.activation),
        ("samples", first.x.shape[0], other.x.shape[0]),
        ("loss", first.loss, other.loss),
        ("dtype", first.model.weight.dtype, other.model.weight.dtype),
        ("device", first.model.weight.device, other.model.weight.device),
    ):
        if mine != theirs:
            found.append(f"{name} ({mine} and {theirs})")
    return found


class EnsembleProblem:
    """Copies of the parameters of many problems, stacked; seeds, data, μ, L̃ and ρ may differ from member to member.

    The problems themselves are only read, until `write_back`.

    Args:
        problems: of one shape: depth, width, ends, σ, number of samples, loss, dtype and device.
        group: members evaluated at a time. By default all on a GPU; on a CPU as many as keep a group's states in the
            cache.

    Attributes:
        members: index of every member still in the ensemble, in the order of ``problems``.
        parameters: weight ``(members, layers, width, width_in)``, then learned ends; gradients in ``.grad``.

    Raises:
        ValueError: no problems, problems of different shapes, a group below 1.
    """

    def __init__(self, problems: Sequence[Problem], group: int | None = None) -> None:
        if not problems:
            raise ValueError("an ensemble needs at least one problem")
        for i, other in enumerate(problems):
            if differences := _differences(problems[0], other):
                raise ValueError(f"members of an ensemble must be of one shape; 0 and {i} differ in {differences[0]}")
        if group is not None and group < 1:
            raise ValueError(f"a group must hold at least one member, got {group}")
        self.problems, model = list(problems), problems[0].model
        self.loss, self.learned, self.samples = problems[0].loss, model.ends == "learned", problems[0].x.shape[0]
        self.members = list(range(len(problems)))
        models = [p.model for p in problems]
        with torch.no_grad():
            self.weight = torch.stack([m.weight for m in models])
            self.in_map = torch.stack([m.in_map for m in models])
            self.out_map = torch.stack([m.out_map for m in models])
        self.parameters = [self.weight, self.in_map, self.out_map] if self.learned else [self.weight]
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        kind: dict[str, Any] = {"dtype": self.weight.dtype, "device": self.weight.device}
        self.rho = torch.stack([m.rho for m in models])
        self._steps = self._numbers()
        self._decay = torch.tensor([p.mu for p in problems], dtype=torch.float64, device=self.weight.device)
        self._x = torch.stack([p.x.T for p in problems])
        self._y = torch.stack([p.y for p in problems])
        self._y = self.loss.convert(self._y, **kind)
        if group is None:
            size = model.width * self.samples * self.weight.element_size()
            group = len(problems)
            if self.weight.device.type == "cpu":
                fitting = CPU_GROUP_BYTES // size
                group = fitting if fitting >= CPU_GROUP_LEAST else 1
        self.group = min(group, len(problems))
        self._flow = EnsembleFlow(problems[0].activation, model.depth, model.width, self.samples, self.group, **kind)

    def _numbers(self) -> LayerScalars:
        here = [self.problems[member] for member in self.members]
        return LayerScalars.of(self.rho, [p.effective_depth for p in here], [p.mu for p in here])

    def __len__(self) -> int:
        return len(self.members)

    @torch.no_grad()
    def evaluate(self, gradient: bool = True) -> EnsembleEvaluation:
        """Evaluate every member's objective, and write its gradient to the parameters' ``.grad``."""
        costs = []
        for first in range(0, len(self), self.group):
            costs.append(self._evaluate_group(slice(first, min(first + self.group, len(self))), gradient))
        data_cost = torch.cat(costs)
        norms = torch.linalg.vector_norm(self.weight.flatten(2), dim=2, dtype=torch.float64)
        squares = (norms.square() * self.rho).sum(dim=1)
        if self.learned:
            for end in (self.in_map, self.out_map):
                squares = squares + torch.linalg.vector_norm(end, dim=(1, 2), dtype=torch.float64).square()
        penalty = 0.5 * self._decay * squares
        return EnsembleEvaluation(data_cost + penalty, data_cost, penalty)

    def _evaluate_group(self, part: slice, gradient: bool) -> Float[Tensor, "group"]:
        flow, W, steps = self._flow, self.weight[part], self._steps[part]
        x, in_map, out_map = self._x[part], self.in_map[part], self.out_map[part]
        decay = self._decay[part].to(W.dtype)
        flow.set_members(W.shape[0])
        torch.bmm(in_map, x, out=flow.start)
        A_end = flow.forward(W, steps)
        cost, d_outputs = self.loss.evaluate(torch.bmm(out_map, A_end), self._y[part])
        if not gradient:
            return cost
        if self.learned:
            penalty = out_map * decay[:, None, None]
            torch.baddbmm(penalty, d_outputs, A_end.mT, out=self.out_map.grad[part])  # type: ignore[index]
        torch.bmm(out_map.mT, d_outputs, out=flow.gradient)
        assert self.weight.grad is not None
        G0 = flow.backward(W, steps, self.weight.grad[part], to_input=self.learned)
        if self.learned:
            torch.baddbmm(in_map * decay[:, None, None], G0, x.mT, out=self.in_map.grad[part])  # type: ignore[index]
        return cost

    @torch.no_grad()
    def residual(self) -> Float[Tensor, "members layers"]:
        """Stationarity residual of every layer from the gradient of the last evaluation, as in `Problem.residual`."""
        assert self.weight.grad is not None
        off = self.weight.grad.norm(dim=(2, 3)) / (self._decay[:, None] * self.rho).to(self.rho.dtype)
        return relative_residual(off, self.weight)

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the parameters of the members still here into their problems' models."""
        for i, member in enumerate(self.members):
            self.write_member(i, self.problems[member])

    @torch.no_grad()
    def write_member(self, position: int, problem: Problem, state: Sequence[Tensor] | None = None) -> None:
        """Copy one member's parameters, or a snapshot of all members' ones, into a problem's model."""
        for parameter, stacked in zip(problem.parameters, state or self.parameters, strict=True):
            parameter.copy_(stacked[position])

    @torch.no_grad()
    def keep(self, positions: Int[Tensor, "kept"]) -> None:
        """Go on with these members only (positions among those still here); the others are not written back.

        The stacks are made anew: whoever holds `parameters` must take them again.
        """
        chosen = positions.tolist()
        self.members = [self.members[i] for i in chosen]
        names = ("weight", "in_map", "out_map", "rho", "_decay", "_x", "_y")
        for name in names:
            old = getattr(self, name)
            new = old[positions]
            if old.grad is not None:
                new.grad = old.grad[positions]
            setattr(self, name, new)
        self._steps = self._numbers()
        self.parameters = [self.weight, self.in_map, self.out_map] if self.learned else [self.weight]
