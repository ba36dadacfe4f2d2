"""What goes from block to block in a pass: which argument of a block is the state, and which blocks follow each other.

A shape tells neither. What does: the argument that holds the bits which the block before returned; of several arguments
of the output's shape, the one nearest to it, as a residual step is. Two blocks that take the same are side by side.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from isthmus.probe.find import Site, stacks, walk
from isthmus.probe.rows import Choice, Unreadable, matching, pick, tensors_in, unreadable

# Entries of a state compared before all of them are.
SAMPLE = 1024
# The nearest argument is the state where the second nearest is this many times as far.
CLEARLY_NEARER = 1.5


@dataclass(frozen=True)
class Watched:
    """A module whose calls are followed.

    Args:
        name: as in the profile.
        module: itself.
        stack: the run of blocks it belongs to, if any.
        keep: whether its state is to be copied before it runs.
    """

    name: str
    module: nn.Module
    stack: str | None = None
    keep: bool = False


def readable(values: Iterable[Any]) -> list[tuple[str, Tensor]]:
    """Places and tensors that can be states, each tensor once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for place, x in tensors_in(tuple(values)):
        if unreadable(x) is None:
            found.setdefault(id(x), (place, x))
    return list(found.values())


@dataclass
class Entry:
    """One call of a module.

    Args:
        arguments: all values, positional ones first.
        candidates: place and tensor of what can be the state; copies where it is not yet known which.
        source: the state among the arguments; None where it is not known yet, or not there.
        state: the same, or a copy from before the call where that was asked for.
        place: of the state among the arguments.
        open: whether which it is shows in what the call returns only.
        keys: number or name of each argument.
        given: all values as they are.
        versions: of the tensors among them, to see which were changed in place.
    """

    arguments: tuple[Any, ...]
    candidates: list[tuple[str, Tensor]]
    source: Tensor | None = None
    state: Tensor | None = None
    place: str | None = None
    open: bool = False
    keys: tuple[int | str, ...] = ()
    given: tuple[Any, ...] = ()
    versions: dict[int, int] = field(default_factory=dict)

    def settle(self, place: str, source: Tensor, copy: bool) -> None:
        """Take this for the state."""
        self.place, self.source = place, source
        self.state = source.clone() if copy else source


