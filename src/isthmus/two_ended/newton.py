"""Newton–CG with a trust region on a discretised two-ended problem: exact Hessian products, the metric of all stages.

The critical points of the discrete objective are the solutions of the discretised (E9) with its two end conditions, so
that minimising it solves the two-ended problem; the path space itself, 2·N·w numbers a node, never enters a linear
system. Variables are ``V = √(h b_i) W_i``, in which the Hessian is μ times the unit matrix plus the data's part.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from isthmus.curvature.dual import DualPreconditioner
from isthmus.optimise.truncated_cg import truncated_cg
from isthmus.optimise.trust_region import SMALLER, choose
from isthmus.problem import Problem
from isthmus.two_ended._types import StageWeights
from isthmus.two_ended.linearise import StageLinearisation
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
    problem: Problem,
    sweeps: Sweeps,
    W: StageWeights,
    tol: float,
    budget: int,
    cg_limit: int = 400,
    corrections: int = 4,
) -> NewtonResult:
    """Bring the stage weights to a critical point of the discrete objective.

    Args:
        problem: whose flow is discretised.
        sweeps: the discretisation.
        W: where to start; not changed.
        tol: on the largest relative stationarity residual.
        budget: Hessian products at most.
        cg_limit: products a step at most.
        corrections: second-order corrections of a trial at most.
    """
    scale, shape = sweeps.measure.sqrt()[:, None, None], W.shape
    f = sweeps.objective(W)
    if not math.isfinite(f):
        return NewtonResult(W, f, TwoEndedStatus.DIVERGED, math.inf, 0, 0)
    raw = sweeps.gradient(W)
    size, unit = float((W * scale).norm()), math.sqrt(sweeps.mu)  # a length in the metric is at least unit times that
    radius, smallest = unit * max(0.1 * size, 1e-3), unit * 1e-14 * max(size, 1e-3)
    net = StageLinearisation(sweeps)
    metric = DualPreconditioner(problem, net=net)
    products = iterations = refused = idle = 0
    best, moved = math.inf, True

    def value(v: Tensor) -> float:
        found = sweeps.objective(v.view(shape) / scale)
        return found if math.isfinite(found) else math.inf

    while True:
        residual = relative_residual(W, sweeps.optimal_weights(W, raw))
        status = None
        if residual <= tol:
            status = TwoEndedStatus.CONVERGED
        elif radius < smallest or refused >= 25 or idle >= 5:
            status = TwoEndedStatus.STALLED
        elif products >= budget:
            status = TwoEndedStatus.BUDGET_SPENT
        elif moved:
            try:
                metric.measure([W])
            except OverflowError:
                status = TwoEndedStatus.DIVERGED
        if status is not None:
            return NewtonResult(W, f, status, residual, products, iterations)
        outputs, x = sweeps.end.out_map @ sweeps.A[-1], (W * scale).flatten()
        step = truncated_cg(
            lambda v, W=W: (sweeps.hessian_product(W, v.view(shape) / scale) / scale).flatten(),  # type: ignore[misc]
            (raw / scale).flatten(),
            metric.apply,
            radius,
            min(0.1, math.sqrt(residual)),
            min(cg_limit, max(1, budget - products)),
            [radius * share for share in SMALLER],
        )
        products, iterations = products + step.products, iterations + 1

        def restorer(step: Tensor, outputs: Tensor = outputs) -> Callable[[], Tensor]:
            # the metric's own copy of the point: the sweeps stand at the trial by now
            target = outputs + net.tangent([(step.view(shape) / scale).to(net.dtype)])
            return lambda: metric.restoration(sweeps.end.out_map @ sweeps.A[-1] - target).to(step.dtype)

        noise = _RESOLUTION * abs(f)
        if step.decrease > 10 * noise:
            taken, changed = choose(step, x, f, noise, value, restorer, corrections)
        else:  # too small to be seen in the objective: go by the model, and by whether the residual still falls
            taken = x + step.x if value(x + step.x) <= f + noise else None
            changed = None if taken is not None else 0.25 * step.length
            idle = 0 if residual < 0.5 * best else idle + 1
            best = min(best, residual)
        radius = radius if changed is None else changed
        moved = taken is not None
        refused = 0 if moved else refused + 1
        if taken is not None:
            W = taken.view(shape) / scale
        f = sweeps.objective(W)
        raw = sweeps.gradient(W)
