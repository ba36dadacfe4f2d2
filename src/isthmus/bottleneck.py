"""Where the bottleneck is, of what dimension, and why that may be wrong (docs/theory.md, (E11))."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._rooms import callable_room
from isthmus.geodesic import Geodesic
from isthmus.mechanics import MechanicsTable, mechanics, rank, spectra
from isthmus.thresholds import (
    COLLAPSED,
    FITTED,
    INTERVAL_SLACK,
    MARGIN,
    OVERFIT,
    PLATEAU_LENGTH,
    PLATEAU_STATES,
    RANK,
    RANK_ABOUT_MEAN,
    SHAPES,
    TIMESCALES,
    UNFITTED,
)


@dataclass(frozen=True)
class Bottleneck:
    """The bottleneck of a path, with its doubts.

    Args:
        k_star: estimate of k*: the directions in which the representation varies about its mean along the plateau. None
            where the network has collapsed; counted also where there is no verdict.
        rank: directions of the representation itself. Its mean, which is not 0 where σ is a ReLU, may be one more than
            k*: the features' appended 1 nearly pays for it.
        interval: ``−2H̃/L̃`` (median over layers, the layers' own error removed as far as it is known) and the least
            stable cost of identity: k* lies between them (E11). NaN where there is none.
        interval_error: the optimiser's error on each; NaN where it was not given.
        trusted: whether there is no doubt.
        method: how the estimate was made.
        doubts: why it may be wrong, a sentence each.
        verdict: one paragraph; "No verdict" where the residual is beyond `isthmus.thresholds.SHAPES`.
        slow: layers (1..L) where representations drift; see ``slow`` of the table.
        fast: the others.
        ranks_A: ranks of ``A_0 … A_L`` at the threshold.
        ranks_W: ranks of ``W_1 … W_L``.
        plateau: first and last state index of the plateau, or None.
        threshold: of all ranks, relative to the largest singular value.
    """

    k_star: int | None
    rank: int | None
    interval: tuple[float, float]
    interval_error: tuple[float, float]
    trusted: bool
    method: str
    doubts: tuple[str, ...]
    verdict: str
    slow: tuple[int, ...]
    fast: tuple[int, ...]
    ranks_A: tuple[int, ...]
    ranks_W: tuple[int, ...]
    plateau: tuple[int, int] | None
    threshold: float


def longest_run(values: list[int], wanted: int) -> tuple[int, int]:
    """First and last index of the longest run of ``wanted`` (the first of equals).

    >>> longest_run([5, 3, 3, 4, 3], 3)
    (1, 2)
    """
    best, start = (0, -1), None
    for i, value in enumerate([*values, wanted - 1]):
        if value == wanted and start is None:
            start = i
        elif value != wanted and start is not None:
            if i - start > best[1] - best[0] + 1:
                best = (start, i - 1)
            start = None
    return best


def _run_around(values: list[int], middle: int) -> tuple[int, int]:
    """First and last index of the run of equal values that an index lies in."""
    first = last = middle
    while first > 0 and values[first - 1] == values[middle]:
        first -= 1
    while last < len(values) - 1 and values[last + 1] == values[middle]:
        last += 1
    return first, last


def about_mean(A: Float[Tensor, "*states samples width"]) -> Float[Tensor, "*states modes"]:
    """Singular values of states about their mean over the samples, descending."""
    return spectra(A - A.mean(-2, keepdim=True))


def collapsed(geodesic: Geodesic) -> bool:
    """Whether the weights carry nothing that depends on the inputs: the end state is their leak plus a constant.

    ``‖A_L − Π(1 − ρ_ℓL̃)·A_0‖`` about the mean, below `COLLAPSED` of ``‖A_0‖`` about the mean.
    """
    leak = float((1 - geodesic.rho * geodesic.effective_depth).prod())
    A0, carried = geodesic.A[0], geodesic.A[-1] - leak * geodesic.A[0]
    return bool((carried - carried.mean(0)).norm() < COLLAPSED * (A0 - A0.mean(0)).norm())


@dataclass(frozen=True)
class _Counted:
    """What is counted and measured before anybody doubts it.

    Args:
        k_star, rank, plateau, threshold: of `Bottleneck`.
        steady: first and last state about the plateau's middle that vary in as many directions about their mean.
        low, high: ends of the interval; NaN where there is none.
        low_error, high_error: of the optimiser; NaN where unknown.
        state: where the cost of identity is least.
    """

    k_star: int
    rank: int
    plateau: tuple[int, int]
    steady: tuple[int, int]
    threshold: float
    low: float
    high: float
    low_error: float
    high_error: float
    state: int

    @property
    def integers(self) -> list[int]:
        """The integers between the ends, each widened by its error and by `INTERVAL_SLACK`."""
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            return []
        below, above = (INTERVAL_SLACK + (e if math.isfinite(e) else 0.0) for e in (self.low_error, self.high_error))
        return list(range(max(0, math.ceil(self.low - below)), math.floor(self.high + above) + 1))

    @property
    def bracket(self) -> str:
        """The interval in words."""
        low, high = _with_error(self.low, self.low_error), _with_error(self.high, self.high_error)
        return f"−2H/L̃ = {low} and the least stable cost of identity, {high}"


def _with_error(value: float, error: float) -> str:
    return f"{value:.3g} ± {error:.1g}" if math.isfinite(error) else f"{value:.3g}"


def minus_2h_over_l(table: MechanicsTable) -> float:
    """The median over layers of −2H/L̃, of the order in the step-size that leaves the least spread; NaN at L̃ = 0.

    Args:
        table: of a path.
    """
    best, least = math.nan, math.inf
    for name in ("minus_2h_over_l", "minus_2h_over_l_order2", "minus_2h_over_l_order3"):
        values = [float(v) for v in table[name]] if name in table else []
        if values and all(map(math.isfinite, values)) and max(values) - min(values) < least:
            least = max(values) - min(values)
            best = float(torch.tensor(values, dtype=torch.float64).quantile(0.5))
    return best


def least_stable_coi(table: MechanicsTable) -> tuple[float, int]:
    """The least stable cost of identity, and of which state it is."""
    costs = [float(value) for value in table["coi_stable"]]
    state = min(range(len(costs)), key=costs.__getitem__)
    return costs[state], state


def _of_the_point(geodesic: Geodesic, residual: float, found: _Counted, kind: str) -> list[str]:
    """Doubts of what was reached, whatever it is."""
    doubts = []
    known = not (math.isnan(found.low_error) or math.isnan(found.high_error))
    infinite = known and math.inf in (found.low_error, found.high_error)
    if not residual <= SHAPES:
        doubts.append(
            f"the stationarity residual reaches {residual:.2g} (trusted up to {SHAPES:g}): this is no "
            "critical point, and B, H and −2H/L̃ show optimisation error"
        )
    elif infinite:
        doubts.append("the optimiser's error on −2H/L̃ and the cost of identity could not be computed")
    elif known and max(found.low_error, found.high_error) > 0.5:
        doubts.append(
            f"the optimiser's error on −2H/L̃ and on the cost of identity, {found.low_error:.1g} and "
            f"{found.high_error:.1g}, is too large for an integer: train on"
        )
    if kind == "saddle":
        doubts.append("this is a saddle: in one direction the objective bends down, and a better network is near")
    if geodesic.effective_depth == 0:
        doubts.append("at L̃ = 0 nothing presses for a bottleneck, and −2H/L̃ is not defined")
    elif geodesic.effective_depth < TIMESCALES:
        doubts.append(f"at L̃ = {geodesic.effective_depth:g} the two timescales are hardly separated")
    return doubts


def _of_the_count(geodesic: Geodesic, found: _Counted) -> list[str]:
    """Doubts of the number."""
    doubts = []
    p, (first, last), threshold = geodesic.positions, found.steady, found.threshold
    states, length = last - first + 1, float(p[last] - p[first])
    if states < PLATEAU_STATES or length < PLATEAU_LENGTH:
        doubts.append(
            f"no plateau: the representation varies in {found.k_star} directions about its mean for {states} state(s) "
            f"over {length:.2g} of p (at least {PLATEAU_STATES} and {PLATEAU_LENGTH} are needed)"
        )
    coarser, finer = RANK_ABOUT_MEAN * MARGIN, RANK_ABOUT_MEAN / MARGIN
    middle = about_mean(geodesic.A[sum(found.plateau) // 2])
    low, high = int(rank(middle, coarser)), int(rank(middle, finer))
    if low != high:
        doubts.append(f"the count depends on the threshold: {low} at {coarser:.2g}, {high} at {finer:.2g}")
    if found.rank - found.k_star not in (0, 1):
        doubts.append(
            f"the representation has {found.rank} directions above {threshold:g} of the largest, and varies in "
            f"{found.k_star} about its mean above {RANK_ABOUT_MEAN:g}: weak directions make the count uncertain"
        )
    if math.isnan(found.low):
        return doubts
    integers = found.integers
    where = f"p = {float(p[found.state]):.2f} (A_{found.state})"
    if not integers:
        doubts.append(f"no integer lies between {found.bracket} at {where}")
    elif integers != [found.k_star]:
        doubts.append(
            f"between {found.bracket} at {where} lies {', '.join(map(str, integers[:6]))}"
            f"{' …' if len(integers) > 6 else ''}, where {found.k_star} was counted"
        )
    return doubts


def _of_the_fit(train: float, test: float | None, zero: float) -> list[str]:
    """A doubt where the test cost is beyond `OVERFIT` times the training cost, or `FITTED` of the zero network's; and
    where the training cost is beyond `UNFITTED` of it.
    """
    doubts = []
    if zero > 0 and train > UNFITTED * zero:
        doubts.append(
            f"the training cost is {train / zero:.0%} of the zero network's: what was not fitted may need further "
            "directions"
        )
    if test is None or not test > OVERFIT * max(train, FITTED * zero):
        return doubts
    return [
        *doubts,
        f"the test cost is {test:.3g}, the training cost {train:.3g}: the network fits its rows rather than the task "
        "(overfitting)",
    ]


def bottleneck(
    geodesic: Geodesic,
    table: MechanicsTable | None = None,
    threshold: float = RANK,
    test_cost: float | None = None,
    zero_cost: float = 0.0,
    errors: Mapping[str, float] | None = None,
    kind: str = "",
) -> Bottleneck:
    """Ranks, slow and fast layers, and one estimate of the bottleneck rank k*, with the reasons to distrust it.

    The plateau is where an interior state ``A_1 … A_{L−1}`` has the fewest singular values above the threshold. k* is
    the number of directions in which the state in its middle varies about its mean. It is trusted where it is the one
    integer between −2H/L̃ and the least stable cost of identity (E11), and nothing else speaks against it.

    Args:
        geodesic: a path.
        table: its mechanics, if they are at hand.
        threshold: relative to the largest singular value of each state.
        test_cost: data cost on rows that were not trained on, where there are any; far above the training's, a doubt.
        zero_cost: data cost of a network whose outputs are 0: the scale on which a training cost is small.
        errors: the optimiser's error on ``minus_2h_over_l`` and ``coi_stable``, from
            `isthmus.certificate.optimiser_error` of `interval_readings`: the interval is widened by them.
        kind: of the critical point (`isthmus.certificate.kind_of`): at a ``saddle`` there is a doubt.

    Raises:
        ValueError: a threshold outside (0, 1); see also `isthmus.mechanics.mechanics`.
    """
    table = mechanics(geodesic, rank_threshold=threshold) if table is None else table
    ranks_A = rank(table.spectra_a, threshold).tolist()
    ranks_W = rank(table.spectra_w, threshold).tolist()
    slow = tuple(int(layer) for layer, s in zip(table["layer"], table["slow"], strict=True) if s)
    common: dict[str, Any] = {
        "slow": slow,
        "fast": tuple(int(layer) for layer in table["layer"] if layer not in slow),
        "ranks_A": tuple(ranks_A),
        "ranks_W": tuple(ranks_W),
        "threshold": threshold,
    }
    if collapsed(geodesic):
        doubt = (
            "the network has collapsed: its outputs hardly depend on its inputs, and the zero network is a local "
            "minimum. Try the default initialisation, a smaller L̃ or weight decay, or a larger rate"
        )
        return Bottleneck(
            k_star=None,
            rank=None,
            interval=(math.nan, math.nan),
            interval_error=(math.nan, math.nan),
            trusted=False,
            method="none: collapsed",
            doubts=(doubt,),
            verdict=f"No bottleneck to speak of: {doubt}.",
            plateau=None,
            **common,
        )
    interior = ranks_A[1:-1] if len(ranks_A) > 2 else ranks_A
    offset = 1 if len(ranks_A) > 2 else 0
    estimate = min(interior)
    first, last = longest_run(interior, estimate)
    plateau = (first + offset, last + offset)
    varying = rank(about_mean(geodesic.A), RANK_ABOUT_MEAN).tolist()
    centred = varying[sum(plateau) // 2]
    coi, state = least_stable_coi(table)
    known = {} if errors is None else errors
    counted = _Counted(
        k_star=centred,
        rank=estimate,
        plateau=plateau,
        steady=_run_around(varying, sum(plateau) // 2),
        threshold=threshold,
        low=minus_2h_over_l(table),
        high=coi,
        low_error=known.get("minus_2h_over_l", math.nan),
        high_error=known.get("coi_stable", math.nan),
        state=state,
    )
    residual = max(float(value) for value in table["residual"])
    doubts = (
        *_of_the_point(geodesic, residual, counted, kind),
        *_of_the_count(geodesic, counted),
        *_of_the_fit(geodesic.data_cost, test_cost, zero_cost),
    )
    which = "A_1 … A_(L−1)" if offset else "A_0 … A_L"
    method = (
        f"singular values of A_{(plateau[0] + plateau[1]) // 2} about its mean above {RANK_ABOUT_MEAN:g} times the "
        f"largest, in the middle of the plateau from A_{plateau[0]} to A_{plateau[1]}, where of {which} the fewest, "
        f"{estimate}, lie above {threshold:g} times the largest"
    )
    return Bottleneck(
        k_star=centred,
        rank=estimate,
        interval=(counted.low, counted.high),
        interval_error=(counted.low_error, counted.high_error),
        trusted=not doubts,
        method=method,
        doubts=doubts,
        verdict=_verdict(geodesic, counted, doubts, residual),
        plateau=plateau,
        **common,
    )


def _verdict(geodesic: Geodesic, found: _Counted, doubts: tuple[str, ...], residual: float) -> str:
    if not residual <= SHAPES:
        return (
            f"No verdict: the residual is {residual:.2g}, beyond {SHAPES:g}: this is no critical point, and energies, "
            "H and the count of directions show where the optimiser stopped."
        )
    start, end = (float(geodesic.positions[i]) for i in found.plateau)
    where = f"from p = {start:.2f} to {end:.2f}" if end > start else f"at p = {start:.2f}"
    mean = " about its mean, which is one direction more" if found.rank == found.k_star + 1 else ""
    said = f"A bottleneck of rank {found.k_star}{mean}, {where}"
    if not doubts:
        known = " (± is the optimiser's error alone)" if math.isfinite(found.low_error) else ""
        return f"{said}: the one integer between {found.bracket}{known}; nothing found that speaks against it."
    return f"{said}; not to be trusted as it stands, for {len(doubts)} reason{'s' if len(doubts) > 1 else ''}."


def interval_readings() -> dict[str, Callable[[Geodesic], float]]:
    """What `isthmus.certificate.optimiser_error` is to read, so that its result is the ``errors`` of `bottleneck`."""
    return {
        "minus_2h_over_l": lambda geodesic: minus_2h_over_l(mechanics(geodesic)),
        "coi_stable": lambda geodesic: least_stable_coi(mechanics(geodesic))[0],
    }


callable_room(__name__)
