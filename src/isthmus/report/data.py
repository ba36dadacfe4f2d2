"""Reading a run folder: everything that the page and the terminal show, checked once."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from isthmus.report._numbers import number

LAYER_COLUMNS = (
    *("p", "rho", "rho_effective_depth", "coi", "coi_stable", "coi_off_image", "kinetic", "kinetic_stable"),
    *("potential", "potential_stable", "cross", "cross_stable", "hamiltonian", "hamiltonian_stable"),
    *(
        "minus_2h_over_l",
        "minus_2h_over_l_stable",
        "residual",
        "balancedness_defect",
        "speed",
        "speed_k",
        "step_change",
    ),
    *("path_length", "norm_a", "norm_b", "norm_b_features", "norm_w", "norm_bias", "stable_rank_a"),
    *("nuclear_rank_a", "stable_rank_w", "rank_a", "rank_w"),
)
HISTORY_COLUMNS = (
    *("objective", "data_cost", "penalty", "residual_max", "residual_median"),
    *("test_cost", "test_accuracy", "rate", "seconds"),
)
SPECTRA_COLUMNS = ("layer", "p", "index", "value")
PROJECTION_COLUMNS = ("layer", "p", "sample", "pc1", "pc2", "colour")
OPTIONAL_HISTORY = frozenset({"test_cost", "test_accuracy", "rate", "seconds"})
MARKERS = ("config.yaml", "summary.json", "checkpoint.safetensors", "model.safetensors", "layers.parquet")


class RunFolderError(ValueError):
    """A folder that cannot be reported: not a run, not finished, or holding a file that cannot be read."""


@dataclass(frozen=True)
class RunData:
    """One run, as read from its folder; tables have the columns of the run-folder schema, nulls for NaN.

    Attributes:
        folder: where it was read from.
        name: `name` of the configuration, else the folder's name.
        summary: summary.json.
        config: config.yaml parsed; empty where the file is missing.
        config_text: config.yaml as written.
        environment: environment.json; empty where the file is missing.
        history: a row per log point of the training.
        layers: the mechanics table, a row per layer.
        spectra: singular values of A_p and W_p, long; None where the file is missing.
        projection: the path in 2-D, long; None where the file is missing.
        notes: what is missing or unfinished, in words for the reader.
    """

    folder: Path
    name: str
    summary: dict[str, Any]
    config: dict[str, Any]
    config_text: str
    environment: dict[str, Any]
    history: pl.DataFrame
    layers: pl.DataFrame
    spectra: pl.DataFrame | None
    projection: pl.DataFrame | None
    notes: tuple[str, ...]

    @property
    def status(self) -> str:
        """How the training ended: "done", "interrupted", "diverged", or "unknown"."""
        return str(self.summary.get("status") or "unknown")

    @property
    def classification(self) -> bool:
        """Whether the task has classes."""
        return any(number(self.summary.get(f"{part}_accuracy")) is not None for part in ("test", "train"))

    def value(self, key: str) -> float | None:
        """A number of summary.json; None where it is missing or not finite."""
        return number(self.summary.get(key))

    def column(self, name: str) -> list[Any]:
        """A column of the layer table as a list (None for missing values)."""
        return self.layers[name].to_list()

    def trace(self, name: str) -> list[Any]:
        """A column of the training history as a list (None for missing values)."""
        return self.history[name].to_list()


def load_run(folder: str | Path) -> RunData:
    """Read a run folder.

    summary.json, history.parquet and layers.parquet must be there; any other missing file becomes a note.

    Raises:
        RunFolderError: (a ValueError) not a run folder; a run without its tables; a file that cannot be
            read or lacks columns. The message names the file and what to do.
    """
    folder = Path(folder)
    _check_folder(folder)
    summary = _read_json(folder / "summary.json")
    notes = [*_status_notes(summary)]
    config, config_text = _read_config(folder / "config.yaml")
    environment = _read_json(folder / "environment.json") if (folder / "environment.json").is_file() else {}
    history, lacks_history = _read_table(
        folder / "history.parquet", ("step",), HISTORY_COLUMNS, text=("stage",), optional=OPTIONAL_HISTORY
    )
    layers, lacks_layers = _read_table(folder / "layers.parquet", ("layer", "p"), LAYER_COLUMNS, flags=("slow",))
    if layers.height == 0:
        raise RunFolderError(f"{folder / 'layers.parquet'} has no rows: one row per layer was expected")
    spectra = projection = None
    if (folder / "spectra.parquet").is_file():
        spectra, _ = _read_table(
            folder / "spectra.parquet", ("kind", *SPECTRA_COLUMNS), SPECTRA_COLUMNS, text=("kind",)
        )
    if (folder / "projection.parquet").is_file():
        projection, _ = _read_table(folder / "projection.parquet", PROJECTION_COLUMNS, PROJECTION_COLUMNS)
    for file, found in (("config.yaml", config_text), ("environment.json", environment)):
        if not found:
            notes.append(f"{file} is missing or empty: that part of the report is left out.")
    for file, table in (("spectra.parquet", spectra), ("projection.parquet", projection)):
        if table is None or table.height == 0:
            notes.append(f"{file} is missing or empty: its figure is left out.")
    for file, lacking in (("history.parquet", lacks_history), ("layers.parquet", lacks_layers)):
        if lacking:
            notes.append(f"{file} lacks the columns {', '.join(lacking)}: they are shown as missing.")
    name = str(config.get("name") or folder.resolve().name)
    return RunData(
        folder,
        name,
        summary,
        config,
        config_text,
        environment,
        history,
        layers.sort("layer"),
        spectra,
        projection,
        tuple(notes),
    )


def _check_folder(folder: Path) -> None:
    """Raise where `folder` is no run folder, or one that lacks the tables."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise RunFolderError(
            f"expected the folder of a run, but {folder} {what}: give the folder that `isthmus train` wrote"
        )
    if not any((folder / name).is_file() for name in MARKERS):
        raise RunFolderError(
            f"{folder} is not a run folder (it has neither config.yaml nor summary.json): "
            "give the folder that `isthmus train` wrote"
        )
    missing = [n for n in ("summary.json", "history.parquet", "layers.parquet") if not (folder / n).is_file()]
    if not missing:
        return
    listed = " and ".join(missing)
    if "summary.json" in missing:
        state = "has not finished"
    else:
        status = _read_json(folder / "summary.json").get("status")
        state = f"ended as {status!r} without its tables" if status in ("interrupted", "diverged") else "is incomplete"
    raise RunFolderError(
        f"the run in {folder} {state}: {listed} missing; continue it with `isthmus train --resume --out {folder}`"
    )


