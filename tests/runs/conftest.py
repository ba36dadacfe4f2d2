from pathlib import Path
from typing import Any

import pytest
import torch

from isthmus.runs.config import RunConfig

TINY: dict[str, Any] = {
    "name": "tiny",
    "task": {"dims": [6, 2, 6], "hidden": 8, "train": 60, "test": 30},
    "model": {"width": 12, "depth": 6, "effective_depth": 3.0},
    "train": {"steps": 24, "log_every": 4, "checkpoint_every": 7, "threads": 1, "dtype": "float64"},
}


@pytest.fixture
def tiny() -> RunConfig:
    """A run of 24 steps, 4 of Muon and 20 of L-BFGS, in a fraction of a second."""
    return RunConfig.from_mapping(TINY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


class StopAfter:
    """A `should_stop` that asks to stop after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


@pytest.fixture
def stop_after() -> type[StopAfter]:
    return StopAfter


def same_bits(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture(name="same_bits")
def same_bits_fixture() -> Any:
    return same_bits
