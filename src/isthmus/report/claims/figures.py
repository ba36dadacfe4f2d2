"""Figures of a study: filled marks where every network is a certified critical point, hollow ones where not."""

from collections.abc import Sequence
from itertools import pairwise

from isthmus.claims.pictures import Curve, Network, Picture, Plot, Way
from isthmus.report._numbers import finite, show
from isthmus.report.spec import Figure, Panel, Reference, Series, Value, joined
from isthmus.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION
from isthmus.thresholds import RANK

DEEPEST = -4.0
"""The axes of Figure 1a end here: where L̃ is small, −2H/L̃ is far below 0 and says nothing about a rank."""
FLOOR = 1e-4
"""Singular values below this part of the largest are not drawn."""
ASIDE = 0.008
"""By what part of the axis marks of neighbouring curves stand apart, so that their intervals can be told apart."""

_WILD = "least COI"
"""A discontinuous quantity, which may be far above its stable version: it does not set the axis."""

_COLOURS = {
    "−2H/L̃, median over layers": BLUE,
    "−2H/L̃, least to largest over layers": SKY,
    "least stable COI": VERMILION,
    "least COI": ORANGE,
    "equidistant": BLUE,
    "irregular": GREEN,
    "adaptive": VERMILION,
    "as the paper trains": BLUE,
    "at critical points": VERMILION,
}
_ENERGIES = (
    ("kinetic_stable", "kinetic", BLUE),
    ("potential_stable", "potential", VERMILION),
    ("hamiltonian", "{H}", INK),
)


def claims_figures(pictures: Sequence[Picture]) -> tuple[Figure, ...]:
    """One figure a picture, in order."""
    return tuple(map(_figure, pictures))


def _figure(picture: Picture) -> Figure:
    notes = list(picture.notes)
    panels: list[Panel] = []
    if picture.shows == "curves":
        for plot in picture.plots:
            panel, note = _curves(plot)
            panels.append(panel)
            notes += [note] if note else []
    elif picture.shows == "spectra":
        for network in picture.networks:
            panels += _spectra(network)
    elif picture.shows == "energies":
        panels += [_energies(network) for network in picture.networks]
    elif picture.shows == "ways" and picture.ways:
        panels.append(_ways(picture.ways))
    if not panels:
        panels = [Panel("", "", "", (), empty="no such network was computed")]
    if not picture.certified:
        notes.insert(0, HOLLOW)
    reading = f"The paper: {picture.statement} Here: {picture.finding}"
    return Figure(
        picture.key, picture.title, tuple(panels), reading.replace("{", "{{").replace("}", "}}"), notes=tuple(notes)
    )


HOLLOW = "Hollow marks and dashed lines: not certified critical points, for which the theory's numbers are defined."


def _curves(plot: Plot) -> tuple[Panel, str]:
    """Medians with their intervals; and what the axes hide."""
    view, note = plot.view, ""
    lowest = min((y for curve in plot.curves for y in finite((*curve.median, *curve.low))), default=0.0)
    if view is None and plot.curves and any(label.startswith("k*") for _, label in plot.horizontals):
        highest = max(y for curve in plot.curves for y in finite((*curve.median, *curve.high)))
        top = max(y for curve in plot.curves if curve.label != _WILD for y in finite((*curve.median, *curve.high)))
        view = (max(DEEPEST, lowest - 0.5), 1.08 * max(top, 1.0))
        hidden = [f"down to {show(lowest, 3)}"] if lowest < DEEPEST else []
        hidden += [f"up to {show(highest, 3)}"] if highest > view[1] else []
        note = f"{plot.title.capitalize()}: numbers beyond the axis go {' and '.join(hidden)}." if hidden else ""
    series: list[Series] = []
    marked = [curve for curve in plot.curves if not curve.band]
    for place, curve in enumerate(plot.curves):
        if view is not None and not any(view[0] <= y <= view[1] for y in finite((*curve.median, *curve.low))):
            continue  # the note says where it is
        colour = _COLOURS.get(curve.label, (BLUE, VERMILION, GREEN, PURPLE, ORANGE)[place % 5])
        aside = marked.index(curve) - (len(marked) - 1) / 2 if curve in marked else 0.0
        series += _band(curve, colour) if curve.band else _curve(curve, colour, aside)
    horizontals = tuple(Reference(y, _escaped(label), left=True) for y, label in plot.horizontals)
    panel = Panel(
        plot.title,
        plot.x_label,
        plot.y_label,
        tuple(series),
        horizontals=horizontals,
        view=view,
        empty="no such network was computed",
    )
    return panel, note


