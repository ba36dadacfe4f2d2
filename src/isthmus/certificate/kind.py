"""Minimum, saddle or undecided: what a critical point is, by the least eigenvalue of the Hessian.

What is proven, and what is not. A *saddle* is proven by one direction in which the objective bends down; the error
beside the eigenvalue covers rounding. A *minimum* is proven where the Hessian fits into memory as a matrix
(``exact``): all its eigenvalues are positive. Where it does not, a Ritz value bounds the least eigenvalue from above
only, and that nothing lower exists rests on convergence from two starts, one of which is random: it is very likely then
(a random vector is not orthogonal to the eigenvector that is looked for), and no theorem.

Everything is said of the point as it is, which is near a critical point and not on it. An eigenvalue within its error
of 0, or within 1e-4 of μ, is therefore undecided, as it should be: linear networks without a skip (ρL̃ = 1) can be
rotated between their layers at no cost, and have eigenvalues that are 0.
"""

import copy
import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.activations import ReLU
from isthmus.curvature import (
    DualPreconditioner,
    Hessian,
    Lowest,
    ScaledParameters,
    lowest,
    scaled_product,
    sign_is_clear,
    spectrum,
)
from isthmus.problem import Problem
from isthmus.thresholds import CRITICAL, FLAT

_SEEDS = (0, 1)


class Kind(StrEnum):
    """What a critical point is. Equal to its text: ``kind == "saddle"``."""

    MINIMUM = "minimum"
    """The Hessian is positive definite."""
    SADDLE = "saddle"
    """In one direction at least the objective bends down."""
    UNDECIDED = "undecided"
    """Neither was shown; `KindOfPoint.reason` says why."""


