"""From a batch to a call of the model: what is input, label or neither.

What goes to the model, unless ``forward=lambda model, batch: …`` says otherwise:

- a tensor: itself;
- a tuple or list: its first element, and what else ``forward`` needs; of more than two elements what it can take but
  the last, which counts as the label, a mask as mask; it is noted;
- a dict: by keyword, the keys that the model's ``forward`` takes, ``label``, ``labels``, ``target``, ``targets`` and
  ``y`` only where it needs them.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from isthmus.probe.batches import no_array
from isthmus.probe.rows import tensors_in

LABELS = ("label", "labels", "target", "targets", "y")

Forward = Callable[[nn.Module, object], object]


def inputs_of(model: nn.Module, batch: object) -> "Inputs":
    """Positional and keyword arguments for the model, by the rule of this module, and what was dropped.

    Raises:
        TypeError: an empty batch, one of another type, or a dict of which the model takes no key; a tuple of more than
            two elements of which it cannot be told what they are.
    """
    if isinstance(batch, Tensor):
        return Inputs((batch,), {}, dict(zip(_Forward(model).names[:1], (batch,), strict=False)))
    if isinstance(batch, tuple | list):
        if not batch:
            raise TypeError("data: an empty tuple came as a batch; expected (inputs, …)")
        if len(batch) > 1 and isinstance(batch[0], Tensor):
            return _several(model, tuple(batch))
        return inputs_of(model, batch[0])
    if isinstance(batch, Mapping):
        forward = _Forward(model)
        given = {
            k: v
            for k, v in batch.items()
            if (k in forward.taken or (forward.anything and k not in LABELS))
            and (k not in LABELS or k in forward.needed)
        }
        if not given:
            raise TypeError(
                f"data: a dict with the keys {', '.join(map(repr, batch))} came as a batch, but {type(model).__name__}"
                f".forward takes {', '.join(map(repr, forward.taken)) or 'none'}; pass forward=lambda model, batch: …"
            )
        dropped = [f"key {k!r} of the batches was not passed to the model" for k in batch if k not in given]
        return Inputs((), given, {str(k): v for k, v in batch.items()}, dropped)
    no_array(batch)
    raise TypeError(
        f"data: expected tensors, tuples or dicts as batches, got {type(batch).__name__}; pass "
        "forward=lambda model, batch: …"
    )


@dataclass(frozen=True)
class Inputs:
    """What a model is called with.

    Args:
        arguments: positional ones.
        keywords: by name.
        named: everything of the batch that has a name, as a key or as an argument of ``forward``.
        notes: what was dropped, and what tuples were taken for.
        left: of a tuple, how many of its elements the model does not take.
    """

    arguments: tuple[object, ...]
    keywords: dict[str, object]
    named: dict[str, object]
    notes: list[str] = field(default_factory=list)
    left: int = 1


class _Forward:
    """Which arguments a model's ``forward`` takes."""

    def __init__(self, model: nn.Module) -> None:
        kept = list(inspect.signature(model.forward).parameters.values())
        positional = [p for p in kept if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
        self.names = [p.name for p in positional]
        self.taken = [p.name for p in kept if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.needed = [p.name for p in kept if p.name in self.taken and p.default is p.empty]
        # those that can be tensors: what has a number or a word as default is an option
        self.open = [p.name for p in kept if p.name in self.taken and (p.default is p.empty or p.default is None)]
        self.several = any(p.kind is p.VAR_POSITIONAL for p in kept)
        self.anything = any(p.kind is p.VAR_KEYWORD for p in kept)


def _several(model: nn.Module, values: tuple[object, ...]) -> Inputs:
    """A tuple: what ``forward`` needs, and of more than two elements what it can take but the last, the label."""
    forward, count = _Forward(model), len(values)
    if forward.several and count > 2:
        raise TypeError(
            f"data: tuples of {count} came as batches, and {type(model).__name__}.forward takes any number of "
            "arguments: which of them are inputs? Pass forward=lambda model, batch: …, or dicts as batches"
        )
    needed = sum(name in forward.needed for name in forward.names)
    bound: dict[str, object] = dict(zip(forward.names[: max(1, min(needed, count))], values, strict=False))
    rest = list(values[len(bound) : count - 1])
    free = [name for name in forward.open if name not in bound and name not in LABELS]
    for value in rest:
        name = _place_of(value, values[0], free)
        if name is None:
            break
        free.remove(name)
        bound[name] = value
    arguments, keywords = values[: max(1, min(needed, count))], dict(list(bound.items())[max(1, needed) :])
    left = count - len(arguments) - len(keywords)
    notes = []
    if len(bound) > 1 or left > 1:
        notes = [f"of batches of {count}, {len(arguments) + len(keywords)} elements were passed, as {', '.join(bound)}"]
        if left:
            many = f"{left} elements of the batches, from the end, were not passed to the model"
            notes.append("the last element of the batches counts as label" if left == 1 else many)
    elif count == 2 and left and _binary(values[1], values[0]) and any("mask" in name for name in free):
        notes = ["the second element of the batches, 0 and 1 for every token, was taken for the label, not for a mask"]
    return Inputs(arguments, keywords, bound, notes, left)


def _place_of(value: object, first: object, free: list[str]) -> str | None:
    """Which argument a further element of a tuple is: a mask where it looks like one, else the next."""
    if not free or not isinstance(value, Tensor) or not isinstance(first, Tensor):
        return None
    masks = [name for name in free if "mask" in name]
    kind = any(word in free[0] for word in ("type", "segment"))
    if _binary(value, first) and masks and not kind:
        return masks[0]
    if "mask" in free[0] and not _of_tokens(value, first):
        return None
    return free[0]


def _of_tokens(value: Tensor, first: Tensor) -> bool:
    return value.ndim == 2 and first.ndim > 1 and value.shape == first.shape[:2]


def _binary(value: object, first: object) -> bool:
    """Whether an element holds 0 or 1 for every token of the first."""
    if not isinstance(value, Tensor) or not isinstance(first, Tensor) or not _of_tokens(value, first):
        return False
    return bool(((value == 0) | (value == 1)).all())


@dataclass(frozen=True)
class Call:
    """A call of the model on a batch.

    Args:
        run: makes it.
        named: what of the batch has a name.
        notes: what is to be said of it.
        inputs: every tensor that goes in, as far as known.
    """

    run: Callable[[], object]
    named: Mapping[str, object]
    notes: Sequence[str] = ()
    inputs: Sequence[Tensor] = ()


def call_of(model: nn.Module, batch: object, forward: Forward | None) -> Call:
    """How the model is called on a batch; see `inputs_of` for errors."""
    if forward is not None:
        inner = batch[0] if isinstance(batch, tuple | list) and batch else batch
        named = {str(k): v for k, v in inner.items()} if isinstance(inner, Mapping) else {}
        return Call(lambda: forward(model, batch), named, (), [x for _, x in tensors_in(batch)])
    given = inputs_of(model, batch)
    tensors = [x for _, x in tensors_in((given.arguments, given.keywords))]
    return Call(lambda: model(*given.arguments, **given.keywords), given.named, given.notes, tensors)


def samples_in(batch: object, sequence_first: bool = False) -> int | None:
    """The number of samples: the first dimension that most of a batch's tensors share (the second, tokens first).

    A dimension of 1 is broadcast; masks, which are laid out in their own way, count where there is nothing else. Of two
    that as many tensors have, that of the tensor of higher rank.
    """
    tensors = [x for _, x in tensors_in(batch) if x.ndim > 0]
    counted = [x for x in tensors if x.dtype != torch.bool] or tensors
    sizes = [(x.shape[1] if sequence_first and x.ndim > 1 else x.shape[0], x.ndim) for x in counted]
    sizes = [one for one in sizes if one[0] != 1] or sizes
    votes = Counter(size for size, _ in sizes)
    return max(sizes, key=lambda one: (votes[one[0]], one[1]))[0] if sizes else None


def leaves_out(loss: object) -> bool:
    """Whether a loss is known to leave out labels of −100, or of another number that it has."""
    known = isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss)
    return known or loss in (nn.functional.cross_entropy, nn.functional.nll_loss)


def doubt_of(loss: object, target: object) -> list[str]:
    """What cannot be told of a mean: whether a loss of the caller's leaves out the labels that others ignore."""
    if leaves_out(loss) or not isinstance(target, Tensor) or target.is_floating_point():
        return []
    if not bool((target == -100).any()):
        return []
    return ["labels of -100: batches count by their samples, as if the mean were over all of them"]


def weight_of(loss: object, target: object, samples: int) -> float:
    """What the mean of a batch's loss is over, so that batches add up whatever their sizes.

    Cross-entropies leave ignored labels out and count the others by their classes' weights; of any other loss the mean
    is taken to be over samples.
    """
    if not leaves_out(loss):
        return float(samples)
    if not isinstance(target, Tensor) or target.is_floating_point():
        return float(samples)
    counted = target != (loss.ignore_index if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) else -100)
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss) and loss.weight is not None:
        return float(loss.weight.double()[target[counted]].sum())
    return float(counted.sum())


def target_of(batch: object, model: nn.Module | None = None) -> object:
    """The labels of a batch: of a tuple what the model does not take, or the first of a dict's keys in `LABELS`.

    Raises:
        ValueError: there are none, or several.
    """
    if isinstance(batch, tuple | list) and len(batch) > 1:
        left = len(batch) - 1
        if model is not None and isinstance(batch[0], Tensor):
            left = _several(model, tuple(batch)).left
        if left > 1:
            raise ValueError(
                f"data: of batches of {len(batch)} the model takes {len(batch) - left}; which of the other {left} is "
                "the label? target=lambda batch: batch[…] says it"
            )
        if left:
            return batch[-1]
    if isinstance(batch, Mapping):
        needed = _Forward(model).needed if model is not None else []
        for key in LABELS:
            if key in batch and key not in needed:
                return batch[key]
    raise ValueError(
        "data: expected batches with labels, as (inputs, labels) or a dict with one of the keys "
        f"{', '.join(LABELS)}; got {type(batch).__name__}. target=lambda batch: … says where they are"
    )
