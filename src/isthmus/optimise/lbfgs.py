"""L-BFGS with a weak-Wolfe bisection line search, which does not give up at ReLU's kinks.

A strong-Wolfe search, as in `torch.optim.LBFGS`, asks for ``|φ'(t)|`` to fall, which no step does when the minimum
along the line is a kink. Lewis and Overton (2013, "Nonsmooth optimization via quasi-Newton methods") ask for the weak
condition only, and bisect. Variables are ``√ρ_ℓ W_ℓ``, in which the penalty of (E3) is a multiple of the unit matrix.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isthmus.curvature.kronecker import KroneckerPreconditioner
from isthmus.curvature.scaled import ScaledParameters
from isthmus.optimise.optimiser import Closure, Optimiser, Run
from isthmus.problem import Evaluation, Problem


@dataclass(frozen=True)
class LBFGS(Optimiser):
    """Limited-memory BFGS on all parameters, from the inverse Hessian that `KroneckerPreconditioner` estimates.

    Args:
        pairs: curvature pairs kept. 60 for a long run, 10 where it is short (tuned: docs/notes/solver.md).
        damping: of the preconditioner: 0.03 for a long run, 0.06 where it is short (tuned, as above).
        sweeps: random backward sweeps for one measurement of the preconditioner.
        refresh_every: iterations between two measurements.
        preconditioned: False: the recursion starts from a multiple of the unit matrix.
        decrease: sufficient decrease c₁ of the line search; 1e-4 and 0.9 are Nocedal and Wright's.
        curvature: c₂ of the weak Wolfe condition.
        evaluations: the most in one line search: 25 bisections leave 3e-8 of the interval, float32's resolution.

    Raises:
        TypeError: counts that are no whole numbers.
        ValueError: numbers that are not positive, or conditions that no step can meet.
    """

    name = "lbfgs"
    full_batch = True
    needs_features = True
    pairs: int = 60
    damping: float = 0.03
    sweeps: int = 2
    refresh_every: int = 20
    preconditioned: bool = True
    decrease: float = 1e-4
    curvature: float = 0.9
    evaluations: int = 25

    def __post_init__(self) -> None:
        counts = ("pairs", "sweeps", "refresh_every", "evaluations")
        self._check_positive("damping", "decrease", "curvature", counts=counts)
        if not self.decrease < self.curvature < 1:
            raise ValueError(
                f"LBFGS: 0 < decrease < curvature < 1 is what a line search can meet, got {self.decrease} and "
                f"{self.curvature}"
            )

    def start(self, problem: Problem, tolerance: float = 0.0) -> "LBFGSRun":
        """Begin, with no pairs."""
        return LBFGSRun(problem, self)


class LBFGSRun(Run):
    """See `LBFGS`."""

    def __init__(self, problem: Problem, settings: LBFGS) -> None:
        self.problem, self.pairs = problem, settings.pairs
        self.preconditioner = (
            KroneckerPreconditioner(problem, settings.damping, settings.sweeps) if settings.preconditioned else None
        )
        self.refresh_every = settings.refresh_every
        self.decrease, self.curvature, self.evaluations = settings.decrease, settings.curvature, settings.evaluations
        self._iterations = 0
        size = sum(p.numel() for p in problem.parameters)
        weight = problem.model.weight
        self._s = torch.zeros((self.pairs, size), dtype=weight.dtype, device=weight.device)
        self._y = torch.zeros_like(self._s)
        # s_i · y_j, by slots; of the older pair's s and the younger one's y
        self._products = torch.zeros((self.pairs, self.pairs), dtype=torch.float64, device=weight.device)
        self._count = 0  # pairs ever stored since the last reset; slot = count % pairs
        self._gradient: Tensor | None = None
        self._evaluation: Evaluation | None = None
        self._stalled = False

    @property
    def finished(self) -> bool:
        """True when even steepest descent finds no decrease: arithmetic, or a kink, is in the way."""
        return self._stalled

    def parameters_moved(self) -> None:
        """Forget the curvature: it belongs to another objective."""
        self._count, self._iterations = 0, 0
        self._gradient, self._evaluation, self._stalled = None, None, False

    def _read(self, gradient: bool) -> Tensor:
        scaled = ScaledParameters(self.problem)
        return scaled.gradient() if gradient else scaled.values()

    def _write(self, v: Tensor) -> None:
        ScaledParameters(self.problem).write(v)

    def _directions(self, closure: Closure, x: Tensor, g: Tensor) -> Iterator[Tensor]:
        """What to search along, best first: the recursion, without its memory, and plain steepest descent."""
        if self._count > 0:
            yield self._recursion(g)
            self._count = 0
        if self.preconditioner is not None:
            yield self._preconditioned_step(closure, x, g)
        yield -g / max(1.0, float(g.norm()))

    def _preconditioned_step(self, closure: Closure, x: Tensor, g: Tensor) -> Tensor:
        """Its direction, as long as the curvature along it says: one evaluation for about ten bisections."""
        assert self.preconditioner is not None
        d = self.preconditioner.apply(-g)
        short = min(1.0, 1e-3 * float(x.norm()) / max(float(d.norm()), 1e-30))
        if short == 0:
            return d
        self._write(x + short * d)
        closure()
        curvature = float((self._read(gradient=True) - g).dot(d)) / short
        if math.isfinite(curvature) and curvature > 0:
            d.mul_(min(1.0, -float(g.dot(d)) / curvature))
        return d

    def _recursion(self, g: Tensor) -> Tensor:
        """``−Hg`` in the compact form of Byrd, Nocedal and Schnabel (1994): five passes over the stored vectors.

        ``u = R⁻¹Sᵀg``, ``p = H₀(g − Yu)``, ``Hg = p + S R⁻ᵀ(Du − Yᵀp)`` with R the upper triangle of SᵀY, oldest pair
        first, and D its diagonal. The two-loop recursion says the same, and reads and writes twice as much.
        """
        stored = min(self._count, self.pairs)
        order = torch.arange(self._count - stored, self._count, device=g.device) % self.pairs
        S, Y = self._s[:stored], self._y[:stored]
        R = self._products[order][:, order].triu()
        u = torch.linalg.solve_triangular(R, torch.mv(S, g).double()[order, None], upper=True)
        by_slot = torch.empty_like(u)
        by_slot[order] = u
        q = torch.addmv(g, Y.T, by_slot[:, 0].to(g.dtype), alpha=-1)
        newest = int(order[-1])
        y, sy = self._y[newest], float(self._products[newest, newest])
        if self.preconditioner is None:
            q.mul_(sy / float(y.dot(y)))
        else:
            square = self.preconditioner.square(y)
            q = self.preconditioner.apply(q)
            if square > 0:  # it may underflow
                q.mul_(sy / square)
        v = R.diagonal()[:, None] * u - torch.mv(Y, q).double()[order, None]
        by_slot[order] = torch.linalg.solve_triangular(R.T, v, upper=False)
        return torch.addmv(q, S.T, by_slot[:, 0].to(g.dtype)).neg_()

    def _search(
        self, closure: Closure, x: Tensor, d: Tensor, f0: float, slope: float
    ) -> tuple[Evaluation, Tensor, float] | None:
        """Weak Wolfe by bisection; leaves the parameters at the accepted point. None where there is none."""
        below = math.nextafter(f0, -math.inf)

        def target(t: float) -> float:
            return min(f0 + self.decrease * t * slope, below)  # a step that rounding swallows is none

        low, high, t = 0.0, math.inf, 1.0
        fallback: tuple[Evaluation, Tensor, float] | None = None
        for _ in range(self.evaluations):
            self._write(x.add(d, alpha=t))
            evaluation = closure()
            if not evaluation.objective <= target(t):  # also NaN
                high = t
            else:
                g = self._read(gradient=True)
                fallback = (evaluation, g, t)
                if bool(g.dot(d) < self.curvature * slope):
                    low = t
                else:
                    return fallback
            t = 0.5 * (low + high) if high < math.inf else 2 * t
        if fallback is not None:  # decreased, but the curvature condition was never met: still a step
            self._write(x.add(d, alpha=fallback[2]))
            return closure(), fallback[1], fallback[2]
        return None

    @torch.no_grad()
    def step(self, closure: Closure, rate: float) -> Evaluation:
        """One quasi-Newton step; falls back on steepest descent, then reports itself finished."""
        if self._gradient is None or self._evaluation is None:
            self._evaluation = closure()
            self._gradient = self._read(gradient=True)
        if self.preconditioner is not None and self._iterations % self.refresh_every == 0:
            self.preconditioner.refresh()
        self._iterations += 1
        x, g, before = self._read(gradient=False), self._gradient, self._evaluation
        if not math.isfinite(before.objective):
            return before
        for d in self._directions(closure, x, g):
            slope = float(g.dot(d))
            found = self._search(closure, x, d, before.objective, slope) if slope < 0 else None
            if found is not None:
                break
        else:
            self._write(x)
            self._evaluation = closure()
            self._stalled = True
            return self._evaluation
        evaluation, g_new, t = found
        s, y = d.mul_(t), g_new - g
        sy = float(s.dot(y))
        if sy > 1e-10 * float(y.norm()) * float(s.norm()) and float(y.dot(y)) > 0:  # neither noise nor underflow
            slot = self._count % self.pairs
            self._s[slot], self._y[slot] = s, y
            self._products[:, slot] = torch.mv(self._s, y).double()
            self._count += 1
        self._gradient, self._evaluation = g_new, evaluation
        return evaluation

    def state_dict(self) -> dict[str, Any]:
        """The stored pairs, and the value and gradient at the current point."""
        e = self._evaluation
        return {
            "s": self._s,
            "y": self._y,
            "products": self._products,
            "count": self._count,
            "iterations": self._iterations,
            "preconditioner": None if self.preconditioner is None else self.preconditioner.state_dict(),
            "gradient": self._gradient,
            "evaluation": None if e is None else [e.objective, e.data_cost, e.penalty],
            "stalled": self._stalled,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a state back."""
        self._s.copy_(state["s"])
        self._y.copy_(state["y"])
        self._products.copy_(state["products"])
        self._count = state["count"]
        self._iterations = state["iterations"]
        if self.preconditioner is not None:
            self.preconditioner.load_state_dict(state["preconditioner"])
        self._gradient = None if state["gradient"] is None else state["gradient"].clone()
        self._evaluation = None if state["evaluation"] is None else Evaluation(*state["evaluation"])
        self._stalled = state["stalled"]
