"""Nearest neighbours among rows, exactly and in bounded memory, with rows that repeat counted once.

What reads neighbours (`two_nn`, `gride`, `neighbourhood_overlap`) takes ratios or sets of distances, and one distance
of zero makes them infinite or wrong. Copies are therefore merged before anything is measured, and their share told.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isthmus._types import Rows

MAX_ROWS = 5000
"""Rows used at most: a random part of more. All pairs of 5000 take a second at width 768; the error of a dimension is
then some 2 % of it."""

COPIES, COPIES_HALF = 16.0, 1.0
"""Rows closer than this many roundings of their type, relative to their norm, are copies. Equal rows that were rounded
apart are at most one away; kernels that sum in another order add a few. Roundings of half types reach into the data,
so that no more than one is taken."""

BLURRED = 10.0
"""Distances below this many roundings are not told apart well: rounding then makes some 5 % of them."""

BLOCK = 2**22
"""Entries of a block of distances: 32 MiB in float64."""

CACHED = 2**17
"""Entries of a block of differences: 1 MiB, which stays in the cache and is five times as fast as a large one."""

SPARE = 8
"""Neighbours picked beyond those wanted, since matrix products order near ties by rounding."""

TIE = 1e-12
"""Relative difference up to which two distances are equal: sums of 1000 squares are right to 1e-13."""


@dataclass(frozen=True)
class Neighbours:
    """The nearest neighbours of each distinct row, nearest first.

    Args:
        distances: Euclidean, positive, ascending.
        indices: of the neighbours, counted among the distinct rows.
        kept: which row of the input each distinct row is: the first of its copies.
        used: rows of the input that were looked at.
        rounding: distance that rounding in the input's type makes at the median row.
    """

    distances: Float[Tensor, "distinct k"]
    indices: Int[Tensor, "distinct k"]
    kept: Int[Tensor, "distinct"]
    used: int
    rounding: float

    @property
    def copies(self) -> float:
        """Share of the rows used that repeat another."""
        return 1 - len(self.kept) / max(1, self.used)

    @property
    def blurred(self) -> bool:
        """Half of the rows have their first neighbour within a few roundings: ratios of distances are then noise."""
        return self.distances.shape[1] > 0 and float(self.distances[:, 0].median()) < BLURRED * self.rounding

    def tied(self, rank: int = 1) -> float:
        """Share of rows whose neighbours ``rank`` and ``rank + 1`` are equally far: 0 unless data are discrete."""
        near, far = self.distances[:, rank - 1], self.distances[:, rank]
        return float((far - near <= TIE * far).double().mean())


def checked(rows: Tensor, name: str = "rows") -> Tensor:
    """The same rows without gradients, if they can be measured.

    Raises:
        TypeError: no floating point.
        ValueError: not ``(n, width)``, no column, or NaN or infinite entries.
    """
    if not rows.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {rows.dtype}; convert with rows.float()")
    if rows.ndim != 2 or rows.shape[1] < 1:
        raise ValueError(f"{name} must be (n, width) with a column or more, got {tuple(rows.shape)}")
    parts = rows.detach().split(max(1, BLOCK // rows.shape[1]))  # a mask of all entries may not fit
    bad = torch.cat([~torch.isfinite(part).all(1) for part in parts])
    if bool(bad.any()):
        raise ValueError(
            f"{int(bad.sum())} of {len(rows)} {name} have NaN or infinite entries (the first is row "
            f"{int(bad.nonzero()[0])}): mask them, or mend the model or its precision"
        )
    return rows.detach()


def drawn(number: int, max_rows: int, seed: int) -> Tensor:
    """Which of ``number`` rows are used, ascending: all, or ``max_rows`` of them drawn without replacement."""
    if max_rows < 2:
        raise ValueError(f"max_rows must be 2 or more, got {max_rows}")
    if number <= max_rows:
        return torch.arange(number)
    return torch.randperm(number, generator=torch.Generator().manual_seed(seed))[:max_rows].sort().values


@torch.no_grad()
def neighbour_distances(
    rows: Rows, k: int, *, max_rows: int = MAX_ROWS, tolerance: float | None = None, seed: int = 0
) -> Neighbours:
    """The k nearest neighbours of each distinct row, exactly.

    Blocks of matrix products pick candidates. Their distances are computed again from differences, so that no digits
    are lost where neighbours are close and norms large.

    Args:
        rows: one a sample, of any floating point type; the work is done in float64 on the CPU. Their type says how
            coarsely they are rounded: hand them over as the model made them.
        k: neighbours of each row, itself not among them.
        max_rows: of more rows, as many are drawn at random; a neighbour is then a neighbour among these.
        tolerance: rows whose distance is at most this part of their norm are copies, and so are rows that a chain of
            such links. 0 merges equal rows alone. By default 16 roundings of the rows' type, of half types one.
        seed: of the draw.

    Raises:
        TypeError: rows that are not floating point.
        ValueError: NaN, a shape that is not ``(n, width)``, k below 1, or k distinct rows or fewer.

    >>> found = neighbour_distances(torch.tensor([[0.0], [1.0], [1.0], [3.0]]), k=1)
    >>> found.distances.flatten().tolist(), found.kept.tolist(), found.copies
    ([1.0, 1.0, 2.0], [0, 1, 3], 0.25)
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    found = distinct_neighbours(checked(rows), k, max_rows=max_rows, tolerance=tolerance, seed=seed)
    if found.distances.shape[1] < k:
        raise ValueError(
            f"k = {k} needs {k + 1} distinct rows or more, got {len(found.kept)} "
            f"({found.used} rows, {found.copies:.0%} of them copies)"
        )
    return found