def _status_notes(summary: dict[str, Any]) -> list[str]:
    """A sentence where the training did not run to its end."""
    status = summary.get("status")
    step = summary.get("steps")
    at = f" at step {step}" if isinstance(step, int) else ""
    if status == "interrupted":
        return [f"The training was interrupted{at}: everything below describes an unfinished run."]
    if status == "diverged":
        return [f"The training diverged{at}: everything below describes the last good state before it did."]
    if status != "done":
        return [f"summary.json gives the status {status!r}, not 'done': whether the training finished is unknown."]
    return []


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(_unreadable(path, "JSON", error)) from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{path} must hold a JSON object, but holds a {type(content).__name__}")
    return content


def _read_config(path: Path) -> tuple[dict[str, Any], str]:
    """The configuration, parsed and as text; empty where there is none."""
    if not path.is_file():
        return {}, ""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunFolderError(_unreadable(path, "YAML", error)) from error
    if content is None:
        return {}, ""
    if not isinstance(content, dict):
        raise RunFolderError(f"{path} must hold a YAML mapping, but holds a {type(content).__name__}")
    return content, text


def _read_table(
    path: Path,
    required: tuple[str, ...],
    numeric: tuple[str, ...],
    text: tuple[str, ...] = (),
    flags: tuple[str, ...] = (),
    optional: frozenset[str] = frozenset(),
) -> tuple[pl.DataFrame, list[str]]:
    """A parquet file with every expected column, NaN turned into null; and the columns that it lacked."""
    try:
        table = pl.read_parquet(path.read_bytes())
    except Exception as error:  # polars raises many kinds, down to a plain panic, for a file cut short
        raise RunFolderError(_unreadable(path, "parquet", error)) from error
    absent = [name for name in required if name not in table.columns]
    if absent:
        raise RunFolderError(
            f"{path} lacks the columns {', '.join(absent)}; it has {', '.join(table.columns) or 'none'}"
        )
    expected = {*required, *numeric} - {*text, *flags}
    lacking = [n for n in (*numeric, *text, *flags) if n not in table.columns and n not in optional]
    integers = {"layer", "index", "sample", "step", "rank_a", "rank_w"}
    kinds: dict[str, Any] = {name: pl.Int64 if name in integers else pl.Float64 for name in expected}
    kinds |= dict.fromkeys(text, pl.String) | dict.fromkeys(flags, pl.Boolean)
    for name, kind in kinds.items():
        source = pl.col(name) if name in table.columns else pl.lit(None)
        if name in table.columns and table.schema[name] in (pl.Float32, pl.Float64):
            source = source.fill_nan(None)
        try:
            table = table.with_columns(source.cast(kind).alias(name))
        except pl.exceptions.PolarsError as error:
            raise RunFolderError(
                f"column {name!r} of {path} must hold {kind}, but holds {table.schema[name]}"
            ) from error
    return table, lacking


def _unreadable(path: Path, kind: str, error: Exception) -> str:
    """The message for a file that cannot be parsed."""
    reason = str(error).strip().splitlines()
    return (
        f"{path} cannot be read as {kind} ({reason[0] if reason else type(error).__name__}): it may be "
        "damaged or cut short; "
        f"write it anew with `isthmus train --resume --out {path.parent}`"
    )
