"""The states of a network's layers, batch by batch, to be set beside those of another on the same batches."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from isthmus.activations import ReLU
from isthmus.flow import path
from isthmus.model import LeakyResNet
from isthmus.probe.axes import guards
from isthmus.probe.batches import copied, device_of, raise_failed, to_device
from isthmus.probe.capture import Capture, Event, same_bits, undisturbed
from isthmus.probe.evidence import Trail, followed
from isthmus.probe.find import Site, Skipped, pattern_matches, walk
from isthmus.probe.inputs import Forward, call_of, samples_in
from isthmus.probe.masks import Mask, asked_layers, masks_of
from isthmus.probe.reader import Reader
from isthmus.probe.rows import Positions, Reading, Unreadable

HOOKS_CHANGE = (
    "the output with hooks is not, bit for bit, the one without: the network looks at hooks, draws at random, or keeps "
    "something between calls"
)


@runtime_checkable
class Source(Protocol):
    """A network whose states come batch by batch."""

    failed: dict[str, Skipped]
    notes: dict[str, None]
    doubts: dict[str, None]

    def open(self) -> Any:
        """A context in which `states` may be called; the network is left as it was."""
        ...

    def states(self, given: object, number: int) -> dict[str, Positions]:
        """Run a batch; name of the layer → its state, in order of execution."""
        ...

    def finish(self) -> None:
        """After all batches: what shows at the end only goes to `failed`."""
        ...


@dataclass
class _Read:
    """What `Reader.judge` asks of a layer that was read."""

    site: str
    call: int
    type: str
    kind: str
    stack: str | None = None
    activation: ReLU = field(default_factory=ReLU)
    pairs: list[Any] = field(default_factory=list)
    momenta: list[Any] = field(default_factory=list)
    before: str | None = None


@dataclass
class StateReader(Reader):
    """A reader that keeps a batch's states as they are; steps and chains are not asked for."""

    held: dict[str, Positions] = field(default_factory=dict)

    def add(self, site: Site, call: int, after: Positions, *steps: Any, **options: Any) -> None:
        """Keep a copy of the state (an in-place operation may follow); what a step needs besides is not asked for."""
        if self.batch is None:
            self.batch = after.values.shape[0]
        state = self._one_row(after)
        wrong = state.not_finite(self.samples)
        if wrong is not None:
            raise Unreadable(f"its values cannot be used: {wrong}")
        read = _Read(site.name, call, type(site.module).__name__, site.kind)
        cast(dict[Any, Any], self.records).setdefault((site.name, call), read)
        self.held[call_name(site.name, call)] = Positions(state.values.detach().clone(), state.keep, after.label)

    def _chain(self, event: Event, x: Tensor) -> tuple[Tensor | None, str, str | None]:
        return None, "", None


def call_name(site: str, call: int) -> str:
    """The name of a layer's call: the second one is ``NAME@2``."""
    return f"{site}@{call + 1}" if call else site


