"""Newton's method with truncated conjugate gradients: converges to the last digits.

Exact Hessian products (`isthmus.curvature.hessian`), a trust region measured in the metric of all layers together
(`isthmus.curvature.dual`), negative curvature followed to its boundary, and second-order corrections: near a critical
point the network fits, and a straight step leaves the bent surface of networks that fit. Variables are ``√ρ_ℓ W_ℓ``.
For smooth σ; on ReLU's pieces it ignores the kinks, and stops where they are in the way.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isthmus.curvature.dual import DualPreconditioner
from isthmus.curvature.hessian import Hessian
from isthmus.curvature.kronecker import KroneckerPreconditioner
from isthmus.curvature.scaled import ScaledParameters
from isthmus.optimise.optimiser import Closure, Optimiser, Run
from isthmus.optimise.truncated_cg import TruncatedStep, truncated_cg
from isthmus.optimise.trust_region import SMALLER, Restorer, choose
from isthmus.problem import Evaluation, Problem

# Below this fraction of the objective a predicted decrease drowns in the rounding of the objective itself.
_RESOLUTION = {torch.float32: 1e-7, torch.float64: 1e-13}


# Above this residual the sweeps of Hessian products run in float32 (the gradient's never): half the time.
_ROUGH_ABOVE = 1e-3


@dataclass(frozen=True)
class Newton(Optimiser):
    """Trust-region Newton–CG on all parameters of a problem, to the tolerance.

    Args:
        refresh_every: steps taken between two measurements of the preconditioner. 2: 5 to 10 products a step right
            after one, 30 to 60 eight steps later (tuned: docs/notes/solver.md).
        limit: Hessian products a step at most. A guard: steps with a fresh preconditioner take a tenth of it.
        corrections: second-order corrections of a trial at most; one costs about a Hessian product.
        preconditioner: what makes it for a problem; without restorations (`KroneckerPreconditioner`) no corrections.

    Raises:
        ValueError: counts below 1, or negative corrections.
    """

    name = "newton"
    full_batch = True
    needs_features = True
    refresh_every: int = 2
    limit: int = 300
    corrections: int = 4
    preconditioner: Callable[[Problem], KroneckerPreconditioner | DualPreconditioner] = DualPreconditioner

    def __post_init__(self) -> None:
        self._check_positive("refresh_every", "limit")
        if self.corrections < 0:
            raise ValueError(f"Newton: corrections must not be negative, got {self.corrections}")

    def start(self, problem: Problem, tolerance: float = 0.0) -> "NewtonRun":
        """Begin; finished when every layer's stationarity residual is at most the tolerance."""
        return NewtonRun(problem, self, tolerance)


