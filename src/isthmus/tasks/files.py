"""Tasks from the user's own files: `.npz`, `.csv`, `.parquet`."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from isthmus._support import hint
from isthmus.tasks._build import Raw, build
from isthmus.tasks._checks import NORMALISATIONS, check_choice, check_fraction, check_seed
from isthmus.tasks._labels import Target, as_float, encode, encode_like
from isthmus.tasks._read import Content, TargetOption, read_npz, read_table
from isthmus.tasks.base import Notes, Task
from isthmus.tasks.validate import check_finite, check_shapes

EXTENSIONS = (".npz", ".csv", ".parquet")


def from_file(
    path: str | Path,
    target: TargetOption = None,
    task_type: str = "auto",
    test_fraction: float | int = 0.2,
    seed: int = 0,
    normalise: str = "coordinate",
    constant: str = "error",
    centre: bool = True,
    drop: Sequence[str] = (),
    train: int | None = None,
    test: int | None = None,
) -> Task:
    """Make a task from a file of the user's.

    `.npz`: arrays `x` and `y` (also `X`, `x_train`, `X_train`, ...), and `x_test`, `y_test` where the test
    part is given. `.csv`: a header line, separated by commas (or semicolons, tabs, bars), UTF-8. `.parquet`:
    a plain table.

    Args:
        path: the file.
        target: the target column, by name or number (-1 is the last), or several; None takes the one called
            "target", "label" or "y". Text such as "2" is a name where a column has it, else a number.
            In an `.npz` file: the name of the array, None for `y`.
        task_type: "regression" (mean squared error), "classification" (cross-entropy), or "auto": classes
            where the target is text, boolean, one-hot rows, or whole numbers with at most 50 different values
            and two rows a value on average. The choice and its reason stand in `notes["task_type"]`. Classes
            are numbered in sorted order, `notes["classes"]`.
        test_fraction: the part of the rows held out, stratified by class; 0 for none. Unused where the file
            has `x_test`.
        seed: of the split.
        normalise: "coordinate" (unit variance, for columns of different units), "global" (one number for all)
            or "none"; fitted on the training part, applied to both, for inputs and for regression targets.
        constant: "error" refuses input columns that are constant on the training part, "drop" leaves them
            out.
        centre: subtract the training means. With False and normalise "none" the numbers are left as they are.
        drop: names of columns of a table to leave out. An unnamed column that counts the rows is left out by
            itself.
        train: keep this many training rows, None for all; smaller limits take subsets of larger ones.
        test: likewise for the test part.

    Raises:
        FileNotFoundError: where there is no such file, with the nearest name in its folder.
        ValueError: on what `validate` checks, and on anything in the file or the options that cannot be
            meant.
        ImportError: without polars, for `.csv` and `.parquet`.
    """
    _check_options(task_type, test_fraction, seed, normalise, constant)
    path = check_path(Path(path))
    drop = [drop] if isinstance(drop, str) else list(drop)
    if path.suffix.lower() == ".npz":
        if drop:
            raise ValueError(
                "drop names columns of a table; the arrays of an .npz file have none: leave them out on saving"
            )
        content = read_npz(path, target)
    else:
        content = read_table(path, target, drop)
    raw = _raw(path, content, task_type, test_fraction)
    return build(
        raw,
        test_fraction=test_fraction,
        seed=seed,
        train=train,
        test=test,
        normalise=normalise,
        constant=constant,
        centre=centre,
    )


def _check_options(task_type: str, test_fraction: float | int, seed: int, normalise: str, constant: str) -> None:
    check_choice("task_type", task_type, ("auto", "regression", "classification"))
    check_choice("normalise", normalise, NORMALISATIONS)
    check_choice("constant", constant, ("error", "drop"))
    check_fraction(test_fraction, zero=True)
    check_seed(seed)


def check_path(path: Path) -> Path:
    """The path of a file that can be read.

    Raises:
        FileNotFoundError: where there is no such file, with the nearest name in its folder.
        ValueError: a folder, or another extension.
    """
    valid = ", ".join(EXTENSIONS)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file ({valid})")
    if not path.exists():
        near = hint(path.name, [p.name for p in path.parent.iterdir() if p.is_file()]) if path.parent.is_dir() else ""
        raise FileNotFoundError(f"there is no file {path}{near}")
    if path.suffix.lower() not in EXTENSIONS:
        raise ValueError(
            f"{path.name} has the extension {path.suffix!r}; readable are {valid}: convert it to one of them"
        )
    return path


def _raw(path: Path, content: Content, task_type: str, test_fraction: float | int) -> Raw:
    target = "the target" + (f" {content.targets[0]!r}" if content.targets and len(content.targets) == 1 else "")
    x = as_float(content.x, "x")
    check_shapes(tuple(content.x.shape), tuple(content.y.shape), path.name)
    check_finite(x, "x", content.columns, path.name)
    encoded = encode(content.y, task_type, target)
    check_finite(encoded.y, "y", content.targets, path.name)
    x_test, y_test = _given_test_part(path, content, encoded)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    notes: Notes = {"source": path.name, "sha256": digest, "task_type": encoded.note, **(content.notes or {})}
    if x_test is not None:
        notes["test_part"] = "as given in the file; test_fraction is not used"
    if content.columns is not None and content.targets is not None:
        notes |= {"columns": content.columns, "targets": content.targets}
    if encoded.class_names is not None:
        notes["classes"] = encoded.class_names
    return Raw(
        name=path.stem,
        x=x,
        y=encoded.y,
        classes=None if encoded.class_names is None else len(encoded.class_names),
        x_test=x_test,
        y_test=y_test,
        columns=content.columns,
        targets=content.targets,
        class_names=encoded.class_names,
        notes=notes,
    )


def _given_test_part(path: Path, content: Content, encoded: Target) -> tuple[Tensor | None, Tensor | None]:
    if content.x_test is None or content.y_test is None:
        return None, None
    part = f"the test part of {path.name}"
    check_shapes(tuple(content.x_test.shape), tuple(content.y_test.shape), part)
    x, y = as_float(content.x_test, "x_test"), encode_like(content.y_test, encoded, "y_test")
    check_finite(x, "x", None, part)
    check_finite(y, "y", None, part)
    if x.shape[1] != content.x.shape[1]:
        raise ValueError(
            f"x_test of {path.name} has {x.shape[1]} columns and x {content.x.shape[1]}: they must be the same columns"
        )
    if not encoded.class_names and y.shape[1] != encoded.y.shape[1]:
        raise ValueError(
            f"y_test of {path.name} has {y.shape[1]} columns and y {encoded.y.shape[1]}: they must be the same columns"
        )
    return x, y
