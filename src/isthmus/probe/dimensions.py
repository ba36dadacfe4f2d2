"""Intrinsic dimension from ratios of neighbours' distances, with what tells whether to believe it.

Where rows are locally uniform on a manifold of dimension d, the ratio μ of the distances to the 2n-th and the n-th
neighbour has a law that depends on d alone (Denti et al., arXiv:2104.13832); n = 1 is TwoNN (Facco et al., Scientific
Reports 7, 12140, 2017). Many dimensions and few rows break "locally": the estimate is then too low, and silently. Known
manifolds with as many rows show by how much.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from isthmus._types import Rows
from isthmus.probe.neighbours import MAX_ROWS, TIE, Neighbours, checked, distinct_neighbours, error_of_mean

METHODS = ("fit", "ml")

DISCARDED = 0.1
"""Share of the largest ratios that the fit leaves out, as Facco et al. and DADApy do."""

FEWEST = 100
"""Distinct rows below which no dimension is trusted: its error alone is then above a tenth."""

MISJUDGED = 0.2
"""Error on known manifolds beyond which a dimension is not trusted. Gaussian rows reach it near dimension 20 with 1000
rows."""

TIED = 0.05
"""Share of rows with two nearest neighbours equally far beyond which data count as discrete; it is 0 where they are
not."""

CLUSTERED = 0.8
"""Dimensions below this are of no manifold, but of rows in tight groups."""

DEVIATIONS, DRIFT = 3.0, 0.1
"""A dimension changes with scale where, beyond what a known manifold's does, it moves by this many errors and by this
part of itself."""

CHECK_RANK = 32
"""Neighbour out to which `two_nn` looks whether the dimension changes with scale."""

TRIALS, MOST = 6, 1024
"""Known manifolds tried for one estimate at most (two are the rule), and their greatest dimension."""


@dataclass(frozen=True)
class NeighbourDimension:
    """A dimension from neighbours, and what is known of its worth.

    Args:
        value: the dimension; NaN where no ratio of distances exists.
        error: standard error; of the draw of the rows, not of what the estimator misjudges.
        interval: 95 %, symmetric in log.
        rank: neighbours out to which distances were read, 2n.
        scale: mean distance to the neighbour of this rank, in the units of the rows.
        control: the same estimate where every column is shuffled by itself; NaN where it was left out.
        known: dimension of the known manifold that comes nearest to ``value`` with as many rows; 0 where none was
            tried.
        known_value: what the estimator says of that one.
        rows: distinct rows used.
        copies: share of the rows used that repeat another.
        method: "fit" or "ml".
        doubts: sentences.
        trusted: none of the doubts is a reason to refuse the number.
    """

    value: float
    error: float
    interval: tuple[float, float]
    rank: int
    scale: float
    control: float
    known: int
    known_value: float
    rows: int
    copies: float
    method: str
    doubts: tuple[str, ...]
    trusted: bool

    @property
    def misjudged(self) -> float:
        """Relative error on the known manifold: −0.3 where its dimension comes out 30 % too low."""
        return self.known_value / self.known - 1 if self.known else math.nan


@torch.no_grad()
def two_nn(
    rows: Rows,
    *,
    method: str = "fit",
    max_rows: int = MAX_ROWS,
    tolerance: float | None = None,
    control: bool = True,
    seed: int = 0,
) -> NeighbourDimension:
    """Intrinsic dimension from each row's first two neighbours: ``P(μ > x) = x^{−d}`` with μ = r₂/r₁.

    ``fit``, the default, is DADApy's and the paper's: the slope through 0 of ``−log(1 − i/N)`` against the i-th least
    log μ, the largest tenth left out. Its error is 8 % greater than that of ``ml``, ``(N − 1)/Σ log μ``, but a few near
    copies, whose μ is huge, do not move it.

    Args:
        rows: one a sample, ``(n, width)``, of any floating point type.
        method: "fit" or "ml".
        max_rows: of more rows, as many are drawn; the scale grows where rows are left out.
        tolerance: relative distance up to which rows are copies, see `neighbour_distances`.
        control: compute the null control as well, at the price of a second search.
        seed: of every draw.

    Raises:
        TypeError: rows that are not floating point.
        ValueError: an unknown method, NaN, a wrong shape, fewer than 3 rows.

    >>> plane = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) @ torch.ones(2, 5).tril()
    >>> found = two_nn(plane)
    >>> round(found.value), found.trusted
    (2, True)
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    rows = _checked(rows)
    found = distinct_neighbours(rows, CHECK_RANK, max_rows=max_rows, tolerance=tolerance, seed=seed)
    if found.distances.shape[1] < 2:
        return _one_row(found, method)
    first = _judged(found, 2, method, _control(rows, found, (2,), method, seed)[0] if control else math.nan, seed)
    if found.distances.shape[1] < CHECK_RANK:
        return first
    wide = _estimate(found, CHECK_RANK, "ml")
    return _with_drift([first], [(CHECK_RANK, "ml", wide)], seed)[0]


