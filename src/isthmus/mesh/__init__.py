"""Step-sizes ρ_ℓ: rules with explicit state, and a scheduler that applies them to a model."""

from isthmus.mesh.adaptive import Adaptive
from isthmus.mesh.base import MeshState, StepSizeRule, relative_changes
from isthmus.mesh.equidistant import Equidistant
from isthmus.mesh.interpolate import interpolate_weights, layer_midpoints, weights_at
from isthmus.mesh.irregular import Irregular
from isthmus.mesh.scheduler import MeshScheduler

__all__ = [
    "Adaptive",
    "Equidistant",
    "Irregular",
    "MeshScheduler",
    "MeshState",
    "StepSizeRule",
    "interpolate_weights",
    "layer_midpoints",
    "relative_changes",
    "weights_at",
]
