"""Products with the Hessian of the objective, exact, by one tangent sweep forward and one backward.

Differentiating (E2) and (E8) along a direction V of the weights (dots are derivatives along it):

    Ȧ_ℓ = (1−ρ_ℓL̃) Ȧ_{ℓ−1} + ρ_ℓ (V_ℓ S_{ℓ−1} + W_ℓ Ṡ_{ℓ−1}),   Ṡ = σ̇(A) ⊙ Ȧ,   S = σ(A)
    Ġ_{ℓ−1} = (1−ρ_ℓL̃) Ġ_ℓ + ρ_ℓ (σ̇ ⊙ [V_ℓᵀG_ℓ + W_ℓᵀĠ_ℓ] + (σ̈/σ̇) ⊙ Ṡ_{ℓ−1} ⊙ [W_ℓᵀG_ℓ])
    (HV)_ℓ = ρ_ℓ (Ġ_ℓ Sᵀ_{ℓ−1} + G_ℓ Ṡᵀ_{ℓ−1}) + μρ_ℓ V_ℓ

Six matrix products a layer, where the gradient takes three (Pearlmutter 1994). The Gauss–Newton product leaves out what
carries G: four. At ReLU's kinks σ̈ counts as 0: the Hessian of the piece at hand.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.flow import FlowWorkspace
from isthmus.solve.objective import Problem


class Hessian:
    """The Hessian of a problem's objective at the parameters of the last `linearise`, over the whole training part.

    Args:
        problem: model and data; its parameters are read, never written.
        gauss_newton: leave out the curvature of the network itself: positive definite, and cheaper.
    """

    def __init__(self, problem: Problem, gauss_newton: bool = False) -> None:
        self.problem, self.gauss_newton = problem, gauss_newton
        model = problem.model
        kind: dict[str, Any] = {"dtype": model.weight.dtype, "device": model.weight.device}
        L, w, N = model.depth, model.width, problem.x.shape[0]
        self._flow = FlowWorkspace(problem.activation, problem.effective_depth, L, w, N, keep_gradients=True, **kind)
        self._slopes = torch.empty((L, w, N), **kind)
        bent = not gauss_newton and problem.activation.bend(model.weight.new_zeros(1)) is not None
        self._bent = torch.empty((L, w, N), **kind) if bent else None
        self._dA = torch.empty((w, N), **kind)
        self._dS = torch.zeros((L, w + problem.activation.extra, N), **kind)
        self._dG, self._pulled = torch.empty((w, N), **kind), torch.empty((w, N), **kind)

    @torch.no_grad()
    def linearise(self) -> None:
        """Take the present parameters as the point: one sweep forward, one backward."""
        problem, model, flow = self.problem, self.problem.model, self._flow
        w, rho = model.width, model.rho.tolist()
        # copies: products are wanted also when the parameters have moved on
        self._rho, self._W, self._out_map = rho, model.weight.detach().clone(), model.out_map.detach().clone()
        torch.mm(model.in_map, problem.x.T, out=flow.start)
        self._outputs = model.out_map @ flow.forward(model.weight, rho)
        _, self._d_outputs = problem.end(self._outputs, problem.y)
        torch.mm(model.out_map.T, self._d_outputs, out=flow.gradient(model.depth))
        flow.backward(model.weight, rho, 0.0, None)
        for layer in range(model.depth):
            self._slopes[layer].copy_(problem.activation.derivative(flow.A[layer]))
            if self._bent is not None:
                torch.mm(model.weight[layer, :, :w].T, flow.gradient(layer + 1), out=self._bent[layer])
                bend = problem.activation.bend(flow.A[layer])
                assert bend is not None
                self._bent[layer].mul_(bend)

    @property
    def outputs(self) -> Float[Tensor, "out samples"]:
        """The outputs at the point."""
        return self._outputs

    @torch.no_grad()
    def tangent(self, direction: Sequence[Tensor]) -> Float[Tensor, "out samples"]:
        """The derivative of the outputs along a direction of the parameters."""
        model, problem, flow = self.problem.model, self.problem, self._flow
        L, w, leak, W, V = model.depth, model.width, problem.effective_depth, self._W, direction[0]
        learned, dA = model.ends == "learned", self._dA
        if learned:
            torch.mm(direction[1], problem.x.T, out=dA)
        else:
            dA.zero_()
        for layer, r in enumerate(self._rho):
            dS, S = self._dS[layer, :w], flow.S[layer]
            torch.mul(self._slopes[layer], dA, out=dS)
            torch.addmm(dA, V[layer], S, beta=1 - r * leak, alpha=r, out=dA)
            if layer > 0 or learned:
                torch.addmm(dA, W[layer, :, :w], dS, beta=1, alpha=r, out=dA)
        tangent = self._out_map @ dA
        if learned:
            tangent.addmm_(direction[2], flow.A[L])
        return tangent

    @torch.no_grad()
    def product(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """``H V``, for V given as one tensor a parameter, in the order and shapes of ``problem.parameters``."""
        model, problem, flow = self.problem.model, self.problem, self._flow
        L, w, leak, W, V = model.depth, model.width, problem.effective_depth, self._W, direction[0]
        learned, full = model.ends == "learned", not self.gauss_newton
        tangent, dA, dG = self.tangent(direction), self._dA, self._dG
        d_tangent = problem.output_hessian(self._outputs, tangent)
        torch.mm(self._out_map.T, d_tangent, out=dG)
        out = [torch.empty_like(p) for p in problem.parameters]
        if learned:
            torch.mm(d_tangent, flow.A[L].T, out=out[2])
            out[2].add_(direction[2], alpha=problem.mu)
            if full:
                dG.addmm_(direction[2].T, self._d_outputs)
                out[2].addmm_(self._d_outputs, dA.T)
        for layer in range(L - 1, -1, -1):
            r, G = self._rho[layer], flow.gradient(layer + 1)
            torch.addmm(V[layer], dG, flow.S[layer].T, beta=problem.mu * r, alpha=r, out=out[0][layer])
            if full and (layer > 0 or learned):
                out[0][layer].addmm_(G, self._dS[layer].T, alpha=r)
            if layer == 0 and not learned:
                break
            torch.mm(W[layer, :, :w].T, dG, out=self._pulled)
            if full:
                self._pulled.addmm_(V[layer, :, :w].T, G)
            self._pulled.mul_(self._slopes[layer])
            if self._bent is not None:
                self._pulled.addcmul_(self._bent[layer], self._dS[layer, :w])
            torch.add(self._pulled.mul_(r), dG, alpha=1 - r * leak, out=dG)
        if learned:
            torch.addmm(direction[1], dG, problem.x, beta=problem.mu, out=out[1])
        return out
