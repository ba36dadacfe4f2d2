"""Padding: which mask a batch holds, what its values mean, and which layers it belongs to.

Known keys: ``attention_mask`` and ``mask`` (1 is real), ``src_key_padding_mask`` and ``key_padding_mask`` (True is
padding) of a source; ``decoder_attention_mask`` and ``tgt_key_padding_mask`` of a target. A floating mask with values
other than 0 and 1 is additive: real where it adds nothing. Layers of `torch.nn.Transformer` have the mask that they are
called with.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.probe.find import pattern_matches
from isthmus.probe.rows import Unreadable

OneMask = str | Callable[[object], Tensor | None] | None
Mask = OneMask | Mapping[str, OneMask]

REAL, PADDING = "1 where real", "True where padding"
SOURCE = {
    "attention_mask": REAL,
    "src_key_padding_mask": PADDING,
    "key_padding_mask": PADDING,
    "mask": REAL,
}
TARGET = {"decoder_attention_mask": REAL, "tgt_key_padding_mask": PADDING}
_LAYERS = (
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)
ADVICE = "mask={pattern of names: key of the batch, function of the batch, or None} says which belongs where"


def keep_of(found: object, meaning: str, name: str) -> Tensor:
    """``(samples, tokens)``, True where real.

    Raises:
        TypeError: no tensor.
        ValueError: another shape, or values that are neither 0 and 1, nor 0 and below.
    """
    if not isinstance(found, Tensor):
        raise TypeError(f"mask: expected a tensor (samples, tokens), true where real, got {type(found).__name__}")
    x = found[:, 0, 0] if found.ndim == 4 and found.shape[1:3] == (1, 1) else found
    if x.ndim != 2:
        raise ValueError(f"mask: expected (samples, tokens), true where real, got shape {tuple(found.shape)}")
    if x.dtype == torch.bool:
        return ~x if meaning == PADDING else x
    low, high = (float(x.min()), float(x.max())) if x.numel() else (0.0, 1.0)
    if x.is_floating_point() and high <= 0.0:  # none is below 0 where nothing is padded
        return x >= 0
    between = x.is_floating_point() and bool(((x != 0) & (x != 1)).any())
    if low < 0 or between:
        raise ValueError(
            f"mask: {name} has values from {low:g} to {high:g}; expected 0 and 1, or 0 (real) and below, to be added"
        )
    return x == 0 if meaning == PADDING else x != 0


@dataclass
class Masks:
    """The padding of a batch.

    Args:
        source: of the batch's sequence, or of the first of two.
        target: of a decoder's sequence.
        two: whether the batch holds two sequences.
        stated: by pattern of names, where the caller says.
        given: name of a layer of `torch.nn.Transformer` → what it was called with in this pass; of a decoder's,
            None for no padding.
    """

    source: Tensor | None = None
    target: Tensor | None = None
    two: bool = False
    stated: dict[str, Tensor | None] | None = None
    given: dict[str, Tensor | None] = field(default_factory=dict)

    def of(self, name: str, memory: bool = False) -> list[Tensor]:
        """Masks that a layer's state can have, to be told apart by their shapes; none: no padding.

        Args:
            name: of the layer.
            memory: whether it works on what its decoder was given of the other sequence.

        Raises:
            Unreadable: two sequences, and it is not known which is the layer's.
        """
        plain = name.removesuffix(":input")
        if self.stated is not None:
            fits = (m for p, m in self.stated.items() if pattern_matches(p, plain) or pattern_matches(p, name))
            found = next(fits, None)
            return [] if found is None else [found]
        parts = plain.split(".")
        around = [".".join(parts[:up]) for up in range(len(parts), 0, -1)]
        inside = next((one for one in (*around, "(model)") if one in self.given), None)
        if inside is not None and not memory:
            own = self.given[inside]
            if own is not None or self.two:
                return [] if own is None else [own]
        if not self.two:
            return [] if self.source is None else [self.source]
        if memory or _named(parts, "encoder"):
            return [] if self.source is None else [self.source]
        known = [m for m in (self.target, *([] if _named(parts, "decoder") else [self.source])) if m is not None]
        if self.target is None:
            raise Unreadable(f"the batch holds two sequences and the padding of one: {ADVICE}")
        return known


def _named(parts: list[str], word: str) -> bool:
    return any(part == word or part.startswith(word + "_") or part.endswith("_" + word) for part in parts)


def masks_of(batch: object, inputs: Mapping[str, object], mask: Mask) -> tuple[Masks, list[str], list[str]]:
    """The padding of a batch, notes that say where it came from, and doubts.

    Args:
        batch: on the model's device.
        inputs: what of it has a name: a dict's keys, or the arguments that a tuple's elements became.
        mask: ``"auto"``: the keys of this module; another string: that key (true is real); a function of the batch;
            None: no padding; or these by pattern of layer names.

    Raises:
        ValueError: a missing key, or a mask that is none.
        TypeError: a function that returned no tensor.
    """
    if isinstance(mask, Mapping):
        stated, notes = {}, []
        for pattern, one in mask.items():
            stated[pattern], note = _stated(batch, inputs, one)
            notes += [f"{note}, for {pattern}"] if note else []
        return Masks(stated=stated), notes, []
    if mask != "auto":
        found, note = _stated(batch, inputs, mask)
        return Masks(source=found), [note] if note else [], []
    made, notes, doubts = Masks(), [], []
    for side, keys in (("source", SOURCE), ("target", TARGET)):
        key = next((k for k in keys if isinstance(inputs.get(k), Tensor)), None)
        if key is None:
            continue
        found, doubt = _usual(inputs, key, keys[key])
        if doubt:
            doubts.append(doubt)
        elif found is not None:
            setattr(made, side, found)
            notes.append(f"padding: key {key!r}, {keys[key]}")
            if key == "mask":
                doubts.append("'mask' was taken for padding, 1 where real, by its name and shape; mask= says otherwise")
    made.two = made.target is not None or (
        made.source is not None
        and any(k.startswith(("decoder_input", "tgt", "trg")) and isinstance(v, Tensor) for k, v in inputs.items())
    )
    return made, notes, doubts


def _usual(inputs: Mapping[str, object], key: str, meaning: str) -> tuple[Tensor | None, str | None]:
    x = inputs[key]
    assert isinstance(x, Tensor)
    if key == "mask":
        others = [v for k, v in inputs.items() if k != key and isinstance(v, Tensor) and v.ndim > 1]
        if x.ndim != 2 or not any(v.shape[:2] == x.shape for v in others):
            return None, None
        if x.dtype == torch.bool:
            return None, "'mask': true where tokens are real, or where padding? Nothing was left out; mask= says it"
    if x.ndim != 2 and not (x.ndim == 4 and x.shape[1:3] == (1, 1)):
        return None, f"{key!r} of shape {tuple(x.shape)} is no (samples, tokens): padding was not left out"
    if key == "mask" and x.is_floating_point() and bool(((x != 0) & (x != 1)).any()):
        return None, None  # weights, or something else that is multiplied
    return keep_of(x, meaning, repr(key)), None


def _stated(batch: object, inputs: Mapping[str, object], mask: OneMask) -> tuple[Tensor | None, str | None]:
    if mask is None:
        return None, None
    if callable(mask):
        found = mask(batch)
        return (
            (None, None)
            if found is None
            else (keep_of(found, REAL, "what the function gave"), "padding: by the function given as mask")
        )
    if mask not in inputs:
        there = ", ".join(map(repr, inputs)) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ValueError(f"mask: no key {mask!r} in the batch, which is {there}; a function of the batch can be given")
    return keep_of(inputs[mask], REAL, repr(mask)), f"padding: key {mask!r}, true where real"


@contextmanager
def asked_layers(modules: Mapping[str, nn.Module], current: Callable[[], Masks]) -> Iterator[None]:
    """While open, layers of `torch.nn.Transformer` say with which padding they are called."""
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        own = "src" if isinstance(module, nn.TransformerEncoder | nn.TransformerEncoderLayer) else "tgt"

        def enters(module: nn.Module, args: Any, kwargs: Any) -> None:
            found = inspect.signature(module.forward).bind(*args, **kwargs).arguments.get(f"{own}_key_padding_mask")
            if found is not None and found.ndim == 2:
                current().given[name] = keep_of(found, PADDING, name)
            elif own == "tgt":
                current().given[name] = None

        handles.append(module.register_forward_pre_hook(enters, with_kwargs=True))

    try:
        for name, module in modules.items():
            if isinstance(module, _LAYERS):
                watch(name or "(model)", module)
        yield
    finally:
        for handle in handles:
            handle.remove()
