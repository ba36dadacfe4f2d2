"""`branches`: the minima that several starts lead to, by rank, and how often each is found.

The objective has minima of different rank, and a network that converged is not thereby the lowest: what one start finds
is a sample. How often each minimum is found says how far "the lowest found" may be taken for the lowest.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from isthmus.bottleneck import bottleneck
from isthmus.branches.branch import copied
from isthmus.problem import Problem
from isthmus.solve import Stage, solve
from isthmus.status import Status
from isthmus.thresholds import CRITICAL

SAME = 1e-6
"""Objectives of minima that differ by less than this, relative, count as one: at a residual of 1e-4 an objective is off
by the residual's square."""


@dataclass(frozen=True)
class Found:
    """Where one start led.

    Args:
        seed: of the initial weights.
        status: how the solver ended.
        objective: at its end.
        data_cost: C.
        residual: largest stationarity residual.
        kind: minimum, saddle or undecided.
        k_star: directions about the mean; None where collapsed.
        trusted: whether nothing spoke against k*.
        seconds: spent.
        parameters: of the end.
    """

    seed: int
    status: Status
    objective: float
    data_cost: float
    residual: float
    kind: str
    k_star: int | None
    trusted: bool
    seconds: float
    parameters: tuple[Tensor, ...] = field(repr=False, compare=False)

    @property
    def certified(self) -> bool:
        """A critical point that is no saddle."""
        return self.residual <= CRITICAL and self.kind != "saddle"


@dataclass(frozen=True)
class Minima:
    """What several starts found.

    Args:
        problem: which was solved; its model holds the parameters of the lowest certified one.
        found: one a start, in their order.
    """

    problem: Problem
    found: tuple[Found, ...]

    @property
    def certified(self) -> tuple[Found, ...]:
        """Those that are critical points and no saddles, lowest first."""
        return tuple(sorted((f for f in self.found if f.certified), key=lambda f: f.objective))

    @property
    def lowest(self) -> Found | None:
        """The lowest certified one; None where there is none."""
        return self.certified[0] if self.certified else None

    @property
    def distinct(self) -> tuple[tuple[Found, int], ...]:
        """Different certified minima, lowest first, and how many starts led to each."""
        groups: list[list[Found]] = []
        for f in self.certified:
            for group in groups:
                near = f.objective - group[0].objective <= SAME * abs(f.objective)
                if near and f.k_star == group[0].k_star:
                    group.append(f)
                    break
            else:
                groups.append([f])
        return tuple((min(group, key=lambda f: f.seed), len(group)) for group in groups)

    @property
    def by_rank(self) -> dict[int, tuple[int, float]]:
        """For every k* found: how many certified ends have it, and the lowest objective among them."""
        ranks = sorted({f.k_star for f in self.certified if f.k_star is not None})
        return {
            k: (
                sum(f.k_star == k for f in self.certified),
                min(f.objective for f in self.certified if f.k_star == k),
            )
            for k in ranks
        }

    def restore(self, found: Found) -> Problem:
        """Set the model's parameters to those of an end, and return the problem."""
        for p, kept in zip(self.problem.parameters, found.parameters, strict=True):
            p.data.copy_(kept)
        return self.problem

    def __str__(self) -> str:
        lines = [f"{'objective':>12}{'k*':>6}{'found':>8}{'residual':>10}  {'kind':<10}first seed"]
        for f, count in self.distinct:
            k = "–" if f.k_star is None else str(f.k_star)
            lines.append(f"{f.objective:>12.6g}{k:>6}{count:>8}{f.residual:>10.1e}  {f.kind:<10}{f.seed}")
        failed = len(self.found) - len(self.certified)
        if failed:
            lines.append(f"{failed} of {len(self.found)} starts ended at no certified point")
        return "\n".join(lines)


def branches(
    problem: Problem,
    starts: int | Sequence[int] = 10,
    stages: str | Sequence[Stage] = "geodesic",
    *,
    tolerance: float = 1e-5,
    seconds: float | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_found: Callable[[Found], None] | None = None,
) -> Minima:
    """Solve from several starts, and say which minima there are and how often each is found.

    The end maps stay: they belong to the problem. Initial weights are drawn anew by the model's own initialisation; the
    present ones are lost. Afterwards the model holds those of the lowest certified end, or of the last.

    Args:
        problem: model, data, weight decay; in float64, with a smooth σ, for certificates.
        starts: how many, seeds 0, 1, …; or the seeds.
        stages: of `isthmus.solve.solve`.
        tolerance: on the residual.
        seconds: wall-clock budget of each start.
        should_stop: asked after every step; what was found so far is returned.
        on_found: is given the end of every start.

    Raises:
        ValueError: no starts, or a seed twice.
    """
    seeds = list(range(starts)) if isinstance(starts, int) else list(starts)
    if not seeds:
        raise ValueError("starts must be at least 1, or seeds")
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must differ, got {seeds}")
    found: list[Found] = []
    for seed in seeds:
        if should_stop is not None and should_stop():
            break
        problem.model.reset_weights(seed)
        solution = solve(problem, stages, tolerance=tolerance, seconds=seconds, should_stop=should_stop)
        certificate = solution.certificate
        assert certificate is not None
        finite = math.isfinite(solution.objective)
        reading = bottleneck(solution) if finite else None
        kind = certificate.kind
        end = Found(
            seed=seed,
            status=solution.status,
            objective=solution.objective,
            data_cost=solution.data_cost,
            residual=certificate.residual_max,
            kind="undecided" if kind is None else kind.kind.value,
            k_star=None if reading is None else reading.k_star,
            trusted=reading is not None and reading.trusted,
            seconds=float(solution.statistics["seconds"]),
            parameters=copied(problem.parameters),
        )
        found.append(end)
        if on_found is not None:
            on_found(end)
    minima = Minima(problem, tuple(found))
    if minima.lowest is not None:
        with torch.no_grad():
            minima.restore(minima.lowest)
    return minima
