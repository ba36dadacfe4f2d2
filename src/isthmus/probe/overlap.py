"""Do two representations have the same neighbours, and do neighbours have the same label?

Neighbourhood overlap (Doimo et al., arXiv:2007.03506): the share of a row's k nearest neighbours that two
representations of the same samples have in common, or that share the row's label.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isthmus._types import Rows
from isthmus.probe.neighbours import (
    MAX_ROWS,
    TIE,
    checked,
    drawn,
    error_of_mean,
    nearest,
    without_copies,
)

NEIGHBOURS = 30
"""k by default, as in DADApy."""

FEWEST = 100
"""Distinct rows below which no overlap is trusted: its error alone is then several hundredths."""

TIED = 0.05
"""Share of rows whose k nearest neighbours are not determined, beyond which an overlap is not trusted."""

DEVIATIONS = 3.0
"""Errors by which an overlap must differ from its control."""


@dataclass(frozen=True)
class Overlap:
    """A share of common neighbours, and what is known of its worth.

    Args:
        value: mean over rows, in [0, 1]; NaN where there are too few distinct rows.
        error: standard error of the draw of the rows, which counts that rows share neighbours. Never much too small; up
            to three times too large where k is a tenth of the rows and shares change slowly from place to place.
        interval: 95 %, inside [0, 1].
        control: the same where rows get the neighbours, or the labels, of others: what chance gives.
        k: neighbours of each row.
        rows: distinct rows used.
        copies: share of the rows used that repeat another (in both representations, or with its label).
        doubts: sentences.
        trusted: none of the doubts is a reason to refuse the number.
    """

    value: float
    error: float
    interval: tuple[float, float]
    control: float
    k: int
    rows: int
    copies: float
    doubts: tuple[str, ...]
    trusted: bool


@torch.no_grad()
def neighbourhood_overlap(
    a_rows: Float[Tensor, "samples width_a"],
    b_rows: Float[Tensor, "samples width_b"],
    k: int = NEIGHBOURS,
    *,
    max_rows: int = MAX_ROWS,
    tolerance: float | None = None,
    seed: int = 0,
) -> Overlap:
    """Share of the k nearest neighbours that two representations of the same samples have in common.

    Rows that are copies of one another in both count once. Rows that are copies in one only stay: their neighbours are
    then not determined, and a doubt says of how many rows this holds.

    Args:
        a_rows: of one representation, ``(n, width)``, of any floating point type.
        b_rows: of the other; row i of both is the same sample, widths and types may differ.
        k: neighbours; chance gives k/(n − 1).
        max_rows: of more rows, as many are drawn at random.
        tolerance: relative distance up to which rows are copies, see `neighbour_distances`.
        seed: of every draw.

    Raises:
        TypeError: rows that are not floating point.
        ValueError: NaN, a wrong shape, other samples in a than in b, k below 1 or not below the number of rows.
    """
    a, b = checked(a_rows, "a_rows"), checked(b_rows, "b_rows")
    if len(a) != len(b):
        raise ValueError(f"a_rows and b_rows must be the same samples, got {len(a)} and {len(b)} rows")
    used = _used(len(a), k, max_rows, seed)
    a, b = a[used].cpu(), b[used].cpu()
    of_a, of_b = (_search(X, k, tolerance) for X in (a, b))
    kept = _first_of_pairs(of_a.first, of_b.first)
    if len(kept) <= k:
        return _too_few(len(kept), len(used), k)
    in_a, a_tied = _lists(a, kept, of_a, k)
    in_b, b_tied = _lists(b, kept, of_b, k)
    others = in_b[_shuffled(len(kept), seed)]
    return _judged(_common(in_a, in_b), _common(in_a, others), in_a, max(a_tied, b_tied), len(used))


@torch.no_grad()
def label_overlap(
    rows: Rows,
    labels: Int[Tensor, "samples"],
    k: int = NEIGHBOURS,
    *,
    balanced: bool = False,
    max_rows: int = MAX_ROWS,
    tolerance: float | None = None,
    seed: int = 0,
) -> Overlap:
    """Share of the k nearest neighbours that have the row's own label.

    Copies with one label count once.

    Args:
        rows: one a sample, ``(n, width)``, of any floating point type.
        labels: of the samples, integers.
        k: neighbours of each row.
        balanced: the mean over labels of each one's mean, as DADApy's by default, in place of the mean over rows.
        max_rows: see `neighbourhood_overlap`.
        tolerance: the same.
        seed: of every draw.

    Raises:
        TypeError: rows that are not floating point.
        ValueError: NaN, a wrong shape, other than a label a row, k below 1 or not below the number of rows.
    """
    X = checked(rows)
    if labels.shape != (len(X),):
        raise ValueError(f"labels must be one a row, ({len(X)},), got {tuple(labels.shape)}")
    used = _used(len(X), k, max_rows, seed)
    X, labels = X[used].cpu(), labels.detach().cpu()[used].unique(return_inverse=True)[1]
    search = _search(X, k, tolerance)
    kept = _first_of_pairs(search.first, labels)
    if len(kept) <= k:
        return _too_few(len(kept), len(used), k)
    indices, tied = _lists(X, kept, search, k)
    mine = labels[kept]

    def shares(own: Tensor) -> Tensor:
        found = (own[indices] == own[:, None]).double().mean(1)
        if balanced:
            sizes = torch.bincount(own).double()
            found = found * (len(own) / (int((sizes > 0).sum()) * sizes[own]))
        return found

    return _judged(shares(mine), shares(mine[_shuffled(len(mine), seed)]), indices, tied, len(used))


def _used(number: int, k: int, max_rows: int, seed: int) -> Tensor:
    used = drawn(number, max_rows, seed)
    if not 1 <= k < len(used):
        raise ValueError(f"k must be at least 1 and below the number of rows, got {k} with {len(used)} rows")
    return used


def _first_of_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Of all positions at which both labels are the same the first, ascending."""
    _, inverse = torch.unique(torch.stack((a, b), 1), dim=0, return_inverse=True)
    first = torch.full((len(a),), len(a)).scatter_reduce_(0, inverse, torch.arange(len(a)), "amin")
    return first[first < len(a)].sort().values


