"""The folder of a branch: what lies where, and a branch read back from it. Without torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus._support import command, number
from isthmus.runs.folder import FolderError, RunFolder, RunFolderError
from isthmus.runs.schema import FIGURES, REPORT
from isthmus.status import Status
from isthmus.thresholds import CRITICAL

BRANCH = "branch.json"
STATE = "state.pt"
START = "start.safetensors"
END = "end.safetensors"
TABLES = ("branch.csv", "branch.parquet")
VERSION = 1

FILES = {
    BRANCH: "settings, configuration, environment, points, events, how it ended and what its last point shows; "
    "written after every point",
    STATE: "the state by which the branch is resumed, with the weights of every point if they are kept",
    START: "the network that the branch starts from; it may be certified, probed and trained as that of a run",
    END: "the network of the last point, likewise",
    "branch.csv": "a row per point; the same in branch.parquet",
    REPORT: "the page, with its figures beside it",
}
"""What each file of a branch's folder holds."""


@dataclass(frozen=True)
class BranchData:
    """A branch, as read from its folder.

    Attributes:
        folder: where it was read from.
        settings: what was followed and how, by name; see `isthmus.runs.branch_start.Following`.
        start: where the first network came from, and how it was solved.
        config: the configuration of the first network, nested.
        environment: of the first command and those that went on.
        points: a row of plain values each, as `isthmus.branches.Branch.rows` gives them; None for what is not finite.
        events: ``kind``, ``value``, ``after`` (index of the point before), ``message``, ``error``.
        status: how it ended; "unknown" while it is being followed, or where it was cut off.
        advice: what to do about that; "" for nothing.
        reading: what the last point shows: verdict, doubts and so on; empty where there is none.
        seconds: spent in all commands, the solving of the start included.
    """

    folder: Path
    settings: dict[str, Any]
    start: dict[str, Any]
    config: dict[str, Any]
    environment: dict[str, Any]
    points: tuple[dict[str, Any], ...]
    events: tuple[dict[str, Any], ...]
    status: str
    advice: str
    reading: dict[str, Any]
    seconds: float

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.folder.resolve().name

    @property
    def parameter(self) -> str:
        """What was followed."""
        return str(self.settings["parameter"])

    @property
    def values(self) -> list[float]:
        """The parameter at every point."""
        return [float(point["value"]) for point in self.points]

    def column(self, name: str) -> list[float | None]:
        """A number of every point; None where a point lacks it."""
        return [number(point.get(name)) for point in self.points]

    def certified(self, index: int) -> bool:
        """Whether a point's residual is that of a critical point (`isthmus.thresholds.CRITICAL`)."""
        residual = number(self.points[index].get("residual"))
        return residual is not None and residual <= CRITICAL

    def minimum(self, index: int) -> bool:
        """Whether a point is a minimum as far as was seen."""
        return self.points[index].get("stable") is True

    def again(self) -> str:
        """The command that goes on with it."""
        return command("follow", "--out", self.folder)

    def notes(self) -> tuple[str, ...]:
        """What is unfinished, in words for the reader."""
        if self.status in (Status.UNKNOWN, Status.INTERRUPTED):
            how = "was interrupted" if self.status == Status.INTERRUPTED else "has not ended, or was cut off"
            return (f"The branch {how}: `{self.again()}` goes on with it.",)
        return ()


def is_branch(folder: str | Path) -> bool:
    """Whether a folder holds a branch."""
    return (Path(folder) / BRANCH).is_file()


def load_branch(folder: str | Path) -> BranchData:
    """Read the folder of a branch.

    Raises:
        RunFolderError: (a ValueError) no such folder, no branch in it, or a file that cannot be read.
    """
    folder = Path(folder)
    if not is_branch(folder):
        what = f"holds no {BRANCH}" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise RunFolderError(
            f"expected the folder of a branch, but {folder} {what}: give the folder that `isthmus follow` wrote"
        )
    values = read_branch(folder)
    try:
        return BranchData(
            folder=folder,
            settings=dict(values["settings"]),
            start=dict(values["start"]),
            config=dict(values["config"]),
            environment=dict(values["environment"]),
            points=tuple(map(dict, values["points"])),
            events=tuple(map(dict, values["events"])),
            status=str(values["status"]),
            advice=str(values["advice"]),
            reading=dict(values["reading"]),
            seconds=float(values["seconds"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(_damaged(folder / BRANCH, f"{type(error).__name__}: {error}")) from error


def read_branch(folder: Path) -> dict[str, Any]:
    """The content of branch.json.

    Raises:
        RunFolderError: it cannot be read, or is of another version.
    """
    path = folder / BRANCH
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(_damaged(path, str(error))) from error
    if not isinstance(values, dict) or "settings" not in values:
        raise RunFolderError(_damaged(path, "it holds no branch"))
    if values.get("version") != VERSION:
        raise RunFolderError(
            f"{path} is of version {values.get('version')}, and this isthmus reads version {VERSION}: follow it "
            "anew, in another folder"
        )
    return values


def _damaged(path: Path, reason: str) -> str:
    return (
        f"{path} cannot be read as a branch ({reason}): it may be damaged or cut short; follow the branch anew with "
        "--overwrite, or in another folder"
    )


def check_startable(place: RunFolder, *, overwrite: bool) -> None:
    """Check that a new branch may start in a folder.

    Raises:
        FolderError: a branch is in it (without ``overwrite``), or files that no branch wrote.
    """
    if place.is_empty:
        return
    if not is_branch(place.path):
        what = "holds a run of `isthmus train`" if place.is_run else "is not empty and holds no branch"
        raise FolderError(f"{place.path} {what}; choose another folder with --out")
    if not overwrite:
        raise FolderError(f"{place.path} already holds a branch; replace it with --overwrite, or choose another --out")


def clear(place: RunFolder) -> None:
    """Delete what an earlier branch wrote, branch.json last; other files stay."""
    for name in (STATE, START, END, *TABLES, REPORT):
        (place / name).unlink(missing_ok=True)
    for figure in (place / FIGURES).glob("*"):
        if figure.suffix in (".svg", ".pdf"):
            figure.unlink()
    (place / BRANCH).unlink(missing_ok=True)


def write_tables(place: RunFolder, rows: list[Mapping[str, Any]]) -> None:
    """branch.csv and branch.parquet: a row a point, with every column that any point has."""
    from io import BytesIO

    import polars as pl

    frame = pl.DataFrame(list(map(dict, rows)), infer_schema_length=None)
    for name in TABLES:
        buffer = BytesIO()
        getattr(frame, f"write_{name.partition('.')[2]}")(buffer)
        place.write_bytes(name, buffer.getvalue())
