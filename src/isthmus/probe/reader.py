"""`Reader`: what hooks call; from states to accumulators, shard by shard."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from isthmus.activations import Activation
from isthmus.probe.axes import Axes, axes_of, without_batch
from isthmus.probe.capture import Event
from isthmus.probe.consumers import WITHOUT, Consumers
from isthmus.probe.evidence import Trail, readable
from isthmus.probe.find import Site, Skipped, adapted
from isthmus.probe.kept import Draws, KeptRows
from isthmus.probe.masks import Masks
from isthmus.probe.momenta import MomentumMoments, perturbed
from isthmus.probe.moments import LayerMoments
from isthmus.probe.pairs import PairMoments
from isthmus.probe.records import LayerRecord
from isthmus.probe.rows import Choice, Positions, Reading, Unreadable, matching, pick, shards_for, to_positions
from isthmus.probe.trajectory import Walks

TAKEN = "the identity was taken, and activation= says another"
DIVIDED = f"what takes it is no nonlinearity that is known, or several; {TAKEN}"
# Beyond this many calls of one module in a pass (a recurrent cell, say), the others are left out, with a reason.
MOST_CALLS = 32


@dataclass(frozen=True)
class Waiting:
    """States of a step, before and after, and a zero that was added to the latter: its gradient is the state's."""

    before: Positions
    after: Positions
    delta: Tensor
    like: Callable[[Tensor], Positions]


