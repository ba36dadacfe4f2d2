"""`sweep`: jobs over processes. What is finished is skipped, what fails is recorded, what dies is tried again."""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from isthmus.runs.environment import describe_environment
from isthmus.runs.execution import threads
from isthmus.sweeps.job import Job
from isthmus.sweeps.store import Kept, Store, StoreError

Work = Callable[[Job, Path, Callable[[], bool]], Any]
"""Of a job, a folder for its state (which it makes where it needs one), and what to ask whether to stop: its result as
JSON values, None where it stopped."""

DIED = "its process died twice, the second time with no other beside it (out of memory?)"
"""The failure of a job whose process was killed."""
_POLL = 0.2  # seconds between looks at whether somebody wants to stop


@dataclass(frozen=True)
class Done:
    """A job that was finished just now.

    Args:
        job: which.
        failure: why it failed; "" where it did not.
        seconds: that it took.
        number: of jobs finished so far, those of earlier calls included.
        total: of jobs.
    """

    job: Job
    failure: str
    seconds: float
    number: int
    total: int


@dataclass(frozen=True)
class Sweep:
    """How a sweep ended.

    Args:
        skipped: jobs that had been done before.
        done: jobs done now.
        failed: jobs that have failed, now or before.
        left: jobs that were not begun or not finished, because somebody wanted to stop.
    """

    skipped: int
    done: int
    failed: int
    left: int


def sweep(
    jobs: Sequence[Job],
    store: Store,
    work: str,
    *,
    workers: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
    on_done: Callable[[Done], None] = lambda done: None,
) -> Sweep:
    """Compute what the store does not have yet.

    A result is written by the process that computed it, whole or not at all: a kill loses what was under way and
    nothing else, and where a job keeps its state in its scratch folder, not even that.

    Args:
        jobs: in the order in which to begin them; equal ones are computed once. Those that failed before count as done:
            see `Store.forget_failures`.
        store: where results are kept.
        work: the function that computes a job, as ``module:name`` (see `Work`).
        workers: processes, of one thread each; 1 computes in this one.
        should_stop: asked all the time; jobs under way are told, and stop where they can.
        on_done: is told of every job that was finished.

    Raises:
        StoreError: another process works on this store.
        ValueError: workers below 1.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    unique = list({job.key: job for job in jobs}.values())
    with _alone(store):
        waiting = [job for job in unique if not store.has(job)]
        counter = _Counter(len(unique), len(unique) - len(waiting), on_done)
        several = min(workers, len(waiting)) > 1
        run = _over_processes if several else _here
        run(waiting, store, work, workers, should_stop, counter)
    left = [job for job in waiting if not store.has(job)]
    failed = sum(bool(store.read(job).failure) for job in unique if store.has(job))
    return Sweep(len(unique) - len(waiting), len(waiting) - len(left), failed, len(left))


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    lock = FileLock(store.folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StoreError(f"another process works on {store.folder}: wait for it, or name another folder") from None
    try:
        yield
    finally:
        lock.release()


@dataclass
class _Counter:
    total: int
    number: int
    on_done: Callable[[Done], None]

    def tell(self, job: Job, kept: Kept) -> None:
        self.number += 1
        self.on_done(Done(job, kept.failure, kept.seconds, self.number, self.total))


def _here(
    jobs: Sequence[Job], store: Store, work: str, workers: int, should_stop: Callable[[], bool], counter: _Counter
) -> None:
    function = _loaded(work)
    with threads(1):  # as in processes: sums over other numbers of threads differ in their last bits
        for job in jobs:
            if should_stop():
                return
            if _compute(job, store, function, should_stop):
                counter.tell(job, store.read(job))


def _over_processes(
    jobs: Sequence[Job], store: Store, work: str, workers: int, should_stop: Callable[[], bool], counter: _Counter
) -> None:
    """Jobs over processes. Where one dies, those that were under way are begun again, each alone: whose dies again,
    fails.
    """
    waiting = list(jobs)
    while waiting and not should_stop():
        suspects = _pooled(waiting, store, work, workers, should_stop, counter)
        for job in suspects:
            if should_stop():
                return
            if not store.has(job) and _pooled([job], store, work, 1, should_stop, counter):
                store.write(job, Kept(None, DIED, 0.0, _environment()))
                counter.tell(job, store.read(job))
        waiting = [job for job in waiting if not store.has(job)]
        if not suspects:
            return


def _pooled(
    jobs: Sequence[Job], store: Store, work: str, workers: int, should_stop: Callable[[], bool], counter: _Counter
) -> list[Job]:
    """Run jobs in a pool of their own; see `_drain`."""
    context = multiprocessing.get_context("spawn")
    halt = context.Event()
    with ProcessPoolExecutor(workers, context, _begin, (halt,)) as pool:
        return _drain(pool, jobs, store, work, workers, should_stop, halt, counter)


def _drain(
    pool: ProcessPoolExecutor,
    waiting: Sequence[Job],
    store: Store,
    work: str,
    workers: int,
    should_stop: Callable[[], bool],
    halt: Any,
    counter: _Counter,
) -> list[Job]:
    """Run jobs until all are done or somebody wants to stop; those that were under way when a process died."""
    queue, running, suspects = list(waiting), {}, []  # type: ignore[var-annotated]
    while queue or running:
        if should_stop():
            halt.set()
            queue = []
        while queue and len(running) < workers and not suspects:
            job = queue.pop(0)
            try:
                future: Future[bool] = pool.submit(_in_process, job, store.folder, work)
            except BrokenProcessPool:
                suspects.append(job)
                break
            running[future] = job
        if not running:
            break
        finished, _ = wait(running, timeout=_POLL, return_when=FIRST_COMPLETED)
        for future in finished:
            job = running.pop(future)
            try:
                written = future.result()
            except BrokenProcessPool:
                written = False
                if not store.has(job):
                    suspects.append(job)
            if written or store.has(job):
                counter.tell(job, store.read(job))
        if suspects and not running:
            break
    return suspects


_halt: Any = None
_orphaned = threading.Event()
_busy = threading.Lock()


def _begin(halt: Any) -> None:
    """A worker's start: one thread, signals are the parent's business, and it does not outlive the parent."""
    global _halt
    _halt = halt
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_watch, daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _watch() -> None:
    """Wait for the parent's death, let the job under way stop or end, and leave: the pool alone would wait forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    _orphaned.set()
    with _busy:
        os._exit(1)


def _told_to_stop() -> bool:
    return _orphaned.is_set() or _halt.is_set()


def _in_process(job: Job, folder: Path, work: str) -> bool:
    with _busy:
        if _orphaned.is_set():
            return False
        return _compute(job, Store(folder), _loaded(work), _told_to_stop)


def _loaded(work: str) -> Work:
    module, _, name = work.partition(":")
    return getattr(import_module(module), name)


def _compute(job: Job, store: Store, function: Work, should_stop: Callable[[], bool]) -> bool:
    """Compute a job and keep its result, or why there is none; False where it was stopped."""
    began = time.monotonic()
    try:
        result = function(job, store.scratch(job), should_stop)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        failure = f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
        store.write(job, Kept(None, failure, time.monotonic() - began, _environment()))
        return True
    if result is None:
        return False
    store.write(job, Kept(result, "", time.monotonic() - began, _environment()))
    return True


def _environment() -> dict[str, Any]:
    return describe_environment(device="cpu", dtype="float64", seed=0)
