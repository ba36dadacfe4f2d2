"""Running somebody's model without leaving a trace, and hooks that read it on the way.

`undisturbed` restores the mode of every module, buffers, random number generators and torch's switches; `Capture`
sets hooks and takes them off again, whatever happens, Ctrl-C included. Readers are called from inside the hooks, before
the next layer runs: an in-place operation that follows cannot change what was read.
"""

import copy
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils import checkpoint
from torch.utils.hooks import RemovableHandle

from isthmus.probe.evidence import Entry, Trail, readable
from isthmus.probe.find import Site
from isthmus.probe.rows import tensors_in

MODES = ("eval", "as_is")


@contextmanager
def undisturbed(model: nn.Module, mode: str = "eval", grad: bool = False) -> Iterator[None]:
    """Run the model inside; afterwards everything is as it was.

    Without gradients; in ``eval`` mode or (``as_is``) in the mode in which each module is; buffers and attributes are
    put back (running averages move in train mode, counters of calls and caches in any); compiled parts run uncompiled
    (a compiled graph ignores new hooks); the fused fast path of `torch.nn.TransformerEncoder` is off (it calls no inner
    module, and drops padded tokens).

    Args:
        model: any module.
        mode: ``eval`` or ``as_is``.
        grad: leave gradients on.

    Raises:
        ValueError: another mode, or weights without values.
    """
    if mode not in MODES:
        raise ValueError(f"mode: expected 'eval' or 'as_is' (the mode each module is in), got {mode!r}")
    check_values(model)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(generators_restored(model))
        stack.enter_context(state_restored(model, mode == "eval"))
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            if "torch._dynamo" in sys.modules:  # importing it takes seconds, and without it nothing is compiled
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(torch.set_grad_enabled(grad))
            if grad:
                stack.enter_context(without_checkpoints())
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


# What every module has; of its other attributes a forward pass may make use to keep something between calls.
_INTERNAL = frozenset(vars(nn.Module()))


def check_values(model: nn.Module) -> None:
    """Refuse weights that have no values yet.

    Raises:
        ValueError: lazy layers, or weights on the meta device that no hook loads.
    """
    tensors = [(name, x) for named in (model.named_parameters(), model.named_buffers()) for name, x in named]
    lazy = [name for name, x in tensors if isinstance(x, UninitializedParameter | UninitializedBuffer)]
    if lazy:
        raise ValueError(
            f"model: lazy layers take their shapes from a first forward pass, which they need before they are read: "
            f"{', '.join(lazy[:4])}; call model(batch) once"
        )
    meta = [name for name, x in tensors if x.is_meta]
    if meta and not any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise ValueError(f"model: weights without values, on the meta device: {', '.join(meta[:4])}; load them first")


@contextmanager
def state_restored(model: nn.Module, evaluate: bool) -> Iterator[None]:
    """Put back modes, buffers, and what modules keep in attributes, also where a forward pass assigns them anew.

    Models that override ``train`` drop caches in it, or put weights together: theirs is called, on both ways.
    """
    # scripted modules keep what they have behind a wrapper of their own, and assign no attribute
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    scripted = [(m, m.training) for m in model.modules() if isinstance(m, torch.jit.ScriptModule)]
    training = [module.training for module in modules]
    attributes = [{k: v for k, v in vars(module).items() if k not in _INTERNAL} for module in modules]
    buffers = [dict(module._buffers) for module in modules]
    own = [module for module in modules if evaluate and type(module).train is not nn.Module.train]
    kept: list[Tensor] = [p for module in own for p in module._parameters.values() if p is not None]
    plain = [value for one in attributes for value in one.values()]
    kept += [x for x in (*model.buffers(), *plain) if isinstance(x, Tensor)]
    values = [(x, x.detach().clone()) for x in kept]
    contents = [(value, copy.copy(value)) for value in plain if isinstance(value, list | dict | set)]
    try:
        if own:
            model.eval()
        for module in modules if evaluate else ():
            module.training = False
        for part, _ in scripted if evaluate else ():
            part.eval()
        yield
    finally:
        if own:
            model.train(training[0])
        for part, was in scripted:
            part.train(was)
        for module, was, old, before in zip(modules, training, attributes, buffers, strict=True):
            module.training = was
            for name in [k for k in vars(module) if k not in _INTERNAL and k not in old]:
                del vars(module)[name]
            vars(module).update(old)
            module._buffers.clear()
            module._buffers.update(before)
        for held, content in contents:
            held.clear()
            (held.extend if isinstance(held, list) else held.update)(content)
        with torch.no_grad():
            for x, value in values:
                if x.shape != value.shape:
                    x.data = value
                elif not torch.equal(x, value):
                    x.copy_(value)