@dataclass
class Reader:
    """Turns events into rows and rows into accumulators.

    Args:
        reading: how outputs become rows.
        activation: σ, for all or by pattern of names; None, or a name without a pattern: what the network was seen to
            apply to the state, see `isthmus.probe.consumers`.
        shards: see `isthmus.probe.probe.probe`.
        method: of `LayerMoments`.
        weight_decay: where gradients are asked for, of the penalty ``(weight_decay/2)‖V‖²`` on a step's weights.
        neighbours: rows of each layer to keep for dimensions by neighbours.
    """

    reading: Reading
    activation: Activation | Mapping[str, Activation] | None
    shards: int | None
    method: str
    weight_decay: float | None = None
    records: dict[tuple[str, int], LayerRecord] = field(default_factory=dict)
    failed: dict[tuple[str, int], Skipped] = field(default_factory=dict)
    other_outputs: dict[str, Skipped] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    samples: int = 0
    begun: int = 0
    # of the batch that runs now
    batch: int | None = None
    masks: Masks = field(default_factory=Masks)
    # what waits for the batch's gradients
    waiting: dict[tuple[str, int], Waiting] = field(default_factory=dict)
    # the newest linear layer's output, for chains of them
    last: tuple[Site, Tensor, str | None] | None = None
    blocks: set[str] = field(default_factory=set)
    packed: PackedSequence | None = None
    presumed: dict[str, str] = field(default_factory=dict)
    rank: int = 0
    modules: dict[str, nn.Module] = field(default_factory=dict)
    trail: Trail = field(default_factory=lambda: Trail(()))
    axes: dict[str, Axes] = field(default_factory=dict)
    # rows kept of each layer, None: none
    neighbours: int | None = None
    draws: Draws = field(default_factory=Draws)
    walks: Walks = field(default_factory=Walks)
    consumers: Consumers = field(default_factory=Consumers)
    # σ by the name of the state and its call, once known
    sigmas: dict[tuple[str, int], Activation] = field(default_factory=dict)
    # what could not be checked
    doubts: dict[str, None] = field(default_factory=dict)

    def begin(self, batch: int | None, masks: Masks | None = None) -> None:
        """A batch starts: its number of samples, if known, and its padding."""
        self.batch, self.masks, self.last = batch, masks or Masks(), None
        self.begun += 1
        self.waiting, self.packed = {}, None
        self.walks.begin()
        self.draws.begin()

    def packs(self, packed: PackedSequence) -> None:
        """Recurrent layers run on packed sequences: rows of as many are in order of time, not of samples."""
        self.packed = packed

    def end(self) -> None:
        """A batch is through."""
        self.walks.through(self.samples, self.shards)
        self.samples += self.batch or 0
        self.last = None

    def judge(self, trail: Trail) -> None:
        """After all batches: what blocks took and returned decides which are a stack, and which were read right."""
        if self.consumers.unwatched is not None and not isinstance(self.activation, Activation):
            self.doubts[f"what takes the states was not seen, {self.consumers.unwatched}: {TAKEN}"] = None
        self.doubts |= dict.fromkeys(trail.doubts)
        for name, place in self.presumed.items():
            if trail.place_of(name) not in (place, None):
                self.doubts[f"{name}: layers inside it may have been given the padding of the other sequence"] = None
        for (name, call), record in list(self.records.items()):
            if name in trail.misread:
                kind, reason = record.type, trail.misread[name]
                self.failed[name, call] = Skipped(name, kind, reason, True)
                del self.records[name, call]
            elif record.stack in trail.apart:
                record.pairs, record.before, record.momenta = [], None, []
                self.notes[f"{record.stack}: no stack, {trail.apart[record.stack]}"] = None
                record.stack = None
            elif record.stack in trail.changed:
                self.notes[
                    f"{record.stack}: no stack, {trail.changed[record.stack]}; steps are those of each block alone"
                ] = None
                record.stack = None
        self.walks.drop((*trail.apart, *trail.changed))
        self.notes |= dict.fromkeys(self.walks.notes)

    def activation_of(self, name: str, x: Tensor, call: int = 0) -> Activation:
        """σ of one state: the caller's, else what took the state in when it was first seen."""
        if isinstance(self.activation, Activation):
            return self.activation
        given = matching(self.activation or {}, name)
        if given is not None:
            return cast(Activation, given)
        key = name, call
        if key not in self.sigmas:
            taken = self.consumers.of(x)
            self.sigmas[key] = taken or WITHOUT
            if taken is None:
                self.doubts[f"{name}: {DIVIDED}"] = None
            elif self.begun > 1:
                self.doubts[f"{name}: ran after the first batch only, so what takes it was not seen; {TAKEN}"] = None
        return self.sigmas[key]

    @torch.no_grad()
    def event(self, event: Event) -> object:
        """What a hook calls; where gradients are wanted, the output with a zero added, else None."""
        site, key = event.site, (event.site.name, event.call)
        if key in self.failed or event.call > MOST_CALLS:
            return None
        try:
            if event.call == MOST_CALLS:
                raise Unreadable(f"called more than {MOST_CALLS} times in a pass: later calls are not read")
            return self._read(event)
        except Unreadable as reason:
            self.records.pop(key, None)
            call = f"@{event.call + 1}" if event.call else ""
            self.failed[key] = Skipped(site.name + call, type(site.module).__name__, str(reason), True)
            return None

    def _read(self, event: Event) -> object:
        site = event.site
        choice = matching(self.reading.output, site.name)
        where, picked, others = pick(event.output, cast(Choice | None, choice), event.preferred)
        x = picked.detach()
        if not x.numel() and self.batch and (site.name, event.call) not in self.records:
            return None  # nothing came yet: an expert without tokens, say
        if without_batch(site.module, x):
            raise Unreadable(f"of shape {tuple(x.shape)}: a {type(site.module).__name__} without a batch dimension")
        axes = self.axes.setdefault(site.name, axes_of(site.name, self.modules))
        masks = self.masks.of(site.name, self._of_memory(event))

        packed = self.packed if self.packed is not None and len(x) == len(self.packed.data) else None

        def like(x: Tensor) -> Positions:
            if packed is None or x.ndim != 2:
                return to_positions(x, site, self.reading, axes, self.batch, masks)
            padded, lengths = pad_packed_sequence(packed._replace(data=x), batch_first=True)
            real = torch.arange(padded.shape[1], device=x.device) < lengths.to(x.device)[:, None]
            return to_positions(padded, site, self.reading, Axes(tokens_first=False), self.batch, [real])

        after = like(x)
        self.doubts |= {f"{site.name}: {doubt}": None for doubt in after.doubts}
        before, name, stack = event.before, f"{site.name}:input", site.stack
        if site.kind == "linear":
            before, name, stack = self._chain(event, x)
        elif before is not None and before.shape != x.shape:
            self.notes[f"{site.name}: no step, its input and output differ in shape"] = None
            before = None
        compared = None if before is None else like(before)
        label = after.label + (f", output{where}" if where else "")
        sigma = self.activation_of(site.name, x, event.call)
        sigma_before = sigma if before is None else self.activation_of(name, before, event.call)
        dtype = str(x.dtype).removeprefix("torch.")
        self.add(site, event.call, after, compared, name, label, dtype, stack, sigma, sigma_before)
        if compared is not None and site.kind == "block" and not event.call:
            self.walks.step(stack, self._one_row(compared), self._one_row(after))
        for place, reason in others:
            self.other_outputs.setdefault(
                site.name + place, Skipped(site.name + place, type(site.module).__name__, reason)
            )
        record = self.records[site.name, event.call]
        if self.weight_decay is None or not record.pairs or compared is None:
            return None
        delta = torch.zeros_like(x, requires_grad=True)
        new = perturbed(event.output, picked, delta)
        if new is None:
            self.notes[f"{site.name}: no momenta, the tensor read is made of its output and no part of it"] = None
            return None
        if site.kind == "linear":
            try:
                record.weight = _weight(site.module, record.sigma_before)
            except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
                what = (str(error).splitlines() or [type(error).__name__])[0]
                self.notes[f"{site.name}: no momenta, its weights cannot be read as they are ({what:.90})"] = None
                return None
        self.waiting[site.name, event.call] = Waiting(compared, after, delta, like)
        return new

    def _of_memory(self, event: Event) -> bool:
        """Whether a layer in a block works on what that was given besides its state: a decoder on the encoder's end."""
        inside, x = event.site.inside, event.first_input
        entry = None if inside is None or not self.masks.two else self.trail.find(self.modules[inside])
        if entry is None or x is None:
            return False
        given = readable(entry.given)
        place = entry.place
        if place is None and given:  # it shows when the block ends; `judge` compares
            place = self.presumed[str(inside)] = given[0][0]
        return any(x.data_ptr() == y.data_ptr() for where, y in given if where != place)

    def gradients(self, value: Tensor, weight: float) -> None:
        """Take in the momenta of a batch, given its loss and what it is a mean over."""
        if not weight:  # a mean over nothing
            return
        waiting = [(key, one) for key, one in self.waiting.items() if key in self.records and self.records[key].pairs]
        deltas = [one.delta for _, one in waiting]
        found: list[Any] = [None] * len(deltas)
        if deltas and value.requires_grad:
            found = list(torch.autograd.grad(value, deltas, allow_unused=True))
        for ((name, call), one), g in zip(waiting, found, strict=True):
            if g is not None:
                assert self.weight_decay is not None
                record = self.records[name, call]
                self.momenta(name, one.before, one.after, one.like(g), self.weight_decay, record.weight, call, weight)
            else:
                self._without_momenta(self.records[name, call], "no gradient of the loss reaches it")

    def momenta(
        self,
        name: str,
        before: Positions,
        after: Positions,
        gradient: Positions,
        decay: float,
        weight: Tensor | None,
        call: int = 0,
        mean_over: float | None = None,
    ) -> None:
        """Take in the gradients of a batch's loss, a mean over ``mean_over``, at the states after a step."""
        record = self.records[name, call]
        if record.decay is None:
            size, device = record.moments[0].width, record.moments[0].device
            record.decay, record.weight = decay, weight
            record.momenta = [MomentumMoments(size, record.sigma_before, device=device) for _ in record.moments]
        shards, samples = len(record.momenta), gradient.values.shape[0]
        for k, momenta in enumerate(record.momenta):
            own = len(range((k - self.samples) % shards, samples, shards))
            A, B, g = (p.shard(k, shards, self.samples) for p in (before, after, gradient))
            whole = float(samples) if mean_over is None else mean_over
            try:
                momenta.update(A, B, g, whole, whole * own / samples)
            except (TypeError, ValueError) as error:
                self._without_momenta(record, str(error))
                return

    def _without_momenta(self, record: LayerRecord, reason: str) -> None:
        record.momenta, record.decay = [], record.decay or self.weight_decay
        self.notes[f"{record.site}: no momenta, {reason}"] = None

    def entered(self, site: Site, candidates: Sequence[Tensor]) -> None:
        """A block begins. Where it takes a linear layer's output as it is, that is a stream's state, and no chain's."""
        self.blocks.add(site.name)
        last = self.last
        if last is not None and any(x.shape == last[1].shape and torch.equal(x, last[1]) for x in candidates):
            self.last = None

    def _chain(self, event: Event, x: Tensor) -> tuple[Tensor | None, str, str | None]:
        """The linear layer before, if this one's input is σ of its output: then both are states of one network."""
        site, last, z = event.site, self.last, event.first_input
        before, name, stack = None, "", None
        if last is not None and z is not None and last[1].shape == x.shape == z.shape and not event.call:
            # what two layers of one block do is the block's own affair; of blocks not watched nothing is known
            apart = site.inside is None or (site.inside in self.blocks and site.inside != last[0].inside)
            features = self.activation_of(last[0].name, last[1]).value(last[1])
            if apart and features.dtype == z.dtype and torch.allclose(features, z, rtol=1e-3, atol=1e-6):
                name, before, stack = last[0].name, last[1], last[2] or f"chain from {last[0].name}"
        self.last = (site, x.clone(), stack)
        return before, name, stack

    def add(
        self,
        site: Site,
        call: int,
        after: Positions,
        before: Positions | None,
        before_name: str,
        label: str,
        dtype: str,
        stack: str | None,
        activation: Activation,
        activation_before: Activation,
        extra: dict[str, float] | None = None,
    ) -> None:
        """Take the rows of one state in."""
        if self.batch is None:
            self.batch = after.values.shape[0]
        after, before = self._one_row(after), before and self._one_row(before)
        key = site.name, call
        record = self.records.get(key)
        if record is None:
            device = _device_for(after.values)
            shards = shards_for(after.width) if self.shards is None else self.shards
            record = self.records[key] = LayerRecord(
                site.name,
                call,
                type(site.module).__name__,
                site.kind,
                stack,
                label,
                dtype,
                activation,
                [self._moments(LayerMoments, after.width, activation, device, dtype) for _ in range(shards)],
                activation_before=activation_before,
                kept=None if self.neighbours is None else KeptRows(self.neighbours),
                extra=extra or {},
            )
            if before is not None:
                record.before = before_name
                record.pairs = [
                    self._moments(PairMoments, after.width, activation_before, device, dtype) for _ in range(shards)
                ]
        if after.width != record.moments[0].width:
            raise Unreadable(f"its width changes from call to call: {record.moments[0].width}, then {after.width}")
        if record.pairs and before is None:
            record.pairs, record.before, record.momenta = [], None, []
            self.notes[f"{site.name}: no step, the state before it is not the same in every batch"] = None
        self._update(record, after, before)
        if record.kept is not None:
            priorities = self.draws.of(self.samples, after.values)
            own = slice(None) if after.keep is None else after.keep.cpu()
            record.kept.update(after.shard(0, 1, self.samples), priorities[own].flatten())

    def _one_row(self, state: Positions) -> Positions:
        """A row a sample where means over positions are wanted, else the state as it is."""
        return state.meaned() if self.reading.positions == "mean" else state

    def _moments(self, kind: Any, width: int, activation: Activation, device: torch.device, dtype: str) -> Any:
        method = self.method
        if method == "auto":  # what squares lose lies below the rounding of states in 32 bits or fewer
            method = "qr" if dtype == "float64" else "gram"
        spectra = kind is not PairMoments or method == "qr"
        return kind(width, activation, device=device, method=method, spectra=spectra)

    def _update(self, record: LayerRecord, after: Positions, before: Positions | None) -> None:
        for k, moments in enumerate(record.moments):
            rows = after.shard(k, len(record.moments), self.samples)
            if not rows.shape[0]:
                continue
            try:
                moments.update(rows)
                if record.pairs and before is not None:
                    record.pairs[k].update(before.shard(k, len(record.moments), self.samples), rows)
            except (TypeError, ValueError) as error:
                where = after.not_finite(self.samples) or (before and before.not_finite(self.samples)) or error
                raise Unreadable(f"its values cannot be used: {where}") from error


def _weight(module: torch.nn.Module, activation: Activation) -> Tensor:
    """V of a linear layer, with the bias as last column where σ appends a 1."""
    if adapted(module) is not None:
        raise TypeError("an adapter adds to them")
    weight, bias = cast(Tensor, module.weight).detach(), cast(Tensor | None, module.bias)
    if weight.is_meta:
        raise TypeError("they are on the meta device until the layer runs")
    if activation.append_one and bias is not None:
        weight = torch.cat((weight, bias.detach()[:, None]), 1)
    return weight.double().cpu()


def _device_for(x: Tensor) -> torch.device:
    return torch.device("cpu") if x.device.type == "mps" else x.device  # no float64 there
