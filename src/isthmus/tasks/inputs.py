"""Inputs alone from the user's own files, as they stand: what a trained network is fed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from isthmus.tasks._labels import as_float
from isthmus.tasks._read import TargetOption, array_of, open_archive, pick_array, read_table
from isthmus.tasks.files import check_path
from isthmus.tasks.validate import check_finite, list_some


@dataclass(frozen=True)
class Inputs:
    """The inputs of a file.

    Attributes:
        x: `(N, …)`: float64, or int64 where an array of an `.npz` file holds integers (token ids, grey levels).
        dropped: columns or arrays that were left out.
        notes: what was left out and why, in words.
    """

    x: Tensor
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def inputs_from_file(path: str | Path, target: TargetOption = None, drop: Sequence[str] = ()) -> Inputs:
    """Read the inputs of a `.npz`, `.csv` or `.parquet` file; nothing is normalised, split or shuffled.

    `.npz`: the array `x` (also `X`, `x_train`, `X_train`) of any shape `(N, …)`; every other array is left out. Tables:
    all columns but the target's (`target`, or the one called "target", "label" or "y", if any), those in `drop`, and
    an unnamed one that counts the rows.

    Args:
        path: the file.
        target: label columns of a table, as in `from_file`.
        drop: further columns of a table to leave out.

    Raises:
        FileNotFoundError: where there is no such file, with the nearest name in its folder.
        ValueError: on a file that cannot be read, values that are no finite numbers, or options that do not fit.
        ImportError: without polars, for `.csv` and `.parquet`.
    """
    path, drop = check_path(Path(path)), [drop] if isinstance(drop, str) else list(drop)
    found = _from_table(path, target, drop) if path.suffix.lower() != ".npz" else _from_arrays(path, target, drop)
    if found.x.ndim < 2 or 0 in found.x.shape:
        raise ValueError(
            f"x of {path.name} has shape {tuple(found.x.shape)}: expected samples along the first dimension and at "
            "least one other, (N, …) with N > 0"
        )
    check_finite(found.x, "x", None, path.name)
    return found


def _from_arrays(path: Path, target: TargetOption, drop: Sequence[str]) -> Inputs:
    if drop or target is not None:
        raise ValueError(
            f"target and drop name columns of a table; of {path.name} only the array 'x' is read: leave them out"
        )
    with open_archive(path) as archive:
        name = pick_array(path, list(archive.files), "x")
        values = array_of(path, archive, name)
        others = tuple(other for other in archive.files if other != name)
    x = as_float(values, name)
    if values.dtype.kind in "iu":
        x = x.to(torch.int64)
    return Inputs(x, others, _left_out("arrays", others))


def _from_table(path: Path, target: TargetOption, drop: Sequence[str]) -> Inputs:
    content = read_table(path, target, drop, labels=False)
    unnamed = (content.notes or {}).get("dropped_index_columns", [])
    indices = tuple(map(str, unnamed)) if isinstance(unnamed, list) else ()
    targets = tuple(content.targets or ())
    notes = _left_out("label columns", targets) + _left_out("columns", tuple(drop)) + _left_out("row numbers", indices)
    return Inputs(as_float(content.x, "x"), (*targets, *drop, *indices), notes)


def _left_out(what: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return (f"{what} left out: {list_some(list(map(repr, names)))}",) if names else ()
