"""Reading arrays from `.npz` and tables from `.csv` and `.parquet`; nothing pickled is ever loaded."""

import contextlib
import csv
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus._support import hint
from isthmus.tasks._checks import require
from isthmus.tasks.base import Notes
from isthmus.tasks.validate import list_some

TARGET_NAMES = ("target", "label", "y")
INDEX_NAMES = ("", "Unnamed: 0", "__index_level_0__")
SEPARATORS = (",", ";", "\t", "|")

TargetOption = str | int | Sequence[str | int] | None


@dataclass(frozen=True)
class Content:
    """What a file holds, as NumPy arrays, with the names of its columns where it has any."""

    x: Any
    y: Any
    x_test: Any = None
    y_test: Any = None
    columns: list[str] | None = None
    targets: list[str] | None = None
    notes: Notes | None = None


def read_npz(path: Path, target: TargetOption) -> Content:
    """Read `x`, `y` and, where present, `x_test`, `y_test`; `target` names another array than `y`.

    Raises:
        ValueError: on a broken file, missing, doubled or pickled arrays.
    """
    with open_archive(path) as archive:
        return _read_arrays(path, archive, target)


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Any]:
    """An `.npz` file, open; nothing pickled is read from it.

    Raises:
        ValueError: on a broken file, or one that is no archive of arrays.
    """
    import numpy

    try:
        with path.open("rb") as file:
            try:
                archive = numpy.load(file, allow_pickle=False)
            except ValueError as error:  # what NumPy says of anything that is neither an archive nor an array
                raise _broken(path, "it is no archive of arrays") from error
            if not hasattr(archive, "files"):
                raise _broken(path, "it holds a single bare array")
            with archive:
                yield archive
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise _broken(path, _first_line(error)) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _broken(path: Path, why: str) -> ValueError:
    return ValueError(f"{path.name} is not a readable .npz file ({why}): write one with numpy.savez(path, x=x, y=y)")


def _read_arrays(path: Path, archive: Any, target: TargetOption) -> Content:
    names = list(archive.files)
    x_name, y_name = pick_array(path, names, "x"), _pick_target(path, names, target)
    test_names = [_find(path, names, [f"{letter}_test", f"{letter.upper()}_test"]) for letter in "xy"]
    if (test_names[0] is None) != (test_names[1] is None):
        there, missing = ("x_test", "y_test") if test_names[0] else ("y_test", "x_test")
        raise ValueError(
            f"{path.name} holds {there} but not {missing}: give both, or neither to have a test part split off"
        )
    if y_name in (x_name, *test_names):
        raise ValueError(
            f"target={y_name!r} names an array of {path.name} that is taken already, "
            f"{'for the inputs' if y_name == x_name else 'for the test part'}: name another, or None for 'y'"
        )
    arrays = [None if name is None else array_of(path, archive, name) for name in (x_name, y_name, *test_names)]
    used = [name for name in (x_name, y_name, *test_names) if name is not None]
    unused = [name for name in names if name not in used]
    x, y, x_test, y_test = arrays
    return Content(x, y, x_test, y_test, notes={"unused_arrays": unused} if unused else {})


def _find(path: Path, names: list[str], spellings: list[str]) -> str | None:
    found = [name for name in spellings if name in names]
    if len(found) > 1:
        raise ValueError(f"{path.name} holds both {found[0]!r} and {found[1]!r}: keep one of them")
    return found[0] if found else None


def pick_array(path: Path, names: list[str], letter: str) -> str:
    spellings = [letter, letter.upper(), f"{letter}_train", f"{letter.upper()}_train"]
    found = _find(path, names, spellings)
    if found is None:
        raise ValueError(
            f"{path.name} holds no array {' or '.join(map(repr, spellings))}, only "
            f"{list_some(list(map(repr, names))) or 'nothing'}: write it with numpy.savez(path, x=x, y=y)"
        )
    return found


def _pick_target(path: Path, names: list[str], target: TargetOption) -> str:
    if target is None:
        return pick_array(path, names, "y")
    if not isinstance(target, str):
        raise ValueError(
            f"target={target!r}: in an .npz file the target is a whole array; give its name, or None for 'y'"
        )
    if target not in names:
        raise ValueError(
            f"{path.name} holds no array {target!r}{hint(target, names)} It holds {list_some(list(map(repr, names)))}"
        )
    return target


def array_of(path: Path, archive: Any, name: str) -> Any:
    try:
        values = archive[name]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"the array {name!r} of {path.name} is pickled (its dtype is object), which is never loaded, "
                "because loading pickles can run any code: save it as numbers or text, e.g. "
                "x.astype(float), y.astype(str)"
            ) from error
        raise ValueError(f"the array {name!r} of {path.name} cannot be read ({_first_line(error)})") from error
    if isinstance(values, bytes):
        raise ValueError(f"the entry {name!r} of {path.name} is no array: write it with numpy.savez(path, x=x, y=y)")
    return values


