"""From what a module returns to rows: which tensor, which dimension is the width, what a position is, what is padding.

The choices are stated in the ``reading`` column of the profile:

- rank 2: ``(samples, width)``; more rows than samples are folded into positions;
- rank 3 to 5: the width is the dimension of the size that the parameters have, the first of the others the samples
  (`isthmus.probe.axes`): ``(samples, tokens, width)``, ``(samples, channels, …)``, ``(samples, …, width)``;
- every position is a row of its own, or (``positions="mean"``) a sample's mean over its positions is.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from isthmus.probe.axes import Axes, samples_first, width_first
from isthmus.probe.find import Site, pattern_matches

Choice = int | str | Callable[[object], Tensor]


class Unreadable(Exception):
    """A layer, or this call of it, cannot be read; the message is the reason that the profile lists."""


@dataclass(frozen=True)
class Reading:
    """How outputs become rows.

    Args:
        channels: ``auto`` (the rule of this module), ``first`` or ``last``; or patterns of layer names to these.
        positions: ``samples``: every position is a row; ``mean``: the mean over a sample's positions is.
        sequence_first: tokens are ``(tokens, samples, width)``, as with ``batch_first=False``; or patterns of layer
            names to whether they are. Where nothing is said, layers of `torch.nn` are asked (`isthmus.probe.axes`).
        output: patterns of layer names to an index, a key or a function that picks the tensor.
        state: patterns of names of blocks to the argument that is the state: its number, its name, or a function of
            all; by default the one that the block before returned, or of the output's shape and nearest to it.
        max_width: wider states are not read: the accumulators take ``O(width²)`` memory.
    """

    channels: str | Mapping[str, str] = "auto"
    positions: str = "samples"
    sequence_first: bool | Mapping[str, bool] = False
    output: Mapping[str, Choice] = dataclasses.field(default_factory=dict)
    state: Mapping[str, Choice] = dataclasses.field(default_factory=dict)
    max_width: int = 8192

    def __post_init__(self) -> None:
        given = self.channels.values() if isinstance(self.channels, Mapping) else (self.channels,)
        for value in given:
            if value not in ("auto", "first", "last"):
                raise ValueError(f"channels: expected 'auto', 'first' or 'last', got {value!r}")
        if self.positions not in ("samples", "mean"):
            raise ValueError(
                "positions: expected 'samples' (every position is a row) or 'mean' (a sample's mean over its positions "
                f"is), got {self.positions!r}"
            )
        if self.max_width < 1:
            raise ValueError(f"max_width: expected at least 1, got {self.max_width}")

    def channels_of(self, name: str) -> str:
        """The rule of the width for one layer."""
        return self.channels if isinstance(self.channels, str) else matching(self.channels, name) or "auto"

    def tokens_first(self, name: str) -> bool | None:
        """Whether one layer has tokens before samples; None where the caller does not say."""
        if isinstance(self.sequence_first, bool):
            return self.sequence_first or None
        return cast(bool | None, matching(self.sequence_first, name))


@dataclass(frozen=True)
class Positions:
    """A state as ``(samples, positions, width)``, which positions are real, how it was read, and what is in doubt."""

    values: Tensor
    keep: Tensor | None
    label: str
    doubts: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """The width of the state."""
        return self.values.shape[2]

    def shard(self, which: int, shards: int, offset: int) -> Tensor:
        """The rows ``(n, width)`` of the samples j with ``(offset + j) mod shards == which``."""
        own = slice((which - offset) % shards, None, shards)
        values = self.values[own]
        return values.reshape(-1, self.width) if self.keep is None else values[self.keep[own]]

    def not_finite(self, offset: int) -> str | None:
        """Where NaN or infinity stands, in the samples of the data, of which ``offset`` came before; None: nowhere."""
        bad = ~torch.isfinite(self.values).all(-1)
        if self.keep is not None:
            bad &= self.keep
        if not bool(bad.any()):
            return None
        sample, position = bad.nonzero()[0].tolist()
        rows = int(bad.numel() if self.keep is None else self.keep.sum())
        token = f", position {position}" if bad.shape[1] > 1 else ""
        return (
            f"{int(bad.sum())} of {rows} rows have NaN or infinite entries (the first is sample {offset + sample} of "
            f"the data{token}, counted from 0); fix these inputs, or the model or its precision"
        )

    def meaned(self) -> "Positions":
        """One row a sample: the mean over its real positions; samples without any are dropped."""
        if self.values.shape[1] == 1 and self.keep is None:
            return self
        wide = self.values.to(torch.float32 if self.values.device.type == "mps" else torch.float64)
        if self.keep is None:
            return Positions(wide.mean(1, keepdim=True), None, self.label)
        weight = self.keep.to(wide.dtype)[:, :, None]
        count = weight.sum(1, keepdim=True)
        mean = torch.where(weight > 0, wide, 0.0).sum(1, keepdim=True) / count.clamp_min(1)
        return Positions(mean, count[:, :, 0] > 0, self.label)


def shards_for(width: int) -> int:
    """Shards where none are asked for: each has sums of its own."""
    return 8 if width <= 256 else 4 if width <= 512 else 2 if width <= 1024 else 1


def matching(choices: Mapping[str, Any], name: str) -> Any:
    """The choice of the first pattern that fits a layer's name, with or without its ``:input``; None: of none."""
    plain = name.removesuffix(":input")
    return next((v for p, v in choices.items() if pattern_matches(p, name) or pattern_matches(p, plain)), None)


