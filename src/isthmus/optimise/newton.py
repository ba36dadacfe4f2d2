"""Newton's method with truncated conjugate gradients: converges to the last digits. The one driver of all solvers.

Exact Hessian products (`isthmus.curvature.hessian`), a trust region measured in the metric of all layers together
(`isthmus.curvature.dual`), negative curvature followed to its boundary, and second-order corrections: near a critical
point the network fits, and a straight step leaves the bent surface of networks that fit. Variables are ``√ρ_ℓ W_ℓ``.
For smooth σ; on ReLU's pieces it ignores the kinks, and stops where they are in the way. What is minimised is a
`isthmus.curvature.Target`: a problem, or a discretisation of its flow (`isthmus.two_ended`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from isthmus.activations import ReLU
from isthmus.curvature.base import Preconditioner, SecondOrder, Target
from isthmus.curvature.dual import DualPreconditioner
from isthmus.curvature.hessian import Hessian
from isthmus.curvature.lowest import lowest, sign_is_clear
from isthmus.curvature.scaled import ScaledParameters
from isthmus.optimise.go_down import go_down
from isthmus.optimise.optimiser import Closure, Optimiser, Run
from isthmus.optimise.truncated_cg import TruncatedStep, truncated_cg
from isthmus.optimise.trust_region import SMALLER, Restorer, choose
from isthmus.problem import Evaluation, Problem
from isthmus.thresholds import CRITICAL, FLAT

# Below this part of the objective a predicted decrease drowns in the rounding of the objective itself: a sum in float64
# (float32 parameters add their own rounding).
_RESOLUTION = {torch.float32: 1e-7, torch.float64: 1e-13}
# Above this residual the sweeps of Hessian products run in float32 (the gradient's never): half the time.
_ROUGH_ABOVE = 1e-3
# Steps that may be refused one after another: each divides the radius by 64, so that ten reach rounding from anywhere.
_REFUSALS = 12
# Steps below the objective's resolution that may fail to halve the residual before nothing more is to be had.
_IDLE = 5


@dataclass(frozen=True)
class Newton(Optimiser):
    """Trust-region Newton–CG on all parameters of a problem, to the tolerance.

    Args:
        refresh_every: steps taken between two measurements of the preconditioner. 2: 5 to 10 products a step right
            after one, 30 to 60 eight steps later (tuned: docs/notes/solver.md).
        limit: Hessian products a step at most. A guard: steps with a fresh preconditioner take a tenth of it.
        corrections: second-order corrections of a trial at most; one costs about a Hessian product.
        preconditioner: what makes it for a problem; without restorations (`KroneckerPreconditioner`) no corrections.
        saddles: to leave at most. Where the method ends at a critical point, the least eigenvalue of the Hessian is
            looked for (`isthmus.curvature.lowest`, about a hundred products); where it is negative, the method goes
            along its eigenvector, both ways, takes the lower, and begins again. 0, and for ReLU: it is not looked for.

    Raises:
        ValueError: counts below 1, negative corrections or saddles.
    """

    name = "newton"
    full_batch = True
    needs_features = True
    refresh_every: int = 2
    limit: int = 300
    corrections: int = 4
    preconditioner: Callable[[Target], Preconditioner] = DualPreconditioner
    saddles: int = 0

    def __post_init__(self) -> None:
        self._check_positive(counts=("refresh_every", "limit"))
        for name in ("corrections", "saddles"):
            value = getattr(self, name)
            if not isinstance(value, int):
                raise TypeError(f"Newton: {name} must be a whole number (int), got {value!r}")
            if value < 0:
                raise ValueError(f"Newton: {name} must not be negative, got {value}")

    @property
    def leaves_saddles(self) -> bool:
        """Whether it looks for them."""
        return self.saddles > 0

    def start(self, problem: Problem, tolerance: float = 0.0) -> "NewtonRun":
        """Begin; finished when every layer's stationarity residual is at most the tolerance."""
        smooth = not isinstance(problem.activation, ReLU)
        settings = self if smooth else replace(self, saddles=0)
        return NewtonRun(problem, settings, lambda dtype: Hessian(problem, dtype=dtype), tolerance)


