"""Newton–CG with a trust region on a discretised two-ended problem: exact Hessian products, Kronecker metric.

The critical points of the discrete objective are the solutions of the discretised (E9) with its two end conditions, so
that minimising it solves the two-ended problem; the path space itself, 2·N·w numbers a node, never enters a linear
system. Variables are ``V = √(h b_i) W_i``, in which the Hessian over μ is the unit matrix plus the data's part.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from isthmus.solve.truncated_cg import truncated_cg
from isthmus.two_ended._types import StageWeights
from isthmus.two_ended.metric import kronecker_inverse
from isthmus.two_ended.sweeps import Sweeps


class TwoEndedStatus(Enum):
    """How a solve of the two-ended problem ended."""

    CONVERGED = "converged"
    STALLED = "stalled"
    BUDGET_SPENT = "budget spent"
    DIVERGED = "diverged"


@dataclass(frozen=True)
class NewtonResult:
    """The end of `minimise`.

    Args:
        W: stage weights, the best found.
        objective: the discrete (E3).
        status: converged, stalled (no step decreases the objective any more), budget spent, diverged (not finite).
        residual: largest relative stationarity residual of a stage.
        products: Hessian products spent.
        iterations: accepted and refused steps.
    """

    W: StageWeights
    objective: float
    status: TwoEndedStatus
    residual: float
    products: int
    iterations: int


def relative_residual(W: StageWeights, optimal: StageWeights) -> float:
    """Largest ``‖W_i − M_iσ(X_i)ᵀ‖/‖W_i‖`` over stages; a stage that is zero and should be counts as 0."""
    off, size = (W - optimal).norm(dim=(1, 2)), W.norm(dim=(1, 2))
    return float(torch.where(off == 0, off, off / size).max())


# Below this fraction of the objective a predicted decrease drowns in the rounding of the objective itself.
_RESOLUTION = 1e-11


def minimise(
    sweeps: Sweeps, W: StageWeights, tol: float, budget: int, refresh_every: int = 10, cg_limit: int = 400
) -> NewtonResult:
    """Bring the stage weights to a critical point of the discrete objective.

    Args:
        sweeps: the discretisation.
        W: where to start; not changed.
        tol: on the largest relative stationarity residual.
        budget: Hessian products at most.
        refresh_every: steps between two measurements of the metric.
        cg_limit: products a step at most.
    """
    mu, scale = sweeps.mu, sweeps.measure.sqrt()[:, None, None]
    f = sweeps.objective(W)
    if not math.isfinite(f):
        return NewtonResult(W, f, TwoEndedStatus.DIVERGED, math.inf, 0, 0)
    raw = sweeps.gradient(W)
    size = float((W * scale).norm())
    radius, smallest = max(0.1 * size, 1e-3), 1e-14 * max(size, 1e-3)
    inverse: Callable[[Tensor], Tensor] = torch.clone
    products = iterations = refused = idle = 0
    best = math.inf
    while True:
        residual = relative_residual(W, sweeps.optimal_weights(W, raw))
        status = None
        if residual <= tol:
            status = TwoEndedStatus.CONVERGED
        elif radius < smallest or refused >= 25 or idle >= 5:
            status = TwoEndedStatus.STALLED
        elif products >= budget:
            status = TwoEndedStatus.BUDGET_SPENT
        if status is not None:
            return NewtonResult(W, f, status, residual, products, iterations)
        if iterations % refresh_every == 0:
            inverse = kronecker_inverse(sweeps, W, seed=iterations)
        step = truncated_cg(
            lambda v, W=W: sweeps.hessian_product(W, v / scale) / (scale * mu),  # type: ignore[misc]
            raw / (scale * mu),
            inverse,
            radius,
            min(0.1, math.sqrt(residual)),
            min(cg_limit, max(1, budget - products)),
        )
        products, iterations = products + step.products, iterations + 1
        trial = W + step.x / scale
        f_trial = sweeps.objective(trial)
        predicted, noise = mu * step.decrease, _RESOLUTION * abs(f)
        if predicted > 10 * noise:
            ratio = (f - f_trial) / predicted if math.isfinite(f_trial) else -1.0
        else:  # too small to be seen in the objective: go by the model, and by whether the residual still falls
            ratio = 1.0 if f_trial <= f + noise else -1.0
            idle = 0 if residual < 0.5 * best else idle + 1
            best = min(best, residual)
        if ratio < 0.25:
            radius = 0.25 * step.length
        elif ratio > 0.75 and step.limited:
            radius *= 2
        if ratio > 1e-3:
            W, f, refused = trial, f_trial, 0
        else:
            refused += 1
            sweeps.objective(W)
        raw = sweeps.gradient(W)
