"""The fused flow: states A forward, back-propagated gradients G backward, without autograd (E2), (E8).

Inside, matrices are columns, ``(width, samples)``, as in the paper: one layer is then a single ``addmm`` into a
preallocated buffer, which carries the skip, the step-size and, backward, the weight decay. `path` and `momenta` are
the batch-first functions on top; `FlowWorkspace` is what training uses.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._types import Weights
from isthmus.activations import Activation


class FlowWorkspace:
    """Buffers of one shape, and the two sweeps over them. Reused from step to step; nothing is allocated in a sweep.

    What a step costs besides its matrix products are passes over buffers that do not fit into the cache. Training makes
    three a layer: σ forward; backward the mask, and the skip added to it in place. Keeping the path costs one more,
    since each state is then copied before the product is added to it.

    Args:
        activation: σ, which also says whether a 1 is appended.
        effective_depth: L̃ ≥ 0.
        depth: number of layers L.
        width: width w of the representation.
        samples: N.
        dtype: of every buffer.
        device: of every buffer.
        keep_path: keep every state ``A_ℓ``; else one buffer holds them in turn (training). A σ whose pull-back needs
            the states themselves keeps them in any case, see `keeps_path`.
        keep_gradients: keep ``∂C/∂A_ℓ`` of every layer (mechanics) instead of one buffer for all (training).
    """

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
        keep_path: bool = True,
        keep_gradients: bool = False,
    ) -> None:
        self.activation = activation
        self.effective_depth = float(effective_depth)
        self.depth, self.width, self.samples = depth, width, samples
        self.keeps_path = keep_path or activation.pullback_needs_state
        kind: dict[str, Any] = {"dtype": dtype, "device": device}
        self._states = torch.empty((depth + 1 if self.keeps_path else 1, width, samples), **kind)
        self.S = torch.empty((depth, width + activation.extra, samples), **kind)
        if activation.append_one:
            self.S[:, width] = 1
        self.G = torch.empty((depth + 1 if keep_gradients else 1, width, samples), **kind)
        self._pulled = torch.empty((width, samples), **kind)
        self._swept = depth
        # views of every layer, made once: making them costs as much as a small kernel
        self._each_state, self._each_G = self._states.unbind(), self.G.unbind()
        self._features, self._features_T = self.S.unbind(), self.S.mT.unbind()
        self._values = self.S[:, :width].unbind()
        self._layers: dict[tuple[int, torch.Size, tuple[int, ...]], tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {}

    def _layers_of(self, W: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Views of every ``W_ℓ``, and of its part without the bias, transposed; the newest few are remembered.

        They hold the storage of W, so that no other tensor can come to lie at its address.
        """
        key = (W.data_ptr(), W.shape, W.stride())
        if key not in self._layers:
            if len(self._layers) > 1:
                self._layers.clear()
            W = W.detach()
            self._layers[key] = (W.unbind(), W[:, :, : self.width].mT.unbind())
        return self._layers[key]

    @property
    def A(self) -> Float[Tensor, "layers_plus_1 width samples"]:
        """The path ``A_0 … A_L`` of the last forward sweep, as columns.

        Raises:
            RuntimeError: the workspace does not keep the path.
        """
        if not self.keeps_path:
            raise RuntimeError("this workspace keeps no path: make it with keep_path=True")
        return self._states

    @property
    def start(self) -> Float[Tensor, "width samples"]:
        """The buffer to fill with ``A_0`` before `forward` (every time: without the path, the sweep overwrites it)."""
        return self._each_state[0]

    @property
    def end(self) -> Float[Tensor, "width samples"]:
        """The last state of the last forward sweep, ``A_L``."""
        return self._each_state[self._swept % len(self._each_state)]

    def gradient(self, layer: int) -> Float[Tensor, "width samples"]:
        """The buffer of ``∂C/∂A_ℓ`` (with one buffer for all, what it holds is the newest of the sweep)."""
        return self._each_G[layer % len(self._each_G)]

    def forward(
        self,
        W: Weights,
        rho: Sequence[float],
        visit: Callable[[int, Tensor, Tensor], object] | None = None,
    ) -> Float[Tensor, "width samples"]:
        """(E2) from `start`, which the caller has filled: ``A_ℓ = (1−ρ_ℓL̃)A_{ℓ−1} + ρ_ℓ W_ℓ σ(A_{ℓ−1})``.

        With fewer than L layers in ``W`` and ``rho``, the sweep ends after them, and so does `backward`.
        ``visit(ℓ, A_{ℓ−1}, σ(A_{ℓ−1}))`` is called before every layer ℓ = 1 … L where given; it may write ``W_ℓ``.
        """
        self._swept = len(rho)
        states = self._each_state
        kept = len(states)
        for layer, (r, W_l) in enumerate(zip(rho, self._layers_of(W)[0], strict=True)):
            before, after = states[layer % kept], states[(layer + 1) % kept]
            self.activation.value(before, out=self._values[layer])
            if visit is not None:
                visit(layer + 1, before, self._features[layer])
            # in place where before is after: into another buffer, addmm copies `before` there first
            torch.addmm(before, W_l, self._features[layer], beta=1 - r * self.effective_depth, alpha=r, out=after)
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
        """(E8) from ``gradient(depth)``, which the caller has filled with ``∂C/∂A_L``.

        Writes the gradient of the whole objective, ``ρ_ℓ G_ℓ σ(A_{ℓ−1})ᵀ + μ ρ_ℓ W_ℓ`` (E3), to ``out`` where given,
        and returns ``∂C/∂A_0`` (without ``to_input``, the last layer's pull-back is left out and what comes back is
        ``∂C/∂A_1``). ``visit(ℓ, ∂C/∂A_ℓ)`` is called for ℓ = L … 0 where given; the buffer is reused afterwards.
        """
        layers, pulls = self._layers_of(W)
        outs = None if out is None else self._layers_of(out)[0]
        G = self.gradient(len(rho))
        for layer in range(len(rho), 0, -1):
            r = rho[layer - 1]
            if visit is not None:
                visit(layer, G)
            if outs is not None:
                S_T = self._features_T[layer - 1]
                torch.addmm(layers[layer - 1], G, S_T, beta=weight_decay * r, alpha=r, out=outs[layer - 1])
            if layer == 1 and not to_input:
                return G
            # beta=0 into the buffer itself: ρ rides on the product, and nothing is read or copied first.
            torch.addmm(self._pulled, pulls[layer - 1], G, beta=0, alpha=r, out=self._pulled)
            # without the path, this state is gone: the pull-back takes the features alone
            state = self._each_state[layer - 1] if self.keeps_path else self._values[layer - 1]
            self.activation.pullback_(self._pulled, state, self._values[layer - 1])
            # in place where one buffer serves all layers
            G = torch.add(self._pulled, G, alpha=1 - r * self.effective_depth, out=self.gradient(layer - 1))
        if visit is not None:
            visit(0, G)
        return G