def read_table(path: Path, target: TargetOption, drop: Sequence[str], labels: bool = True) -> Content:
    """Read a `.csv` (comma, semicolon, tab or bar; with a header) or a `.parquet` file.

    With ``labels=False`` the target's columns are left out (`y` is None), and there need not be any.

    Raises:
        ImportError: without polars.
        ValueError: on a broken file, missing or doubled columns, missing values, columns that are not
            numbers.
    """
    polars = require("polars", install="polars")
    notes: Notes = {}
    with _explained(path, polars):
        frame = _load_csv(path, polars, notes) if path.suffix.lower() == ".csv" else polars.read_parquet(path)
    names = list(frame.columns)
    if not names:
        raise ValueError(f"{path.name} is empty: it has no columns")
    if frame.height == 0:
        raise ValueError(f"{path.name} is empty: it has a header ({list_some(list(map(repr, names)))}) but no rows")
    for name in drop:
        if name not in names:
            raise ValueError(f"drop names {name!r}, which is no column of {path.name}{_columns(name, names)}")
    targets = _targets(path, names, target, labels)
    by_name = target is None or all(_is_meant_as_name(one, names) for one in _listed(target))
    if path.suffix.lower() == ".csv" and not by_name and _looks_headerless(names):
        raise _no_header(path, names)
    if set(targets) & set(drop):
        raise ValueError(
            f"{sorted(set(targets) & set(drop))[0]!r} is both a target and in drop: take it out of one of them"
        )
    unnamed = [n for n in names if n in INDEX_NAMES and n not in [*targets, *drop] and _is_index(frame[n])]
    inputs = [name for name in names if name not in {*targets, *drop, *unnamed}]
    if not inputs:
        raise ValueError(
            f"{path.name} has no input columns left beside the target {list_some(list(map(repr, targets)))}"
        )
    if unnamed:
        notes["dropped_index_columns"] = unnamed
    if drop:
        notes["dropped_columns"] = list(drop)
    counters = [name for name in inputs if _counts_rows(frame[name])]
    if counters:
        notes["columns_that_count_rows"] = counters
    kept = [*inputs, *targets] if labels else inputs
    frame = frame.select([_plain(frame[name], polars) for name in kept])
    _refuse_missing(path, frame)
    x = _numbers(path, frame.select(inputs))
    y = _target_values(path, frame.select(targets)) if labels else None
    return Content(x, y, columns=inputs, targets=targets, notes=notes)


@contextlib.contextmanager
def _explained(path: Path, polars: Any) -> Iterator[None]:
    try:
        yield
    except (polars.exceptions.PolarsError, UnicodeDecodeError, csv.Error) as error:
        kind = path.suffix.lower()
        advice = {".csv": "it must be UTF-8 text with a header line and as many fields in each row as in the header"}
        raise ValueError(
            f"{path.name} cannot be read as {kind} ({_first_line(error)}): "
            f"{advice.get(kind, 'write it again as parquet')}"
        ) from error


def _load_csv(path: Path, polars: Any, notes: Notes) -> Any:
    with path.open(encoding="utf-8-sig", newline="") as file:
        line = file.readline()
        if not line:
            raise ValueError(f"{path.name} is empty: it has no header line")
        separator = next((mark for mark in SEPARATORS if mark in line), ",")
        file.seek(0)
        header = next(csv.reader(file, delimiter=separator), [])
    headerless = _looks_headerless(header)
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled and headerless:
        raise _no_header(path, header)
    if doubled:
        raise ValueError(
            f"{path.name} has several columns called {list_some(list(map(repr, doubled)))}: give each column "
            "its own name"
        )
    frame = polars.read_csv(path, separator=separator, infer_schema_length=None)
    blank = frame.select(polars.all_horizontal(polars.all().is_null())).to_series()
    if frame.width > 1 and blank.any():
        notes["blank_rows_skipped"] = int(blank.sum())
        frame = frame.filter(~blank)
    if separator != ",":
        notes["separator"] = separator
    return frame


def _columns(name: str, names: list[str]) -> str:
    more = ", …" if len(names) > 20 else ""
    return f"{hint(name, names) or ';'} its columns are {', '.join(map(repr, names[:20]))}{more}"


def _targets(path: Path, names: list[str], target: TargetOption, needed: bool = True) -> list[str]:
    if target is not None:
        wanted = _listed(target)
        if not wanted:
            raise ValueError("target is an empty list: name at least one column")
        found = [_target(path, names, one) for one in wanted]
        if len(set(found)) < len(found):
            raise ValueError(f"target names a column twice: {', '.join(map(repr, found))}")
        return found
    found = [name for name in names if name.strip().lower() in TARGET_NAMES]
    if len(found) > 1:
        raise ValueError(
            f"{path.name} has several columns that may be the target, {', '.join(map(repr, found))}: pass target=NAME"
        )
    if found:
        return found
    if _looks_headerless(names):
        raise _no_header(path, names)
    if not needed:
        return []
    raise ValueError(
        f"{path.name} has no column called {', '.join(map(repr, TARGET_NAMES))}: pass target=NAME (or "
        f"several){_columns('target', names)}"
    )


