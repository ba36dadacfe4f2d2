"""What the optimiser left undone, as an error on every number that is read off a network.

A network with a small gradient g lies about ``−H⁻¹g`` from the critical point, H being the Hessian: the next step of
Newton's. A number q read off the network is therefore off by ``⟨∇q, H⁻¹g⟩`` to first order. One system is solved, by
preconditioned minimum residuals, and serves all numbers; q itself is then read at both ends of the step, forward and
backward, which needs no gradient of q and sees medians and minima as they are. Half the difference is meant, not what q
is at the forward end: a straight step leaves the bent surface of networks that fit, and −2H/L̃, made from momenta, is
ten times as sensitive to that as to the step (at a residual of 6e-3: 0.0152 forward, −0.0055 by the difference, −0.0057
in truth).
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from isthmus.activations import ReLU
from isthmus.certificate.kind import in_float64
from isthmus.curvature import DualPreconditioner, Hessian, Preconditioner, ScaledParameters, minres, scaled_product
from isthmus.geodesic import Geodesic
from isthmus.problem import Problem

_ACCURACY = 1e-2
"""Of the linear system, as the norm of what is left in the metric: errors are wanted to a digit or two."""
_USABLE = 0.3
"""Beyond this the system was not solved, and no error is known."""


@torch.no_grad()
def optimiser_error(
    problem: Problem,
    functionals: Mapping[str, Callable[[Geodesic], float]],
    *,
    limit: int = 300,
    preconditioner: Preconditioner | None = None,
) -> dict[str, float]:
    """By how much numbers would change if the optimiser went on to the critical point nearby, to first order.

    The error of a number q is ``|q(x + d) − q(x − d)|/2``, d the step of Newton's method. It says nothing of other
    critical points, nor of the error of finitely many layers. It is the change that further steps bring within a factor
    of 2 at residuals up to 1e-3 (tests/core/test_kind.py); at 1e-2 terms of second order may be larger than it. (Of the
    objective, whose change is of second order, it is twice the change.) Where the Hessian is indefinite, d leads to the
    saddle nearby.

    Args:
        problem: near a critical point; its parameters are moved and put back, to the bit, and its gradient is that of
            the point. A problem in float32 is copied to float64.
        functionals: by name, what to read off a geodesic.
        limit: Hessian products at most.
        preconditioner: measured nearby; a fresh one by default.

    Returns:
        An error for every name, in the units of the number. Infinite where none is known: a ReLU, whose kinks the
        Hessian ignores; a system that was not solved within the limit; a number that is not finite at an end.

    Raises:
        ValueError: a limit below 1.
    """
    if limit < 1:
        raise ValueError(f"limit (of Hessian products) must be at least 1, got {limit}")
    if isinstance(problem.activation, ReLU):
        return dict.fromkeys(functionals, math.inf)
    wide = in_float64(problem)
    wide.evaluate()
    step = _newton_step(wide, limit, preconditioner)
    if step is None:
        return dict.fromkeys(functionals, math.inf)
    scaled, kept = ScaledParameters(wide), [p.detach().clone() for p in wide.parameters]
    x, read = scaled.values(), []
    try:
        for t in (1.0, -1.0):
            scaled.write(x + t * step)
            geodesic = wide.geodesic()
            read.append({name: float(q(geodesic)) for name, q in functionals.items()})
    finally:
        for p, before in zip(wide.parameters, kept, strict=True):
            p.data.copy_(before)
        wide.evaluate()
    forward, backward = read
    changes = {name: 0.5 * abs(forward[name] - backward[name]) for name in functionals}
    return {name: change if math.isfinite(change) else math.inf for name, change in changes.items()}


def _newton_step(problem: Problem, limit: int, metric: Preconditioner | None) -> Tensor | None:
    """``−H⁻¹g``, also where H is indefinite; None where that did not come near."""
    if metric is None:
        metric = DualPreconditioner(problem)
        metric.refresh()
    hessian, scaled = Hessian(problem), ScaledParameters(problem)
    hessian.linearise()
    found = minres(scaled_product(hessian, scaled), -scaled.gradient(), metric.apply, _ACCURACY, limit)
    return found.x if found.residual <= _USABLE else None