def tensors_in(output: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested tuples, lists, mappings and dataclasses, with its place, in order."""
    if isinstance(output, Tensor):
        yield name, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from tensors_in(value, f"{name}[{key!r}]")
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        for key, value in zip(output._fields, output, strict=True):
            yield from tensors_in(value, f"{name}.{key}")
    elif isinstance(output, tuple | list):
        for i, value in enumerate(output):
            yield from tensors_in(value, f"{name}[{i}]")
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from tensors_in(getattr(output, field.name, None), f"{name}.{field.name}")


def with_tensor(output: Any, x: Tensor, new: Tensor) -> Any | None:
    """The output with another tensor in place of x, wherever x lies in it; None where it does not."""
    if output is x:
        return new
    if isinstance(output, Mapping):
        for key, value in output.items():
            part = with_tensor(value, x, new)
            if part is not None:
                made: Any = copy.copy(output)
                made[key] = part
                return made
    elif isinstance(output, tuple | list):
        for i, value in enumerate(output):
            part = with_tensor(value, x, new)
            if part is not None:
                parts = [*output[:i], part, *output[i + 1 :]]
                return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    elif dataclasses.is_dataclass(output):
        for field in dataclasses.fields(output):
            part = with_tensor(getattr(output, field.name, None), x, new)
            if part is not None:
                made = copy.copy(output)
                object.__setattr__(made, field.name, part)
                return made
    return None


def unreadable(x: Tensor) -> str | None:
    """Why a tensor cannot be read as it is, or None."""
    if x.is_nested:
        return "a nested tensor; pass a padding mask and padded data instead"
    if x.layout != torch.strided:
        return f"a tensor of layout {x.layout}; only dense ones are read"
    if x.device.type == "meta":
        return "a tensor on the meta device, without values"
    if hasattr(x, "full_tensor"):
        return "a tensor distributed over devices (DTensor); gather it first"
    if not x.is_floating_point():
        return f"of dtype {x.dtype}; only real floating-point states are read"
    if x.ndim < 2:
        return f"of rank {x.ndim}, shape {tuple(x.shape)}: no width can be told from samples"
    return f"of rank {x.ndim}, shape {tuple(x.shape)}; ranks 2 to 5 are read" if x.ndim > 5 else None


def pick(
    output: object, choice: Choice | None = None, preferred: Tensor | None = None
) -> tuple[str, Tensor, list[tuple[str, str]]]:
    """The tensor to read: the chosen one, the preferred, or the first readable; the others, with the reason for each.

    Raises:
        Unreadable: there is none, or the choice does not lead to one.
    """
    if choice is not None:
        try:
            chosen = choice(output) if callable(choice) else _item(output, choice)
        except (LookupError, TypeError, AttributeError) as error:
            raise Unreadable(
                f"output={choice!r} does not lead to a tensor in {_shape(output)}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(chosen, Tensor):
            raise Unreadable(f"output={choice!r} leads to a {type(chosen).__name__}, not to a tensor")
        reason = unreadable(chosen)
        if reason:
            raise Unreadable(f"its output is {reason}")
        return "", chosen, []
    found = list(tensors_in(output))
    reasons = [unreadable(x) for _, x in found]
    read = next((i for i, (_, x) in enumerate(found) if x is preferred and reasons[i] is None), None)
    if read is None:
        read = next((i for i, reason in enumerate(reasons) if reason is None), None)
    if read is None:
        raise Unreadable(f"its output is {reasons[0]}" if reasons else f"its output, {_shape(output)}, holds no tensor")
    others = [
        (where, reason or f"another output, {tuple(x.shape)}: the first one is read; output={{name: …}} picks this one")
        for i, ((where, x), reason) in enumerate(zip(found, reasons, strict=True))
        if i != read
    ]
    return found[read][0], found[read][1], others


def _item(output: object, choice: int | str) -> object:
    if isinstance(choice, str) and not isinstance(output, Mapping):
        return getattr(output, choice)
    return output[choice]  # type: ignore[index]


def _shape(output: object) -> str:
    keys = f" with keys {', '.join(map(repr, output))}" if isinstance(output, Mapping) else ""
    length = f" of {len(output)}" if isinstance(output, tuple | list) else ""
    return f"a {type(output).__name__}{length}{keys}"


def to_positions(
    x: Tensor, site: Site, reading: Reading, axes: Axes, batch: int | None, masks: Sequence[Tensor]
) -> Positions:
    """A state of rank 2 to 5 as ``(samples, positions, width)`` with its padding.

    Args:
        x: what `pick` returned.
        site: where it came from.
        reading: the caller's choices.
        axes: what is known of the site's dimensions.
        batch: number of samples in the batch, None if unknown.
        masks: ``(samples, tokens)``, True where real, of which the one of its shape is the state's; none: no padding.

    Raises:
        Unreadable: the mask fits neither the tokens nor the samples, or the state is too wide.
    """
    shape, doubts = tuple(x.shape), []
    first, told = width_first(site.module, x.shape, reading.channels_of(site.name), site.where == "input")
    if not told:
        doubts.append(
            f"of shape {shape}: no parameter tells which dimension is the width; {'1' if first else 'the last'} was "
            "taken; channels={name: 'first' or 'last'} says it"
        )
    values = x.movedim(1, -1) if first else x
    what = "" if x.ndim == 2 else "channels (dimension 1)" if first else "last dimension"
    turned = False
    if values.ndim == 3 and not first:
        stated = reading.tokens_first(site.name)
        samples, doubt = (not stated, None) if stated is not None else samples_first(values, axes, batch)
        if doubt and (masks or reading.positions == "mean"):
            raise Unreadable(f"{doubt}: padding, or a mean over positions, cannot be had")
        doubts += [doubt] if doubt else []
        turned = not samples
        values = values.transpose(0, 1) if turned else values
    width = values.shape[-1]
    if width > reading.max_width:
        raise Unreadable(
            f"of width {width} > max_width={reading.max_width}: its accumulators would take {8e-9 * width**2:.1f} GB a "
            "shard; raise max_width, or read another layer"
        )
    values = values.reshape(values.shape[0], -1, width) if width * values.shape[0] else values.new_zeros(0, 1, width)
    folded = bool(batch) and values.shape[0] != batch and values.shape[0] % (batch or 1) == 0
    if folded:
        values = values.reshape(batch or 1, -1, width)
    elif batch and values.shape[0] != batch:
        doubts.append(f"of shape {shape}: its {values.shape[0]} rows are no multiple of the batch's {batch} samples")
    mask = one_of(masks, *values.shape[:2])
    keep = None if mask is None else _mask(mask, values, folded, shape, turned)
    label = f"width = {what}, {_POSITIONS[reading.positions]}" if what else "rank 2"
    if folded:
        label += f", {values.shape[1]} rows a sample"
    if keep is not None:
        label += ", padding left out"
    return Positions(values, keep, label, tuple(doubts))


_POSITIONS = {"samples": "every position a row", "mean": "mean over positions"}


def one_of(masks: Sequence[Tensor], samples: int, positions: int) -> Tensor | None:
    """The mask that has a state's shape; the first where none has.

    Raises:
        Unreadable: two have, and they differ.
    """
    fits = [m for m in masks if tuple(m.shape) == (samples, positions)]
    if len(fits) > 1 and not torch.equal(*fits[:2]):
        raise Unreadable(
            "the padding of two sequences fits its shape; mask={pattern of names: …} says which is its own"
        )
    return fits[0] if fits else masks[0] if masks else None


def _mask(mask: Tensor, values: Tensor, folded: bool, shape: tuple[int, ...], turned: bool) -> Tensor | None:
    samples, positions = values.shape[:2]
    if folded and turned:
        raise Unreadable(f"of shape {shape}, tokens and samples in one dimension: the padding cannot be told")
    if tuple(mask.shape) == (samples, positions):
        return mask.to(values.device)
    if mask.shape[0] == samples and positions == 1:
        return None
    advice = ""
    if tuple(mask.shape) == (positions, samples):
        advice = f"; pass sequence_first={not turned}"
    raise Unreadable(f"of shape {shape}, which the padding mask {tuple(mask.shape)} does not fit{advice}")
