"""Gates on blocks: ``y = x + t·(block(x) − x)``, and what passes through them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.probe.capture import first_state
from isthmus.probe.rows import unreadable


class Gates:
    """Hooks that blend each block's output with its input; the sums that the ranking needs."""

    def __init__(self, blocks: Mapping[str, nn.Module], device: torch.device) -> None:
        self.blocks = blocks
        self.t = {name: torch.ones((), dtype=torch.float64, device=device, requires_grad=True) for name in blocks}
        self.reasons: dict[str, str] = {}
        self.calls = dict.fromkeys(blocks, 0)
        self.sums = {name: [0.0, 0.0, 0.0, 0] for name in blocks}  # ‖ΔA‖², ‖A‖², Σ cosine, rows
        self._handles: list[Any] = []
        self._inputs: dict[str, list[Tensor | None]] = {name: [] for name in blocks}

    def __enter__(self) -> "Gates":
        try:
            for name, block in self.blocks.items():
                self._set(name, block)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def begin(self) -> None:
        """Before each forward pass."""
        self.calls = dict.fromkeys(self.blocks, 0)
        self._inputs = {name: [] for name in self.blocks}

    def _set(self, name: str, block: nn.Module) -> None:
        def enters(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = first_state(args, kwargs)
            self._inputs[name].append(None if x is None else x.clone())

        def leaves(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            x = self._inputs[name].pop()
            self.calls[name] += 1
            return self._blend(name, x, output)

        self._handles.append(block.register_forward_pre_hook(enters, with_kwargs=True))
        self._handles.append(block.register_forward_hook(leaves, with_kwargs=True))

    def _blend(self, name: str, x: Tensor | None, output: Any) -> Any:
        rest: tuple[Any, ...] | None = None
        y = output
        if isinstance(output, tuple) and output and not hasattr(output, "_fields"):
            y, *others = output
            rest = tuple(others)
        if x is None or not isinstance(y, Tensor) or unreadable(y):
            what = unreadable(y) if isinstance(y, Tensor) else f"a {type(output).__name__}, not a tensor"
            self.reasons[name] = f"its output is {what}" if x is not None else "no tensor of states goes into it"
            return output
        if x.shape != y.shape:
            self.reasons[name] = f"its input {tuple(x.shape)} and output {tuple(y.shape)} differ in shape"
            return output
        if self.calls[name] > 1:
            self.reasons[name] = "it is called more than once in a pass"
            return output
        step = y - x
        self._add(name, x.detach(), y.detach(), step.detach())
        y = x + self.t[name].to(step.dtype) * step
        return y if rest is None else (y, *rest)

    def _add(self, name: str, x: Tensor, y: Tensor, step: Tensor) -> None:
        sums = self.sums[name]
        sums[0] += float(step.double().square().sum())
        sums[1] += float(y.double().square().sum())
        cosines = nn.functional.cosine_similarity(x.flatten(1).double(), y.flatten(1).double())
        sums[2] += float(cosines.sum())
        sums[3] += len(cosines)

    def live(self) -> list[str]:
        """Blocks whose gates this pass went through."""
        return [name for name in self.blocks if name not in self.reasons and self.calls[name]]
