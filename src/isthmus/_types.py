"""Shape aliases, defined once.

Public tensors are batch-first, ``(samples, width)``; the paper's matrices are their transposes.
``width_in`` is the width of the features: ``width + 1`` with the appended one, ``width`` without.
"""

from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, "samples width"]
FeatureRows = Float[Tensor, "samples width_in"]
Path = Float[Tensor, "layers_plus_1 samples width"]
Weights = Float[Tensor, "layers width width_in"]
StepSizesVector = Float[Tensor, "layers"]
PerLayer = Float[Tensor, "layers"]
