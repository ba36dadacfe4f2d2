"""Shapes on a mesh: `nodes` is `steps + 1`; a step has one weight matrix a stage of its scheme."""

from jaxtyping import Float
from torch import Tensor

Columns = Float[Tensor, "width samples"]
NodePath = Float[Tensor, "nodes samples width"]
NodeWeights = Float[Tensor, "nodes width width_in"]
StageWeights = Float[Tensor, "stages width width_in"]
StagePath = Float[Tensor, "stages width samples"]
StepSizes = Float[Tensor, "steps"]
Points = Float[Tensor, "points"]
