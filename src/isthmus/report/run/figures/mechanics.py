"""Energies, the two estimates of the rank, ranks and speed: figures from the mechanics table."""

from statistics import median
from typing import Any

from isthmus.columns import STATES
from isthmus.report._numbers import finite, show
from isthmus.report.run.words import estimate
from isthmus.report.spec import Figure, Panel, Series, slow_bands
from isthmus.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION
from isthmus.runs.reader import RunData

MIDPOINTS = "{p}, layers at their midpoints"
AT_ZERO = "not defined at L̃ = 0: (E6) and (E10) divide by L̃"


def bands(run: RunData) -> tuple[tuple[float, float], ...]:
    """The slow layers as intervals of p."""
    return slow_bands(run.column("p"), run.column("rho"), run.column("slow"))


def energies_figure(run: RunData) -> Figure:
    """Kinetic and potential energy, cross term and Hamiltonian along p (Figure 1c of the paper)."""
    panels, notes = [], []
    for suffix, title in (("_stable", "stable norms (E7)"), ("", "exact norms (pseudo-inverse of {K})")):
        parts = [
            ("kinetic", "kinetic", VERMILION, "solid", 2.0),
            ("potential", "potential", BLUE, "solid", 2.0),
        ]
        parts += [("cross", "cross term", PURPLE, "dot", 1.8)]
        series = [_along(run, key + suffix, label, colour, dash, width) for key, label, colour, dash, width in parts]
        energy = _along(run, "hamiltonian" + suffix, "Hamiltonian {H}", INK, "solid", 2.8)
        view, note = _around_the_slow([*series, energy], run.column("slow"))
        if note:
            notes.append(f"{'Stable' if suffix else 'Exact'} norms: {note}")
        panels.append(
            Panel(
                title,
                MIDPOINTS,
                "energy",
                (*series, energy),
                view=view,
                bands=bands(run),
                band_label="slow layers",
                empty=_empty(run),
            )
        )
    return Figure(
        "energies",
        "Energies along {p}",
        tuple(panels),
        "Along a geodesic {H} (E10) is constant in {p}: how flat the black line is says how far to trust it. Kinetic "
        "energy should be near zero in the slow stretch and large in the jumps at both ends, while the potential "
        "energy −({L}/2)·COI mirrors it. The cross term of (E6) is called minor in arXiv:2405.17573 and not measured "
        "there. Compare its Figure 1c.",
        needs_momenta=True,
        notes=tuple(notes),
    )


def rank_figure(run: RunData) -> Figure:
    """−2H/L̃ and the cost of identity along p, exact and stable."""
    panels, notes = [], []
    for suffix, title in (("_stable", "stable norms (E7)"), ("", "exact norms (pseudo-inverse of {K})")):
        coi = _along(run, "coi" + suffix, "cost of identity {COI}", BLUE, "solid", 2.2)
        lower = _along(run, "minus_2h_over_l" + suffix, "{rank}", VERMILION, "solid", 2.2)
        view, note = _near_the_rank(coi, lower)
        if note:
            notes.append(f"{'Stable' if suffix else 'Exact'} norms: {note}")
        panels.append(
            Panel(
                title,
                MIDPOINTS,
                "dimensions",
                (coi, lower, *rank_line(run)),
                view=view,
                bands=bands(run),
                band_label="slow layers",
                empty=_empty(run),
            )
        )
    return Figure(
        "rank",
        "Two estimates of the bottleneck rank along {p}",
        tuple(panels),
        "{rank} approaches {k} from below and the smallest cost of identity from above; where the curves meet the path "
        "is slow (E11), and the gap between them bounds what can be said (E12). The exact cost of identity is "
        "discontinuous: trust it only where the stable one (E7) agrees.",
        needs_momenta=True,
        notes=tuple(notes),
    )


def rank_line(run: RunData) -> tuple[Series, ...]:
    """The rank estimate as a dashed line, where there is one."""
    rank = estimate(run)
    return () if rank is None else (Series([0, 1], [rank, rank], f"rank estimate {show(rank)}", GREY, "dash", 1.6),)


def ranks_figure(run: RunData) -> Figure:
    """Ranks and speed per layer."""
    threshold = run.value("rank_threshold")
    above = "the threshold" if threshold is None else f"{show(threshold)} of the largest"
    ranks = (
        _along(run, "rank_a", "rank of {A}", BLUE, "solid", 2.2),
        _along(run, "rank_w", "rank of {W}", VERMILION, "solid", 2.2, step=True),
        _along(run, "stable_rank_a", "stable rank of {A}", SKY, "dash", 1.8),
        _along(run, "nuclear_rank_a", "nuclear rank of {A}", GREEN, "dash", 1.8),
        _along(run, "stable_rank_w", "stable rank of {W}", ORANGE, "dot", 2.0),
    )
    shown = tuple(series for series in ranks if finite(series.y))
    speed = (_along(run, "speed_k", "{speed}", PURPLE, "solid", 2.2),)
    shared = bands(run)
    return Figure(
        "ranks",
        "Ranks and speed per layer",
        (
            Panel("ranks", MIDPOINTS, "rank", shown, bands=shared, band_label="slow layers"),
            Panel("speed", MIDPOINTS, "speed", speed, log=True, bands=shared, band_label="slow layers"),
        ),
        f"Ranks count singular values above {above}; the stable rank is "
        "‖·‖²<sub>F</sub>/‖·‖²<sub>op</sub>, the nuclear rank ‖·‖²<sub>*</sub>/‖·‖²<sub>F</sub>, a lower bound of the "
        "cost of identity without the appended 1. Slow layers move little per unit of {p}; by (E11) the speed is of "
        "order {L} outside them.",
    )


