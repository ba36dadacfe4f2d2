"""Step-sizes ρ_ℓ: rules with explicit state, and a scheduler that applies them to a model."""

from isthmus.mesh.adaptive import Adaptive
from isthmus.mesh.base import MeshState, StepSizeRule, relative_changes
from isthmus.mesh.equidistant import Equidistant
from isthmus.mesh.interpolate import interpolate_weights, layer_midpoints, weights_at
from isthmus.mesh.irregular import Irregular
from isthmus.mesh.monitor import shares_of_curvature
from isthmus.mesh.ode import ODEMesh
from isthmus.mesh.protocol import MovesWeights, Stepped
from isthmus.mesh.residual import ResidualSteps
from isthmus.mesh.scheduler import MeshScheduler

__all__ = [
    "Adaptive",
    "Equidistant",
    "Irregular",
    "MeshScheduler",
    "MeshState",
    "MovesWeights",
    "ODEMesh",
    "ResidualSteps",
    "StepSizeRule",
    "Stepped",
    "interpolate_weights",
    "layer_midpoints",
    "relative_changes",
    "shares_of_curvature",
    "weights_at",
]
