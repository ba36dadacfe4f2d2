"""Tangents of a branch, and the two ways back onto it from a prediction: Newton's at a fixed parameter, and beside it.

At a fixed parameter a point is found by the project's trust-region Newton method, which only goes down: it finds
minima. With the parameter among the unknowns, it is found by the bordered system (Keller 1977)

    [ H     g_τ ] [dx]     [ g ]
    [ g_τᵀ  κ   ] [dτ] = − [ n ],      n = ⟨g_τ, x − x_p⟩ + κ (τ − τ_p),

whose matrix is symmetric, and regular at folds, where H is not: minimum residuals solve it, with the metric of Newton's
method. κ has the size of ``⟨g_τ, P⁻¹g_τ⟩`` and the sign opposite to ``⟨g_τ, H⁻¹g_τ⟩``, so that the Schur complement
``κ − ⟨g_τ, H⁻¹g_τ⟩`` cannot vanish.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.branches.family import Family
from isthmus.curvature import Preconditioner, ScaledParameters, SecondOrder, Target, minres, scaled_product
from isthmus.optimise import Newton
from isthmus.optimise.newton import NewtonRun, product_dtype
from isthmus.problem import Evaluation

_TANGENT = 1e-4  # accuracy of a tangent's solve, relative: at 1e-2 flat directions are missing
_BORDERED = 1e-2  # least accuracy of the corrector's
_LIMIT = 400  # products of one solve
_RESTORATIONS = 3
_NOTHING = 1e-6  # of their size: parameters that go to zero


@dataclass(frozen=True)
class Here:
    """A critical point, with what the next one is predicted from.

    Args:
        tau: the coordinate.
        x: scaled parameters.
        evaluation: of the objective.
        residual: the largest.
    """

    tau: float
    x: Float[Tensor, "variables"]
    evaluation: Evaluation
    residual: float


@dataclass(frozen=True)
class Tangent:
    """The direction of a branch at a point.

    Args:
        x: ``dx/dτ``.
        outputs: derivative of the outputs along it.
        least: least Ritz value met of the preconditioned Hessian.
        energy: ``⟨dx/dτ, H dx/dτ⟩``, as the metric sees it.
        products: spent.
    """

    x: Float[Tensor, "variables"]
    outputs: Float[Tensor, "out samples"]
    least: float
    energy: float
    products: int


class Local:
    """Hessian, metric and drift at a critical point, for its tangent, the prediction along it, and eigenvalues.

    Args:
        family: what is followed.
        here: the point; the parameters are set to it.
        rough: whether products in float32 will do.
    """

    def __init__(self, family: Family, here: Here, rough: bool = True) -> None:
        self.family, self.here = family, here
        value = family.value(here.tau)
        self.g_tau, self.f_tau = family.drift(value, here.x)
        self.target = family.at(value)
        self.scaled = ScaledParameters(self.target)
        self.scaled.write(here.x)
        self.target.evaluate()
        self.metric: Preconditioner = family.preconditioner(self.target)
        self.metric.refresh()
        dtype = torch.float32 if rough and not self.metric.stiff else here.x.dtype
        self.hessian: SecondOrder = family.hessian(self.target, dtype)
        self.hessian.linearise()
        self.product = scaled_product(self.hessian, self.scaled)

    def tangent(self, accuracy: float = _TANGENT) -> Tangent:
        """``dx/dτ = −H⁻¹ g_τ``, of this accuracy in the metric."""
        found = minres(self.product, -self.g_tau, self.metric.apply, accuracy, _LIMIT)
        outputs = self.hessian.tangent(self.scaled.unflatten(found.x)).to(self.f_tau.dtype).add_(self.f_tau)
        return Tangent(found.x, outputs, found.least, -float(found.x @ self.g_tau), found.products)

    def exact(self) -> Callable[[Tensor], Tensor]:
        """Products in the parameters' own precision."""
        hessian = self.family.hessian(self.target, self.here.x.dtype)
        self.scaled.write(self.here.x)
        self.target.evaluate()
        hessian.linearise()
        return scaled_product(hessian, self.scaled)


