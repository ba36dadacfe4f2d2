"""Where the bottleneck is, of what dimension, and why that may be wrong (docs/theory.md, (E11))."""

from dataclasses import dataclass
from typing import Any

import torch

from isthmus._rooms import callable_room
from isthmus.geodesic import Geodesic
from isthmus.mechanics import MechanicsTable, mechanics, rank, spectra
from isthmus.thresholds import (
    COI_OFF,
    COLLAPSED,
    FITTED,
    MINUS_2H_ABOVE,
    MINUS_2H_BELOW,
    OVERFIT,
    PLATEAU_LENGTH,
    PLATEAU_STATES,
    RANK,
    RANK_ABOUT_MEAN,
    SHAPES,
    TIMESCALES,
)


@dataclass(frozen=True)
class Bottleneck:
    """The bottleneck of a path, with its doubts.

    Args:
        rank: estimate of k*, or None where the network has collapsed; counted also where there is no verdict.
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

    rank: int | None
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


def collapsed(geodesic: Geodesic) -> bool:
    """Whether the weights carry nothing that depends on the inputs: the end state is their leak plus a constant.

    ``‖A_L − Π(1 − ρ_ℓL̃)·A_0‖`` about the mean, below `COLLAPSED` of ``‖A_0‖`` about the mean.
    """
    leak = float((1 - geodesic.rho * geodesic.effective_depth).prod())
    A0, carried = geodesic.A[0], geodesic.A[-1] - leak * geodesic.A[0]
    return bool((carried - carried.mean(0)).norm() < COLLAPSED * (A0 - A0.mean(0)).norm())


def _doubts(
    geodesic: Geodesic, table: MechanicsTable, estimate: int, plateau: tuple[int, int], threshold: float
) -> list[str]:
    doubts = []
    summary = table.summary()
    residual = float(summary["residual_max"] or 0.0)
    if not residual <= SHAPES:
        doubts.append(
            f"the stationarity residual reaches {residual:.2g} (trusted up to {SHAPES:g}): this is no "
            "critical point, and B, H and −2H/L̃ show optimisation error"
        )
    p = geodesic.positions
    states, length = plateau[1] - plateau[0] + 1, float(p[plateau[1]] - p[plateau[0]])
    if states < PLATEAU_STATES or length < PLATEAU_LENGTH:
        doubts.append(
            f"no plateau: the rank stays at its minimum for {states} state(s) over {length:.2g} of p "
            f"(at least {PLATEAU_STATES} and {PLATEAU_LENGTH} are needed)"
        )
    middle = spectra(geodesic.A[(plateau[0] + plateau[1]) // 2])
    low, high = int(rank(middle, min(3 * threshold, 0.99))), int(rank(middle, threshold / 3))
    if low != high:
        doubts.append(f"the rank depends on the threshold: {low} at {3 * threshold:.2g}, {high} at {threshold / 3:.2g}")
    costs = [float(value) for value in table["coi_stable"]]
    coi = min(costs)
    if abs(coi - estimate) > COI_OFF:
        state = costs.index(coi)
        doubts.append(
            f"the stable cost of identity has its minimum, {coi:.3g}, at p = {float(p[state]):.2f} (A_{state}): "
            f"not near {estimate}"
        )
    h = summary["minus_2h_over_l_median"]
    if h is None:
        doubts.append("at L̃ = 0 nothing presses for a bottleneck, and −2H/L̃ is not defined")
    elif not estimate - MINUS_2H_BELOW <= h <= estimate + MINUS_2H_ABOVE:
        doubts.append(f"−2H/L̃ is {h:.3g} (median over layers), where an estimate from below of {estimate} was expected")
    if 0 < geodesic.effective_depth < TIMESCALES:
        doubts.append(f"at L̃ = {geodesic.effective_depth:g} the two timescales are hardly separated")
    return doubts


def _overfit(train: float, test: float | None, zero: float) -> list[str]:
    """A doubt where the test cost is beyond `OVERFIT` times the training cost, or `FITTED` of the zero network's."""
    if test is None or not test > OVERFIT * max(train, FITTED * zero):
        return []
    return [
        f"the test cost is {test:.3g}, the training cost {train:.3g}: the network fits its rows rather than the task "
        "(overfitting)"
    ]


def bottleneck(
    geodesic: Geodesic,
    table: MechanicsTable | None = None,
    threshold: float = RANK,
    test_cost: float | None = None,
    zero_cost: float = 0.0,
) -> Bottleneck:
    """Ranks, slow and fast layers, and one estimate of the bottleneck rank k*, with the reasons to distrust it.

    The estimate is the least number of singular values of an interior state ``A_1 … A_{L−1}`` above the threshold. With
    a ReLU the states are non-negative, and one of these directions may be their mean.

    Args:
        geodesic: a path.
        table: its mechanics, if they are at hand.
        threshold: relative to the largest singular value of each state.
        test_cost: data cost on rows that were not trained on, where there are any; far above the training's, a doubt.
        zero_cost: data cost of a network whose outputs are 0: the scale on which a training cost is small.

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
            rank=None,
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
    doubts = (
        *_doubts(geodesic, table, estimate, plateau, threshold),
        *_overfit(geodesic.data_cost, test_cost, zero_cost),
    )
    residual = max(float(value) for value in table["residual"])
    A = geodesic.A[(plateau[0] + plateau[1]) // 2]
    centred = int(rank(torch.linalg.svdvals(A - A.mean(0)), RANK_ABOUT_MEAN))
    which = "A_1 … A_(L−1)" if offset else "A_0 … A_L"
    method = (
        f"the least number of singular values of {which} above {threshold:g} times the largest, held from "
        f"A_{plateau[0]} to A_{plateau[1]}; about its mean the representation varies in {centred} of these directions "
        f"(above {RANK_ABOUT_MEAN:g} of the largest)"
    )
    return Bottleneck(
        rank=estimate,
        trusted=not doubts,
        method=method,
        doubts=doubts,
        verdict=_verdict(geodesic, estimate, plateau, doubts, residual),
        plateau=plateau,
        **common,
    )


def _verdict(
    geodesic: Geodesic, estimate: int, plateau: tuple[int, int], doubts: tuple[str, ...], residual: float
) -> str:
    if not residual <= SHAPES:
        return (
            f"No verdict: the residual is {residual:.2g}, beyond {SHAPES:g}: this is no critical point, and energies, "
            "H and the count of directions show where the optimiser stopped."
        )
    start, end = (float(geodesic.positions[i]) for i in plateau)
    where = f"from p = {start:.2f} to {end:.2f}" if end > start else f"at p = {start:.2f}"
    said = f"A bottleneck of rank {estimate} {where}"
    if not doubts:
        return f"{said}; nothing found that speaks against it."
    return f"{said}; not to be trusted as it stands, for {len(doubts)} reason{'s' if len(doubts) > 1 else ''}."


callable_room(__name__)