def same_bits(a: object, b: object) -> bool:
    """Whether two outputs hold the same tensors, NaN where the other has NaN."""
    pairs = ([x for _, x in tensors_in(one)] for one in (a, b))
    return all(
        x.shape == y.shape and (torch.equal(x, y) or bool(((x == y) | ((x != x) & (y != y))).all()))
        for x, y in zip(*pairs, strict=False)
        if x.layout == torch.strided and not x.is_nested and not y.is_nested
    )


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """Run what `torch.utils.checkpoint` is given as it is: the numbers are the same, and hooks fire once.

    In a recomputation they fire again, and what they closed over is no argument of the checkpoint, so that no gradient
    reaches it.
    """

    class Plain:
        @staticmethod
        def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
            return function(*args)

    def once(*args: Any, **kwargs: Any) -> Iterator[None]:
        yield

    new = {"CheckpointFunction": Plain, "_checkpoint_without_reentrant_generator": once}
    old = {name: getattr(checkpoint, name) for name in new if hasattr(checkpoint, name)}
    try:
        for name in old:
            setattr(checkpoint, name, new[name])
        yield
    finally:
        for name, value in old.items():
            setattr(checkpoint, name, value)


@contextmanager
def generators_restored(model: nn.Module) -> Iterator[None]:
    """Put back the states of Python's, NumPy's (if imported) and torch's generators, on every device of the model."""
    numpy: Any = sys.modules.get("numpy")
    python_state, numpy_state = random.getstate(), None if numpy is None else numpy.random.get_state()
    cuda = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    mps_state = torch.mps.get_rng_state() if any(p.device.type == "mps" for p in model.parameters()) else None
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            if mps_state is not None:
                torch.mps.set_rng_state(mps_state)
            random.setstate(python_state)
            if numpy_state is not None:
                numpy.random.set_state(numpy_state)


@dataclass(frozen=True)
class Event:
    """A module has just run.

    Args:
        site: where.
        call: 0 for its first call in this forward pass, 1 for the second, …
        output: what it returned, or what went in where the site reads inputs.
        first_input: its first input tensor as it is now (an in-place module has overwritten it).
        before: a copy of the state that went in, for sites that compare the two.
        preferred: the tensor of the output that is the state, as far as known.
    """

    site: Site
    call: int
    output: object
    first_input: Tensor | None
    before: Tensor | None
    preferred: Tensor | None = None


@dataclass
class Capture:
    """Hooks on sites for as long as a ``with`` block lasts.

    Args:
        sites: where to read.
        reader: called with each `Event`, inside the forward pass; where it returns something, the module's output is
            replaced by that.
        trail: follows at least the modules of sites that read inputs, or compare input and output.
        entered: called with a site that compares its input and output, and what can be that input, before it runs.
    """

    sites: Sequence[Site]
    reader: Callable[[Event], object]
    trail: Trail = field(default_factory=lambda: Trail(()))
    entered: Callable[[Site, Sequence[Tensor]], None] = lambda site, x: None
    _handles: list[RemovableHandle] = field(default_factory=list)
    _calls: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Around each forward pass: calls count from the start; hooks that fire later (recomputation) read nothing."""
        self._calls = {site.name: 0 for site in self.sites}
        with self.trail.forward_pass():
            yield

    def __enter__(self) -> "Capture":
        try:
            self._handles += self.trail.hooks()
            for site in self.sites:
                self._set(site)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _set(self, site: Site) -> None:
        def enters(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self.trail.running:
                return
            entry = self.trail.entry(module)
            if site.where == "output":
                self.entered(site, [x for _, x in entry.candidates])
            elif not entry.open:
                self._enters(site, entry)

        def leaves(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> object:
            if not self.trail.running:
                return None
            entry = self.trail.entry(module) if site.where == "input" or site.pair else None
            if site.where == "input":
                if entry is not None and entry.open:
                    self._enters(site, entry)
                return None
            first = next((x for _, x in readable((*args, *kwargs.values()))), None)
            if entry is None:
                return self._report(site, output, first, None, None)
            preferred = self.trail.output_of(site.name, entry, output)
            before = None if entry.state is None else entry.state.detach()
            return self._report(site, output, first, before, preferred)

        if site.where == "input" or site.pair:
            self._handles.append(site.module.register_forward_pre_hook(enters, with_kwargs=True))
        self._handles.append(site.module.register_forward_hook(leaves, with_kwargs=True))

    def _enters(self, site: Site, entry: Entry) -> None:
        self._report(site, entry.arguments, entry.source, None, entry.source)

    def _report(
        self, site: Site, output: object, first: Tensor | None, before: Tensor | None, preferred: Tensor | None
    ) -> object:
        call = self._calls[site.name]
        self._calls[site.name] = call + 1
        return self.reader(Event(site, call, output, first, before, preferred))
