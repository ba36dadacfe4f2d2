"""A run folder, read: everything that was written, checked once against the schema."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from isthmus._support import command, number
from isthmus.runs.folder import RunFolder, RunFolderError
from isthmus.runs.schema import CONFIG, ENVIRONMENT, SUMMARY, TABLES, Table


@dataclass(frozen=True)
class RunData:
    """One run, as read from its folder; tables have all columns of the schema, nulls for NaN.

    Attributes:
        folder: where it was read from.
        name: `name` of the configuration, else the folder's name.
        summary: summary.json.
        config: config.yaml parsed; empty where the file is missing.
        config_text: config.yaml as written.
        environment: environment.json; empty where the file is missing.
        tables: the tables of `isthmus.runs.schema.TABLES` by name; one whose file is missing is not there.
        notes: what is missing or unfinished, in words for the reader.
    """

    folder: Path
    name: str
    summary: dict[str, Any]
    config: dict[str, Any]
    config_text: str
    environment: dict[str, Any]
    tables: Mapping[str, pl.DataFrame]
    notes: tuple[str, ...]

    @property
    def history(self) -> pl.DataFrame:
        """A row per log point of the training."""
        return self.tables["history"]

    @property
    def layers(self) -> pl.DataFrame:
        """The mechanics table, a row per layer."""
        return self.tables["layers"]

    @property
    def states(self) -> pl.DataFrame | None:
        """The quantities of states, a row per state A_0 … A_L; None where an earlier version wrote the run."""
        return self.tables.get("states")

    @property
    def spectra(self) -> pl.DataFrame | None:
        """Singular values of A_p and W_p, long; None where the file is missing."""
        return self.tables.get("spectra")

    @property
    def projection(self) -> pl.DataFrame | None:
        """The path in two dimensions, long; None where the file is missing."""
        return self.tables.get("projection")

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

    def state(self, name: str) -> list[Any]:
        """A column of the table of states as a list (None for missing values); empty where the table is missing."""
        return [] if self.states is None else self.states[name].to_list()

    def midpoints(self) -> list[float | None]:
        """``p_ℓ − ρ_ℓ/2`` of each layer: where what pairs A_{ℓ−1} with B_ℓ belongs."""
        pairs = zip(map(number, self.column("p")), map(number, self.column("rho")), strict=True)
        return [None if p is None or rho is None else p - rho / 2 for p, rho in pairs]

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
    summary = _read_json(folder / SUMMARY)
    config, config_text = _read_config(folder / CONFIG)
    environment = _read_json(folder / ENVIRONMENT) if (folder / ENVIRONMENT).is_file() else {}
    tables, notes = {}, _status_notes(summary)
    for file, found in ((CONFIG, config_text), (ENVIRONMENT, environment)):
        if not found:
            notes.append(f"{file} is missing or empty: that part of the report is left out.")
    for table in TABLES.values():
        lacking: list[str] = []
        if (folder / table.parquet).is_file():
            tables[table.name], lacking = _read_table(folder / table.parquet, table)
        if table.name not in tables or (not table.required and tables[table.name].height == 0):
            notes.append(_left_out(folder, table))
        elif lacking:
            notes.append(f"{table.parquet} lacks the columns {', '.join(lacking)}: they are shown as missing.")
    if tables["layers"].height == 0:
        raise RunFolderError(f"{folder / 'layers.parquet'} has no rows: one row per layer was expected")
    for key, name in (("layer", "layers"), ("state", "states")):
        if name in tables:
            tables[name] = tables[name].sort(key)
    name = str(config.get("name") or folder.resolve().name)
    return RunData(folder, name, summary, config, config_text, environment, tables, tuple(notes))


def _left_out(folder: Path, table: Table) -> str:
    """The note on a table that is not there."""
    if table.name != "states":
        return f"{table.parquet} is missing or empty: its figure is left out."
    again = command("train", "--resume", "--out", folder)
    return (
        f"{table.parquet} is missing or empty, as in runs of earlier versions: ranks and costs of identity of the "
        f"states are left out. If the run has finished, `{again}` writes it from the saved network and trains nothing."
    )


def _check_folder(folder: Path) -> None:
    """Raise where `folder` is no run folder, or one that lacks the tables."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise RunFolderError(
            f"expected the folder of a run, but {folder} {what}: give the folder that `isthmus train` wrote"
        )
    if not RunFolder(folder).is_run:
        raise RunFolderError(
            f"{folder} is not a run folder (it has neither config.yaml nor summary.json): "
            "give the folder that `isthmus train` wrote"
        )
    needed = (SUMMARY, *(table.parquet for table in TABLES.values() if table.required))
    missing = [name for name in needed if not (folder / name).is_file()]
    if not missing:
        return
    listed = " and ".join(missing)
    if SUMMARY in missing:
        state = "has not finished"
    else:
        status = _read_json(folder / SUMMARY).get("status")
        state = f"ended as {status!r} without its tables" if status in ("interrupted", "diverged") else "is incomplete"
    raise RunFolderError(
        f"the run in {folder} {state}: {listed} missing; continue it with "
        f"`{command('train', '--resume', '--out', folder)}`"
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


def _read_table(path: Path, schema: Table) -> tuple[pl.DataFrame, list[str]]:
    """A parquet file with every column of the schema, NaN turned into null; and the columns that it lacked."""
    try:
        table = pl.read_parquet(path.read_bytes())
    except Exception as error:  # polars raises many kinds, down to a plain panic, for a file cut short
        raise RunFolderError(_unreadable(path, "parquet", error)) from error
    absent = {name: c.presence for name, c in schema.columns.items() if name not in table.columns}
    if required := [name for name, presence in absent.items() if presence == "required"]:
        raise RunFolderError(
            f"{path} lacks the columns {', '.join(required)}; it has {', '.join(table.columns) or 'none'}"
        )
    for name, kind in schema.types.items():
        source = pl.lit(None) if name in absent else pl.col(name)
        if name not in absent and table.schema[name] in (pl.Float32, pl.Float64):
            source = source.fill_nan(None)
        try:
            table = table.with_columns(source.cast(kind).alias(name))
        except pl.exceptions.PolarsError as error:
            raise RunFolderError(
                f"column {name!r} of {path} must hold {kind}, but holds {table.schema[name]}"
            ) from error
    return table, [name for name, presence in absent.items() if presence == "expected"]


def _unreadable(path: Path, kind: str, error: Exception) -> str:
    """The message for a file that cannot be parsed."""
    reason = str(error).strip().splitlines()
    return (
        f"{path} cannot be read as {kind} ({reason[0] if reason else type(error).__name__}): it may be "
        "damaged or cut short; "
        f"write it anew with `{command('train', '--resume', '--out', path.parent)}`"
    )
