"""`execute`: one run from its configuration to its folder, resumable at any moment: check, build, train, write."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from isthmus._support import command
from isthmus.runs.build import Built, build
from isthmus.runs.config import RunConfig
from isthmus.runs.environment import changes, describe_environment, resumed
from isthmus.runs.folder import FolderError, RunFolder
from isthmus.runs.products import write_products
from isthmus.runs.resume import check, load
from isthmus.runs.saved import Saved, read_saved
from isthmus.runs.schema import CHECKPOINT, CONFIG, ENVIRONMENT
from isthmus.runs.state import digest, save_state
from isthmus.status import Status

if TYPE_CHECKING:
    from isthmus.model import LeakyResNet
    from isthmus.solve import Trainer


class RunError(RuntimeError):
    """A run that had begun and failed: not by its numbers (that is a status), but by a fault."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands when it begins to train.

    Args:
        step: steps already made, by the run that is resumed.
        total: steps of the whole recipe.
        folder: where it is written.
    """

    step: int
    total: int
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        status: ``done``, ``interrupted`` or ``diverged``.
        message: what happened, in words.
        advice: what to try, where it did not go well.
        layer: the layer at which a divergence began.
        step: the last step.
        summary: what summary.json holds; empty for a run interrupted just before it diverges.
        folder: where everything is.
        model: the network, trained.
    """

    status: str
    message: str
    advice: str
    layer: int | None
    step: int
    summary: Mapping[str, Any]
    folder: Path
    model: "LeakyResNet"


def execute(
    config: RunConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_start: Callable[[Progress], None] | None = None,
    on_record: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Outcome:
    """Train by a configuration, read the mechanics, and leave everything in a folder.

    A run that was killed continues with ``resume=True`` to the same bits as one that was not, on the same
    machine with as many threads. A finished run trains nothing more: its products are written anew. If the
    configuration has further steps in ``train.extend``, the run goes on with them. A folder in which nothing was saved
    yet is started from the beginning.

    Args:
        config: everything that decides the run.
        folder: absent or empty, or the run to resume or overwrite.
        resume: continue the run in the folder; its configuration must be the same, ``train.extend`` may be longer.
        overwrite: delete the run in the folder first.
        on_start: told once, before training.
        on_record: told every row of the history.
        should_stop: asked after every step; true ends the training, saved.

    Raises:
        ConfigError: a configuration that cannot be used, or differs from that of the run to resume.
        FolderError: the folder is busy, or holds something else.
        StateError: the checkpoint is damaged, or does not fit.
        ValueError: data or sizes that cannot be used.
        FileNotFoundError: no such data file; ImportError: a package for the data is missing.
        RunError: anything that goes wrong later, with its cause; the last saved state stays.
    """
    if resume and overwrite:
        raise FolderError("a run is either resumed or overwritten: give one of resume and overwrite")
    place, config = RunFolder(folder), config.resolved()
    check(place, config, resume, overwrite)
    with threads(config.train.threads):
        origin = _origin(place, config, resume)
        built = _build(config, origin)
        with place.lock():
            extended = check(place, config, resume, overwrite)  # again: another process may have been faster
            result = load(place, config, built) if resume else None
            with _failing(place, "writing its configuration"):
                _prepare(place, config, built, origin, resume, extended)
            if on_start is not None:
                trainer = built.trainer
                on_start(Progress(trainer.step_count, trainer.total_steps, place.path))
            if result is None:
                with _failing(place, "training"):
                    result = _train(place, config, built, on_record, should_stop)
            with _failing(place, "reading the trained network"):
                summary = write_products(place, config, built, result) if _sound(built.trainer) else {}
    return Outcome(**result, summary=summary, folder=place.path, model=built.model)


def _origin(place: RunFolder, config: RunConfig, resume: bool) -> Saved | None:
    """The network to start from, which a run that has saved a state of its own needs no more.

    Raises:
        FolderError: it lies in the folder that would be replaced.
    """
    given = config.model.init_from
    if given is None or (resume and place.has_checkpoint):
        return None
    origin = read_saved(given)
    if origin.file.parent.resolve() == place.path.resolve():
        raise FolderError(f"{given} lies in {place.path}, which the new run would replace; give another --out")
    return origin


def _build(config: RunConfig, origin: Saved | None) -> Built:
    """Build, with the warnings of the configuration in its own words."""
    for doubt in config.warnings():
        warnings.warn(doubt, stacklevel=3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"rho \* effective_depth")  # said above, with the keys
        return build(config, origin)


def _prepare(
    place: RunFolder, config: RunConfig, built: Built, origin: Saved | None, resume: bool, extended: bool
) -> None:
    """Write what describes the run before it trains: the configuration first, since it is what resuming needs."""
    now = describe_environment(device=built.device, dtype=config.train.dtype, seed=config.seed)
    if origin is not None:
        about = {"path": str(origin.file), "step": origin.step, "digest": digest("", origin.weights)}
        now["started_from"] = about
    before = place.read_json(ENVIRONMENT) if resume and place.has_checkpoint else {}
    if not resume:
        place.clear()
    for change in changes(before, now):
        warnings.warn(f"{change}: the resumed run may end in other bits than an uninterrupted one", stacklevel=4)
    if extended or not place.has_config:
        place.write_text(CONFIG, config.to_yaml())
    place.write_json(ENVIRONMENT, resumed(before, now))


def _train(
    place: RunFolder,
    config: RunConfig,
    built: Built,
    on_record: Callable[[dict[str, Any]], None] | None,
    should_stop: Callable[[], bool] | None,
) -> dict[str, Any]:
    """Train to the end, saving as it goes; returns how it ended."""
    settings, saved = config.model_dump(mode="json"), -1

    def save(trainer: "Trainer", result: dict[str, Any] | None = None) -> None:
        nonlocal saved
        saved = trainer.step_count
        # A state from which the next step diverges is not kept: resumed from the one before, the run ends as
        # it would have, and still knows a good state.
        if _sound(trainer):
            state = {"config": settings, "result": result, "fingerprint": built.fingerprint}
            state["trainer"] = trainer.state_dict()
            place.write_bytes(CHECKPOINT, save_state(state, "checkpoint"))

    def keep(trainer: "Trainer") -> None:
        if not trainer.done and trainer.step_count != saved:  # the end is saved below, with its result
            save(trainer)

    ended = built.trainer.run(
        on_record=on_record,
        should_stop=should_stop,
        on_checkpoint=keep,
        checkpoint_every=config.train.checkpoint_every,
    )
    result = {
        "status": str(ended.status.value),
        "message": ended.message,
        "advice": ended.advice,
        "layer": ended.layer,
        "step": ended.step,
    }
    if result["status"] != Status.INTERRUPTED:
        save(built.trainer, result)
    return result


def _sound(trainer: "Trainer") -> bool:
    """Whether the objective is finite at the present parameters."""
    return math.isfinite(trainer.problem.evaluate(gradient=False).objective)


@contextmanager
def _failing(place: RunFolder, doing: str) -> Iterator[None]:
    """From here on an exception is a failure, not misuse; a run that a full disk stopped can be resumed."""
    try:
        yield
    except OSError as error:
        text = f"the run failed while {doing}: {error}"
        if not isinstance(error, BrokenPipeError):
            again = command("train", "--resume", "--out", place.path)
            text += f"; free space or correct permissions, then `{again}`"
        raise RunError(text) from error
    except Exception as error:
        raise RunError(f"the run failed while {doing}: {type(error).__name__}: {error}") from error


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Let torch use this number of CPU threads for a while; None leaves its own."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
