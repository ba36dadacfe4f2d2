"""`execute`: one run from its configuration to its folder, resumable at any moment."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from isthmus.runs import build as building
from isthmus.runs.config import RunConfig
from isthmus.runs.environment import changes, describe_environment, resumed
from isthmus.runs.folder import FolderError, RunFolder
from isthmus.runs.problems import ConfigError, Problem, show_value
from isthmus.runs.products import write_products
from isthmus.runs.schema import CHECKPOINT, CONFIG, ENVIRONMENT, MODEL
from isthmus.runs.state import StateError, load_state, save_state

if TYPE_CHECKING:
    from isthmus.model import LeakyResNet
    from isthmus.problem import Problem as Objective
    from isthmus.runs.build import Built
    from isthmus.solve import Trainer

FINISHED = ("done", "diverged")
"""Statuses that training again would not change."""


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
    machine with as many threads. A finished run trains nothing more: its products are written anew. A folder
    in which nothing was saved yet is started from the beginning.

    Args:
        config: everything that decides the run.
        folder: absent or empty, or the run to resume or overwrite.
        resume: continue the run in the folder; its configuration must be the same.
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
    place, config = RunFolder(folder), building.resolve(config)
    _check(place, config, resume, overwrite)
    with _threads(config.train.threads):
        built = _build(config)
        with place.lock():
            _check(place, config, resume, overwrite)  # again: another process may have been faster
            result = _load(place, config, built) if resume else None
            with _failing(place, "writing its configuration"):
                _prepare(place, config, built, resume)
            if on_start is not None:
                trainer = built.trainer
                on_start(Progress(trainer.step_count, trainer.total_steps, place.path))
            if result is None:
                with _failing(place, "training"):
                    result = _train(place, config, built, on_record, should_stop)
            with _failing(place, "reading the trained network"):
                summary = write_products(place, config, built, result) if _sound(built.trainer) else {}
    return Outcome(**result, summary=summary, folder=place.path, model=built.model)


def _build(config: RunConfig) -> "Built":
    """Build, with the warnings of the configuration in its own words."""
    for doubt in config.warnings():
        warnings.warn(doubt, stacklevel=3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"rho \* effective_depth")  # said above, with the keys
        return building.build(config)


def _check(place: RunFolder, config: RunConfig, resume: bool, overwrite: bool) -> None:
    """Check that the folder allows what is asked.

    Raises:
        FolderError: it does not.
        ConfigError: the run there has another configuration.
    """
    if not resume:
        place.check_startable(overwrite=overwrite)
        return
    if place.is_empty:
        return
    if not place.has_config:
        if place.is_run:
            raise FolderError(f"{place.path} has lost its {CONFIG}: put it back, or start anew with --overwrite")
        raise FolderError(f"{place.path} is not a run folder: there is nothing to resume")
    _must_equal(config, RunConfig.from_yaml(place / CONFIG), f"the run in {place.path}")


def _must_equal(config: RunConfig, stored: RunConfig, owner: str) -> None:
    """Check that a run is resumed with the configuration it was begun with, which ``owner`` has.

    Raises:
        ConfigError: it is another; every key that differs is named.
    """
    problems = [
        Problem(key, f"{owner} has {show_value(theirs)}, got {show_value(mine)}")
        for key, (mine, theirs) in config.differences(building.resolve(stored)).items()
    ]
    if problems:
        problems.append(Problem("", "a run is resumed as it was begun; for other values start one in a new folder"))
        raise ConfigError(problems, "the configuration to resume with")


def _prepare(place: RunFolder, config: RunConfig, built: "Built", resume: bool) -> None:
    """Write what describes the run before it trains: the configuration first, since it is what resuming needs."""
    now = describe_environment(device=built.device, dtype=config.train.dtype, seed=config.seed)
    before = place.read_json(ENVIRONMENT) if resume and place.has_checkpoint else {}
    if not resume:
        place.clear()
    for change in changes(before, now):
        warnings.warn(f"{change}: the resumed run may end in other bits than an uninterrupted one", stacklevel=4)
    if not place.has_config:
        place.write_text(CONFIG, config.to_yaml())
    place.write_json(ENVIRONMENT, resumed(before, now))


def _load(place: RunFolder, config: RunConfig, built: "Built") -> dict[str, Any] | None:
    """Put the trainer where the checkpoint says; returns the result of a finished run, None of any other.

    Raises:
        ConfigError: the state was trained with another configuration: somebody changed config.yaml since.
        StateError: a damaged checkpoint, other data, or a state that does not fit.
    """
    if not place.has_checkpoint:
        return None
    path = place / CHECKPOINT
    try:
        state = load_state(path, "checkpoint")
    except StateError as error:
        raise StateError(
            f"{error}; delete it, and --resume trains again from the first step to the same result"
        ) from None
    _must_equal(config, _stored_config(state, path), f"the checkpoint in {place.path}")
    if state["fingerprint"] != building.fingerprint(built.task):
        raise StateError(
            f"the data of {built.task.name!r} are not those that {place.path} was trained on; put them back, "
            "or start a run in a new folder"
        )
    try:
        built.trainer.load_state_dict(state["trainer"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _misfit(path, f"{type(error).__name__}: {error}") from error
    result = state["result"]
    return result if result is not None and result["status"] in FINISHED else None


def _stored_config(state: Mapping[str, Any], path: Path) -> RunConfig:
    """The configuration that a saved state was trained with.

    Raises:
        StateError: a checkpoint of an older isthmus has none.
        ConfigError: one that this isthmus does not know.
    """
    if "config" not in state:
        raise _misfit(path, "it does not say its configuration")
    return RunConfig.from_mapping(state["config"], f"the configuration in {path}")


def _misfit(path: Path, reason: str) -> StateError:
    return StateError(f"{path} does not fit this isthmus ({reason}); use the version that wrote it")


def _train(
    place: RunFolder,
    config: RunConfig,
    built: "Built",
    on_record: Callable[[dict[str, Any]], None] | None,
    should_stop: Callable[[], bool] | None,
) -> dict[str, Any]:
    """Train to the end, saving as it goes; returns how it ended."""
    mark, settings = building.fingerprint(built.task), config.model_dump(mode="json")
    saved = -1

    def save(trainer: "Trainer", result: dict[str, Any] | None = None) -> None:
        nonlocal saved
        saved = trainer.step_count
        # A state from which the next step diverges is not kept: resumed from the one before, the run ends as
        # it would have, and still knows a good state.
        if _sound(trainer):
            state = {"config": settings, "result": result, "fingerprint": mark, "trainer": trainer.state_dict()}
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
    if result["status"] in FINISHED:
        save(built.trainer, result)
    return result


def _sound(trainer: "Trainer") -> bool:
    """Whether the objective is finite at the present parameters."""
    return math.isfinite(trainer.problem.evaluate(gradient=False).objective)


def load_run_model(folder: str | Path, device: str = "cpu") -> "LeakyResNet":
    """The network of a run as it was last saved, finished or not.

    Read from the checkpoint, or from model.safetensors where the checkpoint was deleted.

    Raises:
        FolderError: not a run, or nothing was saved yet.
        StateError: a damaged file, or one of an older isthmus.
        ConfigError: a configuration that this isthmus does not know.
    """
    weights, config, _ = _saved(RunFolder(folder))
    return _rebuild(weights, config, device)


def load_run_problem(folder: str | Path) -> "Objective":
    """The problem of a run with its network as last saved, in float64 on the CPU: to be checked or solved further.

    Raises:
        FolderError, StateError, ConfigError: as `load_run_model`.
        StateError: the data are not those that the run was trained on.
        ValueError, FileNotFoundError, ImportError: the data cannot be made again.
    """
    from isthmus.problem import Problem as Objective

    place = RunFolder(folder)
    weights, config, mark = _saved(place)
    task = building.build_task(config)
    if mark is not None and mark != building.fingerprint(task):
        raise StateError(f"the data of {task.name!r} are not those that {place.path} was trained on; put them back")
    model, loss = _rebuild(weights, config, "cpu").double(), task.loss
    return Objective(model, task.x_train, task.y_train, loss=loss, mu=config.train.mu)


def _saved(place: RunFolder) -> tuple[dict[str, Any], RunConfig, str | None]:
    """Weights, configuration and fingerprint of the data as last saved; model.safetensors has no fingerprint."""
    if place.has_checkpoint and place.has_config:
        state = load_state(place / CHECKPOINT, "checkpoint")
        return state["trainer"]["model"], _stored_config(state, place / CHECKPOINT), state["fingerprint"]
    if (place / MODEL).is_file():
        weights = load_state(place / MODEL, "model")
        config = RunConfig.from_mapping(weights.pop("rebuild")["config"], f"the configuration in {place / MODEL}")
        return weights, config, None
    if place.is_run:
        raise FolderError(
            f"{place.path} has no saved weights yet; `isthmus train --resume --out {place.path}` trains it"
        )
    raise FolderError(f"{place.path} is not a run folder; give the folder that `isthmus train` wrote")


def _rebuild(weights: Mapping[str, Any], config: RunConfig, device: str) -> "LeakyResNet":
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"rho \* effective_depth")
        inputs, outputs = weights["in_map"].shape[1], weights["out_map"].shape[0]
        model = building.build_model(config, inputs, outputs, device)
    model.load_state_dict(weights)
    return model


@contextmanager
def _failing(place: RunFolder, doing: str) -> Iterator[None]:
    """From here on, an exception is no misuse any more; one of the machine, such as a full disk, can be mended."""
    try:
        yield
    except OSError as error:
        text = f"the run failed while {doing}: {error}"
        if not isinstance(error, BrokenPipeError):
            text += f"; free space or mend permissions, then `isthmus train --resume --out {place.path}`"
        raise RunError(text) from error
    except Exception as error:
        raise RunError(f"the run failed while {doing}: {type(error).__name__}: {error}") from error


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Let torch use so many CPU threads for a while."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