def _curve(curve: Curve, colour: str, aside: float) -> list[Series]:
    """A line, bars for the interval, and marks: filled where every network is certified.

    Marks of several curves stand side by side: ``aside`` counts places from the middle.
    """
    shift = aside * ASIDE * (max(curve.x) - min(curve.x))
    whole = [n == c for n, c in zip(curve.networks, curve.certified, strict=True)]
    dash = "solid" if all(whole) else "dash"
    found = [Series(curve.x, curve.median, curve.label, colour, dash, width=1.6)]
    for wanted, marker in ((True, "circle"), (False, "open")):
        chosen = [i for i, certified in enumerate(whole) if certified is wanted]
        if not chosen:
            continue
        above, below = ([_length(end[i], curve.median[i]) for i in chosen] for end in (curve.high, curve.low))
        bars = any(v is not None for v in above)
        hover = [_hover(curve, i) for i in chosen]
        x, y = [curve.x[i] + shift for i in chosen], [curve.median[i] for i in chosen]
        found.append(
            Series(
                x,
                y,
                "",
                colour,
                "none",
                marker=marker,
                size=8,
                hover=hover,
                error=above if bars else (),
                error_below=below if bars else (),
            )
        )
    return found


def _length(end: Value, middle: Value) -> Value:
    return None if end is None or middle is None else abs(end - middle)


def _hover(curve: Curve, index: int) -> str:
    low, high = curve.low[index], curve.high[index]
    interval = "" if low is None or high is None else f", 95 % interval {show(low)} to {show(high)}"
    count = curve.networks[index]
    return f"{count} network{'' if count == 1 else 's'}, {curve.certified[index]} certified{interval}"


def _band(curve: Curve, colour: str) -> list[Series]:
    """The two ends of a range, dotted."""
    x, y = joined([(curve.x, curve.low), (curve.x, curve.high)])
    return [Series(x, y, curve.label, colour, "dot", width=1.3)]


def _said(network: Network) -> str:
    """The panel's title: which network, and whether it is a critical point."""
    kind = "a critical point" if network.certified else f"not a critical point, residual {show(network.residual, 2)}"
    return f"{network.label}: {kind}"


def _spectra(network: Network) -> list[Panel]:
    """Singular values of A and of W along p."""
    p = network.positions
    middles = [(a + b) / 2 for a, b in pairwise(p)]
    return [
        _modes(network, f"{{A}}, {_said(network)}", p, network.spectra_a, BLUE),
        _modes(network, f"{{W}}, {_said(network)}", middles, network.spectra_w, GREEN),
    ]


def _modes(network: Network, title: str, p: Sequence[float], spectra: Sequence[Sequence[float]], colour: str) -> Panel:
    top = max((s for row in spectra for s in row), default=0.0)
    modes = range(min((len(row) for row in spectra), default=0))
    lines = [(p, [row[k] if row[k] >= FLOOR * top else None for row in spectra]) for k in modes]
    x, y = joined(lines)
    bar = [RANK * max(row) for row in spectra]
    dash = "solid" if network.certified else "dash"
    marks = [Series(x, y, "", colour, "none", marker="circle" if network.certified else "open", size=4)]
    series = (
        Series(x, y, "singular values", colour, dash, width=1.2),
        *marks,
        Series(p, bar, f"{show(RANK)} × the largest", INK, "dot", width=1.2),
    )
    view = (FLOOR * top, 1.8 * top) if top > 0 else None
    return Panel(
        title, "{p}", "singular values", series, log=True, view=view, ticks=network.positions,
        empty="no spectra were kept",
    )  # fmt: skip


def _energies(network: Network) -> Panel:
    """Kinetic and potential energy and H along p, each at its layer's midpoint."""
    p = network.positions
    middles = [(a + b) / 2 for a, b in pairwise(p)]
    dash, marker = ("solid", "circle") if network.certified else ("dash", "open")
    series: list[Series] = []
    for name, label, colour in _ENERGIES:
        values = network.layers.get(name, ())
        if values:
            series.append(Series(middles, values, label, colour, dash, width=1.6))
            series.append(Series(middles, values, "", colour, "none", marker=marker, size=5))
    return Panel(_said(network), "{p}", "dimensions", tuple(series), ticks=p, empty="no energies were kept")


def _ways(ways: Sequence[Way]) -> Panel:
    """Paths in the plane; a mark a layer, the start larger."""
    series: list[Series] = []
    for place, way in enumerate(ways):
        colour = _COLOURS.get(way.label, (BLUE, GREEN, VERMILION)[place % 3])
        dash, marker = ("solid", "circle") if way.certified else ("dash", "open")
        series.append(Series(way.x, way.y, way.label, colour, dash, width=1.4))
        series.append(Series(way.x, way.y, "", colour, "none", marker=marker, size=6))
    starts = [way.x[0] for way in ways], [way.y[0] for way in ways]
    ends = [way.x[-1] for way in ways], [way.y[-1] for way in ways]
    marker = "circle" if all(way.certified for way in ways) else "open"
    series.append(Series(*starts, "{p} = 0", INK, "none", marker=marker, size=10))
    series.append(Series(*ends, "{p} = 1", GREY, "none", marker=marker, size=10))
    return Panel("", "first direction", "second direction", tuple(series), square=True)


def _escaped(label: str) -> str:
    return label.replace("k*", "{k}")