def product_dtype(residual: float, metric: Preconditioner, own: torch.dtype) -> torch.dtype:
    """In which precision Hessian products will do: float32 while the residual is large, and nothing stiff was met.

    Args:
        residual: the largest.
        metric: measured near.
        own: of the parameters.
    """
    return torch.float32 if residual > _ROUGH_ABOVE and not metric.stiff else own


class NewtonRun(Run):
    """See `Newton`.

    Args:
        target: what is minimised.
        settings: see `Newton`.
        hessian: makes its Hessian, with sweeps in a dtype.
        tolerance: on the largest stationarity residual.
    """

    def __init__(
        self, target: Target, settings: Newton, hessian: Callable[[torch.dtype], SecondOrder], tolerance: float = 0.0
    ) -> None:
        self.target, self.tolerance = target, tolerance
        self.refresh_every, self.limit = settings.refresh_every, settings.limit
        self.preconditioner = settings.preconditioner(target)
        self.corrections = settings.corrections if self.preconditioner.restores else 0
        self.products = self.left = 0
        self.least: Tensor | None = None
        self._saddles = settings.saddles
        self._make_hessian = hessian
        self._hessians: dict[torch.dtype, SecondOrder] = {}
        self._hessian: SecondOrder | None = None  # the one that is linearised at the present point
        self._moves: int | None = None  # steps taken since the preconditioner was measured
        self._radius: float | None = None
        self._least_radius: float | None = None
        self._refused = self._idle = 0
        self._least = math.inf  # residual of the steps below the objective's resolution
        self._evaluation: Evaluation | None = None
        self._done = False

    @property
    def finished(self) -> bool:
        """True at the tolerance, or when no step decreases the objective any more: rounding, or a kink."""
        return self._done

    def parameters_moved(self) -> None:
        """Measure preconditioner and objective again; the trust region starts anew."""
        self.least = None
        self._moves, self._radius, self._refused = None, None, 0
        self._idle, self._least = 0, math.inf
        self._hessian = None
        self._evaluation, self._done = None, False

    def trust(self, radius: float | None) -> None:
        """Let the next step be as long as this at least, in the metric: for starts that were predicted."""
        self._least_radius = radius

    def _residual(self) -> float:
        return float(self.target.residual().max())

    def _linearised(self, residual: float) -> SecondOrder:
        """The Hessian at the present point: after a refused step, what the step began with."""
        if self._hessian is None:
            dtype = product_dtype(residual, self.preconditioner, self.target.parameters[0].dtype)
            if dtype not in self._hessians:
                self._hessians[dtype] = self._make_hessian(dtype)
            self._hessian = self._hessians[dtype]
            self._hessian.linearise()
        return self._hessian

    def _measured(self) -> None:
        """Measure the preconditioner where it is not that of a point nearby."""
        if self._moves is None or self._moves >= self.refresh_every:
            self.preconditioner.refresh()
            self._moves = 0

    def _restorer(self, hessian: SecondOrder, scaled: ScaledParameters) -> Restorer:
        """Bring the outputs back to where the step, to first order, should have taken them."""

        def restorer(step: Tensor) -> Callable[[], Tensor]:
            aim = hessian.tangent(scaled.unflatten(step)).add_(hessian.outputs)
            return lambda: self.preconditioner.restoration(self.target.last_outputs() - aim).to(step.dtype)

        return restorer

    def _at(self, scaled: ScaledParameters, x: Tensor) -> float:
        scaled.write(x)
        value = self.target.evaluate(gradient=False).objective
        return value if math.isfinite(value) else math.inf

    @torch.no_grad()
    def step(self, closure: Closure, rate: float) -> Evaluation:
        """One step of Newton's method, taken or refused (then the trust region shrinks)."""
        scaled = ScaledParameters(self.target)
        if self._evaluation is None:
            self._evaluation = closure()
        before = self._evaluation
        if not math.isfinite(before.objective):
            return before
        residual = self._residual()
        if residual <= self.tolerance:
            return self._end(closure, before)
        self._measured()
        origin = [p.detach().clone() for p in self.target.parameters]
        x, g, hessian = scaled.values(), scaled.gradient(), self._linearised(residual)
        if self._radius is None:
            self._radius = max(0.1 * float(x.norm()) * math.sqrt(self.target.mu), self._least_radius or 1e-6)
        found = truncated_cg(
            lambda v: scaled.flatten(hessian.product(scaled.unflatten(v)), gradient=True),
            g,
            self.preconditioner.apply,
            self._radius,
            # quadratic convergence, but no further than a tenth of the tolerance: the last step would be the dearest
            min(0.1, max(math.sqrt(residual), 0.1 * self.tolerance / residual)),
            self.limit,
            [self._radius * share for share in SMALLER],
        )
        self.products += found.products
        if found.products == 0:  # as of a network that collapsed to zero, whose gradient is as small as its weights
            return self._end(closure, before)
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
        return self._accept(closure, closure())

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
        if residual < 0.5 * self._least:
            self._least, self._idle = residual, 0
        else:
            self._idle += 1
        scaled.write(scaled.values() + found.x)
        after = closure()
        if after.objective <= before.objective + noise and self._residual() <= 2 * residual:
            return self._accept(closure, after)
        self._radius = 0.25 * found.length
        return self._refuse(closure, origin)

    def _accept(self, closure: Closure, after: Evaluation) -> Evaluation:
        assert self._moves is not None
        self._evaluation, self._refused = after, 0
        self._hessian, self._moves = None, self._moves + 1
        ended = self._idle >= _IDLE or self._residual() <= self.tolerance
        return self._end(closure, after) if ended else after

    def _refuse(self, closure: Closure, origin: Sequence[Tensor]) -> Evaluation:
        self._refused += 1
        for p, before in zip(self.target.parameters, origin, strict=True):
            p.data.copy_(before)
        self._evaluation = closure()
        ended = self._refused >= _REFUSALS or self._idle >= _IDLE
        return self._end(closure, self._evaluation) if ended else self._evaluation

    def _end(self, closure: Closure, here: Evaluation) -> Evaluation:
        """Be done; at a critical point that is a saddle, leave it instead, if one may still be left."""
        self._done = True
        if self.left >= self._saddles or not self._residual() <= CRITICAL:
            return here
        self._measured()
        scaled = ScaledParameters(self.target)
        found = lowest(
            self._linearised(0.0),
            scaled,
            self.preconditioner,
            tolerance=FLAT,
            limit=self.limit,
            enough=sign_is_clear(self.target.mu),
        )
        self.products += found.products
        self.least = found.vectors[0]
        noise = _RESOLUTION[self.least.dtype] * abs(here.objective)
        if float(found.values[0]) >= -max(float(found.errors[0]), FLAT * self.target.mu):
            return here
        x = scaled.values()
        down = go_down(lambda at: self._at(scaled, at), x, self.least, here.objective, noise)
        scaled.write(x if down is None else down)
        if down is not None:
            self.parameters_moved()
            self.left += 1
        self._evaluation = closure()
        return self._evaluation

    def state_dict(self) -> dict[str, Any]:
        """Preconditioner, trust region, counters, and the value at the current point."""
        e = self._evaluation
        return {
            "preconditioner": self.preconditioner.state_dict(),
            "moves": self._moves,
            "radius": self._radius,
            "refused": self._refused,
            "idle": self._idle,
            "least": self._least,
            "products": self.products,
            "left": self.left,
            "evaluation": None if e is None else [e.objective, e.data_cost, e.penalty],
            "done": self._done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a state back; the gradient is computed again."""
        self.preconditioner.load_state_dict(state["preconditioner"])
        self._moves, self._radius, self._refused = state["moves"], state["radius"], state["refused"]
        self._idle, self._least = state["idle"], state["least"]
        self._hessian = None
        self.products, self._done = state["products"], state["done"]
        self.left, self.least = state.get("left", 0), None  # states from before it was counted have none
        self._evaluation = None if state["evaluation"] is None else Evaluation(*state["evaluation"])
        if self._evaluation is not None:
            self.target.evaluate()
