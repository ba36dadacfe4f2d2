"""A discretised flow linearised at its stage weights: what the metric of Newton's method is made of.

The same two sweeps as `isthmus.curvature.linearise`, a stage of a Runge–Kutta scheme in place of a layer.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.two_ended._types import Columns, StagePath
from isthmus.two_ended.sweeps import Sweeps, adjoint_sweep, tangent_sweep


class StageLinearisation:
    """The outputs to first order in the stage weights; is `isthmus.curvature.linearise.Linearised`.

    Args:
        sweeps: the discretisation; `at` takes features and slopes from its last `Sweeps.gradient`.
        dtype: of the sweeps here.
    """

    learned = False

    def __init__(self, sweeps: Sweeps, dtype: torch.dtype = torch.float32) -> None:
        self._sweeps, self.dtype = sweeps, dtype
        count, w, _ = sweeps.X.shape
        self.point = [torch.empty((count, w, sweeps.S.shape[1]), dtype=dtype)]
        self._square = self.point[0][:, :, :w]
        self.measure: list[float] = sweeps.measure.tolist()
        self._S = torch.empty_like(sweeps.S, dtype=dtype)
        self.features: Sequence[Tensor] = self._S.unbind()
        self.slopes: StagePath = torch.empty_like(sweeps.X, dtype=dtype)
        self.x, self.out_map = sweeps.end.start.T.to(dtype), sweeps.end.out_map.to(dtype)
        self.outputs = torch.empty((len(self.out_map), sweeps.end.samples), dtype=dtype)
        self._dX = torch.empty_like(self.slopes)

    @property
    def end(self) -> Columns:
        """The end state."""
        return self._sweeps.A[-1].to(self.dtype)

    def at(self, parameters: Sequence[Tensor]) -> None:
        """Take these weights, at which the sweeps stand."""
        self.point[0].copy_(parameters[0])
        self._S.copy_(self._sweeps.S)
        self.slopes.copy_(self._sweeps.d1)
        torch.mm(self.out_map, self.end, out=self.outputs)

    def tangent(self, direction: Sequence[Tensor]) -> Float[Tensor, "out samples"]:
        """The derivative of the outputs along a direction of the stage weights."""
        s = self._sweeps
        dF = torch.bmm(direction[0], self._S)
        return self.out_map @ tangent_sweep(s.scheme, s.h, s.L, self._square, self.slopes, dF, self._dX)

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
        return adjoint_sweep(s.scheme, s.h, s.L, self._square, G, lambda k: select(self.slopes[k]))
