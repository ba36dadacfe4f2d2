"""Gates on blocks: ``y = x + t·(block(x) − x)``, and what passes through them."""

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.probe.evidence import Entry, Trail, Watched
from isthmus.probe.rows import Choice, tensors_in, unreadable, with_tensor


class PassThrough(nn.Module):
    """Stands where a block was: called as that was, it returns what that did, with the state that went in as state.

    Args:
        block: in whose place it stands; plain attributes that others may read (its number, its type) are kept.
        entry: a call of the block.
        y: the tensor of its output that is the state.
        output: all that it returned.
    """

    def __init__(self, block: nn.Module, entry: Entry, y: Tensor, output: Any) -> None:
        super().__init__()
        for name, value in vars(block).items():
            if not name.startswith("_") and isinstance(value, str | int | float | bool | None):
                setattr(self, name, value)
        parameters = inspect.signature(block.forward).parameters.values()
        self._names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
        self._state = entry.keys[int(str(entry.place).split("]")[0].removeprefix("["))]
        self._parts: list[tuple[str, Any]] | None = None
        if isinstance(output, tuple):
            self._parts = [self._part(value, entry, y) for value in output]

    @staticmethod
    def _part(value: object, entry: Entry, y: Tensor) -> tuple[str, Any]:
        """Where an element of the output comes from: the state, an argument passed on, or a constant."""
        if value is y:
            return "state", None
        key = next((k for k, given in zip(entry.keys, entry.given, strict=True) if value is given), None)
        if isinstance(value, Tensor) and key is not None:
            return "argument", key
        return "constant", None if any(tensors_in(value)) else value

    def _argument(self, key: int | str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        named = dict(zip(self._names, args, strict=False)) | dict(kwargs)
        if isinstance(key, str):
            return named.get(key)
        return args[key] if key < len(args) else named.get(self._names[key] if key < len(self._names) else "")

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The state itself, in the form that the block returned it in."""
        state = self._argument(self._state, args, kwargs)
        if self._parts is None:
            return state
        sources = {"state": lambda _: state, "argument": lambda key: self._argument(key, args, kwargs)}
        return tuple(sources[kind](value) if kind in sources else value for kind, value in self._parts)


class Gates:
    """Hooks that blend each block's output with its input; the sums that the ranking needs.

    Args:
        blocks: by name.
        device: of the model.
        where: name of a block → the run of blocks it belongs to.
        state: by pattern of names, which argument is the state.
        t: value of all gates: 1 is the network, 0 the network without the blocks.
    """

    def __init__(
        self,
        blocks: Mapping[str, nn.Module],
        device: torch.device,
        where: Mapping[str, str],
        state: Mapping[str, Choice] | None = None,
        t: float = 1.0,
    ) -> None:
        self.blocks = blocks
        self.t = {name: torch.full((), t, dtype=torch.float64, device=device, requires_grad=True) for name in blocks}
        self.trail = Trail([Watched(name, block, where[name], True) for name, block in blocks.items()], state or {})
        self.reasons: dict[str, str] = {}
        self.stand_ins: dict[str, PassThrough] = {}
        self.calls = dict.fromkeys(blocks, 0)
        self.sums = {name: [0.0, 0.0, 0.0, 0] for name in blocks}  # ‖ΔA‖², ‖A‖², Σ cosine, rows
        self._handles: list[Any] = []

    def __enter__(self) -> "Gates":
        try:
            self._handles += self.trail.hooks()
            for name, block in self.blocks.items():
                self._set(name, block)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def forward_pass(self) -> AbstractContextManager[None]:
        """Around each forward pass."""
        self.calls = dict.fromkeys(self.blocks, 0)
        return self.trail.forward_pass()

    def _set(self, name: str, block: nn.Module) -> None:
        def leaves(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if not self.trail.running:
                return output
            self.calls[name] += 1
            entry = self.trail.entry(module)
            return self._blend(name, entry, self.trail.output_of(name, entry, output), output)

        self._handles.append(block.register_forward_hook(leaves, with_kwargs=True))

    def _blend(self, name: str, entry: Entry, y: Tensor | None, output: Any) -> Any:
        x = entry.state
        if x is None:
            self.reasons[name] = "no tensor of states goes into it"
            return output
        if y is None or not isinstance(output, Tensor | tuple) or hasattr(output, "_fields"):
            what = unreadable(output) if isinstance(output, Tensor) else f"a {type(output).__name__}, not a tensor"
            self.reasons[name] = f"its output is {what}"
            return output
        if x.shape != y.shape:
            self.reasons[name] = f"its input {tuple(x.shape)} and output {tuple(y.shape)} differ in shape"
            return output
        if self.calls[name] > 1:
            self.reasons[name] = "it is called more than once in a pass"
            return output
        step = y - x
        self._add(name, x.detach(), y.detach(), step.detach())
        self.stand_ins[name] = PassThrough(self.blocks[name], entry, y, output)
        t = self.t[name].to(step.dtype)
        # exactly y at t = 1, so that the next block is seen to take it, and exactly x at t = 0
        return with_tensor(output, y, y + (t - 1) * step if float(t.detach()) else x + t * step)

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
