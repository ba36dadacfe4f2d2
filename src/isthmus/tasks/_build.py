"""From clean tables to a `Task`: split, validate, scale."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from isthmus.tasks._scale import fit_scaling
from isthmus.tasks._split import limit, split_rows
from isthmus.tasks.base import Notes, Task
from isthmus.tasks.validate import constant_columns, validate


@dataclass(frozen=True)
class Raw:
    """Data as read: float64 inputs `(N, in)`; targets `(N, out)` float64, or `(N,)` int64 class indices.

    `x_test` and `y_test` are set where the source brings its own test part.
    """

    name: str
    x: Tensor
    y: Tensor
    classes: int | None = None
    x_test: Tensor | None = None
    y_test: Tensor | None = None
    columns: Sequence[str] | None = None
    targets: Sequence[str] | None = None
    class_names: Sequence | None = None
    notes: Notes = field(default_factory=dict)


def build(
    raw: Raw,
    *,
    test_fraction: float | int,
    seed: int,
    train: int | None,
    test: int | None,
    normalise: str,
    constant: str,
    centre: bool = True,
) -> Task:
    """Split `raw` (unless it brings its own test part), validate the training part, scale both parts by it.

    `constant`: "error" and "drop" as in `from_file`; "zero" keeps constant columns, as zeros.

    Raises:
        ValueError: as `validate` and `split_rows` do.
    """
    x_train, y_train, x_test, y_test = _parts(raw, test_fraction, seed, train, test)
    notes: Notes = dict(raw.notes)
    if raw.x_test is None:
        notes |= {"split_seed": seed, "test_fraction": test_fraction}
    validate(
        x_train,
        y_train,
        classes=raw.classes,
        columns=raw.columns,
        targets=raw.targets,
        class_names=raw.class_names,
        constant="error" if constant == "error" else "allow",
        part="the training part",
    )
    dead = constant_columns(x_train)
    if dead and constant == "drop":
        keep = [index for index in range(x_train.shape[1]) if index not in set(dead)]
        x_train, x_test = x_train[:, keep], x_test[:, keep]
        notes["dropped_constant_columns"] = [raw.columns[index] if raw.columns is not None else index for index in dead]
    elif dead:
        notes["zeroed_constant_columns"] = dead
    notes["normalise"] = normalise if centre else f"{normalise}, not centred"
    inputs = fit_scaling(x_train, normalise, centre)
    notes |= inputs.notes("x")
    x_train, x_test = inputs(x_train), inputs(x_test)
    if raw.classes is None:
        outputs = fit_scaling(y_train, normalise, centre)
        notes |= outputs.notes("y")
        y_train, y_test = outputs(y_train), outputs(y_test)
    loss = "mse" if raw.classes is None else "cross_entropy"
    return Task(raw.name, x_train, y_train, x_test, y_test, loss, raw.classes, notes)


def _parts(
    raw: Raw, test_fraction: float | int, seed: int, train: int | None, test: int | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if raw.x_test is not None and raw.y_test is not None:
        labels = None if raw.classes is None else raw.y
        train_rows, _ = split_rows(len(raw.x), labels, 0.0, seed, train)
        test_rows = limit("test", torch.arange(len(raw.x_test)), test)
        return raw.x[train_rows], raw.y[train_rows], raw.x_test[test_rows], raw.y_test[test_rows]
    labels = None if raw.classes is None else raw.y
    train_rows, test_rows = split_rows(len(raw.x), labels, test_fraction, seed, train, test)
    return raw.x[train_rows], raw.y[train_rows], raw.x[test_rows], raw.y[test_rows]
