"""What an adaptive mesh shares out equally over its steps."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._types import PerLayer, StepSizesVector
from isthmus.mesh.base import relative_changes

Monitor = Literal["change", "curvature"]


def shares_of_curvature(path: Float[Tensor, "layers_plus_1 samples *state"], rho: StepSizesVector) -> PerLayer:
    """``ρ_ℓ‖x″‖^{1/2}`` of each step, with x″ by second differences at the two ends of the step, averaged.

    The local error of Euler's scheme is ``ρ²‖x″‖/2``. Steps on which it is equal have the least sum of local errors for
    their number; its square root is this monitor (de Boor 1973; Huang and Russell, *Adaptive Moving Mesh Methods*,
    2011, chapter 2). Norms are over all samples and entries, and absolute: no state is divided by.

    Args:
        path: states ``x_0 … x_L``.
        rho: the steps on which they were computed.
    """
    if len(rho) == 1:
        return torch.zeros_like(rho)
    path, rho = path.double(), rho.to(path.device, torch.float64)
    h = rho.reshape(-1, *[1] * (path.ndim - 1))
    speed = path.diff(dim=0) / h
    bend = 2 * speed.diff(dim=0) / (h[1:] + h[:-1])
    nodes = torch.linalg.vector_norm(bend, dim=tuple(range(1, path.ndim)))
    nodes = torch.cat((nodes[:1], nodes, nodes[-1:]))
    return rho * ((nodes[1:] + nodes[:-1]) / 2).sqrt()


def monitored(path: Float[Tensor, "layers_plus_1 samples *state"], rho: StepSizesVector, monitor: Monitor) -> PerLayer:
    """What the monitor gives for each step, ready for `StepSizeRule.update`.

    Raises:
        ValueError: states and steps do not fit, or an unknown monitor.
    """
    if path.ndim < 2 or len(path) != len(rho) + 1:
        raise ValueError(
            f"{len(rho)} steps have {len(rho) + 1} states, the first before any step: expected a path "
            f"({len(rho) + 1}, samples, …), got {tuple(path.shape)}"
        )
    if monitor == "change":
        return relative_changes(path)
    if monitor == "curvature":
        return shares_of_curvature(path, rho)
    raise ValueError(f"monitor must be 'change' or 'curvature', got {monitor!r}")
