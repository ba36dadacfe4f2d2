"""`Reader`: what hooks call; from states to accumulators, shard by shard."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from isthmus.activations import Activation, ReLU
from isthmus.probe.capture import Event
from isthmus.probe.find import Site, Skipped, pattern_matches
from isthmus.probe.moments import LayerMoments
from isthmus.probe.pairs import PairMoments
from isthmus.probe.records import LayerRecord
from isthmus.probe.rows import Choice, Positions, Reading, Unreadable, pick, to_positions

# Beyond this many calls of one module in a pass (a recurrent cell, say), the others are left out, with a reason.
MOST_CALLS = 32


@dataclass
class Reader:
    """Turns events into rows and rows into accumulators.

    Args:
        reading: how outputs become rows.
        activation: σ, for all or by pattern of names.
        shards: see `isthmus.probe.probe.probe`.
        method: of `LayerMoments`.
    """

    reading: Reading
    activation: Activation | Mapping[str, Activation]
    shards: int | None
    method: str
    records: dict[tuple[str, int], LayerRecord] = field(default_factory=dict)
    failed: dict[tuple[str, int], Skipped] = field(default_factory=dict)
    other_outputs: dict[str, Skipped] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    samples: int = 0
    # of the batch that runs now
    batch: int | None = None
    mask: Tensor | None = None
    # the newest linear layer's output, for chains of them
    last: tuple[Site, Tensor, str | None] | None = None
    blocks: set[str] = field(default_factory=set)

    def begin(self, batch: int | None, mask: Tensor | None) -> None:
        """A batch starts: its number of samples, if known, and its padding mask."""
        self.batch, self.mask, self.last = batch, mask, None

    def end(self) -> None:
        """A batch is through."""
        self.samples += self.batch or 0
        self.last = None

    def activation_of(self, name: str) -> Activation:
        """σ of one layer."""
        if isinstance(self.activation, Activation):
            return self.activation
        return next((a for pattern, a in self.activation.items() if pattern_matches(pattern, name)), ReLU())

    def event(self, event: Event) -> None:
        """What a hook calls."""
        site, key = event.site, (event.site.name, event.call)
        if key in self.failed or event.call > MOST_CALLS:
            return
        try:
            if event.call == MOST_CALLS:
                raise Unreadable(f"called more than {MOST_CALLS} times in a pass: later calls are not read")
            self._read(event)
        except Unreadable as reason:
            self.records.pop(key, None)
            call = f"@{event.call + 1}" if event.call else ""
            self.failed[key] = Skipped(site.name + call, type(site.module).__name__, str(reason), True)

    def _read(self, event: Event) -> None:
        site = event.site
        choice = _matching(self.reading.output, site.name)
        where, x, others = pick(event.output, cast(Choice | None, choice))
        x = x.detach()
        rule = self.reading.channels
        if not isinstance(rule, str):
            rule = _matching(rule, site.name) or "auto"
        after = to_positions(x, site.module, self.reading, str(rule), self.batch, self.mask)
        before, name, stack = event.before, f"{site.name}:input", site.stack
        if site.kind == "linear":
            before, name, stack = self._chain(event, x)
        elif before is not None and before.shape != x.shape:
            self.notes[f"{site.name}: no step, its input and output differ in shape"] = None
            before = None
        compared = (
            None
            if before is None
            else to_positions(before, site.module, self.reading, str(rule), self.batch, self.mask)
        )
        label = after.label + (f", output{where}" if where else "")
        self.add(site, event.call, after, compared, name, label, str(x.dtype).removeprefix("torch."), stack)
        for place, reason in others:
            self.other_outputs.setdefault(
                site.name + place, Skipped(site.name + place, type(site.module).__name__, reason)
            )

    def entered(self, site: Site, x: Tensor | None) -> None:
        """A block begins. Where it takes a linear layer's output as it is, that is a stream's state, and no chain's."""
        self.blocks.add(site.name)
        if x is not None and self.last is not None and x.shape == self.last[1].shape and torch.equal(x, self.last[1]):
            self.last = None

    def _chain(self, event: Event, x: Tensor) -> tuple[Tensor | None, str, str | None]:
        """The linear layer before, if this one's input is σ of its output: then both are states of one network."""
        site, last, z = event.site, self.last, event.first_input
        before, name, stack = None, "", None
        if last is not None and z is not None and last[1].shape == x.shape == z.shape and not event.call:
            # what two layers of one block do is the block's own affair; of blocks not watched nothing is known
            apart = site.inside is None or (site.inside in self.blocks and site.inside != last[0].inside)
            features = self.activation_of(site.name).value(last[1])
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
        extra: dict[str, float] | None = None,
    ) -> None:
        """Take the rows of one state in."""
        if self.batch is None:
            self.batch = after.values.shape[0]
        if self.reading.positions == "mean":
            after, before = after.meaned(), before and before.meaned()
        key = site.name, call
        record = self.records.get(key)
        if record is None:
            activation, device = self.activation_of(site.name), _device_for(after.values)
            shards = _shards_for(after.width) if self.shards is None else self.shards
            record = self.records[key] = LayerRecord(
                site.name,
                call,
                type(site.module).__name__,
                site.kind,
                stack,
                label,
                dtype,
                activation,
                [self._moments(LayerMoments, after.width, activation, device) for _ in range(shards)],
                extra=extra or {},
            )
            if before is not None:
                record.before = before_name
                record.pairs = [self._moments(PairMoments, after.width, activation, device) for _ in range(shards)]
        if after.width != record.moments[0].width:
            raise Unreadable(f"its width changes from call to call: {record.moments[0].width}, then {after.width}")
        if record.pairs and before is None:
            record.pairs, record.before = [], None
            self.notes[f"{site.name}: no step, the state before it is not the same in every batch"] = None
        self._update(record, after, before)

    def _moments(self, kind: Any, width: int, activation: Activation, device: torch.device) -> Any:
        return kind(width, activation, device=device, method=self.method)

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
                raise Unreadable(f"its values cannot be used: {error}") from error


def _matching(choices: Mapping[str, Any], name: str) -> Any:
    plain = name.removesuffix(":input")
    return next((v for p, v in choices.items() if pattern_matches(p, name) or pattern_matches(p, plain)), None)


def _shards_for(width: int) -> int:
    return 8 if width <= 256 else 4 if width <= 1024 else 1


def _device_for(x: Tensor) -> torch.device:
    return torch.device("cpu") if x.device.type == "mps" else x.device  # no float64 there