@torch.no_grad()
def gride(
    rows: Rows,
    *,
    max_rank: int = 64,
    max_rows: int = MAX_ROWS,
    tolerance: float | None = None,
    control: bool = True,
    seed: int = 0,
) -> tuple[NeighbourDimension, ...]:
    """Intrinsic dimension by scale, by maximum likelihood, from neighbours n and 2n for n = 1, 2, 4, …

    The density of μ is ``d (μ^d − 1)^{n−1} / (B(n, n) μ^{(2n−1)d + 1})``. The maximum is DADApy's, its correction
    N → N − 1 included. Errors are greater: they count that rows share neighbours.

    Args:
        rows: one a sample, ``(n, width)``, of any floating point type.
        max_rank: the greatest 2n; fewer distinct rows stop before.
        max_rows: see `two_nn`.
        tolerance: the same.
        control: the same.
        seed: of every draw.

    Returns:
        One a scale, the finest first. ``rank`` is 2n, ``scale`` the mean distance to that neighbour.

    Raises:
        TypeError: rows that are not floating point.
        ValueError: a max_rank below 2, NaN, a wrong shape, fewer than 3 rows.
    """
    if max_rank < 2:
        raise ValueError(f"max_rank must be 2 or more, got {max_rank}")
    rows, most = _checked(rows), 2 ** int(math.log2(max_rank))
    found = distinct_neighbours(rows, most, max_rows=max_rows, tolerance=tolerance, seed=seed)
    if found.distances.shape[1] < 2:
        return (_one_row(found, "ml"),)
    ranks = [2**i for i in range(1, int(math.log2(found.distances.shape[1])) + 1)]
    controls = _control(rows, found, tuple(ranks), "ml", seed) if control else [math.nan] * len(ranks)
    scales = [_judged(found, rank, "ml", null, seed) for rank, null in zip(ranks, controls, strict=True)]
    return tuple(_with_drift(scales, [(s.rank, "ml", (s.value, s.error)) for s in scales], seed))


def _checked(rows: Tensor) -> Tensor:
    rows = checked(rows)
    if len(rows) < 3:
        raise ValueError(f"a dimension from neighbours needs 3 rows or more, got {len(rows)}")
    return rows


# --- estimates ----------------------------------------------------------------------------------------------------