def distinct_neighbours(
    rows: Tensor, k: int, *, max_rows: int = MAX_ROWS, tolerance: float | None = None, seed: int = 0
) -> Neighbours:
    """`neighbour_distances` of checked rows, with fewer neighbours where there are too few distinct rows."""
    used = drawn(len(rows), max_rows, seed)
    rows = rows[used].cpu()
    kept, _, distances, indices = without_copies(rows, k, tolerance)
    rounding = torch.finfo(rows.dtype).eps * float(_norms(rows.double()).median()) if len(used) else 0.0
    return Neighbours(distances, indices, used[kept], len(used), rounding)


def _relative(rows: Tensor, tolerance: float | None) -> float:
    if tolerance is None:
        return (COPIES if rows.itemsize > 2 else COPIES_HALF) * torch.finfo(rows.dtype).eps
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be at least 0 and below 1, got {tolerance}")
    return tolerance


def without_copies(rows: Tensor, k: int, tolerance: float | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows kept, of each row the one kept in its place, distances and indices of neighbours among those kept."""
    X, tolerance = rows.double(), _relative(rows, tolerance)
    norms, first = _norms(X), _equal(X)
    while True:
        kept, place = first.unique(return_inverse=True)
        distances, indices = nearest(X[kept], max(0, min(k, len(kept) - 1)))
        reach = tolerance * (norms[kept][:, None] + norms[kept][indices]) / 2
        close = distances <= reach
        if not bool(close.any()):
            return kept, first, distances, indices
        first = kept[_linked(indices, close)][place]


def _power_of_two(X: Tensor) -> float:
    """Near the greatest entry: divided by it, squares neither overflow nor vanish, and no digit changes."""
    size = float(X.abs().max()) if X.numel() else 0.0
    return 2.0 ** math.frexp(size)[1] if size > 0 else 1.0


def _norms(X: Tensor) -> Tensor:
    size = _power_of_two(X)
    return torch.linalg.vector_norm(X / size, dim=1) * size


def _equal(X: Tensor) -> Tensor:
    """Of each row, the first row that is equal to it."""
    if not len(X):
        return torch.arange(0)
    groups, inverse = torch.unique(X, dim=0, return_inverse=True)
    first = torch.full((len(groups),), len(X)).scatter_reduce_(0, inverse, torch.arange(len(X)), "amin")
    return first[inverse]


def _linked(indices: Tensor, linked: Tensor) -> Tensor:
    """Of each row, the first row that links lead to: the least index spreads along them until nothing moves."""
    here, column = linked.nonzero(as_tuple=True)
    there = indices[here, column]
    label = torch.arange(len(indices))
    while True:
        least = torch.minimum(label[here], label[there])
        spread = label.clone().scatter_reduce_(0, here, least, "amin").scatter_reduce_(0, there, least, "amin")
        spread = spread[spread]
        if torch.equal(spread, label):
            return label
        label = spread


def nearest(X: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Distances and indices, ``(n, k)``, of the k rows nearest to each of the float64 rows X, itself left out."""
    n, width = X.shape
    distances, indices = X.new_empty(n, k), torch.empty(n, k, dtype=torch.int64)
    if k < 1:
        return distances, indices
    size = _power_of_two(X)
    X = X / size
    centred = X - X.mean(0)
    squares = centred.square().sum(1)
    picked = min(k + SPARE, n - 1)
    # the square of a distance by products is off by about √width roundings of the squares of the norms
    slack = 4 * math.sqrt(width) * torch.finfo(X.dtype).eps * (squares.sqrt() + squares.max().sqrt()).square()
    step = max(1, BLOCK // n)
    for start in range(0, n, step):
        mine = slice(start, min(start + step, n))
        # ‖x_j‖² − 2⟨x_i, x_j⟩: without ‖x_i‖², which orders nothing
        products = torch.addmm(squares[None], centred[mine], centred.T, alpha=-2)
        products[torch.arange(len(products)), torch.arange(mine.start, mine.stop)] = math.inf
        worst, candidates = products.topk(picked, largest=False)
        found, order = _by_differences(X, mine, candidates).sort(dim=1, stable=True)
        distances[mine], indices[mine] = found[:, :k], candidates.gather(1, order)[:, :k]
        if picked == n - 1:
            continue
        left = worst[:, -1] + squares[mine]  # no row left out is nearer than this, up to slack
        unsure = (found[:, k - 1].square() > left - slack[mine]) & (slack[mine] > 1e-8 * left)
        for i in (start + unsure.nonzero()[:, 0]).tolist():
            exact = torch.linalg.vector_norm(X - X[i], dim=1)
            exact[i] = math.inf
            distances[i], indices[i] = exact.topk(k, largest=False)
    return distances * size, indices


def _by_differences(X: Tensor, mine: slice, candidates: Tensor) -> Tensor:
    """Distances from rows to their candidates, without cancellation."""
    found = X.new_empty(candidates.shape)
    step = max(1, CACHED // (candidates.shape[1] * X.shape[1]))
    for at in range(0, len(candidates), step):
        here = candidates[at : at + step]
        centre = X[mine.start + at : mine.start + at + len(here), None]
        torch.linalg.vector_norm(X[here] - centre, dim=2, out=found[at : at + step])
    return found


def error_of_mean(parts: Tensor, indices: Tensor) -> float:
    """Standard error of the mean of what each row contributes, where rows that share neighbours are not independent.

    ``‖Mᵀφ‖²/(m·n²)`` is its square, with φ the contributions about their mean and M the 0/1 matrix of each row's
    neighbourhood, itself included, of m rows: two rows count together by the share of neighbours in common. The errors
    of independent rows, and those of the Fisher information, are up to two fifths too small. For dimensions of tori,
    these are 0.84 to 1.3 of the true ones (tests/probe/test_probe_neighbours.py). The greater of the two is taken.

    Args:
        parts: of each row, ``(n,)``.
        indices: of its neighbours, ``(n, m − 1)``.
    """
    n, others = indices.shape
    centred = parts - parts.mean()
    gathered = centred.clone().index_add_(0, indices.reshape(-1), centred.repeat_interleave(others))
    shared = float(gathered.square().sum()) / (others + 1)
    return math.sqrt(max(shared, float(centred.square().sum()))) / n
