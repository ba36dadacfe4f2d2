"""isthmus: Leaky ResNets as Hamiltonian mechanics (arXiv:2405.17573).

Train a `LeakyResNet`, read its mechanics, see its bottleneck. Names and rooms load when they are used, so that
``import isthmus`` by itself costs nothing and the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isthmus.activations import Identity, ReLU, SmoothReLU
    from isthmus.bottleneck import Bottleneck
    from isthmus.geodesic import Geodesic
    from isthmus.mechanics import MechanicsTable
    from isthmus.mesh import Adaptive, Equidistant, Irregular, MeshScheduler
    from isthmus.model import LeakyResNet
    from isthmus.problem import Problem
    from isthmus.solve import Trainer, recipe
    from isthmus.tasks import Task, make_task

__version__ = "0.1.0"

__all__ = [
    "Adaptive",
    "Bottleneck",
    "Equidistant",
    "Geodesic",
    "Identity",
    "Irregular",
    "LeakyResNet",
    "MechanicsTable",
    "MeshScheduler",
    "Problem",
    "ReLU",
    "SmoothReLU",
    "Task",
    "Trainer",
    "make_task",
    "recipe",
]

_HOMES = {
    "activations": ("Identity", "ReLU", "SmoothReLU"),
    "bottleneck": ("Bottleneck",),
    "geodesic": ("Geodesic",),
    "mechanics": ("MechanicsTable",),
    "mesh": ("Adaptive", "Equidistant", "Irregular", "MeshScheduler"),
    "model": ("LeakyResNet",),
    "problem": ("Problem",),
    "solve": ("Trainer", "recipe"),
    "tasks": ("Task", "make_task"),
}
_HOME_OF = {name: room for room, names in _HOMES.items() for name in names}
_ROOMS = (
    *_HOMES,
    *("certificate", "curvature", "ensemble", "flow", "initialise", "optimise", "probe", "report", "runs", "theory"),
    "two_ended",
)


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"isthmus.{_HOME_OF[name]}"), name)
    if name in _ROOMS:
        return import_module(f"isthmus.{name}")
    raise AttributeError(f"module 'isthmus' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
