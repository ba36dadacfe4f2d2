"""Products with the Hessian of the objective, exact, by one tangent sweep forward and one backward.

Differentiating (E8) along a direction V of the weights, after the tangent sweep of `isthmus.curvature.linearise`:

    Ġ_{ℓ−1} = (1−ρ_ℓL̃) Ġ_ℓ + ρ_ℓ (σ̇ ⊙ [V_ℓᵀG_ℓ + W_ℓᵀĠ_ℓ] + (σ̈/σ̇) ⊙ Ṡ_{ℓ−1} ⊙ [W_ℓᵀG_ℓ])
    (HV)_ℓ = ρ_ℓ (Ġ_ℓ Sᵀ_{ℓ−1} + G_ℓ Ṡᵀ_{ℓ−1}) + μρ_ℓ V_ℓ

Six matrix products a layer, where the gradient takes three (Pearlmutter 1994). The Gauss–Newton product leaves out what
carries G: four. At ReLU's kinks σ̈ counts as 0: the Hessian of the piece at hand.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.curvature.linearise import Linearisation
from isthmus.problem import Problem


class Hessian:
    """The Hessian of a problem's objective at the parameters of the last `linearise`, over the whole training part.

    Args:
        problem: model and data; its parameters are read, never written.
        gauss_newton: leave out the curvature of the network itself: positive definite, and cheaper.
        dtype: of the sweeps; that of the parameters by default. Directions and products keep the parameters'.
    """

    def __init__(self, problem: Problem, gauss_newton: bool = False, dtype: torch.dtype | None = None) -> None:
        self.problem, self.gauss_newton = problem, gauss_newton
        self._net = Linearisation(problem, dtype, keep=True)
        bent = not gauss_newton and problem.activation.bend(self._net.W.new_zeros(1)) is not None
        self._bent = torch.empty_like(self._net.slopes) if bent else None
        self._dG, self._pulled = torch.empty_like(self._net.dA), torch.empty_like(self._net.dA)

    @property
    def dtype(self) -> torch.dtype:
        """Of the sweeps."""
        return self._net.dtype

    @torch.no_grad()
    def linearise(self) -> None:
        """Take the present parameters as the point: one sweep forward, one backward."""
        problem, net = self.problem, self._net
        depth, flow = len(net.W), net.flow
        net.at([p.detach() for p in problem.parameters])  # copies: products are wanted also when they have moved on
        _, d_outputs = problem.loss.evaluate(net.outputs.to(problem.x.dtype), problem.y)
        self._d_outputs = d_outputs.to(self.dtype)
        torch.mm(net.out_map.T, self._d_outputs, out=flow.gradient(depth))
        flow.backward(net.W, net.quadrature, 0.0, None)
        if self._bent is None:
            return
        for layer in range(depth):
            torch.mm(net.square_T[layer], flow.gradient(layer + 1), out=self._bent[layer])
            bend = problem.activation.bend(flow.A[layer])
            assert bend is not None
            self._bent[layer].mul_(bend)

    @property
    def outputs(self) -> Float[Tensor, "out samples"]:
        """The outputs at the point."""
        return self._net.outputs

    def tangent(self, direction: Sequence[Tensor]) -> Float[Tensor, "out samples"]:
        """The derivative of the outputs along a direction of the parameters."""
        return self._net.tangent([v.to(self.dtype) for v in direction])

    @torch.no_grad()
    def product(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """``H V``, for V given as one tensor a parameter, in the order and shapes of ``problem.parameters``."""
        problem, net, flow = self.problem, self._net, self._net.flow
        direction = [v.to(self.dtype) for v in direction]
        dG, pulled = self._dG, self._pulled
        learned, full = net.learned, not self.gauss_newton
        d_tangent = problem.loss.curvature(net.outputs, net.tangent(direction))
        torch.mm(net.out_map.T, d_tangent, out=dG)
        out = [torch.empty_like(v) for v in direction]
        V, V_T, HV = direction[0].unbind(), direction[0][:, :, : len(dG)].mT.unbind(), out[0].unbind()
        if learned:
            torch.mm(d_tangent, flow.end.T, out=out[2])
            out[2].add_(direction[2], alpha=problem.mu)
            if full:
                dG.addmm_(direction[2].T, self._d_outputs)
                out[2].addmm_(self._d_outputs, net.dA.T)
        for layer in range(len(V) - 1, -1, -1):
            r, G = net.quadrature[layer], flow.gradient(layer + 1)
            torch.addmm(V[layer], dG, net.features_T[layer], beta=problem.mu * r, alpha=r, out=HV[layer])
            if full and (layer > 0 or learned):
                HV[layer].addmm_(G, net.dS[layer].T, alpha=r)
            if layer == 0 and not learned:
                break
            torch.mm(net.square_T[layer], dG, out=pulled)
            if full:
                pulled.addmm_(V_T[layer], G)
            dG.mul_(1 - r * net.leak).addcmul_(net.each_slope[layer], pulled, value=r)
            if self._bent is not None:
                dG.addcmul_(self._bent[layer], net.dS[layer, : len(dG)], value=r)
        if learned:
            torch.addmm(direction[1], dG, net.x, beta=problem.mu, out=out[1])
        return [h.to(p.dtype) for h, p in zip(out, problem.parameters, strict=True)]
