"""From the caller's data to calls of the model: batches, labels dropped, padding masks, devices.

What goes to the model, unless ``forward=lambda model, batch: …`` says otherwise:

- a tensor: itself;
- a tuple or list: its first element; the others count as labels and are dropped;
- a dict: by keyword, the keys that the model's ``forward`` takes, without ``label``, ``labels``, ``target``,
  ``targets`` and ``y``.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from isthmus.probe.rows import tensors_in

LABELS = ("label", "labels", "target", "targets", "y")
PADDING_KEYS = ("src_key_padding_mask", "key_padding_mask")  # True where padding, as in torch.nn

Forward = Callable[[nn.Module, object], object]
Mask = str | Callable[[object], Tensor | None] | None


def batches(data: object, batch_size: int = 256) -> Iterator[object]:
    """One batch after the other, from a tensor (cut along its first dimension), one dict, or any iterable of batches.

    Raises:
        TypeError: data of another type, or a tuple of tensors, which could be one batch or several.
        ValueError: a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if isinstance(data, Tensor):
        if data.ndim == 0:
            raise ValueError("data: expected a tensor with samples along its first dimension, got one of rank 0")
        return iter(data.split(batch_size))
    if isinstance(data, Mapping):
        return iter((data,))
    if isinstance(data, tuple):
        raise TypeError(
            f"data: a tuple of {len(data)} could be one batch or several; pass [batch] for one, a list for several, or "
            "DataLoader(TensorDataset(…)) to cut tensors into batches"
        )
    _no_array(data)
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        wrapped = ": wrap it in torch.utils.data.DataLoader" if hasattr(data, "__getitem__") else ""
        raise TypeError(
            "data: expected a DataLoader, a tensor, or an iterable of tensors, tuples or dicts, got "
            f"{type(data).__name__}{wrapped}"
        )
    return iter(data)


def _no_array(data: object) -> None:
    if hasattr(data, "__array__"):
        shape = getattr(data, "shape", "")
        raise TypeError(
            f"data: expected a tensor, got a {type(data).__name__} of {shape} {getattr(data, 'dtype', '')}; "
            "torch.as_tensor(array) makes one, in the floating-point type of the network by .float() or .to(dtype)"
        )


def raise_failed(error: Exception, model: nn.Module, batch: int) -> NoReturn:
    """The same kind of error, with where it came from and what to check; others with a note alone.

    Args:
        error: what the network raised.
        model: the network.
        batch: number of the batch.
    """
    note = f"isthmus.probe: while {type(model).__name__} ran on batch {batch}"
    if type(error) not in (RuntimeError, ValueError, TypeError, IndexError, KeyError):
        error.add_note(note)
        raise error
    what = f"{type(error).__name__} {note.removeprefix('isthmus.probe: ')}"
    made = type(error)(f"{error}. {misfit('Network and data', what)}. {CHECK.format('the data')}")
    made.add_note(note)
    raise made from error


def misfit(both: str, what: str) -> str:
    """A network and data that do not fit, or a network that fails, in a sentence."""
    return f"{both} do not fit, or the network fails: {what}"


CHECK = "Check the shape, type and order of {} against the network's forward"


def check_rereadable(data: object) -> None:
    """Refuse what can be read only once.

    No iterator is made of the data: that of a DataLoader draws from a generator.

    Raises:
        TypeError: an iterator.
    """
    if isinstance(data, Iterator):
        raise TypeError("data: expected what can be read more than once, got an iterator; list(data) will do")


