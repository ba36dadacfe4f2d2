"""A stack of residual blocks with step-sizes that can be moved."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from isthmus.mesh.base import equal_steps
from isthmus.mesh.interpolate import layer_midpoints
from isthmus.mesh.protocol import check_shares


class ResidualSteps(nn.Module):
    """``x ← x + h_k f_k(x)`` with ``h_k = horizon · ρ_k``, for `MeshScheduler`.

    Args:
        blocks: the ``f_k``, without their skip connection; each keeps the shape of x, whatever it is. One module given
            several times shares its weights over depth.
        step_sizes: ``h_k``, ``(steps,)``, positive, summing to the horizon; equal ones by default.
        horizon: their sum. The number of blocks gives ``h_k = 1``, a plain residual network.
        transfer: whether parameters follow their position when the scheduler moves steps a lot (`move_weights`).
        record: keep the states of the last `forward`, without their graph, for `path`.

    Attributes:
        rho: ``h_k/horizon``, a buffer: saved with the model, at least float32 when made.

    Raises:
        ValueError: no block, a horizon that is not positive, step-sizes that do not fit; for ``transfer`` also blocks
            whose parameters differ in name or shape, that are shared, or that keep buffers such as BatchNorm's.
    """

    rho: Tensor

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        step_sizes: Tensor | None = None,
        horizon: float = 1.0,
        *,
        transfer: bool = False,
        record: bool = False,
    ) -> None:
        super().__init__()
        self.blocks = blocks if isinstance(blocks, nn.ModuleList) else nn.ModuleList(blocks)
        if not 0 < horizon < float("inf"):
            raise ValueError(f"the horizon must be positive and finite, got {horizon}")
        if len(self.blocks) == 0:
            raise ValueError("ResidualSteps needs at least one block, got none")
        self.horizon, self.transfer, self.record = float(horizon), transfer, record
        self._last: list[Tensor] = []
        rho = equal_steps(len(self.blocks)) if step_sizes is None else step_sizes.detach().double() / horizon
        check_shares(rho, len(self.blocks))
        first = next((p for p in self.parameters() if p.is_floating_point()), torch.zeros(()))
        self.register_buffer("rho", rho.to(first.device, torch.promote_types(first.dtype, torch.float32)))
        if transfer:
            _check_transferable(self.blocks)

    @property
    def step_sizes(self) -> Tensor:
        """``h_k``, ``(steps,)``."""
        return self.horizon * self.rho

    def set_step_sizes(self, rho: Tensor) -> None:
        """Replace the shares ``h_k/horizon`` in place, so that a compiled model need not be compiled again.

        Raises:
            ValueError: not ``(steps,)``, not positive, or not summing to 1.
        """
        check_shares(rho, len(self.blocks))
        self.rho.copy_(rho)

    def forward(self, x: Tensor) -> Tensor:
        """The state after the last step; shape and type of x."""
        states = [x.detach()]
        for h, block in zip(self.step_sizes.unbind(), self.blocks, strict=True):
            x = _step(x, h, block)
            if self.record:
                states.append(x.detach())
        if self.record:
            self._last = states
        return x

    def path(self) -> Tensor:
        """States of the last `forward`, ``(steps + 1, samples, …)``, detached.

        Raises:
            ValueError: none was recorded.
        """
        if not self._last:
            raise ValueError("no states were recorded: make ResidualSteps with record=True and call it first")
        return torch.stack(self._last)

    @torch.no_grad()
    def trajectory(self, x: Tensor) -> Tensor:
        """States ``(steps + 1, samples, …)`` in evaluation mode, so that neither BatchNorm nor dropout notice."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            states = [x]
            for number, (h, block) in enumerate(zip(self.step_sizes.unbind(), self.blocks, strict=True)):
                before = states[-1].clone()
                states.append(_step(states[-1], h, block))
                if not torch.equal(before, states[-2]) and not bool(before.isnan().any()):
                    states[-2].copy_(before)
                    raise ValueError(
                        f"block {number} changes its input in place, so its step is not x + h f(x): use inplace=False"
                    )
        finally:
            for module, training in modes:
                module.training = training
        return torch.stack(states)

    @torch.no_grad()
    def move_weights(self, old: Tensor, new: Tensor) -> None:
        """With ``transfer``, parameters as functions of the position: linear between midpoints, going on beyond them.

        What an optimiser remembers of them belongs to the old positions: forget it when `MeshScheduler.step` says True.
        """
        if not self.transfer or len(self.blocks) == 1:
            return
        at, p = layer_midpoints(old.double()), layer_midpoints(new.double())
        right = torch.searchsorted(at.contiguous(), p.contiguous()).clamp(1, len(at) - 1)
        t = (p - at[right - 1]) / (at[right] - at[right - 1])
        for same in zip(*(block.parameters() for block in self.blocks), strict=True):
            values = torch.stack([q.detach() for q in same])
            share = t.to(values).reshape(-1, *[1] * (values.ndim - 1))
            index = right.to(values.device)
            moved = torch.lerp(values[index - 1], values[index], share)
            for q, value in zip(same, moved, strict=True):
                q.copy_(value)


def _step(x: Tensor, h: Tensor, block: Callable[[Tensor], Tensor]) -> Tensor:
    f = block(x)
    if f.shape != x.shape:
        raise ValueError(f"a block must keep the shape of its state: {tuple(x.shape)} became {tuple(f.shape)}")
    return x + h.to(x.dtype) * f


def _check_transferable(blocks: nn.ModuleList) -> None:
    shapes = [[(name, tuple(p.shape)) for name, p in block.named_parameters()] for block in blocks]
    if any(s != shapes[0] for s in shapes):
        raise ValueError("transfer needs blocks whose parameters have the same names and shapes; set transfer=False")
    owned = [id(p) for block in blocks for p in block.parameters()]
    if len(set(owned)) < len(owned):
        raise ValueError("transfer moves nothing between blocks that share parameters; set transfer=False")
    for block in blocks:
        for name, _ in block.named_buffers():
            raise ValueError(f"transfer cannot move the buffer {name!r}, running statistics are no weights: set False")
