"""From merged accumulators to numbers with uncertainty, and what data without structure would have given."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from isthmus.probe.moments import STATES, LayerMoments
from isthmus.probe.sums import FEATURES, FactorSums
from isthmus.probe.tsqr import StreamingQR

Numbers = dict[str, tuple[float, float]]


@runtime_checkable
class Accumulator(Protocol):
    """What can be jackknifed: `LayerMoments`, `PairMoments`, or anything that counts and merges."""

    @property
    def count(self) -> int:
        """Rows seen."""
        ...

    def merge(self, other: Any) -> Any:
        """Moments of both's rows."""
        ...


A = TypeVar("A", bound=Accumulator)


def _leave_one_out(shards: Sequence[A]) -> tuple[A, list[A]]:
    """All shards merged, and all but each, in about 3 merges a shard."""
    before = [shards[0]]
    for shard in shards[1:]:
        before.append(before[-1].merge(shard))
    without: list[A] = [before[-2]]
    after = shards[-1]
    for i in range(len(shards) - 2, 0, -1):
        without.append(before[i - 1].merge(after))
        after = shards[i].merge(after)
    without.append(after)
    return before[-1], without[::-1]


def with_uncertainty(
    shards: Sequence[A],
    gamma0: float = 1e-3,
    *,
    quantities: Callable[[A], Mapping[str, float]] | None = None,
) -> Numbers:
    """Quantities of all shards together, with jackknife standard errors.

    The delete-one jackknife over shards, for unequal ones the delete-m_j jackknife (Busing, Meijer and van der
    Leeden 1999); two shards make it the split-half estimate. Shards must be independent draws: put rows that belong
    together (tokens of a text, positions of an image) into the same shard. Counts such as rank_1e-2 are not smooth, and
    their errors rough. The count is given.

    Args:
        shards: at least two, made alike, each with rows; 10 or more for an error that is itself known to a quarter.
        gamma0: γ_0 of the stable quantities.
        quantities: of an accumulator; by default its own ``quantities(gamma0)``.

    Returns:
        Name to (value, standard error).

    Raises:
        ValueError: fewer than two shards, or one without rows.
    """
    if len(shards) < 2:
        raise ValueError(f"an uncertainty needs two shards or more, got {len(shards)}; split the data, 10 is good")
    empty = sum(shard.count == 0 for shard in shards)
    if empty:
        raise ValueError(f"{empty} of {len(shards)} shards have no rows: leave them out")
    evaluate: Callable[[Any], Mapping[str, float]] = quantities or (lambda m: m.quantities(gamma0))
    whole, without = _leave_one_out(shards)
    shares = [shard.count / whole.count for shard in shards]
    return jackknifed(evaluate(whole), [evaluate(part) for part in without], shares)


def jackknifed(values: Mapping[str, float], left: Sequence[Mapping[str, float]], shares: Sequence[float]) -> Numbers:
    """Quantities with the standard errors that those without each part give (`with_uncertainty`).

    Args:
        values: of all rows.
        left: without each part.
        shares: of the rows, that each part has.
    """
    found = {}
    for name, value in values.items():
        # pseudo-values h θ − (h − 1) θ_(−j) with h = 1/share, about their weighted mean
        pseudo = [value / m - (1 / m - 1) * part[name] for m, part in zip(shares, left, strict=True)]
        centre = sum(m * p for m, p in zip(shares, pseudo, strict=True))
        variance = sum((p - centre) ** 2 / (1 / m - 1) for m, p in zip(shares, pseudo, strict=True)) / len(shares)
        found[name] = (value, math.sqrt(variance) if variance >= 0 else math.nan)
    if "count" in found:
        found["count"] = (found["count"][0], 0.0)
    return found


def _gaussian(moments: LayerMoments, samples: int, generator: torch.Generator) -> LayerMoments:
    """Rows drawn with the data's mean and covariance, through the same σ."""
    root = moments._sums.root(STATES).cpu() / math.sqrt(moments.count)
    mean = moments.mean().cpu()
    null = LayerMoments(moments.width, moments.activation, device=moments.device)
    for start in range(0, samples, 4096):
        z = torch.randn(min(4096, samples - start), len(root), dtype=torch.float64, generator=generator)
        null.update(mean + z @ root)
    return null


