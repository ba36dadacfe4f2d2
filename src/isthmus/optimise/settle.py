"""Accelerated gradient descent at the rate of the steepest direction: brings the residual down at the end.

L-BFGS takes the objective down but leaves noise in the steep directions, and the stationarity residual, which divides
the gradient by μρ, magnifies it: 5.0 at the largest on the Figure 1 network after 1600 iterations, where 600 of these
steps leave 0.4 (docs/notes/solver.md). The rate comes from the largest curvature, measured; momentum restarts when it
points uphill (O'Donoghue and Candès 2015).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isthmus.curvature.scaled import ScaledParameters
from isthmus.optimise.optimiser import Closure, Optimiser, Run
from isthmus.problem import Evaluation, Problem


@dataclass(frozen=True)
class Settle(Optimiser):
    """Nesterov's method in the variables ``√ρ_ℓ W_ℓ``, with restart; halves its rate when the objective rises.

    A stage's rate multiplies the measured one.

    Args:
        fraction: rate times largest curvature. 1 is the limit of a quadratic; ReLU's kinks ask for less.
        probes: power iterations for the largest curvature, by differences of gradients.

    Raises:
        ValueError: numbers that are not positive.
    """

    name = "settle"
    full_batch = True
    rises = "residual_max"
    fraction: float = 0.2
    probes: int = 15

    def __post_init__(self) -> None:
        self._check_positive("fraction", counts=("probes",))

    def start(self, problem: Problem, tolerance: float = 0.0) -> "SettleRun":
        """Begin at rest."""
        return SettleRun(problem, self)


class SettleRun(Run):
    """See `Settle`."""

    def __init__(self, problem: Problem, settings: Settle) -> None:
        self.problem, self.fraction, self.probes = problem, settings.fraction, settings.probes
        self._velocity = [torch.zeros_like(p.data) for p in problem.parameters]
        self._rate: float | None = None
        self._since_restart = 0
        self._reference = math.inf

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.problem.parameters if p.grad is not None]

    def _largest_curvature(self, closure: Closure) -> float:
        """Power iteration on the scaled Hessian, products by one-sided differences of gradients."""
        metric = ScaledParameters(self.problem).inverse_metric()
        parameters = [p.data for p in self.problem.parameters]
        start = [p.clone() for p in parameters]
        closure()
        g0 = [g.clone() for g in self._gradients()]
        size = math.sqrt(sum(float((p.square() / m).sum()) for p, m in zip(start, metric, strict=True)))
        eps = (1e-5 if parameters[0].dtype == torch.float32 else 1e-7) * max(size, 1e-3)
        v = [g.clone() for g in g0]
        value = 0.0
        for _ in range(self.probes):
            norm = math.sqrt(sum(float((a.square() / m).sum()) for a, m in zip(v, metric, strict=True)))
            if norm == 0 or not math.isfinite(norm):
                break
            for p, p0, a in zip(parameters, start, v, strict=True):
                torch.add(p0, a, alpha=eps / norm, out=p)
            closure()
            v = [m * (g - h) / eps for m, g, h in zip(metric, self._gradients(), g0, strict=True)]
            value = math.sqrt(sum(float((a.square() / m).sum()) for a, m in zip(v, metric, strict=True)))
        for p, p0 in zip(parameters, start, strict=True):
            p.copy_(p0)
        return value

    @torch.no_grad()
    def step(self, closure: Closure, rate: float) -> Evaluation:
        """One evaluation, one accelerated step. ``rate`` multiplies the measured one."""
        if self._rate is None:
            curvature = self._largest_curvature(closure)
            self._rate = self.fraction / curvature if curvature > 0 and math.isfinite(curvature) else 0.0
        evaluation = closure()
        metric, gradients = ScaledParameters(self.problem).inverse_metric(), self._gradients()
        if evaluation.objective > self._reference * (1 + 1e-3):  # the curvature grew on the way
            self._rate *= 0.5
            self._restart()
        self._reference = min(self._reference, evaluation.objective)
        uphill = sum(float((g * v).sum()) for g, v in zip(gradients, self._velocity, strict=True)) > 0
        if uphill:
            self._restart()
        self._since_restart += 1
        k = self._since_restart
        now, ahead = k / (k + 3), 1 + (k + 1) / (k + 4)
        for p, g, v, m in zip(self.problem.parameters, gradients, self._velocity, metric, strict=True):
            moved = now * v - (rate * self._rate) * m * g
            p.data.add_(ahead * moved - now * v)
            v.copy_(moved)
        return evaluation

    def _restart(self) -> None:
        self._since_restart = 0
        for v in self._velocity:
            v.zero_()

    def parameters_moved(self) -> None:
        """Measure the curvature again."""
        self._rate, self._reference = None, math.inf
        self._restart()

    def state_dict(self) -> dict[str, Any]:
        """Velocity, rate and counters."""
        return {
            "velocity": list(self._velocity),
            "rate": self._rate,
            "since_restart": self._since_restart,
            "reference": self._reference,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a state back."""
        for v, saved in zip(self._velocity, state["velocity"], strict=True):
            v.copy_(saved)
        self._rate, self._since_restart = state["rate"], state["since_restart"]
        self._reference = state["reference"]
