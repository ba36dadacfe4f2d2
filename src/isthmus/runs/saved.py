"""Reading a trained network back: the file that people share, checked against the state beside it."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from isthmus._support import command
from isthmus.runs.branch_folder import END, START, is_branch
from isthmus.runs.config import RunConfig
from isthmus.runs.folder import FolderError, RunFolder
from isthmus.runs.schema import CHECKPOINT, CONFIG, MODEL
from isthmus.runs.state import READABLE, VERSION, StateError, load_state, version_of


@dataclass(frozen=True)
class Saved:
    """A trained network as it lies on the disk.

    Args:
        file: that it was read from.
        weights: weights, step-sizes and end maps by name.
        config: that it was trained with.
        step: the steps it had made.
        fingerprint: a digest of the data it was trained on; None where the file does not say.
        alone: whether it is a file without a run folder around it.
    """

    file: Path
    weights: Mapping[str, Any]
    config: RunConfig
    step: int
    fingerprint: str | None
    alone: bool = False

    @property
    def place(self) -> Path:
        """What the user gave: the run folder, or the file."""
        return self.file if self.alone else self.file.parent


def read_saved(path: str | Path) -> Saved:
    """The network of a run's folder, or of a model.safetensors that somebody shared.

    Of a folder it is model.safetensors, the file that people share, checked against the checkpoint beside it. A run
    that has none yet is read from its checkpoint, with a warning.

    Raises:
        FolderError: not a run, or nothing was saved yet.
        StateError: a damaged file; files of one step that hold different networks.
        ConfigError: a configuration that this isthmus does not know.
    """
    path = Path(path)
    if path.is_file():
        return _model(path, alone=True)
    place = RunFolder(path)
    model, checkpoint = place / MODEL, place / CHECKPOINT
    if not place.has_checkpoint:
        if model.is_file():
            found = _model(model)
            if place.has_config and (keys := found.config.differences(RunConfig.from_yaml(place / CONFIG).resolved())):
                raise StateError(
                    f"{model} is not of the run in {path}: their configurations differ in {', '.join(keys)}; put its "
                    "own back, or give the file alone"
                )
            return found
        if place.is_run:
            train = command("train", "--resume", "--out", path)
            raise FolderError(f"{path} has no saved weights yet; `{train}` trains it")
        if is_branch(path):
            raise FolderError(
                f"{path} holds a branch: give the last network of it, {path / END}, or the first, {START}"
            )
        raise FolderError(f"{path} is not a run folder; give the folder that `isthmus train` wrote")
    try:
        state = _checkpoint(checkpoint)
    except StateError as error:
        if not model.is_file():
            raise
        raise StateError(f"{error}; delete it, and {MODEL} is read without it") from None
    if not model.is_file():
        warnings.warn(f"{path} has no {MODEL} yet: its checkpoint of step {state.step} is read", stacklevel=3)
        return state
    found = _model(model)
    _compare(found, state)
    return found


def _compare(model: Saved, checkpoint: Saved) -> None:
    """Check that model.safetensors holds what the checkpoint beside it does; an earlier step is only warned about.

    Raises:
        StateError: it does not, with the command that writes it anew.
    """
    mend = f"`{command('train', '--resume', '--out', model.file.parent)}` writes it anew from the checkpoint"
    if version_of(checkpoint.file) != VERSION:
        mend = "delete it, and the checkpoint is read"
    keys = [key for key in model.config.differences(checkpoint.config) if key != "train.extend"]
    foreign = None not in (model.fingerprint, checkpoint.fingerprint) and model.fingerprint != checkpoint.fingerprint
    if model.step < checkpoint.step and not keys and not foreign:
        warnings.warn(
            f"{model.file} is of step {model.step}, the checkpoint beside it of step {checkpoint.step}: the former is "
            f"read; {mend}",
            stacklevel=4,
        )
        return
    other = [
        name
        for name in sorted({*model.weights, *checkpoint.weights})
        if name not in model.weights
        or name not in checkpoint.weights
        or not _equal(model.weights[name], checkpoint.weights[name])
    ]
    if keys:
        reason = f"their configurations differ in {', '.join(keys)}"
    elif foreign and model.step != checkpoint.step:
        reason = "they were trained on other data"
    elif model.step != checkpoint.step:
        reason = f"the former is of step {model.step}, the latter of step {checkpoint.step}"
    elif other:
        reason = f"both are of step {model.step}, and {', '.join(other)} are not the same"
    else:
        return
    raise StateError(f"{model.file} and {checkpoint.file.name} beside it are not of one network: {reason}; {mend}")


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _model(path: Path, alone: bool = False) -> Saved:
    weights = load_state(path, "model", READABLE)
    about = weights.pop("rebuild")
    config = RunConfig.from_mapping(about["config"], f"the configuration in {path}")
    return Saved(path, weights, config, int(about["step"]), about.get("fingerprint"), alone)


def _checkpoint(path: Path) -> Saved:
    state = load_state(path, "checkpoint", READABLE)
    trainer = state["trainer"]
    return Saved(path, trainer["model"], stored_config(state, path), int(trainer["step"]), state["fingerprint"])


def stored_config(state: Mapping[str, Any], path: Path) -> RunConfig:
    """The configuration that a saved state was trained with.

    Raises:
        StateError: a checkpoint of an older isthmus has none.
        ConfigError: one that this isthmus does not know.
    """
    if "config" not in state:
        raise misfit(path, "it does not say its configuration")
    return RunConfig.from_mapping(state["config"], f"the configuration in {path}")


def misfit(path: Path, reason: str) -> StateError:
    """The error for a state that this version cannot take."""
    return StateError(f"{path} does not fit this isthmus ({reason}); use the version that wrote it")
