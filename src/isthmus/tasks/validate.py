"""Checks of data before it is trained on; each says what is wrong, where, and how to mend it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from isthmus.tasks._checks import check_choice
from isthmus.tasks._scale import varying_columns

MINIMUM_ROWS = 10
LARGEST = 1e100
SHOWN = 5


def validate(
    x: Tensor,
    y: Tensor,
    *,
    classes: int | None = None,
    columns: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    class_names: Sequence[str | int | float | bool] | None = None,
    constant: str = "error",
    part: str = "the data",
) -> None:
    """Raise ValueError on the first thing in `(x, y)` that would spoil a run.

    Args:
        x: inputs, `(N, in)`, floating point.
        y: targets `(N, out)`, or `(N,)` int64 class indices where `classes` is given.
        classes: the number of classes, None for regression.
        columns: names of the input columns for the messages.
        targets: names of the target columns for the messages.
        class_names: names of the classes for the messages.
        constant: "error" refuses constant input columns; "allow" lets some pass (never all of them).
        part: what the messages call the data.

    Checked, in this order: two dimensions; as many rows in y as in x; at least one row and column; no NaN, no
    infinity, nothing beyond 1e100 in size; at least 2 classes; at least `max(10, 2·classes)` rows; at least
    two rows in each class; no constant target; no constant input column.

    Raises:
        ValueError: as above, naming rows (counted from 0), columns, and the way out.
    """
    check_choice("constant", constant, ("error", "allow"))
    if not x.is_floating_point():
        raise ValueError(f"x of {part} must be floating point, got {x.dtype}: use x.double()")
    check_shapes(tuple(x.shape), tuple(y.shape), part)
    check_finite(x, "x", columns, part)
    check_finite(y, "y", targets, part)
    if classes is not None:
        check_class_count(classes, class_names, part)
    check_row_count(len(x), classes, part)
    if classes is None:
        check_targets(y, targets, part)
    else:
        check_class_sizes(y, classes, class_names, part)
    check_columns(x, columns, constant, part)


def constant_columns(x: Tensor) -> list[int]:
    """Return the numbers of the columns of `x: (N, columns)` that hold one value only, up to rounding."""
    return torch.nonzero(~varying_columns(x)).flatten().tolist()


def check_shapes(x: tuple[int, ...], y: tuple[int, ...], part: str) -> None:
    """Refuse shapes other than `(N, in)` with `(N,)` or `(N, out)`, and empty ones."""
    if len(x) > 2:
        raise ValueError(
            f"x of {part} must be 2-D (rows, columns), got shape {x}: flatten each sample into one row, "
            f"x.reshape({x[0]}, -1)"
        )
    if len(x) < 2:
        raise ValueError(f"x of {part} must be 2-D (rows, columns), got shape {x}: for one column use x.reshape(-1, 1)")
    if len(y) not in (1, 2):
        raise ValueError(
            f"y of {part} must have shape (rows,) or (rows, outputs), got shape {y}: flatten each target into one row"
        )
    if x[0] != y[0]:
        swapped = " (x looks transposed: one row per sample is meant, use x.T)" if x[1] == y[0] else ""
        raise ValueError(
            f"x of {part} has {x[0]} rows and y has {y[0]}: they must be the same samples in the same order{swapped}"
        )
    if 0 in x or 0 in y:
        raise ValueError(f"{part} is empty: x has shape {x} and y {y}; at least one row and one column are needed")


def name_column(index: int, names: Sequence[str] | None) -> str:
    """Return "column 'name'" where names are known, "column 3" (counted from 0) otherwise."""
    return f"column {names[index]!r}" if names is not None else f"column {index}"


def list_some(items: Sequence[str]) -> str:
    """Join the first few items with commas and say how many more there are."""
    more = f", and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def check_finite(values: Tensor, name: str, names: Sequence[str] | None, part: str) -> None:
    """Refuse NaN, infinities and sizes whose squares leave float64's range."""
    if not values.is_floating_point():
        return
    for what, bad, remedy in (
        ("NaN (missing values)", values.isnan(), "remove those rows, or fill the values in"),
        ("infinite values", values.isinf(), "remove those rows, or replace the values"),
        (f"values beyond {LARGEST:g}", values.abs() > LARGEST, "use other units, or take logarithms"),
    ):
        count = int(bad.sum())
        if count == 0:
            continue
        table = bad.reshape(len(bad), -1)
        places = [f"row {row} {name_column(column, names)}" for row, column in torch.nonzero(table)[:SHOWN].tolist()]
        more = f", and {count - SHOWN} more" if count > SHOWN else ""
        raise ValueError(
            f"{name} of {part} holds {what}: {', '.join(places)}{more} (rows counted from 0; {count} in all): {remedy}"
        )


def check_class_count(classes: int, class_names: Sequence | None, part: str) -> None:
    """Refuse fewer than two classes."""
    if classes < 2:
        only = f" ({class_names[0]!r})" if class_names else ""
        raise ValueError(
            f"the target of {part} has {classes} class{only}: classification needs at least 2; give another "
            "target, or all of the rows"
        )


def check_row_count(rows: int, classes: int | None, part: str) -> None:
    """Refuse fewer than `max(10, 2·classes)` rows."""
    needed = max(MINIMUM_ROWS, 2 * (classes or 0))
    if rows < needed:
        rule = f"{MINIMUM_ROWS}, and 2 for each of the {classes} classes" if classes else str(MINIMUM_ROWS)
        raise ValueError(
            f"{part} has too few rows: {rows}, at least {needed} are needed ({rule}): add rows or hold out fewer"
        )


def check_targets(y: Tensor, names: Sequence[str] | None, part: str) -> None:
    """Refuse a constant target column."""
    table = y.reshape(len(y), -1)
    constant = constant_columns(table)
    if constant:
        index = constant[0]
        raise ValueError(
            f"the target {name_column(index, names)} of {part} is constant (always "
            f"{float(table[0, index]):g}): there is nothing to learn; give another target"
        )


def check_class_sizes(y: Tensor, classes: int, class_names: Sequence | None, part: str) -> None:
    """Refuse class indices outside 0..classes−1, and classes with fewer than two rows."""
    if y.ndim != 1 or y.is_floating_point():
        raise ValueError(
            f"y of {part} must be (rows,) whole class indices for classification, got {y.dtype} of shape "
            f"{tuple(y.shape)}"
        )
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise ValueError(
            f"y of {part} holds class indices outside 0..{classes - 1}: from {int(y.min())} to {int(y.max())}"
        )
    sizes = torch.bincount(y, minlength=classes).tolist()
    small = [
        f"class {class_names[index] if class_names is not None else index!r} has {size}"
        for index, size in enumerate(sizes)
        if size < 2
    ]
    if small:
        raise ValueError(
            f"every class needs at least 2 rows in {part}: {list_some(small)}: add rows, remove the class, "
            "or merge it with another (if the target is a quantity, pass task_type='regression')"
        )


def check_columns(x: Tensor, names: Sequence[str] | None, constant: str, part: str) -> None:
    """Refuse constant input columns; with constant="allow", only where all of them are."""
    found = constant_columns(x)
    if len(found) == x.shape[1]:
        raise ValueError(f"all {len(found)} input columns of {part} are constant: there is nothing to learn from")
    if found and constant == "error":
        listed = list_some([f"{name_column(index, names)} (always {float(x[0, index]) + 0.0:g})" for index in found])
        raise ValueError(
            f"constant input columns in {part}: {listed}: they carry no information; remove them, or pass "
            "constant='drop' to have them dropped"
        )