class NewtonRun(Run):
    """See `Newton`."""

    def __init__(self, problem: Problem, settings: Newton, tolerance: float = 0.0) -> None:
        self.problem, self.tolerance = problem, tolerance
        self.refresh_every, self.limit = settings.refresh_every, settings.limit
        self.metric = settings.preconditioner(problem)
        self.corrections = settings.corrections if isinstance(self.metric, DualPreconditioner) else 0
        self.products = 0
        self._hessians: dict[torch.dtype, Hessian] = {}
        self._hessian: Hessian | None = None  # the one that is linearised at the present point
        self._moves: int | None = None  # steps taken since the metric was measured
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
        self._moves, self._radius, self._refused = None, None, 0
        self._hessian = None
        self._evaluation, self._done = None, False

    def _linearised(self, residual: float) -> Hessian:
        """The Hessian at the present point: after a refused step, what the step began with."""
        if self._hessian is None:
            own = self.problem.model.weight.dtype
            dtype = torch.float32 if residual > _ROUGH_ABOVE else own
            if dtype not in self._hessians:
                self._hessians[dtype] = Hessian(self.problem, dtype=dtype)
            self._hessian = self._hessians[dtype]
            self._hessian.linearise()
        return self._hessian

    def _restorer(self, hessian: Hessian, scaled: ScaledParameters) -> Restorer:
        """The outputs should be where they are to first order."""
        metric, model = self.metric, self.problem.model
        assert isinstance(metric, DualPreconditioner)

        def restorer(step: Tensor) -> Callable[[], Tensor]:
            target = hessian.tangent(scaled.unflatten(step)).add_(hessian.outputs)

            def restoration() -> Tensor:
                excess = model.out_map @ self.problem.workspace(path=False).end - target
                return metric.restoration(excess).to(step.dtype)

            return restoration

        return restorer

    def _at(self, scaled: ScaledParameters, x: Tensor) -> float:
        scaled.write(x)
        value = self.problem.evaluate(gradient=False).objective
        return value if math.isfinite(value) else math.inf

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
        if self._moves is None or self._moves >= self.refresh_every:
            self.metric.refresh()
            self._moves = 0
        origin = [p.detach().clone() for p in self.problem.parameters]
        x, g, hessian = scaled.values(), scaled.gradient(), self._linearised(residual)
        if self._radius is None:
            self._radius = max(0.1 * float(x.norm()) * math.sqrt(self.problem.mu), 1e-6)
        found = truncated_cg(
            lambda v: scaled.flatten(hessian.product(scaled.unflatten(v)), gradient=True),
            g,
            self.metric.apply,
            self._radius,
            min(0.1, math.sqrt(residual)),
            self.limit,
            [self._radius * share for share in SMALLER],
        )
        self.products += found.products
        if found.products == 0:  # as of a network that collapsed to zero, whose gradient is as small as its weights
            self._done = True
            return before
        noise = _RESOLUTION[x.dtype] * abs(before.objective)
        if found.decrease <= 10 * noise:
            return self._below_resolution(closure, scaled, origin, found, before, residual, noise)
        restorer = self._restorer(hessian, scaled) if self.corrections > 0 else None
        taken, radius = choose(
            found, x, before.objective, noise, lambda x: self._at(scaled, x), restorer, self.corrections
        )
        self._radius = self._radius if radius is None else radius
        if taken is None:
            return self._refuse(closure, origin)
        scaled.write(taken)
        return self._accept(closure())

    def _below_resolution(
        self,
        closure: Closure,
        scaled: ScaledParameters,
        origin: Sequence[Tensor],
        found: TruncatedStep,
        before: Evaluation,
        residual: float,
        noise: float,
    ) -> Evaluation:
        """A decrease too small to be seen in the objective: the quadratic model is all there is, and the residual."""
        scaled.write(scaled.values() + found.x)
        after = closure()
        if after.objective <= before.objective + noise and float(self.problem.residual().max()) <= 2 * residual:
            return self._accept(after)
        self._radius = 0.25 * found.length
        return self._refuse(closure, origin)

    def _accept(self, after: Evaluation) -> Evaluation:
        assert self._moves is not None
        self._evaluation, self._refused = after, 0
        self._hessian, self._moves = None, self._moves + 1
        self._done = float(self.problem.residual().max()) <= self.tolerance
        return after

    def _refuse(self, closure: Closure, origin: Sequence[Tensor]) -> Evaluation:
        self._refused += 1
        self._done = self._refused >= 12
        for p, before in zip(self.problem.parameters, origin, strict=True):
            p.data.copy_(before)
        self._evaluation = closure()
        return self._evaluation

    def state_dict(self) -> dict[str, Any]:
        """Metric, trust region, counters, and the value at the current point."""
        e = self._evaluation
        return {
            "metric": self.metric.state_dict(),
            "moves": self._moves,
            "radius": self._radius,
            "refused": self._refused,
            "products": self.products,
            "evaluation": None if e is None else [e.objective, e.data_cost, e.penalty],
            "done": self._done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a state back; the gradient is computed again."""
        self.metric.load_state_dict(state["metric"])
        # a state of an earlier version has no such count: then the metric is measured anew
        self._moves, self._radius, self._refused = state.get("moves"), state["radius"], state["refused"]
        self._hessian = None
        self.products, self._done = state["products"], state["done"]
        self._evaluation = None if state["evaluation"] is None else Evaluation(*state["evaluation"])
        if self._evaluation is not None:
            self.problem.evaluate()
