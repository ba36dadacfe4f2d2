"""A problem's network linearised at a point: the Jacobian of the outputs in the parameters, and its transpose.

Differentiating (E2) along a direction V of the weights (dots are derivatives along it):

    Ȧ_ℓ = (1−ρ_ℓL̃) Ȧ_{ℓ−1} + ρ_ℓ (V_ℓ S_{ℓ−1} + W_ℓ Ṡ_{ℓ−1}),   Ṡ = σ̇(A) ⊙ Ȧ,   S = σ(A)

and backward its transpose, (E8). Hessian products and the metric of Newton's method are made of these two sweeps.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.flow import FlowWorkspace
from isthmus.problem import Problem


@runtime_checkable
class Linearised(Protocol):
    """What the metric of all layers needs of a network (or of another discretised flow) at a point.

    Attributes:
        point: the trained tensors, copies: weights ``(layers, width, width_in)``, then learned ends.
        quadrature: weight m_ℓ of every layer in the penalty ``(μ/2) Σ m_ℓ‖W_ℓ‖²``: ρ_ℓ.
        features: S of every layer, ``(width_in, samples)``.
        slopes: ``σ̇`` of every layer, ``(layers, width, samples)``.
        x: inputs ``(samples, in_features)``; end: the last state ``(width, samples)``; out_map; outputs
            ``(out, samples)``.
        learned: whether the ends are trained.
    """

    point: list[Tensor]
    quadrature: list[float]
    features: Sequence[Tensor]
    slopes: Tensor
    x: Tensor
    out_map: Tensor
    outputs: Tensor
    learned: bool

    @property
    def end(self) -> Tensor:
        """``A_L``."""

    def at(self, parameters: Sequence[Tensor]) -> None:
        """Go to these parameters."""

    def tangent(self, direction: Sequence[Tensor]) -> Tensor:
        """The derivative of the outputs along a direction."""

    def transposed(self, outputs: Tensor) -> list[Tensor]:
        """The gradient of ``⟨outputs, f⟩`` in every parameter."""

    def adjoints(self, G: Tensor, select: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """From ``∂/∂A_L``, as any number of columns ``(width, …)``: D of every layer, last first, and ``∂/∂A_0``.

        ``D_ℓ S_{ℓ−1}ᵀ`` is the gradient in W_ℓ; ``∂/∂A_0`` comes only where ends are learned. ``select`` turns
        the slopes of one layer into the slopes of each column, in a shape that broadcasts against the columns.
        """


class Linearisation:
    """The outputs of the whole training part, to first order in the parameters around those of the last `at`.

    It is `Linearised`, whose attributes it has, and more:

    Args:
        problem: model and data.
        dtype: of the sweeps; that of the parameters by default.
        keep: keep back-propagated gradients and ``Ṡ`` of every layer, as Hessian products want them.

    Attributes:
        flow: the buffers of the sweeps, with the path ``flow.A`` of the point.
        W: the weights of the point; ``square``, ``square_T``: every layer's without the bias, and transposed.
        features_T: transposed features of every layer; ``each_slope``: the slopes layer by layer.
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
        self.point = [self.W, self.in_map, self.out_map] if self.learned else [self.W]
        self.x = problem.x.to(self.dtype)
        self.quadrature: list[float] = []
        self.slopes = torch.empty((L, w, N), **kind)
        self.outputs, self.dA = torch.empty((model.out_features, N), **kind), torch.empty((w, N), **kind)
        self.dS = torch.zeros((L if keep else 1, w + problem.activation.extra, N), **kind)
        self._pulled = torch.empty((w, N), **kind)
        # views of every layer, made once: making them costs as much as a small kernel
        self.features: Sequence[Tensor] = self.flow.S.unbind()
        self.square = self.W[:, :, :w].unbind()
        self.square_T, self.features_T = self.W[:, :, :w].mT.unbind(), self.flow.S.mT.unbind()
        self.each_slope = self.slopes.unbind()
        self._each_dS = self.dS[:, :w].unbind() if keep else self.dS[:, :w].unbind() * L

    @property
    def end(self) -> Float[Tensor, "width samples"]:
        """``A_L``."""
        return self.flow.end

    @torch.no_grad()
    def at(self, parameters: Sequence[Tensor]) -> None:
        """Take these parameters (copied) and the present step-sizes as the point: one sweep forward."""
        model = self.problem.model
        self.quadrature = model.rho.tolist()
        ends = parameters[1:] if self.learned else (model.in_map, model.out_map)
        for mine, theirs in zip((self.W, self.in_map, self.out_map), (parameters[0], *ends), strict=True):
            mine.copy_(theirs)
        torch.mm(self.in_map, self.x.T, out=self.flow.start)
        torch.mm(self.out_map, self.flow.forward(self.W, self.quadrature), out=self.outputs)
        for layer in range(len(self.quadrature)):
            self.slopes[layer].copy_(self.problem.activation.derivative(self.flow.A[layer]))

    @torch.no_grad()
    def tangent(self, direction: Sequence[Tensor]) -> Float[Tensor, "out samples"]:
        """The derivative of the outputs along a direction: a tensor a parameter, in this dtype."""
        V, dA, learned = direction[0].unbind(), self.dA, self.learned
        if learned:
            torch.mm(direction[1], self.x.T, out=dA)
        for layer, r in enumerate(self.quadrature):
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
        for layer in range(len(self.quadrature) - 1, -1, -1):
            r = self.quadrature[layer]
            torch.addmm(out[layer], G, self.features_T[layer], beta=0, alpha=r, out=out[layer])
            if layer > 0 or self.learned:
                torch.mm(self.square_T[layer], G, out=pulled)
                G.mul_(1 - r * self.leak).addcmul_(self.each_slope[layer], pulled, value=r)
        return [W, G @ self.x, outputs @ self.flow.end.T] if self.learned else [W]

    def adjoints(self, G: Tensor, select: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """See `Linearised`."""
        for layer in range(len(self.quadrature) - 1, -1, -1):
            r = self.quadrature[layer]
            yield G * r
            if layer > 0 or self.learned:
                pulled = (self.square_T[layer] @ G.reshape(len(G), -1)).view(G.shape).mul_(select(self.slopes[layer]))
                G = pulled.mul_(r).add_(G, alpha=1 - r * self.leak)
        if self.learned:
            yield G