@dataclass
class Hooked:
    """The layers of any module, read by hooks.

    Args:
        model: as `isthmus.probe.find.unwrap` returns it.
        sites: where to read.
        reading: how outputs become rows.
        forward: see `isthmus.probe.probe.probe`, as what follows.
        mask: of padding.
        mode: ``eval`` or ``as_is``.
        autocast: dtype.
    """

    model: nn.Module
    sites: list[Site]
    reading: Reading
    forward: Forward | None = None
    mask: Mask = "auto"
    mode: str = "eval"
    autocast: torch.dtype | None = None
    failed: dict[str, Skipped] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    doubts: dict[str, None] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._reader = StateReader(self.reading, ReLU(), 1, "gram")
        self._reader.modules = dict(walk(self.model))
        self._reader.trail = Trail(followed(self.model, self.sites), self.reading.state, self.reading.output)
        self._stack = ExitStack()
        self._capture: Capture | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Leave the network as it was afterwards; hooks are set at the first batch."""
        with undisturbed(self.model, self.mode), self._stack:
            yield

    def states(self, given: object, number: int) -> dict[str, Positions]:
        """Run a batch, the first one twice: without hooks, too, to see whether they change the output."""
        reader = self._reader
        reader.held = {}
        if self._capture is not None:
            self._run(given, number, self._capture)
        else:
            alone = self._run(copied(given), number, None)
            self._stack.enter_context(asked_layers(reader.modules, lambda: reader.masks))
            doubt = reader.doubts
            self._stack.enter_context(
                guards(reader.modules, lambda: reader.rank, reader.packs, lambda text: doubt.update({text: None}))
            )
            self._capture = Capture(self.sites, reader.event, reader.trail, reader.entered)
            self._stack.enter_context(self._capture)
            if not same_bits(alone, self._run(given, number, self._capture)):
                reader.doubts[HOOKS_CHANGE] = None
        reader.end()
        self._seen |= set(reader.held)
        return in_order(reader.held)

    def _run(self, given: object, number: int, capture: Capture | None) -> object:
        reader, device = self._reader, device_of(self.model)
        batch = to_device(given, device)
        call = call_of(self.model, batch, self.forward)
        if capture is not None:
            masks, notes, doubts = masks_of(batch, call.named, self.mask)
            reader.notes |= dict.fromkeys((*notes, *call.notes))
            reader.doubts |= dict.fromkeys(doubts)
            reader.begin(samples_in(batch, self.reading.sequence_first is True), masks)
            reader.rank = max((x.ndim for x in call.inputs), default=0)
        around = undisturbed(self.model, "as_is") if capture is None else capture.forward_pass()
        try:
            with around, torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
                return call.run()
        except Exception as error:
            raise_failed(error, self.model, number, call.notes)

    def finish(self) -> None:
        """Layers that were misread, could not be read, or were never called."""
        reader = self._reader
        reader.judge(reader.trail)
        for (name, call), skipped in reader.failed.items():
            self.failed[call_name(name, call)] = Skipped(call_name(name, call), skipped.type, skipped.reason, True)
        called = {name for name, _ in (*reader.records, *reader.failed)}
        for site in self.sites:
            if site.name not in called:
                reason = "never called in the forward pass"
                self.failed[site.name] = Skipped(site.name, type(site.module).__name__, reason, True)
        self.notes |= reader.notes
        self.doubts |= reader.doubts


@dataclass
class Trajectory:
    """The states of a `LeakyResNet`, in float64.

    Args:
        model: the network.
        names: of its states, ``A_0`` to ``A_L``.
    """

    model: LeakyResNet
    names: list[str]
    failed: dict[str, Skipped] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    doubts: dict[str, None] = field(default_factory=dict)
    _samples: int = 0

    @contextmanager
    def open(self) -> Iterator[None]:
        """Leave the network as it was."""
        with undisturbed(self.model):
            yield

    def states(self, given: object, number: int) -> dict[str, Positions]:
        """The path of a batch."""
        A = trajectory_of(self.model, to_device(given, self.model.weight.device))
        found = {}
        for name in self.names:
            state = Positions(A[int(name.removeprefix("A_"))].unsqueeze(1), None, "")
            wrong = state.not_finite(self._samples)
            if wrong is None:
                found[name] = state
            else:
                self.failed[name] = Skipped(name, "state", f"its values cannot be used: {wrong}", True)
        self._samples += A.shape[1]
        return found

    def finish(self) -> None:
        """Nothing shows at the end only."""


def trajectory_of(model: LeakyResNet, batch: object) -> Tensor:
    """States ``(L + 1, samples, width)`` of a batch on the network's device, in float64.

    Raises:
        ValueError: the batch, or its first part, is not ``(samples, in_features)``.
    """
    x, wide = batch[0] if isinstance(batch, tuple | list) else batch, torch.float64
    if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != model.in_features:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"data: expected inputs (samples, {model.in_features}) for this LeakyResNet, got {got}")
    start = x.to(wide) @ model.in_map.detach().to(wide).T
    return path(start, model.weight.detach().to(wide), model.rho.to(wide), model.effective_depth, model.activation)


def trajectory_names(model: LeakyResNet, layers: object) -> list[str]:
    """The states of a `LeakyResNet` that were asked for; None: all.

    Raises:
        TypeError: no names or patterns.
        ValueError: none fits.
    """
    names = [f"A_{i}" for i in range(model.depth + 1)]
    wanted = [layers] if isinstance(layers, str) else layers
    if wanted is None:
        return names
    if not isinstance(wanted, list | tuple | set) or not all(isinstance(w, str) for w in wanted):
        raise TypeError("layers: of a LeakyResNet expected names or patterns of its states, such as 'A_0' or 'A_*'")
    chosen = [n for n in names if any(pattern_matches(w, n) for w in wanted)]
    if not chosen:
        raise ValueError(f"layers: no state fits {list(wanted)!r}; the states are 'A_0' to 'A_{model.depth}'")
    return chosen


def in_order(states: Mapping[str, Positions]) -> dict[str, Positions]:
    """What goes into a module before the module and its parts."""
    names = list(states)
    for name in [n for n in names if n.endswith(":input")]:
        module = name.removesuffix(":input")
        inside = (i for i, n in enumerate(names) if n == module or n.startswith((f"{module}.", f"{module}@")))
        first = next(inside, None)
        if first is not None and first < names.index(name):
            names.remove(name)
            names.insert(first, name)
    return {name: states[name] for name in names}


Structure = tuple[int, int, bytes | None]


def structure_of(state: Positions) -> Structure:
    """What rows a state has: samples, positions, and which are real where not all are."""
    samples, positions = state.values.shape[:2]
    keep = state.keep
    if keep is None or bool(keep.all()):
        return samples, positions, None
    return samples, positions, bytes(keep.to("cpu", torch.uint8).flatten().tolist())


def common_structure(networks: Sequence[Mapping[str, Positions]]) -> Structure | None:
    """The rows that most layers have, among those that layers of every network have; None: there are none."""
    counts: list[dict[Structure, int]] = []
    for states in networks:
        own: dict[Structure, int] = {}
        for state in states.values():
            one = structure_of(state)
            own[one] = own.get(one, 0) + 1
        counts.append(own)
    common = [one for one in counts[0] if all(one in own for own in counts)]
    return max(common, key=lambda one: sum(own[one] for own in counts), default=None)


def rows_of(state: Positions, device: torch.device) -> Tensor:
    """The real rows ``(n, width)`` in float64."""
    return state.shard(0, 1, 0).to(device).to(torch.float64)


def described(structure: Structure) -> str:
    """A structure in words."""
    samples, positions, keep = structure
    padding = "" if keep is None else ", padding left out"
    return f"{samples} samples of {positions} rows{padding}"
