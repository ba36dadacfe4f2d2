"""What a run finds in its folder: whether it may start there, and the state to go on from."""

from collections.abc import Mapping
from typing import Any

from isthmus._support import command
from isthmus.runs.build import Built
from isthmus.runs.config import RunConfig
from isthmus.runs.folder import FolderError, RunFolder, folder_beside
from isthmus.runs.problems import ConfigError, ConfigProblem, show_value
from isthmus.runs.saved import misfit, stored_config
from isthmus.runs.schema import CHECKPOINT, CONFIG
from isthmus.runs.state import READABLE, VERSION, StateError, VersionError, load_state, version_of
from isthmus.status import Status


def check(place: RunFolder, config: RunConfig, resume: bool, overwrite: bool) -> bool:
    """Check that the folder allows what is asked; returns whether it extends the run that is there.

    Raises:
        FolderError: it does not.
        ConfigError: the run there has another configuration.
    """
    if not resume:
        place.check_startable(overwrite=overwrite)
        return False
    if place.is_empty:
        return False
    if not place.has_config:
        if place.is_run:
            raise FolderError(f"{place.path} has lost its {CONFIG}: put it back, or start anew with --overwrite")
        raise FolderError(f"{place.path} is not a run folder: there is nothing to resume")
    return _must_equal(config, RunConfig.from_yaml(place / CONFIG).resolved(), f"the run in {place.path}")


def load(place: RunFolder, config: RunConfig, built: Built) -> dict[str, Any] | None:
    """Put the trainer where the checkpoint says; returns the result of a finished run, None of any other.

    Raises:
        ConfigError: the state was trained with another configuration: somebody changed config.yaml since.
        StateError: a damaged checkpoint, other data, a state that does not fit, or one that diverged and is extended.
    """
    if not place.has_checkpoint:
        return None
    path = place / CHECKPOINT
    try:
        state = load_state(path, "checkpoint", READABLE)
    except VersionError:
        raise
    except StateError as error:
        raise StateError(
            f"{error}; delete it, and --resume trains again from the first step to the same result"
        ) from None
    extended = _must_equal(config, stored_config(state, path), f"the checkpoint in {place.path}")
    if state["fingerprint"] != built.fingerprint:
        raise StateError(
            f"the data of {built.task.name!r} are not those that {place.path} was trained on; put them back, "
            "or start a run in a new folder"
        )
    result: Mapping[str, Any] | None = state["result"]
    version = version_of(path)
    if version != VERSION and (extended or result is None):
        reason = f"{path} has version {version} of the format, this isthmus reads version {VERSION}"
        raise _not_resumable(
            place,
            f"{reason}; use the isthmus that wrote it. What optimisers save has changed, its weights can still be read",
        )
    if extended and result is not None and result["status"] == Status.DIVERGED:
        raise _not_resumable(place, f"the run in {place.path} diverged, so that it cannot be extended")
    rows, tolerance = state["trainer"]["history"], config.train.tolerance
    if extended and result is not None and rows and 0 < tolerance >= (rows[-1].get("residual_max") or tolerance):
        raise _not_resumable(
            place,
            f"the run in {place.path} reached its tolerance, {tolerance:g}: an extension would stop at once",
        )
    try:
        # version 1 kept neither an earlier step nor the newest row's network
        built.trainer.load_state_dict({"kept_step": None, "good": None, **state["trainer"]})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise misfit(path, f"{type(error).__name__}: {error}") from error
    return None if result is None or extended else dict(result)


def _must_equal(config: RunConfig, stored: RunConfig, owner: str) -> bool:
    """Check that a run is resumed with the configuration it was begun with, or with that and an extension.

    Args:
        config: to resume with.
        stored: of the run.
        owner: has it, as messages say.

    Returns:
        Whether the run is extended.

    Raises:
        ConfigError: it is another; every key that differs is named.
    """
    differences = config.differences(stored)
    mine, theirs = config.train.extend, stored.train.extend
    if extended := len(mine) > len(theirs) and mine[: len(theirs)] == theirs:
        del differences["train.extend"]
    problems = [
        ConfigProblem(key, f"{owner} has {show_value(there)}, got {show_value(here)}")
        for key, (here, there) in differences.items()
    ]
    if problems:
        advice = "a run is resumed as it was begun; for other values start one in a new folder"
        raise ConfigError(problems, "the configuration to resume with", advice)
    return extended


def _not_resumable(place: RunFolder, reason: str) -> StateError:
    """The error of a run whose network can be taken, and whose training cannot."""
    start = command("train", "--init-from", place.path, "--out", folder_beside(place.path))
    return StateError(f"{reason}: `{start}` starts a run from its network")
