"""Which layers are read: by name, glob pattern, type or predicate, or found; and why the others are not.

Names are those of `torch.nn.Module.named_modules`. A trailing ``:input`` means what goes *into* a module. In patterns
``*`` stays within one part of a dotted name and ``**`` crosses dots: ``blocks.*`` are the blocks, ``**.fc1`` every
``fc1``.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from isthmus._support import hint

KINDS = ("stream", "block", "linear", "conv")

_CONV = (nn.modules.conv._ConvNd,)
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True)
class Site:
    """One place to read.

    Args:
        name: of the module, with ``:input`` appended where its input is read.
        module: whose hook reads it.
        where: ``output`` or ``input``.
        kind: ``stream`` (what enters the first block of a stack), ``block``, ``linear``, ``conv``, or ``module``.
        stack: the container and run the block belongs to, None outside of stacks.
        pair: whether the module's input and output are two consecutive states, to be compared.
        inside: the innermost block of a stack that holds it.
    """

    name: str
    module: nn.Module
    where: str
    kind: str
    stack: str | None = None
    pair: bool = False
    inside: str | None = None


@dataclass(frozen=True)
class Skipped:
    """A layer, or an output of a layer, that is not read.

    Args:
        name: its dotted name.
        type: the class of the module.
        reason: a sentence.
        chosen: whether it was chosen to be read, and could not be.
    """

    name: str
    type: str
    reason: str
    chosen: bool = False


def unwrap(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The module behind `torch.compile`, `DataParallel` and `DistributedDataParallel`, and notes on what was undone.

    Raises:
        TypeError: no `torch.nn.Module`, or a scripted one, whose inner layers take no hooks.
    """
    if not isinstance(model, nn.Module):
        hint = " (an instance, not the class)" if isinstance(model, type) else ""
        raise TypeError(f"model: expected a torch.nn.Module{hint}, got {model!r:.80}")
    notes = []
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(inner, nn.Module):
            notes.append("compiled model: the original module was read, without compilation")
            model = inner
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            notes.append(f"{type(model).__name__}: the module inside was read, on its own device")
            model = model.module
        else:
            break
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"model: expected a module with Python code, got a scripted one ({type(model).__name__}); scripted layers "
            "take no hooks. Probe the module that was scripted, with load_state_dict for its weights"
        )
    return model, notes