def _estimate(found: Neighbours, rank: int, method: str) -> tuple[float, float]:
    """Dimension and standard error from the neighbours ``rank/2`` and ``rank``; NaN where all distances are equal."""
    log_mu = (found.distances[:, rank - 1] / found.distances[:, rank // 2 - 1]).log()
    log_mu = torch.where(log_mu > TIE, log_mu, 0.0)
    if not float(log_mu.sum()) > 0:
        return math.nan, math.nan
    value, parts = _fit(log_mu) if method == "fit" else _maximum(log_mu, rank // 2)
    if not math.isfinite(value):
        return math.nan, math.nan
    return value, error_of_mean(parts, found.indices[:, :rank])


def _fit(log_mu: Tensor) -> tuple[float, Tensor]:
    """Slope of the fit, and what each row adds to it: the influence function where the law holds.

    With ``y = d log μ``, a the share kept, ``Y = −log(1 − a)`` and ``b = ∫_0^Y y² e^{−y} dy``, a row adds
    ``−(d/b)(min(y, Y)²/2 − mean)``.
    """
    n = len(log_mu)
    kept = int(n * (1 - DISCARDED))
    x = log_mu.sort().values[:kept]
    y = -torch.log1p(-torch.arange(1, kept + 1, dtype=x.dtype) / n)
    slope = float(x @ y) / float(x @ x) if float(x @ x) > 0 else math.nan
    Y = -math.log(DISCARDED)
    b = 2 - DISCARDED * (Y * Y + 2 * Y + 2)
    return slope, -slope / b * (slope * log_mu).clamp_max(Y).square() / 2


def _maximum(log_mu: Tensor, n1: int) -> tuple[float, Tensor]:
    """The d at which the likelihood is greatest, and what each row adds to it: score over Fisher information.

    With ``x = d log μ`` a row's score times d is ``1 − s(x)``, ``s = (2n − 1)x − (n − 1)x/(1 − e^{−x})``, which grows
    with d, so that bisection finds where its sum is N − 1.
    """
    count = len(log_mu)

    def s(d: float) -> Tensor:
        x = d * log_mu
        return (2 * n1 - 1) * x - (n1 - 1) * torch.where(x > 0, x / -torch.expm1(-x), 1.0)

    low = high = count / float(log_mu.sum())
    while float(s(low).sum()) > count - 1:
        low /= 2
    while float(s(high).sum()) < count - 1:
        high *= 2
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if float(s(middle).sum()) < count - 1 else (low, middle)
    d = math.sqrt(low * high)
    half = d * log_mu / 2
    information = count + (n1 - 1) * float(torch.where(half > 1e-8, half / half.sinh(), 1.0).square().sum())
    return d, d * count / information * (1 - s(d))


# --- what is known of them ----------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def _gaussian(dimension: int, rows: int, most: int, rank: int, method: str, seed: int) -> tuple[float, float]:
    """The estimate for Gaussian rows in ``dimension`` dimensions; an isometry into more would change no distance."""
    return _estimate(_gaussian_neighbours(dimension, rows, most, seed), rank, method)


@lru_cache(maxsize=4)
def _gaussian_neighbours(dimension: int, rows: int, most: int, seed: int) -> Neighbours:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows, dimension, dtype=torch.float64, generator=generator)
    return distinct_neighbours(drawn, most, max_rows=rows, tolerance=0.0)


def _known(value: float, rows: int, rank: int, most: int, method: str, seed: int) -> tuple[int, float]:
    """A dimension whose Gaussian rows are estimated at about ``value``, and that estimate.

    Asking what rows of *dimension* ``value`` give would not do: where 35 reads as 20 and 20 as 17, a reading of 20
    would look 15 % wrong and be 43 % wrong.
    """
    tried: dict[int, float] = {}
    dimension = min(MOST, max(1, round(value)))
    while dimension not in tried and len(tried) < TRIALS:
        tried[dimension] = _gaussian(dimension, rows, most, rank, method, seed)[0]
        dimension = min(MOST, max(1, round(dimension * value / tried[dimension])))
    best = min(tried, key=lambda d: (abs(tried[d] - value), d))
    return best, tried[best]


def _control(rows: Tensor, found: Neighbours, ranks: Sequence[int], method: str, seed: int) -> list[float]:
    """The estimates where each column of the distinct rows is shuffled by itself: what marginals alone give."""
    X = rows[found.kept].cpu()
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(X.shape, generator=generator).argsort(dim=0)
    shuffled = distinct_neighbours(X.gather(0, order), max(ranks), max_rows=len(X))
    most = shuffled.distances.shape[1]
    return [_estimate(shuffled, rank, method)[0] if rank <= most else math.nan for rank in ranks]


def _judged(found: Neighbours, rank: int, method: str, control: float, seed: int) -> NeighbourDimension:
    """The estimate at one scale with everything that is known of it, but for how it changes with scale."""
    value, error = _estimate(found, rank, method)
    count = len(found.kept)
    known, known_value, refusals = 0, math.nan, _refusals(found, value)
    if math.isfinite(value) and found.tied() <= TIED:
        known, known_value = _known(value, count, rank, found.distances.shape[1], method, seed)
        refusals += _misjudged(known, known_value)
    doubts = list(refusals)
    if found.copies > DISCARDED:
        doubts.append(f"{found.copies:.0%} of {found.used} rows repeat another and were merged")
    if control - value < DEVIATIONS * error:
        doubts.append(
            f"no lower than for columns shuffled independently ({control:.3g}): the rows fill what their columns allow"
        )
    spread = math.exp(1.96 * error / value) if math.isfinite(value) else math.nan
    return NeighbourDimension(
        value=value,
        error=error,
        interval=(value / spread, value * spread),
        rank=rank,
        scale=float(found.distances[:, rank - 1].mean()),
        control=control,
        known=known,
        known_value=known_value,
        rows=count,
        copies=found.copies,
        method=method,
        doubts=tuple(doubts),
        trusted=not refusals,
    )


def _refusals(found: Neighbours, value: float) -> list[str]:
    """Why a number is not to be trusted, whatever the estimator is worth."""
    reasons = []
    if len(found.kept) < FEWEST:
        reasons.append(f"{len(found.kept)} distinct rows; {FEWEST} are the fewest that tell a dimension")
    if not math.isfinite(value):
        return [*reasons, "neighbours are all equally far: no ratio of distances tells a dimension"]
    tied = found.tied()
    if tied > TIED:
        reasons.append(f"{tied:.0%} of rows have two nearest neighbours equally far: the data are discrete")
    if found.blurred:
        reasons.append(
            f"neighbours are as near as a few roundings ({found.rounding:.2g}) of the type the rows came in; "
            "keep more digits"
        )
    if value < CLUSTERED:
        reasons.append(f"{value:.2g} is no manifold's dimension: rows lie in tight groups, or nearly repeat")
    return reasons


def _misjudged(known: int, known_value: float) -> list[str]:
    """What the estimator makes of a known manifold, where that is wrong."""
    off = known_value / known - 1
    if abs(off) <= MISJUDGED:
        return []
    text = f"Gaussian rows of dimension {known}, as many, are judged as {known_value:.3g}: {abs(off):.0%} too "
    return [text + ("low; take more rows" if off < 0 else "high")]


def _with_drift(
    scales: list[NeighbourDimension], measured: list[tuple[int, str, tuple[float, float]]], seed: int
) -> list[NeighbourDimension]:
    """Add a doubt to all where the dimension changes with scale more than that of a known manifold does."""
    first = scales[0]
    if not (first.known and all(math.isfinite(value) for _, _, (value, _) in measured)):
        return scales
    most = measured[-1][0]

    def of_known(rank: int, method: str) -> tuple[float, float]:
        return _gaussian(first.known, first.rows, most, rank, method, seed)

    here, here_error = of_known(first.rank, first.method)
    worst: tuple[float, int, float] | None = None
    for rank, method, (value, error) in measured:
        there, there_error = of_known(rank, method)
        change = math.log(value / first.value) - math.log(there / here)
        parts = (error / value, first.error / first.value, there_error / there, here_error / here)
        enough = max(DEVIATIONS * math.hypot(*parts), math.log1p(DRIFT))
        if rank > first.rank and abs(change) > enough and (worst is None or abs(change) > abs(worst[0])):
            worst = (change, rank, value)
    if worst is None:
        return scales
    text = (
        f"the dimension changes with scale: {first.value:.3g} at neighbour {first.rank}, {worst[2]:.3g} at neighbour "
        f"{worst[1]}, beyond errors and what a manifold of dimension {first.known} does; read gride by scale"
    )
    return [replace(scale, doubts=(*scale.doubts, text)) for scale in scales]


def _one_row(found: Neighbours, method: str) -> NeighbourDimension:
    """What is said where fewer than three rows differ."""
    nan = math.nan
    return NeighbourDimension(
        value=nan,
        error=nan,
        interval=(nan, nan),
        rank=2,
        scale=nan,
        control=nan,
        known=0,
        known_value=nan,
        rows=len(found.kept),
        copies=found.copies,
        method=method,
        doubts=(f"{found.used} rows are copies of {len(found.kept)}: nothing to measure",),
        trusted=False,
    )