class _Print:
    """A tensor as it was: a reference, and enough of its entries to see whether it was changed in place."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.sample = x.detach(), _sample(x).clone()
        self.version = version(x)

    def same(self, y: Tensor) -> bool:
        if y.shape != self.x.shape or y.dtype != self.x.dtype or y.device != self.x.device:
            return False
        if not torch.equal(_sample(y), self.sample):
            return False
        changed = self.version < 0 or version(self.x) != self.version
        return changed or y.data_ptr() == self.x.data_ptr() or torch.equal(y.detach(), self.x)


def _made(entry: Entry, output: object) -> list[tuple[str, Tensor]]:
    """What a call returned but for tensors that it was given and did not touch, unless there are no others."""
    found = readable((output,))
    return [(place, x) for place, x in found if entry.versions.get(id(x), -1) != version(x)] or found


def version(x: Tensor) -> int:
    """How often a tensor was changed in place; −1 where torch does not count."""
    return -1 if x.is_inference() else x._version


def _sample(x: Tensor) -> Tensor:
    flat = x.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLE)]


@dataclass
class _Last:
    """The member of a stack that ran last."""

    name: str
    outputs: list[tuple[str, _Print]]
    read: str
    entered: list[_Print]


@dataclass
class Trail:
    """Follows the calls of modules through a pass.

    Args:
        watched: the modules.
        state: by pattern of names, the index, key or function of the arguments that gives the state.
        output: the same for the output that is read.

    Attributes:
        apart: stack → why its members are no blocks in a row at all.
        changed: stack → where a state is changed between two members.
        misread: module → which of its outputs goes on, where that is another than the one that is read.
        linked: stack → where its members take what the one before returned.
        unsure: module → its stack, the place that was taken for the state, and what is to be said of it.
        unread: what choices did not lead to.
    """

    watched: Iterable[Watched]
    state: Mapping[str, Choice] = field(default_factory=dict)
    output: Mapping[str, Choice] = field(default_factory=dict)
    apart: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    misread: dict[str, str] = field(default_factory=dict)
    linked: dict[str, str] = field(default_factory=dict)
    unsure: dict[str, tuple[str | None, str | None, str]] = field(default_factory=dict)
    unread: dict[str, None] = field(default_factory=dict)
    done: dict[int, Entry] = field(default_factory=dict)
    _open: dict[int, list[Entry]] = field(default_factory=dict)
    _last: dict[str, _Last] = field(default_factory=dict)
    _places: dict[str, str] = field(default_factory=dict)
    running: bool = False

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Around a pass: what hooks see outside of it (recomputation in a backward pass) is not looked at."""
        self.done, self._open, self._last, self.running = {}, {}, {}, True
        try:
            yield
        finally:
            self.done, self._open, self._last, self.running = {}, {}, {}, False

    def hooks(self) -> list[RemovableHandle]:
        """Set hooks on the modules that are watched; to be removed by the caller."""
        handles = []
        for one in self.watched:

            def enters(module: nn.Module, args: Any, kwargs: Any, one: Watched = one) -> None:
                if self.running:
                    self.enter(one, args, kwargs)

            def leaves(module: nn.Module, args: Any, kwargs: Any, output: Any, one: Watched = one) -> None:
                if self.running:
                    self.leave(one, output)

            handles.append(one.module.register_forward_pre_hook(enters, with_kwargs=True))
            handles.append(one.module.register_forward_hook(leaves, with_kwargs=True))
        return handles

    def find(self, module: nn.Module) -> Entry | None:
        """The call of a module that is open, or else the one that has just ended; None where it is not followed."""
        waiting = self._open.get(id(module))
        return waiting[-1] if waiting else self.done.get(id(module))

    @property
    def doubts(self) -> list[str]:
        """What could not be told, and what was taken; it can where the next block takes its state in that place."""
        found = [text for stack, place, text in self.unsure.values() if self.linked.get(str(stack)) != place]
        return [*found, *self.unread]

    def place_of(self, name: str) -> str | None:
        """Where among its arguments a module's state was found, by what it returned."""
        return self._places.get(name)

    def entry(self, module: nn.Module) -> Entry:
        """The same of a module that is followed."""
        found = self.find(module)
        assert found is not None
        return found

    def enter(self, one: Watched, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A module begins."""
        arguments = (*args, *kwargs.values())
        candidates = readable(arguments)
        versions = {id(x): version(x) for _, x in candidates}
        entry = Entry(arguments, candidates, versions=versions, keys=(*range(len(args)), *kwargs), given=arguments)
        choice = matching(self.state, one.name)
        linked = self._link(one, candidates)
        if choice is not None:
            self._choose(one, entry, choice, args, kwargs)
        else:
            known = self._places.get(one.name) if linked is None else linked
            known = candidates[0][0] if known is None and len(candidates) == 1 else known
            state = next((x for place, x in candidates if place == known), None)
            if state is not None and known is not None:
                entry.settle(known, state, one.keep)
            elif candidates:
                copies = {id(x): x.clone() for _, x in candidates}
                entry.open, entry.candidates = True, [(place, copies[id(x)]) for place, x in candidates]
                entry.arguments = tuple(copies.get(id(value), value) for value in arguments)
        self._open.setdefault(id(one.module), []).append(entry)

    def _choose(self, one: Watched, entry: Entry, choice: Choice, args: tuple[Any, ...], kwargs: Any) -> None:
        """The state that the caller picked, by number, by the name of the argument, or by a function of all."""
        given: object = entry.arguments
        if isinstance(choice, str):
            given = inspect.signature(one.module.forward).bind(*args, **kwargs).arguments
        try:
            _, x, _ = pick(given, choice)
        except Unreadable as reason:
            entry.candidates = []
            self.unread[f"{one.name}: {str(reason).replace('output=', 'state=')}"] = None
            return
        entry.settle(next((p for p, y in entry.candidates if y is x), ""), x, one.keep)

    def _link(self, one: Watched, candidates: list[tuple[str, Tensor]]) -> str | None:
        """The place of what the member before returned; where it is not there, the stack is none."""
        last = self._last.pop(one.stack, None) if one.stack else None
        if last is None:
            return None
        for place, x in candidates:
            for where, output in last.outputs:
                if output.same(x):
                    if where != last.read:
                        self.misread[last.name] = (
                            f"its output{where} is what {one.name} takes, and not output{last.read}, the first that "
                            f"can be a state; output={{{last.name!r}: …}} picks it"
                        )
                    self.linked.setdefault(str(one.stack), place)
                    return place
        assert one.stack is not None
        if any(before.same(x) for before in last.entered for _, x in candidates):
            together = f"{one.name} takes what {last.name} took: they are side by side, not in a row"
            self.apart.setdefault(one.stack, together)
        elif {len(before.x) for before in last.entered}.isdisjoint(len(x) for _, x in candidates):
            self.apart.setdefault(one.stack, f"{one.name} and {last.name} take different rows: not one after the other")
        else:
            self.changed.setdefault(one.stack, f"what {one.name} takes is not what {last.name} returned")
        return None

    def leave(self, one: Watched, output: object) -> None:
        """A module ends: now its state is known, if it has one."""
        entry = self._open[id(one.module)].pop()
        outputs = _made(entry, output)
        y = self.output_of(one.name, entry, output)
        if entry.open:
            self._settle(one, entry, y)
        self.done[id(one.module)] = entry
        if one.stack is None:
            return
        read = next((place for place, x in outputs if x is y), "")
        entered = [_Print(entry.state)] if entry.state is not None else [_Print(x) for _, x in entry.candidates]
        self._last[one.stack] = _Last(
            one.name, [(p.removeprefix("[0]"), _Print(x)) for p, x in outputs], read.removeprefix("[0]"), entered
        )

    def output_of(self, name: str, entry: Entry, output: object) -> Tensor | None:
        """The tensor that is a block's output: of a state's shape, if one is."""
        choice = matching(self.output, name)
        if choice is not None:
            return pick(output, choice)[1]
        made = [x for _, x in _made(entry, output)]
        shapes = [x.shape for _, x in entry.candidates]
        return next((x for x in made if x.shape in shapes), made[0] if made else None)

    def _settle(self, one: Watched, entry: Entry, y: Tensor | None) -> None:
        """Choose among several arguments: of the output's shape, and nearest to it."""
        fits = [] if y is None else [(place, x) for place, x in entry.candidates if x.shape == y.shape]
        if y is None or not fits:
            entry.settle(*entry.candidates[0], copy=False)
            return
        far = sorted((float((y.detach() - x.detach()).double().norm()), i) for i, (_, x) in enumerate(fits))
        entry.settle(*fits[far[0][1]], copy=False)
        if len(far) > 1 and not far[1][0] > CLEARLY_NEARER * far[0][0]:
            places = ", ".join(place for place, _ in fits)
            self.unsure[one.name] = (
                one.stack,
                entry.place,
                (
                    f"{one.name}: which of its arguments {places} is the state could not be told; {entry.place} was "
                    "taken, the nearest to the output; state={name: …} picks another"
                ),
            )
        self._places[one.name] = fits[far[0][1]][0]


def followed(model: nn.Module, sites: Iterable[Site]) -> list[Watched]:
    """What a `Trail` is to follow: the modules of sites that need their state, and all members of their stacks."""
    sites = list(sites)
    wanted = {site.stack for site in sites if site.stack is not None}
    found: dict[int, Watched] = {}
    modules = dict(walk(model))
    for stack, members in stacks(model).items():
        for name in members if stack in wanted else ():
            module = modules[name]
            found.setdefault(id(module), Watched(name, module, stack))
    for site in sites:
        if site.pair or site.where == "input":
            name, one = site.name.removesuffix(":input"), found.get(id(site.module))
            own = site.stack if one is None or one.stack is None else one.stack
            found[id(site.module)] = Watched(name, site.module, own, site.pair or (one is not None and one.keep))
    return list(found.values())
