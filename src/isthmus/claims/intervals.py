"""Estimates over seeds with bootstrap intervals, equal to rliable's on the same numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isthmus._support import require

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 5000


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval.

    Args:
        estimate: NaN where there is nothing to estimate it from.
        low: lower end; NaN for no interval.
        high: upper end.
        seeds: how many seeds it rests on.
    """

    estimate: float
    low: float
    high: float
    seeds: int


def median_interval(values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The median over seeds and its percentile bootstrap interval.

    Args:
        values: one a seed; those that are not finite are left out.
        resamples: of the bootstrap.
        seed: of the bootstrap: the same numbers give the same interval.
    """
    return stratified_interval([values], resamples, seed)


def stratified_interval(strata: Sequence[Sequence[float]], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The median of all values, each stratum resampled within itself (Agarwal et al. 2021, arXiv:2108.13264).

    Args:
        strata: values by stratum, such as one list per number of layers; those that are not finite are left out.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The estimate; its interval at `CONFIDENCE`; the number of values in the largest stratum. Without an interval
        where no stratum has two values.

    Raises:
        ImportError: scipy is not installed.
    """
    import numpy as np  # here: `isthmus --help` reads this module, and needs none

    kept = [np.asarray([v for v in stratum if math.isfinite(v)], dtype=float) for stratum in strata]
    kept = [stratum for stratum in kept if len(stratum)]
    if not kept:
        return Interval(math.nan, math.nan, math.nan, 0)
    estimate, seeds = float(np.median(np.concatenate(kept))), max(map(len, kept))
    if seeds < 2:
        return Interval(estimate, math.nan, math.nan, seeds)
    stats = require("scipy.stats", "the claims", "'isthmus[claims]'")

    def statistic(*samples: "np.ndarray", axis: int = -1) -> "np.ndarray":
        return np.median(np.concatenate(samples, axis=axis), axis=axis)

    many = [stratum for stratum in kept if len(stratum) > 1]
    single = [stratum for stratum in kept if len(stratum) == 1]

    def joined(*samples: "np.ndarray", axis: int = -1) -> "np.ndarray":
        fixed = [np.broadcast_to(s, (*samples[0].shape[:-1], 1)) for s in single]
        return statistic(*samples, *fixed, axis=axis)

    found = stats.bootstrap(
        many, joined, n_resamples=resamples, vectorized=True, paired=False, axis=-1,
        confidence_level=CONFIDENCE, method="percentile", random_state=seed,
    )  # fmt: skip
    return Interval(estimate, float(found.confidence_interval.low), float(found.confidence_interval.high), seeds)