@dataclass(frozen=True)
class _Search:
    """Of each row the one kept in its place, and the neighbours of those kept."""

    first: Tensor
    distances: Tensor
    indices: Tensor


def _search(X: Tensor, k: int, tolerance: float | None) -> _Search:
    _, first, distances, indices = without_copies(X, k + 1, tolerance)
    return _Search(first, distances, indices)


def _lists(X: Tensor, kept: Tensor, search: _Search, k: int) -> tuple[Tensor, float]:
    """The k nearest among the rows kept, ``(n, k)``, and the share of rows for which a tie leaves them open."""
    distances, indices = search.distances, search.indices
    if len(kept) != len(indices):  # copies in one only; equal numbers are the same rows
        distances, indices = nearest(X[kept].double(), min(k + 1, len(kept) - 1))
    if distances.shape[1] == k:
        return indices, 0.0
    near, far = distances[:, k - 1], distances[:, k]
    return indices[:, :k], float((far - near <= TIE * far).double().mean())


def _shuffled(number: int, seed: int) -> Tensor:
    return torch.randperm(number, generator=torch.Generator().manual_seed(seed))


def _common(a: Tensor, b: Tensor) -> Tensor:
    """Of each row, the share of indices that are in both of its lists."""
    row = torch.arange(len(a))[:, None] * len(a)
    return torch.isin(a + row, b + row, assume_unique=True).double().mean(1)


def _judged(shares: Tensor, shuffled: Tensor, indices: Tensor, tied: float, used: int) -> Overlap:
    n, k = indices.shape
    value, error, control = float(shares.mean()), error_of_mean(shares, indices), float(shuffled.mean())
    refusals = []
    if n < FEWEST:
        refusals.append(f"{n} distinct rows; {FEWEST} are the fewest that tell an overlap")
    if tied > TIED:
        refusals.append(f"{tied:.0%} of rows have more rows than {k} equally near: which count is arbitrary")
    doubts = list(refusals)
    noise = math.hypot(error, error_of_mean(shuffled, indices))
    if value - control < DEVIATIONS * noise:
        doubts.append(f"no more than chance gives ({control:.3g})")
    interval = (max(0.0, value - 1.96 * error), min(1.0, value + 1.96 * error))
    return Overlap(value, error, interval, control, k, n, 1 - n / used, tuple(doubts), not refusals)


def _too_few(distinct: int, used: int, k: int) -> Overlap:
    nan = math.nan
    doubt = f"{used} rows are copies of {distinct}: no {k} neighbours"
    return Overlap(nan, nan, (nan, nan), nan, k, distinct, 1 - distinct / used, (doubt,), False)
