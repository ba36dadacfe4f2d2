"""The folder of a run: what lies where, atomic writes, and a lock for one process at a time."""

import errno
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from isthmus._support import TEMPORARY, write_bytes
from isthmus.runs.schema import (
    CHECKPOINT,
    CONFIG,
    ENVIRONMENT,
    FIGURES,
    LOCK,
    PRODUCTS,
    REPORT,
    SUMMARY,
    Table,
)

# What file systems without locks, some of the network among them, answer.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class RunFolderError(ValueError):
    """A folder that cannot be read: not a run, not finished, or holding a file that cannot be read."""


class FolderError(ValueError):
    """A folder that cannot be used as asked: busy, not a run, or a run that would be lost."""


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def has_config(self) -> bool:
        """Whether a run was begun here."""
        return (self / CONFIG).is_file()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a state to resume from."""
        return (self / CHECKPOINT).is_file()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is lost by starting here: absent, or leftovers of a process that was killed early."""
        if not self.path.exists():
            return True
        self._must_be_folder()
        return all(self._is_leftover(entry) for entry in self.path.iterdir())

    @property
    def is_run(self) -> bool:
        """Whether any of the files that only a run writes lies here."""
        return any((self / name).is_file() for name in (CONFIG, CHECKPOINT, *PRODUCTS))

    def check_startable(self, *, overwrite: bool) -> None:
        """Check that a new run may start here.

        Raises:
            FolderError: no folder, another run is in it (without ``overwrite``), or files that no run wrote.
        """
        if self.is_empty:
            return
        if not self.is_run:
            raise FolderError(
                f"{self.path} is not empty and is not a run folder; choose another folder with --out "
                "(--overwrite deletes files of earlier runs only)"
            )
        if not overwrite:
            raise FolderError(
                f"{self.path} already holds a run; continue it with --resume, replace it with --overwrite, "
                "or choose another folder with --out"
            )

    def clear(self) -> None:
        """Delete what an earlier run wrote, the configuration last; other files stay."""
        for name in (SUMMARY, CHECKPOINT, *PRODUCTS, REPORT, ENVIRONMENT):
            (self / name).unlink(missing_ok=True)
        figures = self / FIGURES
        if figures.is_dir():
            for figure in figures.iterdir():
                if figure.suffix in (".svg", ".pdf"):
                    figure.unlink()
            with suppress(OSError):  # files of the user's own are in it
                figures.rmdir()
        (self / CONFIG).unlink(missing_ok=True)
        self._sync()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process; a process that is killed lets go of it.

        Raises:
            FolderError: another process holds it, or it cannot be made.
        """
        from filelock import FileLock, Timeout

        self._make()
        file = self / LOCK
        lock = FileLock(file, blocking=False, fallback_to_soft=False)
        try:
            lock.acquire()
        except Timeout:
            raise FolderError(
                f"another process ({_owner(file)}) is training in {self.path}; wait for it, or choose another "
                "folder with --out"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise FolderError(f"{self.path} cannot be written to: {error.strerror}") from None
            text = f"{self.path} cannot be locked ({error.strerror}): start no second run in it"
            warnings.warn(text, stacklevel=3)
        try:
            with suppress(OSError):  # only to name the owner: a full disk shows where it matters
                file.write_text(f"pid {os.getpid()}\n", encoding="ascii")
            self._clean()
            yield
        finally:
            lock.release()

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, and for good."""
        write_bytes(self / name, data)
        self._sync()

    def write_text(self, name: str, text: str) -> None:
        """Write text as UTF-8, whole or not at all."""
        self.write_bytes(name, text.encode("utf-8"))

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Write JSON, whole or not at all; NaN and infinities become null."""
        self.write_text(name, json.dumps(_plain(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object; empty where the file is missing or damaged."""
        try:
            values = json.loads((self / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    def write_table(self, table: Table, values: Mapping[str, Any]) -> None:
        """Write a table of the schema from its columns, name to values."""
        frame = table.frame(values)
        # By way of memory: what polars raises where it cannot write to a file is no OSError.
        for file in table.files:
            buffer = BytesIO()
            getattr(frame, f"write_{Path(file).suffix[1:]}")(buffer)
            self.write_bytes(file, buffer.getvalue())

    def _sync(self) -> None:
        """Make renames in the folder last through a power cut, where that can be."""
        with suppress(OSError):  # not every file system can, and Windows opens no folders
            handle = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def _make(self) -> None:
        self._must_be_folder()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FolderError(f"{self.path} cannot be made: {error.strerror}") from None

    def _is_leftover(self, entry: Path) -> bool:
        """A lock, a temporary file, or the environment of a run of which nothing else was written."""
        if entry.name == ENVIRONMENT:
            return "versions" in self.read_json(ENVIRONMENT)  # else somebody else's file of that name
        return entry.name == LOCK or _is_temporary(entry)

    def _must_be_folder(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise FolderError(f"{self.path} is a file, expected a folder for the run; choose another with --out")

    def _clean(self) -> None:
        """Delete temporary files that a killed process left; only under the lock."""
        for entry in self.path.iterdir():
            if _is_temporary(entry):
                entry.unlink(missing_ok=True)


def free_folder(name: str, root: str | Path = "runs") -> Path:
    """The first of ``runs/<name>``, ``runs/<name>-2``, … that is absent or empty."""
    for path in _numbered(name, root):
        if RunFolder(path).is_empty:
            return path
    raise AssertionError("unreachable: the numbers do not end")


def folder_beside(path: Path, suffix: str = "") -> Path:
    """A free folder beside a run's folder or a file, called like it with something added."""
    stem = path.resolve().name if path.is_dir() else path.stem
    return free_folder(f"{stem}{suffix}", path.parent)


def latest_folder(name: str, root: str | Path = "runs") -> Path:
    """The last of ``runs/<name>``, ``runs/<name>-2``, … before a free one; the first where there is none."""
    last = Path(root) / name
    for path in _numbered(name, root):
        if RunFolder(path).is_empty:
            return last
        last = path
    raise AssertionError("unreachable: the numbers do not end")


def _numbered(name: str, root: str | Path) -> Iterator[Path]:
    yield Path(root) / name
    number = 2
    while True:
        yield Path(root) / f"{name}-{number}"
        number += 1


def _owner(file: Path) -> str:
    """Who holds a lock, as it wrote into the file."""
    try:
        return file.read_text(encoding="ascii", errors="replace").strip() or "pid unknown"
    except OSError:  # Windows shows nobody a file that is locked
        return "pid unknown"


def _is_temporary(entry: Path) -> bool:
    return entry.name.startswith(".") and entry.suffix == TEMPORARY


def _plain(value: Any) -> Any:
    """Values that strict JSON can hold."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
