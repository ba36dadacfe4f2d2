"""Runs: typed configurations, run folders, checkpoints, and `execute`, which does it all."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isthmus.runs.build import load_run_model, load_run_problem
    from isthmus.runs.config import RunConfig
    from isthmus.runs.execution import Outcome, RunError, execute
    from isthmus.runs.folder import FolderError, RunFolder
    from isthmus.runs.problems import ConfigError, ConfigProblem
    from isthmus.runs.saved import Saved, read_saved
    from isthmus.runs.state import StateError, load_state, save_state

# Imported on first use (PEP 562): the command line reads configurations without loading torch.
_HOMES = {
    "ConfigError": "problems",
    "ConfigProblem": "problems",
    "FolderError": "folder",
    "Outcome": "execution",
    "RunConfig": "config",
    "RunError": "execution",
    "RunFolder": "folder",
    "Saved": "saved",
    "StateError": "state",
    "execute": "execution",
    "load_run_model": "build",
    "load_run_problem": "build",
    "load_state": "state",
    "read_saved": "saved",
    "save_state": "state",
}

__all__ = [
    "ConfigError",
    "ConfigProblem",
    "FolderError",
    "Outcome",
    "RunConfig",
    "RunError",
    "RunFolder",
    "Saved",
    "StateError",
    "execute",
    "load_run_model",
    "load_run_problem",
    "load_state",
    "read_saved",
    "save_state",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """Public names, whether imported yet or not."""
    return sorted(set(globals()) | set(__all__))