def to_device(batch: object, device: torch.device) -> object:
    """The batch with every tensor on the device; containers keep their types where they can."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        fields: list[Any] = [to_device(value, device) for value in batch]
        return type(batch)(*fields)
    if isinstance(batch, tuple | list):
        moved = [to_device(value, device) for value in batch]
        return moved if isinstance(batch, list) else tuple(moved)
    return batch


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lies; the CPU where it has none."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            if tensor.device.type != "meta":
                return tensor.device
    return torch.device("cpu")


def inputs_of(model: nn.Module, batch: object) -> tuple[tuple[object, ...], dict[str, object], list[str]]:
    """Positional and keyword arguments for the model, by the rule of this module, and the keys that were dropped.

    Raises:
        TypeError: an empty batch, one of another type, or a dict of which the model takes no key.
    """
    if isinstance(batch, Tensor):
        return (batch,), {}, []
    if isinstance(batch, tuple | list):
        if not batch:
            raise TypeError("data: an empty tuple came as a batch; expected (inputs, …)")
        return inputs_of(model, batch[0])
    if isinstance(batch, Mapping):
        taken, anything = _keywords(model)
        given = {k: v for k, v in batch.items() if k not in LABELS and (anything or k in taken)}
        if not given:
            raise TypeError(
                f"data: a dict with the keys {', '.join(map(repr, batch))} came as a batch, but {type(model).__name__}"
                f".forward takes {', '.join(map(repr, taken)) or 'none'}; pass forward=lambda model, batch: …"
            )
        return (), given, [str(k) for k in batch if k not in given]
    _no_array(batch)
    raise TypeError(
        f"data: expected tensors, tuples or dicts as batches, got {type(batch).__name__}; pass "
        "forward=lambda model, batch: …"
    )


def _keywords(model: nn.Module) -> tuple[list[str], bool]:
    parameters = inspect.signature(model.forward).parameters.values()
    taken = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return taken, any(p.kind is p.VAR_KEYWORD for p in parameters)


@dataclass(frozen=True)
class Call:
    """A call of the model on a batch, and what is to be said of it."""

    run: Callable[[], object]
    notes: tuple[str, ...] = ()


def call_of(model: nn.Module, batch: object, forward: Forward | None) -> Call:
    """How the model is called on a batch; see `inputs_of` for errors."""
    if forward is not None:
        return Call(lambda: forward(model, batch))
    arguments, keywords, dropped = inputs_of(model, batch)
    notes = tuple(f"key {key!r} of the batches was not passed to the model" for key in dropped)
    return Call(lambda: model(*arguments, **keywords), notes)


def samples_in(batch: object, sequence_first: bool) -> int | None:
    """The number of samples: the first dimension of the batch's first tensor (the second one with tokens first)."""
    for _, x in tensors_in(batch):
        if x.ndim > 0:
            return x.shape[1] if sequence_first and x.ndim > 1 else x.shape[0]
    return None


def target_of(batch: object) -> object:
    """The labels of a batch: the second element of a tuple or list, or the first of a dict's keys in `LABELS`.

    Raises:
        ValueError: there are none.
    """
    if isinstance(batch, tuple | list) and len(batch) > 1:
        return batch[1]
    if isinstance(batch, Mapping):
        for key in LABELS:
            if key in batch:
                return batch[key]
    raise ValueError(
        "data: expected batches with labels, as (inputs, labels) or a dict with one of the keys "
        f"{', '.join(LABELS)}; got {type(batch).__name__}. target=lambda batch: … says where they are"
    )


def padding_mask(batch: object, mask: Mask) -> tuple[Tensor | None, str | None]:
    """``(samples, tokens)``, True where real, and a note that says where it came from; None without padding.

    Args:
        batch: on the model's device.
        mask: ``"auto"``: a dict's ``attention_mask`` (1 is real) or ``src_key_padding_mask`` (True is padding);
            another string: that key of a dict (true is real); a function of the batch; None: no padding.

    Raises:
        ValueError: a missing key, or a mask that is not of rank 2.
        TypeError: a function that returned no tensor.
    """
    found: object = None
    note = None
    if callable(mask):
        found, note = mask(batch), "padding: by the function given as mask"
        if found is None:
            return None, None
    elif mask == "auto":
        inner = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(inner, Mapping):
            return None, None
        found, note = _usual_mask(inner)
        if not isinstance(found, Tensor) or found.ndim != 2:
            return None, None
    elif mask is not None:
        if not isinstance(batch, Mapping) or mask not in batch:
            there = ", ".join(map(repr, batch)) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
            raise ValueError(
                f"mask: no key {mask!r} in the batch, which is {there}; a function of the batch can be given"
            )
        found, note = batch[mask], f"padding: key {mask!r}, true where real"
    else:
        return None, None
    if not isinstance(found, Tensor):
        raise TypeError(f"mask: expected a tensor (samples, tokens), true where real, got {type(found).__name__}")
    if found.ndim != 2:
        raise ValueError(f"mask: expected (samples, tokens), true where real, got shape {tuple(found.shape)}")
    return found.bool(), note


def _usual_mask(batch: Mapping) -> tuple[object, str | None]:
    if batch.get("attention_mask") is not None:
        return batch["attention_mask"], "padding: key 'attention_mask', 1 where real"
    for key in PADDING_KEYS:
        if isinstance(batch.get(key), Tensor) and batch[key].dtype == torch.bool:
            return ~batch[key], f"padding: key {key!r}, True where padding"
    return None, None
