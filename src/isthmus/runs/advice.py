"""What to do with a run that is no critical point: a command that works as it stands. Without torch."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from isthmus._support import command
from isthmus.runs.folder import RunFolder, folder_beside
from isthmus.runs.schema import CHECKPOINT, SUMMARY
from isthmus.status import Status


def further(train: Mapping[str, Any], place: Path, solver: str, steps: Callable[[], int], alone: bool = False) -> str:
    """The command that brings a run's network nearer to a critical point: that solver from here on, or more of it.

    Args:
        train: the section ``train`` of the run's configuration, which the new run takes over.
        place: the folder of the run, or the file of its network.
        solver: the recipe to go on with; its steps are in float64.
        steps: asked for the number of further steps where the run already was of that kind.
        alone: the network came without its run, so that nothing can be resumed.
    """
    if (train.get("recipe"), train.get("dtype")) == (solver, "float64") and not alone and _can_go_on(place):
        return command("train", "--resume", "--extend", steps(), "--out", place)
    # What was chosen for another recipe is left to this one.
    chosen = {"--steps": "steps", "--rate": "rate", "--batch-size": "batch_size"}
    own = [word for option, key in chosen.items() if train.get(key) is not None for word in (option, "none")]
    out = folder_beside(place, f"-{solver}")
    return command("train", "--init-from", place, "--solver", solver, "--dtype", "float64", *own, "--out", out)


def _can_go_on(folder: Path) -> bool:
    """Whether the training of a run can be resumed and extended."""
    from isthmus.runs.state import VERSION, version_of

    place = RunFolder(folder)
    whole = place.has_config and place.has_checkpoint and version_of(place / CHECKPOINT) == VERSION
    return whole and place.read_json(SUMMARY).get("status") != Status.DIVERGED
