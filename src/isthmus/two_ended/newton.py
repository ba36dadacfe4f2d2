"""The two-ended problem by Newton's method: minimising the discrete objective solves it.

The critical points of the discrete objective are the solutions of the discretised (E9) with its two end conditions. The
path space itself, 2·N·w numbers a node, never enters a linear system. Variables are ``√(h b_i) W_i``, in which the
Hessian is μ times the unit matrix plus the data's part. The method is `isthmus.optimise.Newton`.
"""

import math

from isthmus.curvature import DualPreconditioner
from isthmus.optimise.newton import Newton, NewtonRun
from isthmus.status import Status
from isthmus.two_ended.linearise import StageHessian, StageLinearisation
from isthmus.two_ended.sweeps import Sweeps


def minimise(sweeps: Sweeps, tol: float, budget: int) -> tuple[Status, float, int]:
    """Bring the stage weights, in place, to a critical point of the discrete objective.

    Args:
        sweeps: the discretisation, with the weights to start from.
        tol: on the largest relative stationarity residual of a stage.
        budget: Hessian products at most.

    Returns:
        How it ended (converged, stalled, budget spent, diverged), the residual, the products spent. The sweeps stand
        at the weights found.
    """
    if not math.isfinite(sweeps.evaluate().objective):
        return Status.DIVERGED, math.inf, 0
    # measured at every step: of few samples and narrow states it costs less than the products that a stale one takes
    settings = Newton(
        refresh_every=1, preconditioner=lambda _: DualPreconditioner(sweeps, net=StageLinearisation(sweeps))
    )
    run = NewtonRun(sweeps, settings, lambda dtype: StageHessian(sweeps, dtype), tol)
    while not run.finished and run.products < budget:
        run.limit = min(settings.limit, budget - run.products)
        try:
            run.step(sweeps.evaluate, 1.0)
        except OverflowError:  # the curvature is beyond the preconditioner's dtype
            return Status.DIVERGED, math.inf, run.products
    residual = float(sweeps.residual().max())
    if residual <= tol:
        return Status.CONVERGED, residual, run.products
    return Status.BUDGET_SPENT if not run.finished else Status.STALLED, residual, run.products
