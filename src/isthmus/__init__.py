"""isthmus: Leaky ResNets as Hamiltonian mechanics (arXiv:2405.17573).

Train a `LeakyResNet`, read its mechanics, see its bottleneck. Names and rooms load when they are used, so that
``import isthmus`` by itself costs nothing and the command line answers at once. `bottleneck`, `mechanics`, `probe` and
`solve` are rooms and verbs: ``from isthmus import probe`` can be called, and holds what else is in its room.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isthmus.activations import Identity, ReLU, SmoothReLU
    from isthmus.bottleneck import Bottleneck, bottleneck
    from isthmus.branches import Branch, branches, follow
    from isthmus.certificate import Certificate, certify
    from isthmus.geodesic import Geodesic
    from isthmus.mechanics import MechanicsTable, mechanics
    from isthmus.mesh import Adaptive, Equidistant, Irregular, MeshScheduler
    from isthmus.model import LeakyResNet
    from isthmus.probe import Comparison, Profile, compare, probe, simplify
    from isthmus.problem import Problem
    from isthmus.solve import Solution, Stage, Trainer, recipe, solve
    from isthmus.status import Status
    from isthmus.tasks import Task, make_task
    from isthmus.two_ended import solve_two_ended

__version__ = "0.1.0"

_HOMES = {
    "activations": ("Identity", "ReLU", "SmoothReLU"),
    "bottleneck": ("Bottleneck",),
    "branches": ("Branch", "follow"),
    "certificate": ("Certificate", "certify"),
    "geodesic": ("Geodesic",),
    "mechanics": ("MechanicsTable",),
    "mesh": ("Adaptive", "Equidistant", "Irregular", "MeshScheduler"),
    "model": ("LeakyResNet",),
    "probe": ("Comparison", "Profile", "compare", "simplify"),
    "problem": ("Problem",),
    "solve": ("Solution", "Stage", "Trainer", "recipe"),
    "status": ("Status",),
    "tasks": ("Task", "make_task"),
    "two_ended": ("solve_two_ended",),
}
__all__ = [
    "Adaptive",
    "Bottleneck",
    "Branch",
    "Certificate",
    "Comparison",
    "Equidistant",
    "Geodesic",
    "Identity",
    "Irregular",
    "LeakyResNet",
    "MechanicsTable",
    "MeshScheduler",
    "Problem",
    "Profile",
    "ReLU",
    "SmoothReLU",
    "Solution",
    "Stage",
    "Status",
    "Task",
    "Trainer",
    "bottleneck",
    "branches",
    "certify",
    "compare",
    "follow",
    "make_task",
    "mechanics",
    "probe",
    "recipe",
    "simplify",
    "solve",
    "solve_two_ended",
]
_HOME_OF = {name: room for room, names in _HOMES.items() for name in names}
_ROOMS = (*_HOMES, "curvature", "ensemble", "flow", "initialise", "loss", "optimise", "report", "runs", "theory")


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(f"isthmus.{_HOME_OF[name]}"), name)
    if name in _ROOMS:
        return import_module(f"isthmus.{name}")
    raise AttributeError(f"module 'isthmus' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
