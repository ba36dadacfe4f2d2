"""Sweeps of a Runge–Kutta discretisation of the flow: states, adjoints, tangents.

Columns, ``(width, samples)``, as in `isthmus.flow`, of which this is the several-stage sibling: with Euler's scheme
both compute the same numbers, which a test holds them to.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.mechanics.invariants import relative_residual
from isthmus.problem import Evaluation, Problem
from isthmus.two_ended._types import Columns, StepSizes
from isthmus.two_ended.schemes import Scheme


class Sweeps:
    """The discrete objective ``C(A_1) + (μ/2) Σ_n h_n Σ_i b_i ‖W_{n,i}‖²`` on one mesh: a `isthmus.curvature.Target`.

    Args:
        problem: whose data, loss, end maps, σ, L̃ and μ are used; learned maps are held at their values.
        scheme: the tableau.
        steps: step-sizes ``h_n``, summing to 1.
        dtype: of all buffers; they lie on the problem's device.

    Attributes:
        W: the stage weights ``(stages, width, width_in)``, written in place; gradients in ``W.grad``.
    """

    def __init__(self, problem: Problem, scheme: Scheme, steps: StepSizes, dtype: torch.dtype = torch.float64) -> None:
        model = problem.model
        kind: dict[str, Any] = {"dtype": dtype, "device": problem.x.device}
        self.loss, self.mu, self.activation, self.L = problem.loss, problem.mu, model.activation, model.effective_depth
        self.scheme, self.steps = scheme, steps.to(**kind)
        self.h: list[float] = steps.tolist()
        self.start: Tensor = (model.in_map.detach().to(**kind) @ problem.x.to(**kind).T).contiguous()
        self.out_map = model.out_map.detach().to(**kind)
        self._y = self.loss.convert(problem.y, **kind)
        w, N = self.start.shape
        self.width, count, extra = w, len(self.h) * scheme.stages, model.activation.extra
        # Weights of the quadrature, one a stage: the penalty's metric, and the scale of the variables.
        self.quadrature = [h * b for h in self.h for b in scheme.b]
        self._quadrature = torch.tensor(self.quadrature, **kind)
        self.W = torch.zeros((count, w, w + extra), **kind)
        self.W.grad = torch.zeros_like(self.W)
        self.X, self.F = torch.empty((count, w, N), **kind), torch.empty((count, w, N), **kind)
        self.S = torch.ones((count, w + extra, N), **kind)
        self.A = torch.empty((len(self.h) + 1, w, N), **kind)
        self.G = torch.empty_like(self.A)  # ∂C/∂A at the nodes
        self.D = torch.empty_like(self.X)  # ∂C/∂F of each stage
        self.d1 = torch.empty_like(self.X)
        self.square: Sequence[Tensor] = self.W[:, :, :w].unbind()

    @property
    def parameters(self) -> list[Tensor]:
        """The stage weights."""
        return [self.W]

    @property
    def scales(self) -> list[Tensor | float]:
        """``√(h b_i)``."""
        return [self._quadrature.sqrt()[:, None, None]]

    def last_outputs(self) -> Float[Tensor, "out samples"]:
        """The outputs of the last evaluation."""
        return self.out_map @ self.A[-1]

    def forward(self) -> Columns:
        """States of all nodes and stages at the present weights; returns the end state."""
        s, F, A = self.scheme.stages, self.F.unbind(), self.A.unbind()
        A[0].copy_(self.start)
        for n, h in enumerate(self.h):
            for i, row in enumerate(self.scheme.a):
                k = n * s + i
                X = _combine(A[n], F, n * s, h, row, self.X[k])
                self.activation.value(X, out=self.S[k, : self.width])
                torch.addmm(X, self.W[k], self.S[k], beta=-self.L, out=F[k])
            _combine(A[n], F, n * s, h, self.scheme.b, A[n + 1])
        return A[-1]

    def evaluate(self, batch: Tensor | None = None, gradient: bool = True) -> Evaluation:
        """The discrete (E3) at the present weights; with ``gradient`` also ``W.grad``, and the adjoints in place."""
        assert batch is None, "the two ends belong to all samples"
        cost, d_outputs = self.loss.evaluate(self.out_map @ self.forward(), self._y)
        squares = self.W.square().sum(dim=(1, 2))
        data_cost, penalty = torch.stack((cost, 0.5 * self.mu * (self._quadrature * squares).sum())).tolist()
        if gradient:
            assert self.W.grad is not None
            self.d1.copy_(self.activation.derivative(self.X))
            self.G[-1] = self.out_map.T @ d_outputs
            slopes = self.d1.unbind().__getitem__
            deque(
                adjoint_sweep(
                    self.scheme, self.h, self.L, self.square, self.G[-1], slopes, self.G, out=self.D.unbind()
                ),
                maxlen=0,
            )
            weights = self.W * (self.mu * self._quadrature[:, None, None])
            torch.baddbmm(weights, self.D, self.S.mT, out=self.W.grad)
        return Evaluation(data_cost + penalty, data_cost, penalty)

    def residual(self) -> Float[Tensor, "stages"]:
        """``‖W_i − M_iσ(X_i)ᵀ‖/‖W_i‖`` of every stage (E9), from the gradient of the last evaluation."""
        assert self.W.grad is not None
        return relative_residual(self.W.grad.norm(dim=(1, 2)) / (self.mu * self._quadrature), self.W)


def tangent_sweep(
    scheme: Scheme,
    h: Sequence[float],
    leak: float,
    W: Sequence[Tensor],
    slopes: Sequence[Tensor],
    dF: Sequence[Tensor],
    dX: Sequence[Tensor],
) -> Columns:
    """The tangent sweep from ``Ȧ_0 = 0``; returns ``Ȧ_1``.

    Args:
        scheme: the tableau. The first stage of an explicit scheme stands at its node, so that ``Ȧ_n`` is its ``Ẋ``.
        h: the steps.
        leak: L̃.
        W: weights without the bias of every stage, ``(width, width)``.
        slopes: ``σ̇(X)`` of every stage.
        dF: hold ``Ẇ S`` of every stage at first, and ``Ḟ`` at the end.
        dX: are filled with ``Ẋ``.
    """
    A = dX[0].zero_()
    for n, step in enumerate(h):
        first = n * scheme.stages
        for i, row in enumerate(scheme.a):
            k = first + i
            _combine(A, dF, first, step, row, dX[k])
            dF[k].add_(dX[k], alpha=-leak).addmm_(W[k], slopes[k] * dX[k])
        after = dX[first + scheme.stages] if n + 1 < len(h) else torch.empty_like(A)
        A = _combine(A, dF, first, step, scheme.b, after)
    return A


def _combine(A: Tensor, F: Sequence[Tensor], first: int, step: float, row: Sequence[float], out: Tensor) -> Tensor:
    """``A + h Σ_j a_j F_j`` into ``out``, which may be A itself where nothing is added."""
    before = A
    for j, coefficient in enumerate(row):
        if coefficient:
            before = torch.add(before, F[first + j], alpha=step * coefficient, out=out)
    return out if before is out else out.copy_(A) if out is not A else A


def adjoint_sweep(
    scheme: Scheme,
    h: Sequence[float],
    leak: float,
    W: Sequence[Tensor],
    G: Tensor,
    slopes: Callable[[int], Tensor],
    nodes: Tensor | None = None,
    second: tuple[Sequence[Tensor], Sequence[Tensor]] | None = None,
    out: Sequence[Tensor] | None = None,
) -> Iterator[Tensor]:
    """``∂/∂F`` of every stage from ``∂/∂A_1``, the last one first. The one backward loop of this room.

    Args:
        scheme: the tableau.
        h: the steps.
        leak: L̃.
        W: weights without the bias of every stage, ``(width, width)``.
        G: any columns, ``(width, …)``.
        slopes: of a stage, those of the columns, in a shape that broadcasts.
        nodes: is filled with ``∂/∂A_n`` of every node but the last, where given.
        second: of every stage, what is added to ``WᵀD`` before the slopes, and what after them: the second-order terms
            of a Hessian product.
        out: buffers for what is yielded, where given.
    """
    s, a, b = scheme.stages, scheme.a, scheme.b
    for n in range(len(h) - 1, -1, -1):
        pulled: list[Tensor] = [G] * s
        for i in range(s - 1, -1, -1):
            k = n * s + i
            D = torch.mul(G, h[n] * b[i]) if out is None else torch.mul(G, h[n] * b[i], out=out[k])
            for j in range(i + 1, s):
                if a[j][i]:
                    D.add_(pulled[j], alpha=h[n] * a[j][i])
            yield D
            if second is None:
                P = (W[k].T @ D.reshape(len(D), -1)).view(D.shape)
                back = D * -leak
            else:
                P = torch.addmm(second[0][k], W[k].T, D)
                back = torch.add(second[1][k], D, alpha=-leak)
            pulled[i] = back.addcmul_(slopes(k), P)
        for back in pulled:
            G = G + back
        if nodes is not None:
            nodes[n] = G
