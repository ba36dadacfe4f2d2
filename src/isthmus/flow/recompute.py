"""The fused flow in bounded memory: checkpoints of the state, and segments of layers computed a second time.

The features of all layers, ``L (w+1) N`` numbers, are what a step must hold for its backward sweep: 10 GB in float32 at
L = 1000, w = 256, N = 10⁴. `RecomputeWorkspace` holds those of one segment of layers, and the state before each segment
(Griewank and Walther 2000, with one level of checkpoints). The price is a second forward sweep through every segment
but the last: at most a third of a step's matrix products, and the less the longer the segments are.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._types import Weights
from isthmus.activations import Activation
from isthmus.flow.workspace import FlowWorkspace


def flow_bytes(
    activation: Activation, depth: int, width: int, samples: int, dtype: torch.dtype, segment: int | None = None
) -> int:
    """Bytes of the buffers of a training sweep: stored in full, or recomputed in segments of this length.

    Args:
        activation: σ.
        depth: L.
        width: w.
        samples: N.
        dtype: of the buffers.
        segment: layers of one segment; None where everything is stored.

    >>> from isthmus.activations import ReLU
    >>> flow_bytes(ReLU(), 1000, 256, 10_000, torch.float32) / 1e9
    10.31072
    >>> flow_bytes(ReLU(), 1000, 256, 10_000, torch.float32, segment=32) / 1e9
    0.68752
    """
    held = depth if segment is None else min(segment, depth)
    rows = held * (width + activation.extra) + 3 * width  # features; the running state, the gradient, the pull-back
    if activation.pullback_needs_state:
        rows += held * width
    if segment is not None:
        rows += math.ceil(depth / held) * width
    return rows * samples * dtype.itemsize


def segment_for(
    activation: Activation, depth: int, width: int, samples: int, dtype: torch.dtype, budget: int | None = None
) -> int:
    """Layers of a segment: about ``√L``, which needs the least memory, or as many as fit into a budget of bytes.

    Raises:
        ValueError: not even the least fits.
    """
    sizes = [flow_bytes(activation, depth, width, samples, dtype, segment) for segment in range(1, depth + 1)]
    least = min(range(depth), key=sizes.__getitem__)
    if budget is None:
        return least + 1
    if sizes[least] > budget:
        raise ValueError(
            f"a memory budget of {budget} bytes is too small: {depth} layers of width {width} with {samples} samples "
            f"in {dtype} need {sizes[least]}; use fewer samples at a time (batch_size) or a larger budget"
        )
    return max(segment for segment, size in enumerate(sizes, start=1) if size <= budget)


class RecomputeWorkspace:
    """The sweeps of `isthmus.flow.FlowWorkspace`, with the features of one segment of layers in memory.

    Segments are counted from the end, so that the first may be shorter; the last one's features are still there when
    the backward sweep begins.

    Args:
        activation: σ.
        effective_depth: L̃ ≥ 0.
        depth: number of layers L.
        width: width w of the representation.
        samples: N.
        dtype: of every buffer.
        device: of every buffer.
        segment: layers of one segment, see `segment_for`.

    Raises:
        ValueError: a segment of no layers.
    """

    keeps_path = False

    def __init__(
        self,
        activation: Activation,
        effective_depth: float,
        depth: int,
        width: int,
        samples: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        segment: int,
    ) -> None:
        if segment < 1:
            raise ValueError(f"a segment needs at least one layer, got {segment}")
        segment = min(segment, depth)
        self.depth, self.width, self.samples, self.segment = depth, width, samples, segment
        bounds = list(range(depth, 0, -segment))[::-1]
        self._segments = list(zip([0, *bounds[:-1]], bounds, strict=True))
        self._flow = FlowWorkspace(
            activation, effective_depth, segment, width, samples, dtype=dtype, device=device, keep_path=False
        )
        self._checkpoints = torch.empty((len(bounds), width, samples), dtype=dtype, device=device)
        self.start = self._checkpoints[0]

    @property
    def end(self) -> Float[Tensor, "width samples"]:
        """``A_L`` of the last forward sweep."""
        return self._flow.end

    def gradient(self, layer: int) -> Float[Tensor, "width samples"]:
        """The one buffer of ``∂C/∂A_ℓ``: what it holds is the newest of the sweep."""
        return self._flow.gradient(layer)

    def forward(self, W: Weights, rho: Sequence[float]) -> Float[Tensor, "width samples"]:
        """(E2) from `start`, which the caller has filled; see `isthmus.flow.FlowWorkspace.forward`."""
        for i, (first, last) in enumerate(self._segments):
            if i > 0:
                self._checkpoints[i].copy_(self._flow.end)
            self._flow.start.copy_(self._checkpoints[i])
            self._flow.forward(W[first:last], rho[first:last])
        return self.end

    def backward(
        self,
        W: Weights,
        rho: Sequence[float],
        weight_decay: float,
        out: Weights | None,
        to_input: bool = True,
        visit: Callable[[int, Tensor], object] | None = None,
    ) -> Float[Tensor, "width samples"]:
        """(E8) from ``gradient(depth)``, which the caller has filled; see `isthmus.flow.FlowWorkspace.backward`."""
        G = self.gradient(self.depth)
        for i in range(len(self._segments) - 1, -1, -1):
            first, last = self._segments[i]
            if last < self.depth:
                self._flow.start.copy_(self._checkpoints[i])
                self._flow.forward(W[first:last], rho[first:last])
            G = self._flow.backward(
                W[first:last],
                rho[first:last],
                weight_decay,
                None if out is None else out[first:last],
                to_input=to_input or first > 0,
                visit=None if visit is None else _shifted(visit, first),
            )
        return G


def _shifted(visit: Callable[[int, Tensor], object], first: int) -> Callable[[int, Tensor], object]:
    """Count a segment's layers from the network's; visit 0 of a segment stands for the last of the one before."""

    def visit_from(layer: int, G: Tensor) -> None:
        if layer > 0 or first == 0:
            visit(first + layer, G)

    return visit_from
