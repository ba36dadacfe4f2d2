"""Between nodes: Hermite cubics of states and momenta, their defect in (E9), and meshes that equalise it."""

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.activations import Activation
from isthmus.two_ended._types import NodePath, Points, StepSizes
from isthmus.two_ended.schemes import Scheme


def velocities(A: NodePath, M: NodePath, effective_depth: float, activation: Activation) -> tuple[NodePath, NodePath]:
    """``∂_pA = MSᵀS − L̃A`` and ``∂_pM = L̃M − σ̇(A) ⊙ [WᵀM]``, ``W = MSᵀ``: (E9) at any (A, M), batch-first."""
    S = activation.features(A)
    W = M.mT @ S
    dA = S @ W.mT - effective_depth * A
    pulled = (M @ W)[..., : A.shape[-1]]
    return dA, effective_depth * M - activation.derivative(A) * pulled


def hermite(
    values: NodePath, slopes: NodePath, positions: Float[Tensor, "nodes"], p: Points
) -> Float[Tensor, "points samples width"]:
    """The cubic Hermite interpolant of values and slopes at nodes, at any points of [0, 1]."""
    n = (torch.searchsorted(positions, p, right=True) - 1).clamp(0, len(positions) - 2)
    h = (positions[n + 1] - positions[n])[:, None, None]
    t = ((p - positions[n])[:, None, None]) / h
    left = (1 + 2 * t) * (1 - t) ** 2 * values[n] + t * (1 - t) ** 2 * h * slopes[n]
    right = t * t * (3 - 2 * t) * values[n + 1] + t * t * (t - 1) * h * slopes[n + 1]
    return left + right


def defects(A: NodePath, M: NodePath, steps: StepSizes, effective_depth: float, activation: Activation) -> StepSizes:
    """How far the Hermite cubics miss (E9) at each step's midpoint, relative to the size of A and of M.

    Of the scheme's own order in h wherever the solution is smooth, and local: it says where a mesh is too coarse.
    """
    dA, dM = velocities(A, M, effective_depth, activation)
    h = steps[:, None, None]
    middles, rates = [], []
    for u, du in ((A, dA), (M, dM)):
        middles.append(0.5 * (u[1:] + u[:-1]) + 0.125 * h * (du[:-1] - du[1:]))
        rates.append(1.5 * (u[1:] - u[:-1]) / h - 0.25 * (du[1:] + du[:-1]))
    wanted = velocities(middles[0], middles[1], effective_depth, activation)
    total = steps.new_zeros(len(steps))
    for u, rate, right in zip((A, M), rates, wanted, strict=True):
        size = float(u.norm(dim=(1, 2)).max())
        if size > 0:
            total = total + (rate - right).norm(dim=(1, 2)) / size
    return total


def equidistribute(
    steps: StepSizes, defect: StepSizes, order: int, count: int, floor: float = 0.1
) -> Float[Tensor, "new_steps"]:
    """A mesh of ``count`` steps over which ``∫ defect^{1/order}/h`` is equal, smoothed (de Boor 1973).

    Args:
        steps: the present mesh.
        defect: of each step, of order ``order`` in its size.
        order: of the scheme.
        count: number of new steps.
        floor: least density, as a fraction of its mean: no step grows beyond ``1/floor`` of the mean.
    """
    density = defect.clamp_min(0) ** (1 / order) / steps
    padded = torch.cat((density[:1], density, density[-1:]))
    density = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    mean = (density * steps).sum() / steps.sum()
    if not (torch.isfinite(mean) and mean > 0):
        return torch.full_like(steps[:1].expand(count), 1 / count)
    density = density.clamp_min(floor * float(mean))
    mass = torch.cat((steps.new_zeros(1), (density * steps).cumsum(0)))
    positions = torch.cat((steps.new_zeros(1), steps.cumsum(0)))
    wanted = torch.linspace(0, 1, count + 1, dtype=steps.dtype, device=steps.device) * mass[-1]
    n = (torch.searchsorted(mass, wanted, right=True) - 1).clamp(0, len(steps) - 1)
    p = positions[n] + (wanted - mass[n]) / density[n]
    new = p[1:] - p[:-1]
    return new / new.sum()


def stage_positions(steps: StepSizes, scheme: Scheme) -> Float[Tensor, "stages"]:
    """Where in [0, 1] the stages of every step lie."""
    starts = steps.cumsum(0) - steps
    return (starts[:, None] + steps[:, None] * steps.new_tensor(scheme.c)).flatten()
