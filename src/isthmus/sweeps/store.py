"""A folder of results: one JSON file a job, written whole or not at all, with its checksum."""

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus._support import write_bytes
from isthmus.sweeps.job import Job

VERSION = 1
_JOURNAL = "journal.jsonl"


class StoreError(ValueError):
    """A store that cannot be read: which file, what is wrong with it, and what to do."""


@dataclass(frozen=True)
class Kept:
    """What is known of a job.

    Args:
        result: as the computation returned it; None where it failed.
        failure: why, where it failed; "" else.
        seconds: of wall-clock that it took.
        environment: what it was computed with.
    """

    result: Any
    failure: str
    seconds: float
    environment: dict[str, Any]


class Store:
    """Results of jobs in a folder.

    Args:
        folder: made where it is not there.

    Raises:
        StoreError: the folder's data are of another version, or it holds something else.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"{self.folder} is a file: name a folder")
        self.data = self.folder / "data"
        mark = self.folder / "store.json"
        if mark.exists():
            found = _parsed(mark, mark.read_bytes())
            if not isinstance(found, dict) or found.get("version") != VERSION:
                version = found.get("version") if isinstance(found, dict) else None
                raise StoreError(
                    f"{self.folder} holds results of store version {version!r}, this isthmus reads {VERSION}: "
                    "name another folder, or the isthmus that wrote it"
                )
        else:
            if self.folder.exists() and any(self.folder.iterdir()):
                raise StoreError(f"{self.folder} holds something else than results: name a new folder, or an empty one")
            self.data.mkdir(parents=True, exist_ok=True)
            write_bytes(mark, json.dumps({"version": VERSION}).encode())
        self.data.mkdir(exist_ok=True)

    def file(self, job: Job) -> Path:
        """Where a job's result is kept."""
        return self.data / f"{job.name}.json"

    def scratch(self, job: Job) -> Path:
        """A folder for the state of a job under way, which the job may make; gone once the job is done."""
        return self.data / f"{job.name}.state"

    def has(self, job: Job) -> bool:
        """Whether the job was done or has failed."""
        return self.file(job).exists()

    def read(self, job: Job) -> Kept:
        """What is kept of a job.

        Raises:
            StoreError: the file is missing or damaged, named with what to do.
        """
        file = self.file(job)
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            raise StoreError(f"{file} is missing: run the command again, and it is computed") from None
        found = _parsed(file, content)
        if not isinstance(found, dict) or found.get("checksum") != _checksum(found):
            raise StoreError(f"{file} is damaged (its checksum differs): delete it and run again, and it is computed")
        return Kept(found["result"], found["failure"], found["seconds"], found["environment"])

    def write(self, job: Job, kept: Kept) -> None:
        """Keep a result, in one piece, and drop what was under way."""
        content: dict[str, Any] = {
            "kind": job.kind,
            "version": job.version,
            "settings": dict(job.settings),
            "result": kept.result,
            "failure": kept.failure,
            "seconds": round(kept.seconds, 3),
            "environment": kept.environment,
        }
        content = json.loads(json.dumps(content, allow_nan=False, ensure_ascii=False))
        content["checksum"] = _checksum(content)
        write_bytes(self.file(job), json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode())
        with (self.folder / _JOURNAL).open("a") as journal:
            journal.write(json.dumps({"name": job.name}) + "\n")
        shutil.rmtree(self.scratch(job), ignore_errors=True)

    def forget_failures(self, jobs: Iterable[Job]) -> None:
        """Delete what is kept of jobs that failed: they will be computed anew."""
        for job in jobs:
            if self.has(job) and self.read(job).failure:
                self.file(job).unlink()

    def lost(self, jobs: list[Job]) -> list[Job]:
        """Those that were done once, and whose file is gone."""
        journal = self.folder / _JOURNAL
        if not journal.exists():
            return []
        known = set()
        for line in journal.read_text().splitlines():
            try:
                known.add(json.loads(line)["name"])
            except (ValueError, KeyError, TypeError):  # a line that a kill cut off
                continue
        return [job for job in jobs if job.name in known and not self.has(job)]


def _parsed(file: Path, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        raise StoreError(f"{file} is damaged (no JSON): delete it and run again, and it is computed") from None


def _checksum(content: dict[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
