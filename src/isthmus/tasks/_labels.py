"""What a target column means: quantities, or classes and their indices."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isthmus.tasks.validate import list_some

MOST_CLASSES = 50
EXACT = 2**53


@dataclass(frozen=True)
class Target:
    """A target as tensors: `y` is `(N, out)` float64, or `(N,)` int64 class indices into `class_names`."""

    y: Tensor
    class_names: list | None
    note: str


def as_float(values: Any, name: str) -> Tensor:
    """Return a NumPy array of booleans, integers or reals as a float64 tensor of the same shape.

    Raises:
        ValueError: on text, dates, complex numbers, records, and integers that float64 cannot hold.
    """
    kind = values.dtype.kind
    if kind not in "biuf":
        what = {"U": "text", "S": "text", "M": "dates", "m": "durations", "c": "complex numbers"}.get(
            kind, str(values.dtype)
        )
        raise ValueError(f"{name} holds {what}, not numbers: turn it into numeric columns first")
    if kind in "iu" and values.size and (int(values.max()) > EXACT or int(values.min()) < -EXACT):
        raise ValueError(
            f"{name} holds integers beyond 2**53, which float64 cannot represent: remove the column if it is "
            "an identifier, or subtract an offset"
        )
    return torch.from_numpy(values.astype("float64", copy=True))


def encode(values: Any, task_type: str, name: str) -> Target:
    """Turn a NumPy target, `(N,)` or `(N, out)`, into quantities or class indices.

    "auto" takes text, booleans, one-hot rows, and whole numbers stored as integers with at most 50 distinct
    values and at least two rows a value on average, as classes; the rest as quantities. Classes are numbered
    in sorted order.

    Raises:
        ValueError: where the values cannot be what `task_type` says.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.dtype.kind == "S":
        import numpy

        values = numpy.char.decode(values, "utf-8", "replace")
    if values.ndim > 1 and task_type != "regression" and _one_hot(values):
        y = torch.from_numpy(values.argmax(1).astype("int64"))
        return Target(y, list(range(values.shape[1])), "classification: the target's rows are one-hot")
    if values.ndim > 1 and task_type == "classification":
        raise ValueError(
            f"{name} has {values.shape[1]} columns: for classification give one column of labels, or one-hot "
            "rows of 0 and 1"
        )
    if values.ndim != 1:
        return Target(as_float(values, name), None, "regression: the target has several columns")
    if task_type == "regression":
        return _quantities(values, name, "regression: as asked for")
    if task_type == "classification":
        return _classes(values, name, "classification: as asked for")
    return _auto(values, name)


def encode_like(values: Any, train: Target, name: str) -> Tensor:
    """Turn the target of a given test part into what the training part's became.

    Raises:
        ValueError: on classes that the training part does not have, or a different number of columns.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if train.class_names is None:
        y = as_float(values, name)
        return y.reshape(-1, 1) if y.ndim == 1 else y
    if values.ndim > 1 and _one_hot(values) and values.shape[1] == len(train.class_names):
        return torch.from_numpy(values.argmax(1).astype("int64"))
    if values.ndim != 1:
        raise ValueError(f"{name} has shape {tuple(values.shape)}: give labels in the form of the training part's")
    if values.dtype.kind == "S":
        import numpy

        values = numpy.char.decode(values, "utf-8", "replace")
    index = {label: number for number, label in enumerate(train.class_names)}
    labels = values.tolist()
    unseen = sorted({str(label) for label in labels if label not in index})
    if unseen:
        raise ValueError(
            f"{name} holds classes that the training part does not have: {list_some(unseen)}: add training "
            "rows for them, or remove those test rows"
        )
    return torch.tensor([index[label] for label in labels], dtype=torch.int64)


def _auto(values: Any, name: str) -> Target:
    import numpy

    kind = values.dtype.kind
    distinct = len(numpy.unique(values)) if kind in "biuU" else 0
    if kind == "b":
        return _classes(values, name, "classification: the target is boolean")
    if kind == "U":
        if distinct > MOST_CLASSES and 2 * distinct > len(values):
            raise ValueError(
                f"{name} is text with {distinct} different values in {len(values)} rows, which looks like "
                "names or free text, not classes: give another target, or pass task_type='classification' "
                "if they are classes"
            )
        return _classes(values, name, "classification: the target is text")
    if kind in "iu" and distinct <= MOST_CLASSES and 2 * distinct <= len(values):
        note = f"classification: the target is whole numbers with {distinct} different values; "
        return _classes(values, name, note + "if they are quantities pass task_type='regression'")
    note = "regression: the target is numeric"
    if kind in "iu":
        note = f"regression: the target is whole numbers with {distinct} different values; "
        note += "if they are classes pass task_type='classification'"
    return _quantities(values, name, note)


def _quantities(values: Any, name: str, note: str) -> Target:
    if values.dtype.kind == "U":
        raise ValueError(
            f"{name} is text, for example {values.tolist()[0]!r}: regression needs numbers; pass "
            "task_type='classification'"
        )
    return Target(as_float(values, name).reshape(-1, 1), None, note)


def _classes(values: Any, name: str, note: str) -> Target:
    import numpy

    if values.dtype.kind == "f":
        finite = values[numpy.isfinite(values)]
        if len(finite) < len(values):
            raise ValueError(
                f"{name} holds {len(values) - len(finite)} missing or infinite labels, the first in row "
                f"{int(numpy.argmin(numpy.isfinite(values)))} (rows counted from 0): remove those rows"
            )
        broken = finite[(finite != numpy.round(finite)) | (abs(finite) > EXACT)]
        if len(broken):
            raise ValueError(
                f"{name} holds {float(broken[0]):g}: class labels are whole numbers (up to 2**53) or text; "
                "pass task_type='regression'"
            )
        values = values.astype("int64")
    elif values.dtype.kind not in "biuU":
        as_float(values, name)
    names, index = numpy.unique(values, return_inverse=True)
    return Target(torch.from_numpy(index.astype("int64")), names.tolist(), note)


def _one_hot(values: Any) -> bool:
    return (
        values.ndim == 2
        and values.shape[1] > 1
        and len(values) > 0
        and values.dtype.kind in "biuf"
        and bool(((values == 0) | (values == 1)).all())
        and bool((values.sum(1) == 1).all())
    )
