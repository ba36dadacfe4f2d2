"""A discretised flow to first and second order in its stage weights: what Newton's method is made of.

The same sweeps as `isthmus.curvature.linearise`, a stage of a Runge–Kutta scheme in place of a layer.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.two_ended._types import Columns, StagePath
from isthmus.two_ended.sweeps import Sweeps, adjoint_sweep, tangent_sweep


class StageLinearisation:
    """The outputs to first order in the stage weights; is `isthmus.curvature.linearise.Linearised`.

    Args:
        sweeps: the discretisation; `at` takes features and slopes from its last evaluation with a gradient.
        dtype: of the sweeps here.
    """

    learned = False

    def __init__(self, sweeps: Sweeps, dtype: torch.dtype = torch.float32) -> None:
        self._sweeps, self.dtype = sweeps, dtype
        w = sweeps.width
        self.point = [torch.empty_like(sweeps.W, dtype=dtype)]
        self.square: Sequence[Tensor] = self.point[0][:, :, :w].unbind()
        self.quadrature = sweeps.quadrature
        self.S = torch.empty_like(sweeps.S, dtype=dtype)
        self.features: Sequence[Tensor] = self.S.unbind()
        self.slopes: StagePath = torch.empty_like(sweeps.X, dtype=dtype)
        self.x, self.out_map = sweeps.start.T.to(dtype), sweeps.out_map.to(dtype)
        self.outputs = self.out_map.new_empty((len(self.out_map), sweeps.start.shape[1]))
        self.dX, self._dF = (
            torch.empty_like(self.slopes),
            torch.empty_like(self.slopes),
        )  # Ẋ and Ḟ of the last `tangent`
        # views of every stage, made once
        self._each_slope, self._each_dX, self._each_dF = (t.unbind() for t in (self.slopes, self.dX, self._dF))

    @property
    def end(self) -> Columns:
        """The end state."""
        return self._sweeps.A[-1].to(self.dtype)

    def at(self, parameters: Sequence[Tensor]) -> None:
        """Take these weights, at which the sweeps stand."""
        self.point[0].copy_(parameters[0])
        self.S.copy_(self._sweeps.S)
        self.slopes.copy_(self._sweeps.d1)
        torch.mm(self.out_map, self.end, out=self.outputs)

    def tangent(self, direction: Sequence[Tensor]) -> Float[Tensor, "out samples"]:
        """The derivative of the outputs along a direction of the stage weights."""
        s = self._sweeps
        torch.bmm(direction[0], self.S, out=self._dF)
        dA = tangent_sweep(s.scheme, s.h, s.L, self.square, self._each_slope, self._each_dF, self._each_dX)
        return self.out_map @ dA

    def transposed(self, outputs: Float[Tensor, "out samples"]) -> list[Tensor]:
        """The gradient of ``⟨outputs, f⟩`` in the stage weights, f being the outputs."""
        out = torch.empty_like(self.point[0])
        stages = range(len(out) - 1, -1, -1)
        for k, D in zip(stages, self.adjoints(self.out_map.T @ outputs, lambda slopes: slopes), strict=True):
            torch.mm(D, self.features[k].T, out=out[k])
        return [out]

    def adjoints(self, G: Tensor, select: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """See `isthmus.curvature.linearise.Linearised`."""
        s = self._sweeps
        return adjoint_sweep(s.scheme, s.h, s.L, self.square, G, lambda k: select(self._each_slope[k]))


class StageHessian:
    """The exact Hessian of the discrete objective; is `isthmus.curvature.SecondOrder`.

    Args:
        sweeps: the discretisation.
        dtype: of the sweeps here; directions and products keep that of the weights.
    """

    def __init__(self, sweeps: Sweeps, dtype: torch.dtype = torch.float64) -> None:
        self._sweeps, self._net = sweeps, StageLinearisation(sweeps, dtype)
        self._D, self._bent = torch.empty_like(self._net.slopes), torch.empty_like(self._net.slopes)
        self._decay = self._D.new_tensor(sweeps.quadrature)[:, None, None] * sweeps.mu

    @property
    def outputs(self) -> Float[Tensor, "out samples"]:
        """The outputs at the point."""
        return self._net.outputs

    def linearise(self) -> None:
        """Take the weights at which the sweeps stand as the point: copies, no sweep."""
        sweeps, net = self._sweeps, self._net
        net.at(sweeps.parameters)
        self._D.copy_(sweeps.D)
        bend = sweeps.activation.bend(sweeps.X)
        if bend is None:  # σ of straight pieces
            self._bent.zero_()
        else:  # σ̈ ⊙ WᵀD
            self._bent.copy_(bend.mul_(sweeps.d1).mul_(torch.bmm(torch.stack(tuple(sweeps.square)).mT, sweeps.D)))

    def tangent(self, direction: Sequence[Tensor]) -> Float[Tensor, "out samples"]:
        """The derivative of the outputs along a direction of the stage weights."""
        return self._net.tangent([direction[0].to(self._net.dtype)])

    def product(self, direction: Sequence[Tensor]) -> list[Tensor]:
        """``H V``: one tangent sweep, one backward."""
        net, s = self._net, self._sweeps
        V, w = direction[0].to(net.dtype), s.width
        tangent = s.loss.curvature(net.outputs, net.tangent([V]))
        second = (torch.bmm(V[:, :, :w].mT, self._D).unbind(), (self._bent * net.dX).unbind())
        D, G, slopes = torch.empty_like(net.dX), net.out_map.T @ tangent, net.slopes.unbind().__getitem__
        deque(
            adjoint_sweep(s.scheme, s.h, s.L, net.square, G, slopes, second=second, out=D.unbind()),
            maxlen=0,
        )
        out = torch.baddbmm(V * self._decay, D, net.S.mT)
        out[:, :, :w].baddbmm_(self._D, (net.slopes * net.dX).mT)
        return [out.to(direction[0].dtype)]
