"""A study into a folder: computed as far as it is not there, then its figures' data and its table of claims."""

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from isthmus._support import write_bytes
from isthmus.claims.catalogue import rows
from isthmus.claims.draw import pictures
from isthmus.claims.folder import CLAIMS, STUDY, TABLE
from isthmus.claims.pictures import Picture
from isthmus.claims.plan import FIGURES, check, plan
from isthmus.claims.sizes import Size
from isthmus.claims.study import Study
from isthmus.claims.verdicts import Row
from isthmus.sweeps import Done, Job, Store, Sweep, sweep


@dataclass(frozen=True)
class Reproduced:
    """What a call of `reproduce` left.

    Args:
        folder: where everything is.
        sweep: how the computation ended.
        pictures: what is behind the figures.
        rows: the table of claims.
        failures: jobs that failed, with the reason.
        facts: size, seeds and what was computed with, for the page.
    """

    folder: Path
    sweep: Sweep
    pictures: tuple[Picture, ...]
    rows: tuple[Row, ...]
    failures: tuple[tuple[Job, str], ...]
    facts: dict[str, Any]


def reproduce(
    folder: str | Path,
    size: Size,
    seeds: int,
    figures: Sequence[str] = FIGURES,
    *,
    claims: bool = True,
    workers: int = 1,
    retry_failed: bool = False,
    command: str = "isthmus reproduce",
    should_stop: Callable[[], bool] = lambda: False,
    on_done: Callable[[Done], None] = lambda done: None,
    on_plan: Callable[[int, int, list[Job]], None] = lambda total, there, lost: None,
) -> Reproduced:
    """Compute what a study's folder lacks, and write the data of its figures and its table of claims.

    A second call computes nothing. One that was cut off goes on where it was.

    Args:
        folder: of the study, new or one that this has written.
        size: of the networks.
        seeds: 0 … seeds − 1.
        figures: of `isthmus.claims.plan.FIGURES`.
        claims: judge the claims that rest on these figures.
        workers: processes.
        retry_failed: compute anew what has failed before.
        command: that reproduces it, as the table names it.
        should_stop: asked all the time.
        on_done: is told of every network.
        on_plan: is told how many jobs there are, how many of them are done, and whose results were deleted.

    Returns:
        The study, unfinished where somebody stopped it: then nothing but results is written.

    Raises:
        ValueError: an unknown figure, seeds or workers below 1; (`isthmus.sweeps.StoreError`) a folder that holds
            something else, is of another version, damaged, or in use.
        ImportError: scipy is not installed.
    """
    check(figures, seeds)
    store, jobs = Store(folder), plan(figures, size, seeds, claims)
    lost = store.lost(jobs)
    if retry_failed:
        store.forget_failures(jobs)
    on_plan(len(jobs), sum(map(store.has, jobs)), lost)
    ended = sweep(
        jobs, store, "isthmus.claims.work:work", workers=workers, should_stop=should_stop, on_done=on_done
    )  # fmt: skip
    kept = {job.key: store.read(job) for job in jobs if store.has(job)}
    failures = tuple((job, kept[job.key].failure) for job in jobs if job.key in kept and kept[job.key].failure)
    facts = {
        "size": size.to_dict(),
        "seeds": seeds,
        "figures": list(figures),
        "command": command,
        "jobs": len(jobs),
        "seconds": round(sum(k.seconds for k in kept.values())),
        "environment": next((k.environment for k in kept.values()), {}),
        "failures": [{"job": job.name, "settings": dict(job.settings), "reason": why} for job, why in failures],
    }
    facts = _finite(facts)  # as they are read back
    if ended.left:
        return Reproduced(store.folder, ended, (), (), failures, facts)
    study = Study.of(store, size, seeds, jobs)
    drawn, judged = pictures(study, figures), tuple(rows(study, command, tuple(figures))) if claims else ()
    (store.folder / "figures").mkdir(exist_ok=True)
    for picture in drawn:
        _json(store.folder / "figures" / f"{picture.key}.json", asdict(picture))
    if claims or not _same_study(store.folder, facts):
        for name in (CLAIMS, TABLE):
            (store.folder / name).unlink(missing_ok=True)  # of other seeds: the command makes them again at once
        _json(store.folder / STUDY, facts)
    if claims:
        _json(store.folder / CLAIMS, [asdict(row) for row in judged])
        write_bytes(store.folder / TABLE, _table(judged).encode("utf-8"))
    return Reproduced(store.folder, ended, drawn, judged, failures, facts)


def _same_study(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether the folder holds claims of the same networks, which figures that were drawn again leave as they are."""
    if not (folder / CLAIMS).exists():
        return False
    try:
        before = json.loads((folder / STUDY).read_text())
    except (OSError, ValueError):
        return False
    return all(before.get(name) == facts[name] for name in ("size", "seeds"))


def _json(file: Path, content: Any) -> None:
    write_bytes(file, json.dumps(_finite(content), ensure_ascii=False, indent=1, allow_nan=False).encode("utf-8"))


def _finite(content: Any) -> Any:
    """NaN and infinity as None."""
    if isinstance(content, dict):
        return {key: _finite(v) for key, v in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(v) for v in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _table(judged: Sequence[Row]) -> str:
    text = io.StringIO()
    names = [field.name for field in fields(Row)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in judged:
        writer.writerow({key: "" if v is None else v for key, v in _finite(asdict(row)).items()})
    return text.getvalue()