def restored(target: Target, metric: Preconditioner, x: Tensor, aim: Float[Tensor, "out samples"]) -> float:
    """Bring the outputs of a prediction to where it aimed, while that lowers the objective; sets the parameters.

    Args:
        target: at the new value.
        metric: measured near.
        x: scaled parameters of the prediction.
        aim: outputs, to first order.

    Returns:
        The objective there; infinite where it is not finite.
    """
    scaled = ScaledParameters(target)
    scaled.write(x)
    best, value = x, target.evaluate(gradient=False).objective
    if not metric.restores or not math.isfinite(value):
        return value if math.isfinite(value) else math.inf
    now = x
    for _ in range(_RESTORATIONS):
        now = now + metric.restoration(target.last_outputs() - aim).to(x.dtype)
        scaled.write(now)
        trial = target.evaluate(gradient=False).objective
        if not trial < value:
            break
        best, value = now, trial
    scaled.write(best)
    return value


@dataclass(frozen=True)
class Corrected:
    """Where a corrector ended.

    Args:
        here: the point; None where there is none.
        steps: of Newton's method.
        products: spent.
    """

    here: Here | None
    steps: int
    products: int


def minimise(
    family: Family,
    tau: float,
    tolerance: float,
    most: int,
    *,
    radius: float | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Corrected:
    """From the present parameters down to a minimum at this coordinate.

    Args:
        family: what is followed.
        tau: the coordinate.
        tolerance: on the residual.
        most: steps of Newton's method.
        radius: of the first trust region, in the metric; Newton's own by default.
        should_stop: asked after every step.
    """
    target = family.at(family.value(tau))
    run = NewtonRun(
        target, Newton(preconditioner=family.preconditioner), lambda dtype: family.hessian(target, dtype), tolerance
    )
    run.trust(radius)
    steps, size = 0, float(ScaledParameters(target).values().norm())
    while not run.finished and steps < most:
        if should_stop is not None and steps and should_stop():
            return Corrected(None, steps, run.products)
        value = run.step(target.evaluate, 1.0)
        steps += 1
        if not math.isfinite(value.objective):
            return Corrected(None, steps, run.products)
    scaled = ScaledParameters(target)
    evaluation, residual = target.evaluate(), float(target.residual().max())
    if not residual <= tolerance and float(scaled.values().norm()) <= _NOTHING * size:
        # towards the zero network, where residuals stay at 1 for being relative to the weights
        scaled.write(torch.zeros_like(scaled.values()))
        evaluation, residual = target.evaluate(), float(target.residual().max())
    if not residual <= tolerance:
        return Corrected(None, steps, run.products)
    return Corrected(Here(tau, scaled.values(), evaluation, residual), steps, run.products)


@dataclass(frozen=True)
class Direction:
    """A unit vector along a branch, in the norm ``‖x‖²/size² + τ²``.

    Args:
        x: its part in the scaled parameters.
        tau: its part in the coordinate.
        size: of the parameters, what x is compared with.
        least: least Ritz value met.
        products: spent.
    """

    x: Float[Tensor, "variables"]
    tau: float
    size: float
    least: float
    products: int

    def times(self, other: "Direction") -> float:
        """The inner product with another direction."""
        return float(self.x @ other.x) / self.size**2 + self.tau * other.tau


def unit(x: Tensor, tau: float, size: float, least: float = math.inf, products: int = 0) -> Direction:
    """The direction of a vector that is not zero."""
    length = math.hypot(float(x.norm()) / size, tau)
    return Direction(x / length, tau / length, size, least, products)


class Bordered:
    """The bordered system at a point; see the module.

    Args:
        product: with H.
        metric: of Newton's method.
        border: ``g_τ``.
        along: the direction of the branch near, which gives κ its sign.
    """

    def __init__(
        self, product: Callable[[Tensor], Tensor], metric: Preconditioner, border: Tensor, along: Direction
    ) -> None:
        self._product, self._metric, self.border = product, metric, border
        size = float(border @ metric.apply(border))
        self.size = size if size > 0 else 1.0
        # ⟨g_τ, H⁻¹g_τ⟩ = −⟨g_τ, dx/dτ⟩ along the branch
        self.corner = math.copysign(self.size, float(border @ along.x) * along.tau)

    def _times(self, v: Tensor) -> Tensor:
        x, tau = v[:-1], v[-1:]
        return torch.cat((self._product(x).add_(self.border * tau), (self.border @ x + self.corner * tau)))

    def _inverse(self, v: Tensor) -> Tensor:
        return torch.cat((self._metric.apply(v[:-1]), v[-1:] / self.size))

    def solve(self, g: Tensor, n: float, accuracy: float) -> tuple[Tensor, float, float, int]:
        """dx, dτ, the least Ritz value met, products."""
        right = torch.cat((g, g.new_tensor([n])))
        found = minres(self._times, right, self._inverse, accuracy, _LIMIT)
        return found.x[:-1], float(found.x[-1]), found.least, found.products

    def direction(self, size: float, like: Direction) -> Direction:
        """The branch's own direction, turned as another."""
        x, tau, least, products = self.solve(torch.zeros_like(self.border), self.size, _TANGENT)
        found = unit(x, tau, size, least, products)
        return found if found.times(like) >= 0 else unit(-x, -tau, size, least, products)


def beside(
    family: Family,
    here: Here,
    along: Direction,
    step: float,
    tolerance: float,
    most: int = 10,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[Corrected, Direction | None]:
    """A step along a branch with the parameter free, and the direction where it ended.

    It keeps to the branch, minimum or saddle, and goes round folds. It fails, with no point, where the residual does
    not contract or the parameter leaves its range: take a shorter step.

    Args:
        family: what is followed.
        here: where from.
        along: which way.
        step: how far, in the norm of `Direction`.
        tolerance: on the residual.
        most: steps of Newton's method.
        should_stop: asked after every one.
    """
    x_p, tau_p = here.x.add(along.x, alpha=step), here.tau + step * along.tau
    x, tau = x_p, tau_p
    metric: Preconditioner | None = None
    products, last, rises = 0, math.inf, 0
    for count in range(most + 1):
        try:
            value = family.check(family.value(tau), "a step")
        except (ValueError, OverflowError):
            break
        border, drift = family.drift(value, x)
        target = family.at(value)
        scaled = ScaledParameters(target)
        scaled.write(x)
        evaluation = target.evaluate()
        residual = float(target.residual().max())
        if not (math.isfinite(evaluation.objective) and math.isfinite(residual)):
            break
        rises = rises + 1 if residual > 0.5 * last else 0
        if rises > 2 or (should_stop is not None and count and should_stop()):
            break
        last = min(last, residual)
        if metric is None or count % 2 == 0:
            metric = family.preconditioner(target)
            metric.refresh()
        hessian = family.hessian(target, product_dtype(residual, metric, x.dtype))
        hessian.linearise()
        system = Bordered(scaled_product(hessian, scaled), metric, border, along)
        if residual <= tolerance and count:
            direction = system.direction(along.size, along)
            found = Here(tau, x, evaluation, residual)
            return Corrected(found, count, products + direction.products), direction
        n = float(border @ (x - x_p)) + system.corner * (tau - tau_p)
        accuracy = min(_BORDERED, max(0.1 * residual, 0.03 * tolerance / residual)) if residual > 0 else _BORDERED
        dx, dtau, _, spent = system.solve(-scaled.gradient(), -n, max(accuracy, 1e-12))
        products += spent
        aim = hessian.tangent(scaled.unflatten(dx)).to(drift.dtype).add_(drift, alpha=dtau).add_(hessian.outputs)
        x, tau = x + dx, tau + dtau
        x = _returned(family, tau, metric, x, aim)
    return Corrected(None, count, products), None


def _returned(family: Family, tau: float, metric: Preconditioner, x: Tensor, aim: Tensor) -> Tensor:
    """Second-order corrections of a step, while the outputs come nearer to where it aimed."""
    if not metric.restores:
        return x
    try:
        target = family.at(family.check(family.value(tau), "a step"))
    except (ValueError, OverflowError):
        return x
    scaled = ScaledParameters(target)
    best, least = x, math.inf
    for _ in range(_RESTORATIONS):
        scaled.write(x)
        target.evaluate(gradient=False)
        excess = target.last_outputs() - aim
        size = float(excess.norm())
        if not size < 0.5 * least:
            break
        best, least = x, size
        x = x + metric.restoration(excess).to(x.dtype)
    return best
