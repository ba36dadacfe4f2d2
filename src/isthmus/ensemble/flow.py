"""The fused flow of many networks at once: `isthmus.flow` with a leading member axis, (E2), (E8).

A scalar factor such as the skip ``1 − ρ_ℓL̃`` can be part of a batched product only if all members share its value.
Otherwise ρ is multiplied into the weights, which are few, and the skip costs one pass over the states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.activations import Activation


@dataclass(frozen=True)
class LayerScalars:
    """The numbers of every layer and member.

    Args:
        rho: ``ρ_ℓ``.
        skip: ``1 − ρ_ℓL̃``.
        decay: ``μρ_ℓ``.
        rows: the three again, of every member and layer, as Python's numbers.
    """

    rho: Float[Tensor, "members layers"]
    skip: Float[Tensor, "members layers"]
    decay: Float[Tensor, "members layers"]
    rows: list[list[tuple[float, float, float]]]

    @classmethod
    def of(
        cls, rho: Float[Tensor, "members layers"], effective_depths: Sequence[float], weight_decays: Sequence[float]
    ) -> "LayerScalars":
        """From ρ, and each member's L̃ and μ; computed in float64, as a single network's flow does."""
        own = zip(rho.tolist(), effective_depths, weight_decays, strict=True)
        rows = [[(r, 1 - r * L, mu * r) for r in steps] for steps, L, mu in own]
        skip, decay = (rho.new_tensor([[numbers[k] for numbers in row] for row in rows]).view_as(rho) for k in (1, 2))
        return cls(rho, skip, decay, rows)

    def __getitem__(self, part: slice) -> "LayerScalars":
        return LayerScalars(self.rho[part], self.skip[part], self.decay[part], self.rows[part])

    @property
    def common(self) -> list[tuple[float, float, float]] | None:
        """``(ρ_ℓ, 1 − ρ_ℓL̃, μρ_ℓ)`` of every layer where all members have the same, else None."""
        return self.rows[0] if all(row == self.rows[0] for row in self.rows) else None


class EnsembleFlow:
    """Buffers for ``members`` networks of one shape, and the two sweeps over them.

    Args:
        activation: σ, the same for all.
        depth: number of layers L.
        width: width w.
        samples: N, for each member.
        members: how many at most.
        dtype: of every buffer.
        device: of every buffer.
    """

    def __init__(
        self,
        activation: Activation,
        depth: int,
        width: int,
        samples: int,
        members: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.activation, self.depth, self.width, self.samples = activation, depth, width, samples
        kind: dict[str, Any] = {"dtype": dtype, "device": device}
        states = depth + 1 if activation.pullback_needs_state else 1
        self._states = torch.empty((states, members, width, samples), **kind)
        self._S = torch.empty((depth, members, width + activation.extra, samples), **kind)
        if activation.append_one:
            self._S[:, :, width] = 1
        self._G = torch.empty((members, width, samples), **kind)
        self._pulled = torch.empty((members, width, samples), **kind)
        self.set_members(members)

    def set_members(self, members: int) -> None:
        """Sweep over the first `members` from now on (the last group of an ensemble may be smaller)."""
        self._state, self._features = self._states[:, :members].unbind(), self._S[:, :members].unbind()
        self._values = [S[:, : self.width] for S in self._features]
        self._g, self._p = self._G[:members], self._pulled[:members]

    @property
    def start(self) -> Float[Tensor, "members width samples"]:
        """The buffer to fill with ``A_0`` before every forward sweep."""
        return self._state[0]

    @property
    def gradient(self) -> Float[Tensor, "members width samples"]:
        """The buffer to fill with ``∂C/∂A_L`` before every backward sweep."""
        return self._g

    def forward(
        self,
        W: Float[Tensor, "members layers width width_in"],
        steps: LayerScalars,
    ) -> Float[Tensor, "members width samples"]:
        """(E2) of all members, from `start`.

        Args:
            W: weights.
            steps: of as many members.
        """
        common, kept = steps.common, len(self._state)
        for layer in range(self.depth):
            before, after = self._state[layer % kept], self._state[(layer + 1) % kept]
            S = self._features[layer]
            self.activation.value(before, out=self._values[layer])
            if common is not None:
                scale, c, _ = common[layer]
                torch.baddbmm(before, W[:, layer], S, beta=c, alpha=scale, out=after)
            else:
                torch.mul(before, steps.skip[:, layer, None, None], out=after)
                torch.baddbmm(after, W[:, layer] * steps.rho[:, layer, None, None], S, out=after)
        return self._state[self.depth % kept]

    def backward(
        self,
        W: Float[Tensor, "members layers width width_in"],
        steps: LayerScalars,
        out: Float[Tensor, "members layers width width_in"],
        to_input: bool,
    ) -> Float[Tensor, "members width samples"]:
        """(E8) of all members from `gradient`; writes ``ρ_ℓ G_ℓ σ(A_{ℓ−1})ᵀ + μ ρ_ℓ W_ℓ`` (E3) to ``out``.

        Returns:
            ``∂C/∂A_0``; without ``to_input``, ``∂C/∂A_1``.
        """
        common, kept, w = steps.common, len(self._state), self.width
        G, pulled = self._g, self._p
        for layer in range(self.depth - 1, -1, -1):
            W_l, S, value, dW = W[:, layer], self._features[layer], self._values[layer], out[:, layer]
            state = self._state[layer] if kept > 1 else value
            last = layer == 0 and not to_input
            if common is not None:
                scale, c, decay = common[layer]
                torch.baddbmm(W_l, G, S.mT, beta=decay, alpha=scale, out=dW)
                if last:
                    return G
                torch.baddbmm(pulled, W_l[:, :, :w].mT, G, beta=0, alpha=scale, out=pulled)
                self.activation.pullback_(pulled, state, value)
                torch.add(pulled, G, alpha=c, out=G)
            else:
                r = steps.rho[:, layer, None, None]
                torch.bmm(G, S.mT, out=dW)
                dW.mul_(r).addcmul_(W_l, steps.decay[:, layer, None, None])
                if last:
                    return G
                torch.bmm((W_l[:, :, :w] * r).mT, G, out=pulled)
                self.activation.pullback_(pulled, state, value)
                torch.addcmul(pulled, G, steps.skip[:, layer, None, None], out=G)
        return G
