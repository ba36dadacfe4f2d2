"""Sweeps of a Runge–Kutta discretisation of the flow: states, adjoints, and exact Hessian products.

Columns, ``(width, samples)``, as in `isthmus.flow`, of which this is the several-stage, twice-differentiated sibling:
with Euler's scheme both compute the same numbers, which a test holds them to.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from isthmus.activations import Activation
from isthmus.two_ended._types import Columns, StagePath, StageWeights, Steps
from isthmus.two_ended.end_cost import EndCost
from isthmus.two_ended.schemes import Scheme


class Sweeps:
    """The discrete objective ``C(A_1) + (μ/2) Σ_n h_n Σ_i b_i ‖W_{n,i}‖²`` on one mesh.

    Args:
        end: the start state and the data cost at the end.
        activation: σ.
        effective_depth: L̃.
        mu: μ.
        scheme: the tableau.
        steps: step-sizes ``h_n``, summing to 1.
    """

    def __init__(
        self,
        end: EndCost,
        activation: Activation,
        effective_depth: float,
        mu: float,
        scheme: Scheme,
        steps: Steps,
    ) -> None:
        self.end, self.activation, self.L, self.mu, self.scheme = end, activation, effective_depth, mu, scheme
        self.steps = steps
        self.h: list[float] = steps.tolist()
        w, N = end.start.shape
        self.width = w
        count = len(self.h) * scheme.stages
        # Weights of the quadrature, one a stage: the penalty's metric, and the scale of the variables.
        self.measure = (steps[:, None] * torch.tensor(scheme.b, dtype=torch.float64)).flatten()
        new: dict[str, Any] = {"dtype": torch.float64}
        self.X = torch.empty((count, w, N), **new)
        self.S = torch.ones((count, w + activation.extra, N), **new)
        self.F = torch.empty((count, w, N), **new)
        self.A = torch.empty((len(self.h) + 1, w, N), **new)
        self.G = torch.empty_like(self.A)  # ∂C/∂A at the nodes
        self.D = torch.empty((count, w, N), **new)  # ∂C/∂F of each stage
        self.P = torch.empty_like(self.D)  # Wᵀ D, before σ̇
        self.d1 = torch.empty_like(self.D)
        self.d2: Tensor | None = None

    def forward(self, W: StageWeights) -> Columns:
        """States of all nodes and stages; returns the end state."""
        s, a, b, L = self.scheme.stages, self.scheme.a, self.scheme.b, self.L
        self.A[0] = self.end.start
        for n, h in enumerate(self.h):
            self.A[n + 1] = self.A[n]
            for i in range(s):
                k = n * s + i
                X = self.X[k].copy_(self.A[n])
                for j, coefficient in enumerate(a[i]):
                    if coefficient:
                        X.add_(self.F[n * s + j], alpha=h * coefficient)
                self.activation.value(X, out=self.S[k, : self.width])
                torch.addmm(X, W[k], self.S[k], beta=-L, out=self.F[k])
                self.A[n + 1].add_(self.F[k], alpha=h * b[i])
        return self.A[-1]

    def objective(self, W: StageWeights) -> float:
        """The discrete (E3); leaves the states in place. Not finite where the states are not."""
        cost = self.end.value(self.forward(W))
        return cost + 0.5 * self.mu * float((self.measure * W.square().sum(dim=(1, 2))).sum())

    def gradient(self, W: StageWeights) -> StageWeights:
        """Gradient at the weights of the last `objective`; leaves the adjoints in place."""
        self.d1.copy_(self.activation.derivative(self.X))
        self.d2 = None
        self.G[-1] = self.end.gradient(self.A[-1])
        self._pull(W, self.G, self.D, self.P)
        return torch.baddbmm(W * (self.mu * self.measure[:, None, None]), self.D, self.S.mT)

    def _pull(self, W: Tensor, G: Tensor, D: Tensor, P: Tensor) -> None:
        s, a, b, w = self.scheme.stages, self.scheme.a, self.scheme.b, self.width
        pulled: list[Tensor] = [G[-1]] * s
        for n in range(len(self.h) - 1, -1, -1):
            h, total = self.h[n], G[n].copy_(G[n + 1])
            for i in range(s - 1, -1, -1):
                k = n * s + i
                torch.mul(G[n + 1], h * b[i], out=D[k])
                for j in range(i + 1, s):
                    if a[j][i]:
                        D[k].add_(pulled[j], alpha=h * a[j][i])
                torch.mm(W[k, :, :w].T, D[k], out=P[k])
                pulled[i] = torch.addcmul(D[k] * -self.L, self.d1[k], P[k])
                total.add_(pulled[i])

    def _second_derivative(self) -> StagePath:
        """``σ̈`` at every stage, by autograd from ``σ̇``: 0 for a σ of straight pieces."""
        with torch.enable_grad():
            X = self.X.detach().requires_grad_(True)
            first = self.activation.derivative(X)
            return torch.autograd.grad(first.sum(), X)[0] if first.requires_grad else torch.zeros_like(self.X)

    def optimal_weights(self, W: StageWeights, gradient: StageWeights) -> StageWeights:
        """``M_i σ(X_i)ᵀ`` of every stage (E9): what the weights must equal at a critical point."""
        return W - gradient / (self.mu * self.measure[:, None, None])

    def hessian_product(self, W: StageWeights, dW: StageWeights) -> StageWeights:
        """The exact Hessian of the discrete objective times ``dW``, at the point of the last `gradient`."""
        s, a, b, w, L = self.scheme.stages, self.scheme.a, self.scheme.b, self.width, self.L
        if self.d2 is None:
            self.d2 = self._second_derivative().mul_(self.P)
        dF = torch.bmm(dW, self.S)
        dX = torch.empty_like(self.X)
        dA = tangent_sweep(self.scheme, self.h, L, W[:, :, :w], self.d1, dF, dX)
        dD = dF  # its slots are free from here on
        dP = torch.bmm(dW[:, :, :w].mT, self.D)
        dG = self.end.curvature(self.A[-1], dA)
        pulled: list[Tensor] = [dG] * s
        for n in range(len(self.h) - 1, -1, -1):
            h, total = self.h[n], dG.clone()
            for i in range(s - 1, -1, -1):
                k = n * s + i
                D = torch.mul(dG, h * b[i], out=dD[k])
                for j in range(i + 1, s):
                    if a[j][i]:
                        D.add_(pulled[j], alpha=h * a[j][i])
                dP[k].addmm_(W[k, :, :w].T, D)
                pulled[i] = torch.addcmul(D * -L, self.d1[k], dP[k]).addcmul_(self.d2[k], dX[k])
                total.add_(pulled[i])
            dG = total
        out = torch.baddbmm(dW * (self.mu * self.measure[:, None, None]), dD, self.S.mT)
        out[:, :, :w].baddbmm_(self.D, (self.d1 * dX).mT)
        return out


def tangent_sweep(
    scheme: Scheme, h: Sequence[float], leak: float, W: Tensor, slopes: StagePath, dF: StagePath, dX: StagePath
) -> Columns:
    """The tangent sweep from ``Ȧ_0 = 0``; returns ``Ȧ_1``.

    Args:
        scheme: the tableau.
        h: the steps.
        leak: L̃.
        W: stage weights without the bias, ``(stages, width, width)``.
        slopes: ``σ̇(X)`` of every stage.
        dF: holds ``Ẇ S`` of every stage at first, and ``Ḟ`` at the end.
        dX: is filled with ``Ẋ``.
    """
    dA = torch.zeros_like(dX[0])
    for n, step in enumerate(h):
        base = dA.clone()
        for i, row in enumerate(scheme.a):
            k = n * scheme.stages + i
            X = dX[k].copy_(base)
            for j, coefficient in enumerate(row):
                if coefficient:
                    X.add_(dF[n * scheme.stages + j], alpha=step * coefficient)
            dF[k].add_(X, alpha=-leak).addmm_(W[k], slopes[k] * X)
            dA.add_(dF[k], alpha=step * scheme.b[i])
    return dA


def adjoint_sweep(
    scheme: Scheme, h: Sequence[float], leak: float, W: Tensor, G: Tensor, slopes: Callable[[int], Tensor]
) -> Iterator[Tensor]:
    """``∂/∂F`` of every stage from ``∂/∂A_1``, the last one first.

    Args:
        scheme: the tableau.
        h: the steps.
        leak: L̃.
        W: stage weights without the bias, ``(stages, width, width)``.
        G: any columns, ``(width, …)``.
        slopes: of a stage, those of the columns, in a shape that broadcasts.
    """
    s, a, b = scheme.stages, scheme.a, scheme.b
    for n in range(len(h) - 1, -1, -1):
        pulled, total = [G] * s, G.clone()
        for i in range(s - 1, -1, -1):
            D = G * (h[n] * b[i])
            for j in range(i + 1, s):
                if a[j][i]:
                    D.add_(pulled[j], alpha=h[n] * a[j][i])
            yield D
            P = (W[n * s + i].T @ D.reshape(len(D), -1)).view(D.shape)
            pulled[i] = torch.addcmul(D * -leak, slopes(n * s + i), P)
            total.add_(pulled[i])
        G = total
