"""Stages of training, and the named recipes made of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from isthmus.activations import ReLU, SmoothReLU
from isthmus.optimise import LBFGS, SGD, Adam, Muon, Newton, Optimiser, Settle
from isthmus.problem import Problem
from isthmus.solve.reduced import ReducedProblem, can_project

SADDLES = 5
"""Saddles that ``geodesic`` leaves at most; none that we tried came to more than one (tests/core/test_kind.py)."""


@dataclass(frozen=True)
class Stage:
    """One optimiser for a number of steps.

    Args:
        optimiser: its settings, such as ``LBFGS(pairs=10)``, from `isthmus.optimise`.
        steps: number of iterations.
        rate: peak rate, in the optimiser's unit (`isthmus.optimise.Optimiser.unit`); unused where a line search or a
            trust region finds the step.
        cosine: let the rate fall to 0 along a half cosine; else constant.
        fraction: train on this fraction of the rows, at even distances: an easier problem to begin with.
        sharpness: train with a smooth ReLU of this sharpness in place of a ReLU (or of another smooth one).
        mu_factor: multiply the weight decay by this factor while the stage runs.
        mu_share: the factor raises μ to at most this share of what the zero network costs. Where μ is large beside the
            data cost, raising it at once ends in the zero network, which a later stage does not leave
            (docs/notes/log/solver.md).
        leak_factor: multiply L̃ by this factor while the stage runs.
        tied: neighbouring layers share weights, in groups that double from both ends inwards: an easier problem to
            begin with (`isthmus.solve.reduced`), for L-BFGS.
        projected: the last layer's weights are kept at their optimum given the others (as above), for L-BFGS; without
            effect where that is no linear system, with learned ends or another loss than the squared error.
        gain: the stage ends early where a hundred steps lower its objective by less than this fraction of it; 0: never.

    Raises:
        TypeError: an optimiser that is no settings; steps that are no whole number.
        ValueError: steps below 1, a rate or another number that is not positive, tied or projected for another
            optimiser.
    """

    optimiser: Optimiser
    steps: int
    rate: float = 1.0
    cosine: bool = True
    fraction: float = 1.0
    sharpness: float | None = None
    mu_factor: float = 1.0
    mu_share: float = math.inf
    tied: bool = False
    projected: bool = False
    leak_factor: float = 1.0
    gain: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.optimiser, Optimiser):
            raise TypeError(f"optimiser must be settings such as Adam() or LBFGS(pairs=10), got {self.optimiser!r}")
        if not isinstance(self.steps, int):
            raise TypeError(f"steps must be a whole number (int), got {self.steps!r}")
        if self.steps < 1:
            raise ValueError(f"a stage needs at least one step, got {self.steps}")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"a rate must be positive and finite, got {self.rate}")
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction (of the rows) must lie in (0, 1], got {self.fraction}")
        if not 0 <= self.gain < 1:
            raise ValueError(f"gain (a fraction of the objective) must lie in [0, 1), got {self.gain}")
        for name in ("sharpness", "mu_factor", "leak_factor"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        if not self.mu_share > 0:
            raise ValueError(f"mu_share (of the zero network's cost) must be positive, got {self.mu_share}")
        if (self.tied or self.projected) and not isinstance(self.optimiser, LBFGS):
            raise ValueError(f"tied and projected are for LBFGS, got {self.optimiser!r}: leave them out")

    @property
    def conditioned(self) -> bool:
        """Whether it minimises another objective than that of the problem it is given, or over fewer networks."""
        changed = not self.mu_factor == self.leak_factor == 1
        return self.fraction < 1 or self.sharpness is not None or self.tied or changed

    def mu_of(self, problem: Problem) -> float:
        """The weight decay while the stage runs."""
        if self.mu_factor <= 1 or self.mu_share == math.inf:
            return self.mu_factor * problem.mu
        zero = problem.x.new_zeros((problem.model.out_features, problem.x.shape[0]))
        ceiling = self.mu_share * float(problem.loss.evaluate(zero, problem.y)[0])
        return max(problem.mu, min(self.mu_factor * problem.mu, ceiling))

    def of(self, problem: Problem) -> Problem:
        """The problem that this stage solves: the given one itself, where no condition differs."""
        rows = max(1, round(self.fraction * problem.x.shape[0]))
        activation = problem.activation
        if self.sharpness is not None:
            if not isinstance(activation, ReLU | SmoothReLU):
                raise ValueError(f"sharpness is for networks with a ReLU or a smooth one, not {activation}")
            activation = SmoothReLU(append_one=activation.append_one, sharpness=self.sharpness)
        leak, mu = self.leak_factor * problem.effective_depth, self.mu_of(problem)
        same = rows == problem.x.shape[0] and activation == problem.activation
        if not same or mu != problem.mu or leak != problem.effective_depth:
            problem = problem.variant(rows=rows, mu=mu, activation=activation, effective_depth=leak)
        if self.tied or (self.projected and can_project(problem)):
            return ReducedProblem(problem, self.tied, self.projected)
        return problem

    def rate_at(self, step: int) -> float:
        """The rate of iteration ``step = 0 … steps − 1``."""
        return self.rate * 0.5 * (1 + math.cos(math.pi * step / self.steps)) if self.cosine else self.rate


def paper(steps: int = 6000, rate: float = 1e-2) -> tuple[Stage, ...]:
    """The paper's recipe: Adam, 5000 full-batch epochs, then 1000 of SGD at a smaller rate (section 6).

    The paper gives no rates. Adam's falls along a cosine from 1e-2, the best of the project's trials; SGD's is a tenth.
    Other numbers of steps are shared out in the same proportion.
    """
    first = max(1, round(steps * 5 / 6))
    return (Stage(Adam(), first, rate), Stage(SGD(), max(1, steps - first), rate / 10, cosine=False))


def default(steps: int = 2000, rate: float = 0.02) -> tuple[Stage, ...]:
    """Muon, L-BFGS in a Kronecker-factored metric, then settling: 300, 1200 and 500 of 2000 steps.

    Tuned on the network of the paper's Figure 1: docs/notes/solver.md.
    """
    first, last = max(1, round(steps * 0.15)), max(1, round(steps * 0.25))
    return (
        Stage(Muon(), first, rate),
        Stage(LBFGS(), max(1, steps - first - last)),
        Stage(Settle(), last, cosine=False),
    )


def fast(steps: int = 400, rate: float = 1.0) -> tuple[Stage, ...]:
    """Down quickly, then stop: L-BFGS with a short memory and the last layer solved for, first on an easier problem.

    30 of 400 steps on a fifth of the rows and 15 on half of them, with layers tied and more weight decay, where that is
    safe; then all. On Figure 1's task it passes the objective at which the paper's recipe ends in about 60 steps:
    docs/benchmarks.md, benchmarks/time_to_objective.py.
    """
    first, second = max(1, round(steps * 0.075)), max(1, round(steps * 0.0375))
    # the metric measured more often, by one sweep: a fifth fewer iterations to there, and no worse at the end
    optimiser = LBFGS(pairs=6, damping=0.06, sweeps=1, refresh_every=10)
    all_rows = Stage(optimiser, max(1, steps - first - second), rate, projected=True)
    part = replace(all_rows, steps=first, fraction=0.2, tied=True, mu_factor=8.0, mu_share=3e-4)
    return (part, replace(part, steps=second, fraction=0.5), all_rows)


def geodesic(steps: int = 4000, rate: float = 1.0) -> tuple[Stage, ...]:
    """As close to a critical point as it goes: L-BFGS on a fifth of the rows, then on all, then Newton.

    A twentieth, 82.5 % and 12.5 % of the steps; L-BFGS on all rows leaves the field to Newton where a hundred of its
    steps gain less than 1e-4 of the objective. A step of Newton's costs 10 to 300 Hessian products. A critical point at
    which the objective bends down in some direction is left along it, five times at most. Use float64, and a smooth σ
    where the certificate matters.
    """
    first, last = max(1, round(steps * 0.05)), max(1, round(steps * 0.125))
    return (
        Stage(LBFGS(), first, rate, fraction=0.2),
        Stage(LBFGS(), max(1, steps - first - last), rate, gain=1e-4),
        Stage(Newton(saddles=SADDLES), last, rate),
    )


def kinks(steps: int = 6000, rate: float = 1.0) -> tuple[Stage, ...]:
    """To a critical point of a ReLU network, as the limit of smooth ones: sharpness 5, 30, 300, 3000, 30 000.

    L-BFGS, while a hundred of its steps gain 1e-4 of the objective, then Newton (a sixth of the steps), at each. The
    derivatives of the last smooth network are those that make the gradient vanish at ReLU's kinks: what to read is the
    residual up to kinks (`isthmus.certificate.certify`).
    """
    each = steps / 5
    newton = max(1, round(each / 6))
    return tuple(
        stage
        for sharpness in (5.0, 30.0, 300.0, 3e3, 3e4)
        for stage in (
            Stage(LBFGS(), max(1, round(each) - newton), rate, sharpness=sharpness, gain=1e-4),
            Stage(Newton(), newton, rate, sharpness=sharpness),
        )
    )


RECIPES: dict[str, Callable[..., tuple[Stage, ...]]] = {
    "default": default,
    "paper": paper,
    "fast": fast,
    "geodesic": geodesic,
    "kinks": kinks,
}


def recipe(
    name: str, steps: int | None = None, rate: float | None = None, full_batch: bool = True
) -> tuple[Stage, ...]:
    """A recipe by name, with its own numbers where none are given.

    Args:
        name: ``default``, ``paper``, ``fast``, ``geodesic`` or ``kinks``.
        steps: total number of steps.
        rate: peak rate of the first stage.
        full_batch: False for minibatches: stages whose optimiser needs the full batch are left out, and the
            first stage gets all the steps.

    Raises:
        ValueError: an unknown name, fewer than 3 steps, or minibatches for a recipe that has no stage for them.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")
    if steps is not None and steps < 3:
        raise ValueError(f"a recipe needs at least 3 steps, one a stage, got {steps}")
    own = RECIPES[name]
    if steps is None:
        steps = sum(stage.steps for stage in own())
    stages = own(steps) if rate is None else own(steps, rate)
    if full_batch or not any(stage.optimiser.full_batch for stage in stages):
        return stages
    if stages[0].optimiser.full_batch:
        raise ValueError(f"recipe {name!r} needs the full batch: leave batch_size out, or take 'default' or 'paper'")
    return (replace(stages[0], steps=sum(stage.steps for stage in stages)),)