@dataclass(frozen=True)
class KindOfPoint:
    """A critical point's kind and what it rests on.

    Args:
        kind: minimum, saddle or undecided.
        reason: why, in words.
        least: the least eigenvalue of the Hessian in the variables ``√ρ_ℓ W_ℓ``, over μ; NaN where it was not computed.
        error: an eigenvalue lies within this of it, over μ.
        negative: how many eigenvalues are negative; None where they were not counted (``exact``).
        exact: whether all eigenvalues were computed.
        products: Hessian products spent.
        direction: eigenvector of the least eigenvalue, in these variables, of norm 1.
    """

    kind: Kind
    reason: str
    least: float = math.nan
    error: float = math.nan
    negative: int | None = None
    exact: bool = False
    products: int = 0
    direction: Float[Tensor, "variables"] | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON (NaN as None); without the direction."""
        values: dict[str, Any] = {
            "kind": self.kind.value,
            "reason": self.reason,
            "least": self.least,
            "error": self.error,
        }
        values |= {"negative": self.negative, "exact": self.exact, "products": self.products}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


@torch.no_grad()
def kind_of(
    problem: Problem,
    *,
    exact_up_to: int = 1000,
    limit: int = 1000,
    start: Float[Tensor, "variables"] | None = None,
) -> KindOfPoint:
    """Whether a problem's present network is a minimum or a saddle.

    Args:
        problem: a smooth one, at a critical point; its parameters are not moved. Everything is done in float64.
        exact_up_to: variables up to which the Hessian is computed as a matrix, a product each: its eigenvalues are then
            exact to rounding, and the negative ones are counted.
        limit: Hessian products of each of the two searches at most, where it is not.
        start: where the first of them begins, such as an eigenvector that is known; random by default.

    Raises:
        ValueError: a limit below 1, or a start of another size.
    """
    if limit < 1:
        raise ValueError(f"limit (of Hessian products) must be at least 1, got {limit}")
    if isinstance(problem.activation, ReLU):
        return KindOfPoint(
            Kind.UNDECIDED,
            "a ReLU has kinks: the second derivatives of its pieces say nothing of a point where pieces meet; take a "
            "smooth ReLU",
        )
    if problem.memory != "store":
        return KindOfPoint(
            Kind.UNDECIDED, f"memory={problem.memory!r}: Hessian products need the features of all layers in memory"
        )
    wide = in_float64(problem)
    wide.evaluate()
    residual = float(wide.residual().max())
    if not residual <= CRITICAL:
        return KindOfPoint(
            Kind.UNDECIDED, f"no critical point: the residual reaches {residual:.2g}, beyond {CRITICAL:g}"
        )
    hessian, scaled = Hessian(wide), ScaledParameters(wide)
    hessian.linearise()
    if scaled.values().numel() <= exact_up_to:
        return _counted(hessian, scaled)
    return _searched(wide, hessian, scaled, limit, start)


def in_float64(problem: Problem) -> Problem:
    """The problem itself, or a copy of it, model and all, in float64."""
    if problem.model.weight.dtype == torch.float64:
        return problem
    return Problem(
        copy.deepcopy(problem.model).double(),
        problem.x.double(),
        problem.y if problem.loss.classes else problem.y.double(),
        loss=problem.loss,
        mu=problem.mu,
        activation=problem.activation,
        effective_depth=problem.effective_depth,
    )


def _counted(hessian: Hessian, scaled: ScaledParameters) -> KindOfPoint:
    """From all eigenvalues of the matrix."""
    values, vectors, error = spectrum(scaled_product(hessian, scaled), scaled.values())
    mu, size = scaled.mu, len(values)
    nothing = max(error, FLAT * mu)
    least, negative = float(values[0]), int((values < -nothing).sum())
    known: dict[str, Any] = {"least": least / mu, "error": error / mu, "negative": negative, "exact": True}
    known |= {"products": size, "direction": vectors[:, 0].contiguous()}
    if negative:
        many = "eigenvalue is" if negative == 1 else "eigenvalues are"
        return KindOfPoint(Kind.SADDLE, f"{negative} of the Hessian's {size} {many} negative", **known)
    if least > nothing:
        return KindOfPoint(Kind.MINIMUM, f"all {size} eigenvalues of the Hessian are positive", **known)
    return KindOfPoint(Kind.UNDECIDED, _nothing(int((values.abs() <= nothing).sum())), **known)


def _nothing(count: int | None = None) -> str:
    which = "the least eigenvalue is" if count is None else f"{count} eigenvalue{' is' if count == 1 else 's are'}"
    return f"{which} 0 within the error or 1e-4 of mu: a symmetry of the network, or a change of stability"


def _searched(
    problem: Problem, hessian: Hessian, scaled: ScaledParameters, limit: int, start: Tensor | None
) -> KindOfPoint:
    """From the least Ritz values of two searches; the second only where the first finds no saddle."""
    metric, mu = DualPreconditioner(problem), scaled.mu
    metric.refresh()
    found: list[Lowest] = []
    for seed, first in zip(_SEEDS, (start, None), strict=True):
        generator = torch.Generator().manual_seed(seed)
        search = lowest(hessian, scaled, metric, 1, FLAT, limit, first, generator, enough=sign_is_clear(mu))
        found.append(search)
        if float(search.values[0]) < -max(float(search.errors[0]), FLAT * mu):
            break
    best = min(found, key=lambda f: float(f.values[0]))
    value, error = float(best.values[0]), float(best.errors[0])
    known: dict[str, Any] = {"least": value / mu, "error": error / mu, "direction": best.vectors[0]}
    known["products"] = sum(f.products for f in found)
    nothing = max(error, FLAT * mu)
    if value < -nothing:
        return KindOfPoint(Kind.SADDLE, "in one direction the objective bends down", **known)
    if not all(f.converged for f in found):
        short = f"the least eigenvalue is not settled after {limit} Hessian products"
        return KindOfPoint(Kind.UNDECIDED, short, **known)
    if value <= nothing:
        return KindOfPoint(Kind.UNDECIDED, _nothing(), **known)
    reason = f"the least eigenvalue found from {len(found)} starts is positive (no proof that none is lower)"
    return KindOfPoint(Kind.MINIMUM, reason, **known)
