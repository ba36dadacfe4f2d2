"""The caller's data as batches, on the model's device; and what is said where a model fails on one."""

import copy
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn


def batches(data: object, batch_size: int = 256) -> Iterator[object]:
    """One batch after the other, from a tensor (cut along its first dimension), one dict, or any iterable of batches.

    Raises:
        TypeError: data of another type, or a tuple of tensors, which could be one batch or several.
        ValueError: a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if isinstance(data, Tensor):
        if data.layout != torch.strided or data.is_nested:
            raise TypeError(not_dense(data))
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
    no_array(data)
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        wrapped = ": wrap it in torch.utils.data.DataLoader" if hasattr(data, "__getitem__") else ""
        raise TypeError(
            "data: expected a DataLoader, a tensor, or an iterable of tensors, tuples or dicts, got "
            f"{type(data).__name__}{wrapped}"
        )
    return iter(data)


def no_array(data: object) -> None:
    """Refuse arrays of NumPy and others (TypeError)."""
    if hasattr(data, "__array__"):
        shape = getattr(data, "shape", "")
        raise TypeError(
            f"data: expected a tensor, got a {type(data).__name__} of {shape} {getattr(data, 'dtype', '')}; "
            "torch.as_tensor(array) makes one, in the floating-point type of the network by .float() or .to(dtype)"
        )


def raise_failed(error: Exception, model: nn.Module, batch: int, notes: Sequence[str] = ()) -> NoReturn:
    """The same kind of error, with where it came from and what to check; others with a note alone.

    Args:
        error: what the network raised.
        model: the network.
        batch: number of the batch.
        notes: of the call: what was not passed.
    """
    note = f"isthmus.probe: while {type(model).__name__} ran on batch {batch}"
    if type(error) not in (RuntimeError, ValueError, TypeError, IndexError, KeyError):
        for line in (note, *notes):
            error.add_note(line)
        raise error
    what = f"{type(error).__name__} {note.removeprefix('isthmus.probe: ')}"
    made = type(error)(f"{error}. {misfit('Network and data', what)}. {'; '.join((CHECK.format('the data'), *notes))}")
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


def copied(batch: object) -> object:
    """A copy of a batch, for a pass that may change it; the batch itself where it cannot be copied."""
    try:
        return copy.deepcopy(batch)
    except (RuntimeError, TypeError, NotImplementedError):
        return batch


def to_device(batch: object, device: torch.device) -> object:
    """The batch with every tensor on the device; containers keep their types where they can."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        placed = {key: to_device(value, device) for key, value in batch.items()}
        if not isinstance(batch, MutableMapping) or isinstance(batch, dict):
            return placed
        made = copy.copy(batch)  # what is more than a dict stays so: `BatchEncoding` gives its keys as attributes
        made.update(placed)
        return made
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


def not_dense(x: Tensor) -> str:
    """Why a sparse or nested tensor is no data."""
    layout = "a nested tensor" if x.is_nested else f"a tensor of layout {x.layout}"
    advice = "pad it: torch.nested.to_padded_tensor" if x.is_nested else "x.to_dense() makes one"
    return f"data: expected a dense tensor, got {layout}; {advice}"