def walk(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All (name, module), tied ones under each of their names, compiled ones as their originals; cycles are cut."""

    def visit(module: nn.Module, name: str, trail: tuple[int, ...]) -> Iterator[tuple[str, nn.Module]]:
        inner = getattr(module, "_orig_mod", None)
        module = inner if isinstance(inner, nn.Module) else module
        if id(module) in trail:
            return
        yield name, module
        if isinstance(module, torch.jit.ScriptModule):
            return
        for part, child in module._modules.items():
            if child is not None:
                yield from visit(child, f"{name}.{part}" if name else part, (*trail, id(module)))

    yield from visit(model, "", ())


def is_block(module: nn.Module) -> bool:
    """Whether a member of a stack can be a block: it has parameters, and is no single layer of `torch.nn`."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict) or next(module.parameters(), None) is None:
        return False
    own = type(module).__module__.startswith("torch.nn.modules")
    return isinstance(module, nn.Sequential) or not own or isinstance(module, _TRANSFORMER_BLOCKS)


_TRANSFORMER_BLOCKS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def stacks(model: nn.Module) -> dict[str, list[str]]:
    """Runs of two or more blocks in a row within an `nn.Sequential` or `nn.ModuleList`: name of the run → blocks.

    >>> blocks = [nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(3)]
    >>> stacks(nn.Sequential(nn.Linear(5, 2), *blocks))
    {'(model)[1:4]': ['1', '2', '3']}
    """
    found: dict[str, list[str]] = {}
    seen: set[int] = set()
    for name, module in walk(model):
        if not isinstance(module, nn.Sequential | nn.ModuleList) or id(module) in seen:
            continue
        seen.add(id(module))
        run: list[tuple[int, str]] = []
        members = [*enumerate(module._modules.items()), (len(module), ("", None))]
        for place, (part, child) in members:
            if child is not None and is_block(getattr(child, "_orig_mod", child)):
                run.append((place, f"{name}.{part}" if name else part))
                continue
            if len(run) > 1:
                whole = len(run) == len(module)
                first, last = run[0][0], run[-1][0] + 1
                label = name if whole and name else f"{name or '(model)'}[{first}:{last}]"
                found[label] = [block for _, block in run]
            run = []
    return found


def adapted(module: nn.Module) -> nn.Module | None:
    """The layer inside an adapter that stands in its place, as those of peft do; None where it is none."""
    base = getattr(module, "base_layer", None)
    return base if isinstance(base, (nn.Linear, *_CONV)) else None


def _kind(module: nn.Module, stack: str | None) -> str:
    if stack is not None:
        return "block"
    module = adapted(module) or module
    if isinstance(module, nn.Linear):
        return "linear"
    return "conv" if isinstance(module, _CONV) else "module"


def pattern_matches(pattern: str, name: str) -> bool:
    """Whether a dotted name fits a pattern: ``*`` within one part, ``**`` across parts, ``?`` one character.

    >>> pattern_matches("blocks.*", "blocks.3"), pattern_matches("blocks.*", "blocks.3.conv")
    (True, False)
    >>> pattern_matches("**.conv", "blocks.3.conv")
    True
    """
    parts = re.split(r"(\*\*|\*|\?|\[[^\]]+\])", pattern)
    table = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    regex = "".join(table.get(p, p if p.startswith("[") and p.endswith("]") else re.escape(p)) for p in parts)
    return re.fullmatch(regex, name) is not None


Selector = str | type | nn.Module | Callable[[str, nn.Module], bool]


def _as_selectors(layers: object) -> list[Selector]:
    wanted: list[Any] = (
        list(layers) if isinstance(layers, Sequence | set | frozenset) and not isinstance(layers, str) else [layers]
    )
    if not wanted:
        raise ValueError("layers: got an empty selection; None finds the layers, or name at least one")
    for one in wanted:
        if isinstance(one, str) or callable(one):
            continue
        raise TypeError(
            "layers: expected names, glob patterns, module types, functions (name, module) -> bool, or a list; "
            f"got {one!r:.80} of type {type(one).__name__}"
        )
    return wanted


class _Names:
    """Every module under its first name, its other names, and the stack it belongs to."""

    def __init__(self, model: nn.Module) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.aliases: dict[str, str] = {}
        first: dict[int, str] = {}
        for name, module in walk(model):
            if id(module) in first:
                self.aliases[name] = first[id(module)]
            else:
                first[id(module)] = name
                self.modules[name] = module
        self.stacks = stacks(model)
        self.stack_of = {self.aliases.get(b, b): s for s, blocks in self.stacks.items() for b in blocks}

    def inside(self, name: str) -> str | None:
        """The innermost block that holds a module."""
        parents = [name.rsplit(".", up)[0] for up in range(1, name.count(".") + 1)]
        return next((p for p in parents if p in self.stack_of), None)

    def adapting(self, name: str) -> bool:
        """Whether a module is a part of an adapter, which is read in place of its parts."""
        parents = [name.rsplit(".", up)[0] for up in range(1, name.count(".") + 1)]
        return any(adapted(self.modules[p]) is not None for p in parents if p in self.modules)

    def canonical(self, name: str) -> str:
        return self.aliases.get(name, name)


def find_layers(
    model: nn.Module, layers: object = None, kinds: Iterable[str] = KINDS
) -> tuple[list[Site], list[Skipped]]:
    """The sites to read, and every other module with the reason why it is not.

    Args:
        model: as `unwrap` returns it.
        layers: None to find them; or a name, a pattern, a module type, a function ``(name, module) -> bool``, or a
            list of these.
        kinds: what is looked for with ``layers=None``: ``stream`` (the input of each stack of blocks), ``block``,
            ``linear``, ``conv``.

    Raises:
        ValueError: a name or pattern that fits nothing, an empty selection, an unknown kind, nothing found.
        TypeError: a selector of another type.
    """
    names, kinds = _Names(model), (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if layers is None:
        sites, reason = _found(names, kinds)
    else:
        sites, reason = _selected(names, _as_selectors(layers)), "not among the layers asked for"
    if not sites:
        raise ValueError(
            f"layers: found no layer of the kinds {', '.join(kinds)} in {type(model).__name__}; name some with "
            f"layers=…: {_some(names.modules)}"
        )
    return sites, _skipped(names, {site.name.removesuffix(":input") for site in sites}, reason)


def _found(names: _Names, kinds: tuple[str, ...]) -> tuple[list[Site], str]:
    unknown = [k for k in kinds if k not in KINDS]
    if unknown:
        raise ValueError(f"kinds: expected some of {', '.join(KINDS)}, got {', '.join(map(repr, unknown))}")
    firsts = {names.canonical(blocks[0]) for blocks in names.stacks.values()}
    sites = []
    for name, module in names.modules.items():
        stack = names.stack_of.get(name)
        kind = _kind(module, stack)
        if name in firsts and "stream" in kinds:
            sites.append(Site(f"{name}:input", module, "input", "stream", stack))
        if kind in kinds and not isinstance(module, torch.jit.ScriptModule) and not names.adapting(name):
            sites.append(Site(name, module, "output", kind, stack, kind == "block", names.inside(name)))
    return sites, f"not of a kind looked for ({', '.join(kinds)}); layers= can name it"


def _selected(names: _Names, selectors: list[Selector]) -> list[Site]:
    outputs: set[str] = set()
    inputs: set[str] = set()
    for one in selectors:
        if isinstance(one, str):
            into = inputs if one.endswith(":input") else outputs
            into |= _by_name(names, one)
            continue
        if isinstance(one, nn.Module):
            hits = {n for n, m in names.modules.items() if m is getattr(one, "_orig_mod", one)}
        elif isinstance(one, type) and issubclass(one, nn.Module):
            hits = {n for n, m in names.modules.items() if isinstance(m, one)}
        elif isinstance(one, type):
            raise TypeError(f"layers: expected subclasses of torch.nn.Module, got the type {one.__name__}")
        else:
            hits = {n for n, m in names.modules.items() if one(n, m)}
        if not hits:
            what = one.__name__ if isinstance(one, type) else f"the {type(one).__name__} given"
            kinds = sorted({type(m).__name__ for m in names.modules.values()})
            raise ValueError(f"layers: {what} fits no module; the model has {', '.join(kinds)}")
        outputs |= hits
    sites = []
    for name, module in names.modules.items():
        stack = names.stack_of.get(name)
        if name in inputs:
            sites.append(Site(f"{name or '(model)'}:input", module, "input", "stream" if stack else "module", stack))
        if name in outputs:
            pair = stack is not None or (not isinstance(module, (nn.Linear, *_CONV)) and bool(module._modules))
            sites.append(
                Site(name or "(model)", module, "output", _kind(module, stack), stack, pair, names.inside(name))
            )
    return sites


def _by_name(names: _Names, wanted: str) -> set[str]:
    plain = wanted.removesuffix(":input")
    if plain == "(model)":
        return {""}
    everything = [n for n in (*names.modules, *names.aliases) if n]
    if plain in everything:
        return {names.canonical(plain)}
    hits = {names.canonical(n) for n in everything if pattern_matches(plain, n)}
    if hits:
        return hits
    advice = hint(plain, everything, 3) or f"; there are {_some(everything)}"
    raise ValueError(
        f"layers: no module fits {wanted!r}{advice} (* stays within one part of a name, ** crosses the dots)"
    )


def _some(names: Iterable[str], at_most: int = 8) -> str:
    listed = [n for n in names if n]
    more = f" and {len(listed) - at_most} more" if len(listed) > at_most else ""
    return ", ".join(map(repr, listed[:at_most])) + more if listed else "none with a name"


def _skipped(names: _Names, read: set[str], reason: str) -> list[Skipped]:
    out = []
    for name, module in names.modules.items():
        if not name or name in read:
            continue
        if isinstance(module, _CONTAINERS):
            why = "a container: it is never called itself, its members are listed one by one"
        elif isinstance(module, torch.jit.ScriptModule):
            why = "a scripted module: it takes no hooks; probe the module that was scripted"
        else:
            why = reason
            if names.adapting(name):
                why = "part of an adapter, whose own output is read; layers= can name it"
        out.append(Skipped(name, type(module).__name__, why))
    for alias, name in names.aliases.items():
        if name in read:
            kind = type(names.modules[name]).__name__
            out.append(Skipped(alias, kind, f"the same module as {name!r}: its calls are read there"))
    return out
