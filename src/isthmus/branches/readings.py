"""What is read from the path of every point of a branch."""

import math

from isthmus.bottleneck import bottleneck, collapsed
from isthmus.geodesic import Geodesic
from isthmus.mechanics import mechanics


def readings(geodesic: Geodesic) -> dict[str, float]:
    """Numbers of a path, by the rules of `isthmus.bottleneck`.

    Args:
        geodesic: of a critical point.

    Returns:
        ``minus_2h_over_l`` and ``coi_least``, the ends of the interval of k* (the first at L̃ > 0 only); ``h_spread``
        over the layers of the first; ``k_star``, the directions about the mean; ``rank`` with the mean; ``trusted``
        (0 or 1); ``collapsed`` (0 or 1: then nothing else).
    """
    if collapsed(geodesic):
        return {"collapsed": 1.0}
    try:
        table = mechanics(geodesic)
    except ValueError:  # every feature of a layer is zero
        return {"collapsed": 1.0}
    found = bottleneck(geodesic, table)
    low, high = found.interval
    values = {"collapsed": 0.0, "coi_least": high, "trusted": float(found.trusted)}
    if math.isfinite(low):
        spreads = [_spread(table[name]) for name in ("minus_2h_over_l_order2", "minus_2h_over_l_order3")]
        values |= {"minus_2h_over_l": low, "h_spread": min(spreads)}
    if found.rank is not None and found.k_star is not None:
        values |= {"rank": float(found.rank), "k_star": float(found.k_star)}
    return values


def _spread(values: list[float] | list[int] | list[bool]) -> float:
    return float(max(values) - min(values))