def bounds_figure(run: RunData) -> Figure:
    """Path length, ‖B_p‖ and ‖B_p σ(A_p)ᵀ‖ along p (the quantities of the paper's Figure 3)."""
    momenta = (
        _along(run, "norm_b", "‖{B}‖", VERMILION, "solid", 2.0),
        _along(run, "norm_b_features", "‖{B} σ({A})ᵀ‖", GREEN, "dash", 2.0),
    )
    length = (_along(run, "path_length", "length so far", PURPLE, "solid", 2.2),)
    sizes = [y for series in momenta for y in finite(series.y) if y > 0]
    wide = bool(sizes) and max(sizes) > 5 * min(sizes)
    shared = bands(run)
    return Figure(
        "bounds",
        "Momenta and path length",
        (
            Panel(
                "momenta",
                MIDPOINTS,
                "norm",
                momenta,
                log=wide,
                bands=shared,
                band_label="slow layers",
                empty=_empty(run),
            ),
            Panel("path length", "{p}", "cumulative length", length, bands=shared, band_label="slow layers"),
        ),
        "The bounds (E12) between −2<i>H</i>/{L} and the cost of identity need these to stay bounded as {L} grows; the "
        "length should climb in the jumps and hardly at all in between. Compare Figure 3 of arXiv:2405.17573, which "
        "takes them across {L}.",
        needs_momenta=True,
    )


def _along(run: RunData, key: str, label: str, colour: str, dash: str, width: float, step: bool = False) -> Series:
    """A column against p: of states at their own, of layers at the midpoints or as steps over the layers."""
    marker = "circle" if len(run.layers) <= 60 and dash == "solid" and not step else ""
    if key in STATES:
        p, values = run.state("p"), run.state(key)
    else:
        p, values = run.column("p") if step or key == "path_length" else run.midpoints(), run.column(key)
    if step:
        return Series([0.0, *p], [*values, values[-1]], label, colour, dash, width, step=True)
    return Series(p, values, label, colour, dash, width, marker=marker, size=5)


def _empty(run: RunData) -> str:
    """Why a panel of energies may be empty."""
    return AT_ZERO if run.value("effective_depth") == 0 else "the layer table has no such numbers"


def _around_the_slow(curves: list[Series], slow: list[Any]) -> tuple[tuple[float, float] | None, str]:
    """Limits of y by the kinetic and potential energy (the first two curves) of the slow layers, which the jumps at
    the ends may dwarf, and a note of what is left out.
    """
    inside = [
        abs(y) for s in curves[:2] for at, is_slow in zip(s.y, slow, strict=False) if is_slow for y in finite([at])
    ]
    everything = [y for s in curves for y in finite(s.y)]
    if not inside or max(map(abs, everything)) <= 8 * max(inside) or max(inside) == 0:
        return _clipped(curves[:2], curves[2:])
    view = (-4 * max(inside), 4 * max(inside))
    return view, _outside(view, everything, "the curves")


def _clipped(anchors: list[Series], loose: list[Series]) -> tuple[tuple[float, float] | None, str]:
    """Limits of y that keep the anchors readable where a loose curve dwarfs them, and a note of it."""
    base = [y for series in anchors for y in finite(series.y)]
    wild = [y for series in loose for y in finite(series.y)]
    if not base or not wild:
        return None, ""
    low, high = min([*base, 0.0]), max([*base, 0.0])
    room = high - low
    largest = max(map(abs, wild))
    if largest <= 6 * max(abs(low), abs(high)) or room < 1e-6 * largest:  # the second: nothing to keep readable
        return None, ""
    view = (low - 0.6 * room, high + 0.6 * room)
    return view, _outside(view, wild, "the Hamiltonian and the cross term")


def _near_the_rank(coi: Series, estimate: Series) -> tuple[tuple[float, float] | None, str]:
    """Limits of y around the slow stretch, where the two estimates are to be compared, and a note of it."""
    costs, estimates = finite(coi.y), finite(estimate.y)
    if not costs or max(costs) <= 0:
        return _clipped([coi], [estimate])
    top = 1.1 * min(max(costs), max(5 * min(costs), 2 * median(costs)))
    low, high = min([*estimates, 0.0]), max([*estimates, 0.0])
    view = (max(1.1 * low, -top), max(top, min(1.1 * high, 2 * top)))
    return view, _outside(view, [*costs, *estimates], "the curves")


def _outside(view: tuple[float, float], values: list[float], what: str) -> str:
    """How many values a view leaves out; "" for none."""
    left_out = [y for y in values if not view[0] <= y <= view[1]]
    if not left_out:
        return ""
    return f"{len(left_out)} of {len(values)} points of {what} lie off the axis, up to {show(max(left_out, key=abs))}."
