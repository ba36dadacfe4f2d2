"""A problem's network linearised at a point: the Jacobian of the outputs in the parameters, and its transpose.

Differentiating (E2) along a direction V of the weights (dots are derivatives along it):

    Ȧ_ℓ = (1−ρ_ℓL̃) Ȧ_{ℓ−1} + ρ_ℓ (V_ℓ S_{ℓ−1} + W_ℓ Ṡ_{ℓ−1}),   Ṡ = σ̇(A) ⊙ Ȧ,   S = σ(A)

and backward its transpose, (E8). Hessian products and the metric of Newton's method are made of these two sweeps.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.flow import FlowWorkspace
from isthmus.solve.objective import Problem


class Linearisation:
    """The outputs of the whole training part, to first order in the parameters around those of the last `at`.

    Args:
        problem: model and data.
        dtype: of the sweeps; that of the parameters by default.
        keep: keep back-propagated gradients and ``Ṡ`` of every layer, as Hessian products want them.

    Attributes:
        W: the weights of the point, ``(layers, width, width_in)``; ``in_map``, ``out_map``: its ends; ``rho``.
        flow: the buffers of the sweeps: features ``flow.S`` and path ``flow.A`` of the point.
        slopes: ``σ̇(A_ℓ)``, ``(layers, width, samples)``.
        square, square_T: every layer's weights without the bias, and transposed; features, features_T: likewise S.
        each_slope: the slopes layer by layer.
        outputs: of the point, ``(out, samples)``.
        dA: ``Ȧ_L`` of the last `tangent`, ``(width, samples)``.
        dS: ``Ṡ`` of the last `tangent`, zero in the row of the appended 1; of every layer only with ``keep``.
    """

    def __init__(self, problem: Problem, dtype: torch.dtype | None = None, keep: bool = False) -> None:
        self.problem, model = problem, problem.model
        self.dtype = model.weight.dtype if dtype is None else dtype
        kind: dict[str, Any] = {"dtype": self.dtype, "device": model.weight.device}
        L, w, N = model.depth, model.width, problem.x.shape[0]
        self.flow = FlowWorkspace(problem.activation, problem.effective_depth, L, w, N, keep_gradients=keep, **kind)
        self.learned, self.leak = model.ends == "learned", problem.effective_depth
        self.W = torch.empty(model.weight.shape, **kind)
        self.in_map, self.out_map = torch.empty(model.in_map.shape, **kind), torch.empty(model.out_map.shape, **kind)
        self.x = problem.x.to(self.dtype)
        self.rho: list[float] = []
        self.slopes = torch.empty((L, w, N), **kind)
        self.dA = torch.empty((w, N), **kind)
        self.dS = torch.zeros((L if keep else 1, w + problem.activation.extra, N), **kind)
        self._pulled = torch.empty((w, N), **kind)
        # views of every layer, made once: making them costs as much as a small kernel
        self.square, self.features = self.W[:, :, :w].unbind(), self.flow.S.unbind()
        self.square_T, self.features_T = self.W[:, :, :w].mT.unbind(), self.flow.S.mT.unbind()
        self.each_slope = self.slopes.unbind()
        self._each_dS = self.dS[:, :w].unbind() if keep else self.dS[:, :w].unbind() * L

    @torch.no_grad()
    def at(self, parameters: Sequence[Tensor]) -> None:
        """Take these parameters (copied) and the present step-sizes as the point: one sweep forward."""
        model = self.problem.model
        self.rho = model.rho.tolist()
        ends = parameters[1:] if self.learned else (model.in_map, model.out_map)
        for mine, theirs in zip((self.W, self.in_map, self.out_map), (parameters[0], *ends), strict=True):
            mine.copy_(theirs)
        torch.mm(self.in_map, self.x.T, out=self.flow.start)
        self.outputs = self.out_map @ self.flow.forward(self.W, self.rho)
        for layer in range(len(self.rho)):
            self.slopes[layer].copy_(self.problem.activation.derivative(self.flow.A[layer]))

    @torch.no_grad()
    def tangent(self, direction: Sequence[Tensor]) -> Float[Tensor, "out samples"]:
        """The derivative of the outputs along a direction: a tensor a parameter, in this dtype."""
        V, dA, learned = direction[0].unbind(), self.dA, self.learned
        if learned:
            torch.mm(direction[1], self.x.T, out=dA)
        for layer, r in enumerate(self.rho):
            if layer == 0 and not learned:  # Ȧ_0 is zero, and Ṡ_0 stays so
                torch.addmm(dA, V[0], self.features[0], beta=0, alpha=r, out=dA)
                continue
            dS = self._each_dS[layer]
            torch.mul(self.each_slope[layer], dA, out=dS)
            torch.addmm(dA, V[layer], self.features[layer], beta=1 - r * self.leak, alpha=r, out=dA)
            torch.addmm(dA, self.square[layer], dS, beta=1, alpha=r, out=dA)
        outputs = self.out_map @ dA
        if learned:
            outputs.addmm_(direction[2], self.flow.end)
        return outputs

    @torch.no_grad()
    def transposed(self, outputs: Float[Tensor, "out samples"]) -> list[Tensor]:
        """The gradient of ``⟨outputs, f⟩`` in every parameter, f being the network's outputs."""
        W, G, pulled = torch.empty_like(self.W), self.out_map.T @ outputs, self._pulled
        out = W.unbind()
        for layer in range(len(self.rho) - 1, -1, -1):
            r = self.rho[layer]
            torch.addmm(out[layer], G, self.features_T[layer], beta=0, alpha=r, out=out[layer])
            if layer > 0 or self.learned:
                torch.mm(self.square_T[layer], G, out=pulled)
                G.mul_(1 - r * self.leak).addcmul_(self.each_slope[layer], pulled, value=r)
        return [W, G @ self.x, outputs @ self.flow.end.T] if self.learned else [W]

    def pull(self, layer: int, G: Tensor, slopes: Tensor) -> Tensor:
        """``∂/∂A_ℓ`` from ``∂/∂A_{ℓ+1}`` (layer ℓ of 0 … L−1), of columns that belong to samples with these slopes.

        G may have any shape whose first dimension is the width, and the slopes any that broadcasts to it.
        """
        r = self.rho[layer]
        pulled = (self.square_T[layer] @ G.reshape(len(G), -1)).view(G.shape).mul_(slopes)
        return pulled.mul_(r).add_(G, alpha=1 - r * self.leak)
