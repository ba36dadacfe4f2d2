"""Newton's method with truncated conjugate gradients in the Kronecker-factored metric: converges to the last digits.

Exact Hessian products (`isthmus.solve.hessian`), a trust region measured in the metric, negative curvature followed to
its boundary. Variables are ``√ρ_ℓ W_ℓ``. For smooth σ; on ReLU's pieces it ignores the kinks, and stops where they are
in the way.
"""

import math
from typing import Any

import torch

from isthmus.solve.hessian import Hessian
from isthmus.solve.kronecker import KroneckerMetric
from isthmus.solve.objective import Evaluation, Problem
from isthmus.solve.optimiser import Closure, Optimiser
from isthmus.solve.scaled import ScaledParameters
from isthmus.solve.truncated_cg import truncated_cg

# Below this fraction of the objective a predicted decrease drowns in the rounding of the objective itself.
_RESOLUTION = {torch.float32: 1e-7, torch.float64: 1e-13}


class Newton(Optimiser):
    """Trust-region Newton–CG on all parameters of a problem.

    Args:
        problem: whose parameters, gradients and Hessian are used.
        metric: the preconditioner; by default `KroneckerMetric` undamped, see docs/notes/solver.md.
        refresh_every: steps between two measurements of the metric.
        limit: Hessian products a step at most.
        tolerance: finished when every layer's stationarity residual is below.
    """

    def __init__(
        self,
        problem: Problem,
        metric: KroneckerMetric | None = None,
        refresh_every: int = 5,
        limit: int = 300,
        tolerance: float = 0.0,
    ) -> None:
        self.problem, self.refresh_every, self.limit, self.tolerance = problem, refresh_every, limit, tolerance
        self.metric = KroneckerMetric(problem, damping=1.0) if metric is None else metric
        self.hessian = Hessian(problem)
        self.products = 0
        self._iterations = 0
        self._radius: float | None = None
        self._refused = 0
        self._evaluation: Evaluation | None = None
        self._done = False

    @property
    def finished(self) -> bool:
        """True at the tolerance, or when no step decreases the objective any more: rounding, or a kink."""
        return self._done

    def parameters_moved(self) -> None:
        """Measure the metric and the objective again; the trust region starts anew."""
        self._iterations, self._radius, self._refused = 0, None, 0
        self._evaluation, self._done = None, False

    @torch.no_grad()
    def step(self, closure: Closure, rate: float) -> Evaluation:
        """One step of Newton's method, taken or refused (then the trust region shrinks)."""
        scaled = ScaledParameters(self.problem)
        if self._evaluation is None:
            self._evaluation = closure()
        before = self._evaluation
        if not math.isfinite(before.objective):
            return before
        residual = float(self.problem.residual().max())
        if residual <= self.tolerance:
            self._done = True
            return before
        if self._iterations % self.refresh_every == 0:
            self.metric.refresh()
        self._iterations += 1
        x, g = scaled.values(), scaled.gradient()
        if self._radius is None:
            self._radius = max(0.1 * float(x.norm()) * math.sqrt(self.problem.mu), 1e-6)
        self.hessian.linearise()
        found = truncated_cg(
            lambda v: scaled.flatten(self.hessian.product(scaled.unflatten(v)), gradient=True),
            g,
            self.metric.apply,
            self._radius,
            min(0.1, math.sqrt(residual)),
            self.limit,
        )
        self.products += found.products
        scaled.write(x + found.x)
        after = closure()
        noise = _RESOLUTION[x.dtype] * abs(before.objective)
        if found.decrease > 10 * noise:
            ratio = (before.objective - after.objective) / found.decrease if math.isfinite(after.objective) else -1.0
        else:  # too small to be seen in the objective: the quadratic model is all there is
            ratio = 1.0 if after.objective <= before.objective + noise else -1.0
            if ratio > 0 and float(self.problem.residual().max()) > 2 * residual:
                ratio = -1.0
        if ratio < 0.25:
            self._radius = 0.25 * found.length
        elif ratio > 0.75 and found.limited:
            self._radius *= 2
        if ratio > 1e-3:
            self._evaluation, self._refused = after, 0
            self._done = float(self.problem.residual().max()) <= self.tolerance
            return after
        self._refused += 1
        self._done = self._refused >= 12
        scaled.write(x)
        self._evaluation = closure()
        return self._evaluation

    def state_dict(self) -> dict[str, Any]:
        """Metric, trust region, counters, and the value at the current point."""
        e = self._evaluation
        return {
            "metric": self.metric.state_dict(),
            "iterations": self._iterations,
            "radius": self._radius,
            "refused": self._refused,
            "products": self.products,
            "evaluation": None if e is None else [e.objective, e.data_cost, e.penalty],
            "done": self._done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a state back; the gradient is computed again."""
        self.metric.load_state_dict(state["metric"])
        self._iterations, self._radius, self._refused = state["iterations"], state["radius"], state["refused"]
        self.products, self._done = state["products"], state["done"]
        self._evaluation = None if state["evaluation"] is None else Evaluation(*state["evaluation"])
        if self._evaluation is not None:
            self.problem.evaluate()
