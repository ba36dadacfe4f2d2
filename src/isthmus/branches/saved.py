"""The state of a branch in a file: written whole after every point, read back to the same next step."""

import io
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from isthmus._support import write_bytes
from isthmus.branches.branch import BranchPoint, Event, EventKind
from isthmus.branches.correct import Direction, Here
from isthmus.branches.follower import Follower
from isthmus.curvature import Lowest
from isthmus.problem import Evaluation
from isthmus.status import Status

VERSION = 1
_FIXED = ("start", "tolerance", "at_fold", "step", "resolution", "eigenvalues")
_PLAIN = ("advice", "step", "taken", "number", "size", "products", "spent", "steps", "leaving")
_GOING_ON = (Status.BUDGET_SPENT, Status.INTERRUPTED)


def _identity(follower: Follower) -> dict[str, Any]:
    """What must be the same for a state to belong to a branch."""
    settings = asdict(follower.settings)
    common = {"parameter": follower.family.name, "shapes": follower.shapes, "sign": follower.sign}
    return common | {name: settings[name] for name in _FIXED}


def _fields(value: Any) -> Any:
    """The fields of a dataclass as they are; None of None."""
    return None if value is None else {f.name: getattr(value, f.name) for f in fields(value)}


def save(follower: Follower, file: Path) -> None:
    """Write the state, whole or not at all."""
    here = follower.here
    state = {
        "version": VERSION,
        "identity": _identity(follower),
        "stop": follower.settings.stop,
        "points": [_fields(p) for p in follower.points],
        "events": [asdict(e) | {"kind": e.kind.value} for e in follower.events],
        "status": None if follower.status is None else follower.status.value,
        "here": None if here is None else _fields(here) | {"evaluation": asdict(here.evaluation)},
        "along": _fields(follower.along),
        "least": _fields(follower.least),
    } | {name: getattr(follower, name) for name in _PLAIN}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(file, buffer.getvalue())


def load(follower: Follower, file: Path) -> None:
    """Take a state back: the next step is the one that would have come.

    A branch that had reached its stop goes on where the stop is now another one.

    Raises:
        ValueError: a file that is none, or of another branch.
    """
    state = _read(file)
    mine, theirs = _identity(follower), state["identity"]
    for name, value in mine.items():
        if theirs[name] != value:
            raise ValueError(
                f"{file} holds another branch: its {name} is {theirs[name]}, here {value}. Delete it, or name another "
                "checkpoint"
            )
    follower.points = [BranchPoint(**p) for p in state["points"]]
    follower.events = [Event(**(e | {"kind": EventKind(e["kind"])})) for e in state["events"]]
    for name in _PLAIN:
        setattr(follower, name, state[name])
    follower.along = None if state["along"] is None else Direction(**state["along"])
    if state["here"] is not None:
        h = state["here"]
        follower.here = Here(h["tau"], h["x"], Evaluation(**h["evaluation"]), h["residual"])
    follower.least = None if state["least"] is None else Lowest(**state["least"])
    status = None if state["status"] is None else Status(state["status"])
    further = status is Status.CONVERGED and state["stop"] != follower.settings.stop
    follower.status = None if status in _GOING_ON or further else status
    if follower.status is None:
        follower.advice = ""
    _check_ahead(follower, file)
    follower.take_up()
    _check_data(follower, file)


def _check_ahead(follower: Follower, file: Path) -> None:
    """Values that must have a point, and can have none any more.

    Raises:
        ValueError: there are some.
    """
    here, family = follower.here, follower.family
    if here is None:
        return
    for value in follower.settings.at:
        behind = follower.sign * (family.coordinate(value) - here.tau) < 0
        if behind and not any(abs(p.value - value) <= 1e-9 * max(1.0, abs(value)) for p in follower.points):
            raise ValueError(
                f"at: {value:g} lies behind the last point of the branch in {file}, {family.value(here.tau):g}, and "
                "has no point: follow anew from its start for one there"
            )


def _check_data(follower: Follower, file: Path) -> None:
    """Whether the last point has the objective that it had.

    Raises:
        ValueError: it has not: the data or the problem are others.
    """
    here = follower.here
    if here is None:
        return
    now, before = follower.family.at(follower.family.value(here.tau)).evaluate().objective, here.evaluation.objective
    if not abs(now - before) <= 1e-9 * max(abs(before), 1e-300):
        raise ValueError(
            f"{file} holds a branch of another problem: its last point has the objective {before:.9g}, here {now:.9g}. "
            "Give the same data, or name another checkpoint"
        )


def points_of(file: str | Path) -> list[BranchPoint]:
    """The points of a saved branch, with their parameters where they were kept; nothing is computed.

    Raises:
        ValueError: a file that is none.
    """
    return [BranchPoint(**p) for p in _read(Path(file))["points"]]


def _read(file: Path) -> dict[str, Any]:
    try:
        state = torch.load(file, weights_only=True)
    except Exception as error:
        raise ValueError(f"{file} cannot be read as a branch ({error}): delete it to begin anew") from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise ValueError(f"{file} is no branch of this version: delete it to begin anew")
    return state