def _shuffled(moments: LayerMoments, samples: int, generator: torch.Generator) -> LayerMoments:
    """What shuffling each neuron over the samples leaves, to second order.

    Means, variances and the covariance of each neuron with its own feature stay, all else is independent. The scatter
    of a finite sample is that of a Gaussian: the factor of its centred columns is drawn by Bartlett's decomposition, so
    that any number of samples costs the same.
    """
    sums, w = moments._sums, moments.width
    var_s, cov, var_a = (sums.products(i, j) / moments.count for i, j in ((0, 0), (0, 1), (1, 1)))
    spread = var_s.clamp_min(0).sqrt().cpu()
    slope = torch.where(spread > 0, cov.cpu() / torch.where(spread > 0, spread, 1.0), 0.0)
    rest = (var_a.cpu() - slope.square()).clamp_min(0).sqrt()
    free = samples - 1
    T = torch.randn(min(free, 2 * w), 2 * w, dtype=torch.float64, generator=generator)
    if free >= 2 * w:
        degrees = free - torch.arange(2 * w, dtype=torch.float64)
        T = T.triu(1) + torch.diag((2 * torch._standard_gamma(degrees / 2, generator)).sqrt())
    lower = torch.cat((T[:, :w] * spread, T[:, :w] * slope + T[:, w:] * rest), 1)
    means = torch.cat([torch.ones(1, dtype=torch.float64), *(sums.mean(i).cpu() for i in (FEATURES, STATES))])
    first = means[None] * math.sqrt(samples)
    factor = torch.cat((first, torch.cat((lower.new_zeros(len(lower), 1), lower), 1)))
    null = LayerMoments(w, moments.activation)
    stream = StreamingQR.of_factor(factor, samples)
    null._sums, null._fourth = FactorSums((w, w), moments.activation.append_one, stream=stream), None
    return null


@torch.no_grad()
def null_control(
    moments: LayerMoments,
    kind: str = "gaussian",
    *,
    draws: int = 4,
    samples: int | None = None,
    gamma0: float = 1e-3,
    seed: int = 0,
) -> Numbers:
    """The same quantities for data without structure, so that a low dimension can be told from noise.

    ``gaussian``: rows of the data's mean and covariance through the same σ. What differs is not second order: the
    ranks of A hardly do, the cost of identity may. ``shuffled``: neurons independent of one another, each keeping its
    mean, variance and relation to its own feature. Ranks well below this one's come from correlation between
    neurons, not from few samples or unequal variances.

    Args:
        moments: of the data; of ``gram``, with spectra.
        kind: "gaussian" or "shuffled".
        draws: how often, for the standard deviation.
        samples: rows of each draw. By default as many as the data have; "gaussian", which draws them all, stops at
            32 times the width or 8192, the greater.
        gamma0: γ_0 of the stable quantities.
        seed: of the draws.

    Returns:
        Name to (mean, standard deviation over draws), of what every draw defines; "count" is the samples drawn.

    Raises:
        ValueError: an unknown kind, fewer than 2 rows, samples or draws.
    """
    if kind not in ("gaussian", "shuffled"):
        raise ValueError(f"kind must be 'gaussian' or 'shuffled', got {kind!r}")
    if samples is None:
        cap = max(32 * moments.width, 8192) if kind == "gaussian" else moments.count
        samples = min(moments.count, cap)
    if min(moments.count, samples, draws) < 2:
        raise ValueError(
            f"a null control needs 2 rows, samples and draws or more, got {moments.count}, {samples} and {draws}"
        )
    generator = torch.Generator().manual_seed(seed)
    draw = _gaussian if kind == "gaussian" else _shuffled
    found = [draw(moments, samples, generator).quantities(gamma0) for _ in range(draws)]
    numbers: Numbers = {}
    for name in found[0]:
        values: Tensor = torch.tensor([one[name] for one in found], dtype=torch.float64)
        if not bool(values.isnan().any()):
            numbers[name] = (float(values.mean()), float(values.std()))
    if kind == "shuffled":  # without the bias of finite rows it is that of the variances, of any number of samples
        variances = moments._sums.products(STATES, STATES)
        power = float(variances.square().sum())
        if power > 0:
            numbers["participation_ratio_rows"] = (float(variances.sum()) ** 2 / power, 0.0)
    return numbers


def distance_from_null(measured: Mapping[str, tuple[float, float]], null: Numbers) -> dict[str, float]:
    """``(value − null)/√(error² + deviation²)``: below about −3 a dimension is lower than noise would have.

    Args:
        measured: from `with_uncertainty`.
        null: from `null_control`.

    Returns:
        Of each name that both have; 0 where the values are equal, infinite where they differ without uncertainty.
    """
    found = {}
    for name in measured.keys() & null.keys():
        difference = measured[name][0] - null[name][0]
        scale = math.hypot(measured[name][1], null[name][1])
        found[name] = (
            0.0 if difference == 0 else difference / scale if scale > 0 else math.copysign(math.inf, difference)
        )
    return found