def _target(path: Path, names: list[str], one: str | int) -> str:
    if isinstance(one, str) and one in names:
        return one
    number = _column_number(one)
    if number is None:
        raise ValueError(f"{path.name} has no target column {one!r}{_columns(str(one), names)}")
    if isinstance(one, bool) or not -len(names) <= number < len(names):
        raise ValueError(
            f"target={one!r}: as a column number it must lie in {-len(names)}..{len(names) - 1} (the first is 0)"
            + ("; no column has it as its name" if isinstance(one, str) else "")
        )
    return names[number]


def _column_number(one: str | int) -> int | None:
    """A target as a number of a column, also where the number came as text; None where it is none."""
    if isinstance(one, str):
        return int(one) if re.fullmatch(r"-?[0-9]+", one) else None
    return one


def _is_meant_as_name(one: str | int, names: list[str]) -> bool:
    """Whether a target is surely the name of a column, and not a number that a headerless file has as data too."""
    number = _column_number(one)
    return one in names and (number is None or not -len(names) <= number < len(names))


def _listed(target: str | int | Sequence[str | int]) -> list[str | int]:
    return [target] if isinstance(target, str | int) else list(target)


def _looks_headerless(names: list[str]) -> bool:
    """Whether a header is rather a row of data: it has fractions in it, or only numbers that do not count."""
    numbers = [name for name in names if _is_number(name)]
    fractions = any(float(name) % 1 != 0 for name in numbers)
    counts = [[str(first + index) for index in range(len(names))] for first in (0, 1)]
    return fractions or (bool(names) and len(numbers) == len(names) and list(names) not in counts)


def _no_header(path: Path, names: list[str]) -> ValueError:
    return ValueError(
        f"{path.name} seems to have no header: its first line reads {list_some(names)}; "
        "add a first line with the names of the columns"
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_index(series: Any) -> bool:
    return series.dtype.is_integer() and series.n_unique() == len(series)


def _counts_rows(series: Any) -> bool:
    if not series.dtype.is_integer() or series.null_count() or len(series) < 3:
        return False
    first = series[0]
    return first in (0, 1) and bool((series.diff().drop_nulls() == 1).all())


def _plain(series: Any, polars: Any) -> Any:
    """Return text that reads as numbers throughout as numbers, and decimals and long integers as float64."""
    if series.dtype in (polars.Categorical, polars.Enum):
        series = series.cast(polars.String)
    if series.dtype == polars.String:
        series = series.str.strip_chars()
        series = series.set(series == "", None)
        numbers = series.cast(polars.Float64, strict=False)
        return series if numbers.null_count() > series.null_count() else numbers
    if series.dtype.is_decimal() or series.dtype in (polars.Int128,):
        return series.cast(polars.Float64)
    return series


def _refuse_missing(path: Path, frame: Any) -> None:
    missing = {name: frame[name].is_null() for name in frame.columns if frame[name].null_count()}
    if missing:
        places = [f"column {name!r} in {int(at.sum())} (the first: row {at.arg_max()})" for name, at in missing.items()]
        total = sum(int(at.sum()) for at in missing.values())
        raise ValueError(
            f"{path.name} has {total} missing values: {list_some(places)} (rows counted from 0 below the "
            "header): remove those rows, fill the values in, or leave the column out with drop=[...]"
        )


def _numbers(path: Path, frame: Any) -> Any:
    bad = [
        name for name in frame.columns if not (frame[name].dtype.is_numeric() or str(frame[name].dtype) == "Boolean")
    ]
    if bad:
        shown = [f"{name!r} ({_example(frame[name])})" for name in bad]
        raise ValueError(
            f"{path.name} has input columns that are not numbers: {list_some(shown)}: turn them into numeric "
            f"columns, or leave them out with drop={bad[:3]}"
        )
    for name in frame.columns:
        if frame[name].dtype.is_integer() and max(abs(frame[name].min()), abs(frame[name].max())) > 2**53:
            raise ValueError(
                f"column {name!r} of {path.name} holds integers beyond 2**53, which float64 cannot "
                f"represent: leave it out with drop=[{name!r}] if it is an identifier, or subtract an offset"
            )
    import numpy

    return numpy.column_stack([frame[name].to_numpy().astype("float64") for name in frame.columns])


def _example(series: Any) -> str:
    if str(series.dtype) != "String":
        return f"type {series.dtype}"
    row, value = next((row, value) for row, value in enumerate(series) if not _is_number(value))
    return f"{value!r} in row {row}"


def _target_values(path: Path, frame: Any) -> Any:
    import numpy

    if frame.width > 1:
        return _numbers(path, frame)
    series = frame.to_series()
    if str(series.dtype) == "String":
        return numpy.array(series.to_list(), dtype=str)
    if not (series.dtype.is_numeric() or str(series.dtype) == "Boolean"):
        raise ValueError(f"the target {series.name!r} of {path.name} is of type {series.dtype}: give numbers or labels")
    return series.to_numpy()
