"""Stages of training, and the named recipes made of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

OptimiserName = Literal["adam", "sgd", "muon", "lbfgs", "settle"]
# These need one objective throughout: the full batch, and step-sizes that stay.
FULL_BATCH = ("lbfgs", "settle")


@dataclass(frozen=True)
class Stage:
    """One optimiser for a number of steps.

    Args:
        optimiser: ``adam``, ``sgd``, ``muon``, ``lbfgs`` or ``settle``.
        steps: number of iterations.
        rate: peak rate. Of Muon in units of ``max(L̃, 1)``: the operator norm of a step of W. Unused by
            L-BFGS; a factor on the measured rate in ``settle``.
        cosine: let the rate fall to 0 along a half cosine; else constant.

    Raises:
        ValueError: steps below 1, a rate that is not positive, an unknown optimiser.
    """

    optimiser: OptimiserName
    steps: int
    rate: float = 1.0
    cosine: bool = True

    def __post_init__(self) -> None:
        if self.optimiser not in get_args(OptimiserName):
            raise ValueError(f"optimiser must be one of {', '.join(get_args(OptimiserName))}, got {self.optimiser!r}")
        if not isinstance(self.steps, int):
            raise TypeError(f"steps must be a whole number (int), got {self.steps!r}")
        if self.steps < 1:
            raise ValueError(f"a stage needs at least one step, got {self.steps}")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"a rate must be positive and finite, got {self.rate}")

    def rate_at(self, step: int) -> float:
        """The rate of iteration ``step = 0 … steps − 1``."""
        return self.rate * 0.5 * (1 + math.cos(math.pi * step / self.steps)) if self.cosine else self.rate


def paper(steps: int = 6000, rate: float = 1e-2) -> tuple[Stage, ...]:
    """The paper's recipe: Adam, 5000 full-batch epochs, then 1000 of SGD at a smaller rate (section 6).

    The paper gives no rates. Adam's falls along a cosine from 1e-2, the best of the project's trials; SGD's is a tenth.
    Other numbers of steps are shared out in the same proportion.
    """
    first = max(1, round(steps * 5 / 6))
    return (Stage("adam", first, rate), Stage("sgd", max(1, steps - first), rate / 10, cosine=False))


def default(steps: int = 2000, rate: float = 0.02) -> tuple[Stage, ...]:
    """Muon, L-BFGS in a Kronecker-factored metric, then settling: 300, 1200 and 500 of 2000 steps.

    Tuned on the network of the paper's Figure 1: docs/notes/solver.md.
    """
    first, last = max(1, round(steps * 0.15)), max(1, round(steps * 0.25))
    return (
        Stage("muon", first, rate),
        Stage("lbfgs", max(1, steps - first - last)),
        Stage("settle", last, cosine=False),
    )


RECIPES: dict[str, Callable[..., tuple[Stage, ...]]] = {"default": default, "paper": paper}


def recipe(
    name: str, steps: int | None = None, rate: float | None = None, full_batch: bool = True
) -> tuple[Stage, ...]:
    """A recipe by name, with its own numbers where none are given.

    Args:
        name: ``default`` or ``paper``.
        steps: total number of steps.
        rate: peak rate of the first stage.
        full_batch: False for minibatches: stages that need the whole objective (`FULL_BATCH`) are left out, and the
            first stage gets all the steps.

    Raises:
        ValueError: an unknown name, or fewer than 3 steps.
    """
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}: expected one of {', '.join(RECIPES)}")
    if steps is not None and steps < 3:
        raise ValueError(f"a recipe needs at least 3 steps, one a stage, got {steps}")
    own = RECIPES[name]
    if steps is None:
        steps = sum(stage.steps for stage in own())
    stages = own(steps) if rate is None else own(steps, rate)
    if full_batch or all(stage.optimiser not in FULL_BATCH for stage in stages):
        return stages
    return (replace(stages[0], steps=sum(stage.steps for stage in stages)),)
