"""Figures of a profile: dimension, spectra and steps along the depth of anybody's network."""

import math
from collections.abc import Sequence
from itertools import pairwise

from isthmus.report._numbers import finite, show
from isthmus.report.profile.data import Layer, ProfileData
from isthmus.report.spec import ColourScale, Figure, Panel, Series, Value, joined
from isthmus.report.style import BLUE, GREEN, GREY, ORANGE, PALE, PURPLE, VERMILION, quoted, shade, shortened
from isthmus.thresholds import IDLE, RANK

KEYS = ("profile-dimension", "profile-spectra", "profile-steps")
MOST_NAMES = 18
LONGEST_NAME = 22
FLOOR = 1e-6
MOST_MODES = 40
MOST_CURVES = 40


def profile_figures(data: ProfileData) -> tuple[Figure, ...]:
    """Every figure that the profile has numbers for."""
    made = (dimension_figure(data), spectra_figure(data), steps_figure(data))
    return tuple(figure for figure in made if figure is not None)


def dimension_figure(data: ProfileData) -> Figure:
    """The stable cost of identity and the participation ratio along the depth, against width and null control."""
    cost = _dimension(data, "coi_stable", "stable cost of identity {COI}", BLUE)
    ratio = _dimension(data, "participation_ratio_rows", "corrected for finite rows", VERMILION)
    plain = _line(data, "participation_ratio_centred", "not corrected", ORANGE, dash="dot", bars=False)
    notes = []
    if any(layer.error("coi_stable") is not None for layer in data.layers):
        notes.append("Bars are one standard error, jackknifed over shards of the samples.")
    if data.nulls:
        notes.append(_NULLS[data.null_kind])
    if data.others:
        notes.append("Open circles: layers inside blocks or beside the stream.")
    panels = (
        _panel(data, "participation ratio about the mean", "dimensions", (*ratio, plain)),
        _panel(data, "cost of identity", "dimensions", cost),
    )
    return Figure(
        "profile-dimension",
        "Dimension along the depth",
        panels,
        "A bottleneck is a stretch where the curve stays low, well below the null control and the width. The "
        "participation ratio counts large directions, whatever follows. The cost of identity counts the dimensions "
        "that the next layer's σ has to carry, and equals the rank of states that are not negative; above the width it "
        "is no dimension (negative entries, which σ cannot carry).",
        notes=tuple(notes),
    )


_NULLS = {
    "shuffled": "Null control: neurons independent of one another, with the means and variances of the data and as "
    "many rows. A dimension below it comes from correlation between neurons, not from few samples.",
    "gaussian": "Null control: Gaussian data of the same mean and covariance, through the same σ. Ranks hardly differ "
    "from it; where the cost of identity does, more than second moments matters.",
    "none": "",
}


def spectra_figure(data: ProfileData) -> Figure | None:
    """Singular values along the depth, and the spectrum of each layer; None where none were summed."""
    spectra = data.spectra(data.main)
    layers = [layer for layer in data.main if spectra.get(layer.name)]
    if not layers:
        return None
    most = max(len(spectra[layer.name]) for layer in layers)
    modes, scale = _modes(most)
    lines = []
    for mode, fraction in modes.items():
        along = [_shown(spectra[layer.name], mode) for layer in layers]
        lines.append(Series(_places(layers), along, "", shade(fraction), width=1.3, marker="circle", size=5))
    across = _with_threshold(lines, _places(layers))
    shown = [layers[i - 1] for i in _spaced(len(layers), MOST_CURVES, even=True)]
    curves = []
    for layer in shown:
        values = spectra[layer.name]
        places: list[Value] = [*_spaced(len(values), 200)]
        numbers: list[Value] = [_shown(values, i) for i in _spaced(len(values), 200)]
        colour = shade((layer.place - 1) / max(len(data.layers) - 1, 1))
        curves.append(
            Series(places, numbers, "", colour, width=1.5, marker="circle" if len(places) < 3 else "", size=4)
        )
    each = _with_threshold(curves, list(range(1, most + 1)))
    hidden = sum(v < FLOOR for layer in layers for v in spectra[layer.name])
    notes = [f"{hidden} singular values below {show(FLOOR)} of the largest are not drawn."] if hidden else []
    if len(modes) < most:
        notes.append(f"Of {most} singular values, {len(modes)} are drawn on the left, evenly on a logarithmic scale.")
    ends = ColourScale(1.0, float(len(data.layers)), "layer, in order of execution") if len(data.layers) > 1 else None
    return Figure(
        "profile-spectra",
        "Spectra along the depth",
        (
            Panel(
                "each singular value along the depth",
                "layer",
                "singular value / largest",
                across,
                log=True,
                names=_names(layers),
                scale=scale,
            ),
            Panel(
                "spectrum of each layer",
                "number of the singular value",
                "singular value / largest",
                each,
                log=True,
                scale=ends,
            ),
        ),
        "Singular values of the states about their mean, over the layer's largest. A clear low dimension is a gap: "
        "a few values near 1, the others far below. A spectrum that falls evenly has no rank, whatever is counted.",
        notes=tuple(notes),
    )


def steps_figure(data: ProfileData) -> Figure | None:
    """How far each step moves the state and turns it; None where no two states can be compared."""
    steps = data.steps
    if not steps:
        return None
    change = _line(data, "step_change", "‖ΔA‖/‖A‖", PURPLE, layers=steps)
    influence = _line(data, "block_influence", "1 − mean cosine", GREEN, layers=steps)
    idle = tuple((layer.place - 0.5, layer.place + 0.5) for layer in steps if (layer.value("step_change") or 0) < IDLE)
    bands = _merged(idle)
    label = f"moves the state by less than {IDLE:.0%}" if bands else ""

    def panel(title: str, y_label: str, series: Series) -> Panel:
        log, view = _scaled((series,))
        names = _names(steps)
        return Panel(title, "layer", y_label, (series,), log, bands=bands, band_label=label, names=names, view=view)

    return Figure(
        "profile-steps",
        "Steps: which layers idle",
        (
            panel("step", "‖ΔA‖/‖A‖", change),
            panel("block influence", "1 − mean cosine", influence),
        ),
        "The step is how far a block moves the state, over the state's size; the block influence, how far it turns it. "
        "A layer low in both is a candidate for dropping. Neither knows the loss: what dropping a layer costs, "
        "<code>isthmus.probe.simplify</code> predicts and measures.",
    )


def _dimension(data: ProfileData, key: str, label: str, colour: str) -> tuple[Series, ...]:
    """A measure of dimension along the depth, with those of other layers, its null control and the widths."""
    found = [_line(data, key, label, colour)]
    if data.others and any(layer.value(key) is not None for layer in data.others):
        others = data.others
        found.append(
            Series(
                _places(others),
                [layer.value(key) for layer in others],
                "other layers",
                colour,
                "none",
                marker="open",
                size=6,
                hover=_hover(others),
                error=[layer.error(key) for layer in others] if _any_error(others, key) else (),
            )
        )
    nulls = [layer.null.get(key, (None, None))[0] for layer in data.main]
    if finite(nulls):
        x, y = _broken(data.main, nulls)
        found.append(Series(x, y, f"null control ({data.null_kind})", GREY, "dash", 1.6))
    widths: list[Value] = [layer.row["width"] for layer in data.main]
    x, y = _broken(data.main, widths)
    return (*found, Series(x, y, "width", PALE, "dot", 1.8))


def _line(
    data: ProfileData,
    key: str,
    label: str,
    colour: str,
    dash: str = "solid",
    layers: Sequence[Layer] | None = None,
    bars: bool = True,
) -> Series:
    """A quantity along the depth; the line breaks between stacks."""
    chosen = data.main if layers is None else layers
    x, y = _broken(chosen, [layer.value(key) for layer in chosen])
    texts = dict(zip(_places(chosen), _hover(chosen), strict=True))
    hover = ["" if place is None else texts[place] for place in x]
    error: Sequence[Value] = ()
    if bars and _any_error(chosen, key):
        _, error = _broken(chosen, [layer.error(key) for layer in chosen])
    return Series(x, y, label, colour, dash, 2.0, "circle" if bars else "", 6, hover=hover, error=error)


def _any_error(layers: Sequence[Layer], key: str) -> bool:
    return any(layer.error(key) is not None for layer in layers)


def _broken(layers: Sequence[Layer], values: Sequence[Value]) -> tuple[list[Value], list[Value]]:
    """Places and values in order, with a gap where one stack ends and another begins."""
    groups: list[list[int]] = [[0]] if layers else []
    for i, (a, b) in enumerate(pairwise(layers)):
        if a.stack != b.stack and a.stack is not None and b.stack is not None:
            groups.append([])
        groups[-1].append(i + 1)
    return joined([([layers[i].place for i in g], [values[i] for i in g]) for g in groups])


def _places(layers: Sequence[Layer]) -> list[Value]:
    return [layer.place for layer in layers]


def _hover(layers: Sequence[Layer]) -> list[str]:
    return [quoted(f"{layer.place}: {layer.name}") for layer in layers]


def _panel(data: ProfileData, title: str, y_label: str, series: tuple[Series, ...]) -> Panel:
    """Logarithmic where a layer's number dwarfs the others, else from zero."""
    log, view = _scaled(series)
    return Panel(title, "layer", y_label, series, log=log, view=view, names=_names(data.main))


def _scaled(series: Sequence[Series]) -> tuple[bool, tuple[float, float] | None]:
    """Whether a logarithmic axis suits (all positive, over more than a factor of 12), and limits that start at zero
    where it does not.
    """
    values = [y for one in series for y in finite(one.y)]
    tops = [y + (e or 0.0) for one in series for y, e in zip(one.y, one.error or one.y, strict=True) if y and one.error]
    if not values or min(values) < 0 or max(values) == 0:
        return False, None
    log = min(values) > 0 and max(values) > 12 * min(values)
    return log, None if log else (0.0, 1.08 * max([*values, *tops]))


def _names(layers: Sequence[Layer]) -> tuple[tuple[float | int, str], ...]:
    """Names for the ticks, as many as fit: of every layer, or every second, third, …"""
    chosen = layers[:: -(-len(layers) // MOST_NAMES)]
    return tuple((layer.place, quoted(shortened(layer.name, LONGEST_NAME))) for layer in chosen)


def _spaced(total: int, most: int, even: bool = False) -> list[int]:
    """At most `most` of the numbers 1 to `total`, the first and last among them, evenly or by their logarithm."""
    if total <= most:
        return list(range(1, total + 1))
    grid = [i / (most - 1) for i in range(most)]
    return sorted({round(1 + g * (total - 1)) if even else round(total**g) for g in grid})


def _modes(most: int) -> tuple[dict[int, float], ColourScale | None]:
    """Which singular values are drawn, where each lies on the colour scale, and that scale."""
    if most == 1:
        return {1: 0.0}, None
    if most <= MOST_MODES:
        places = {mode: (mode - 1) / (most - 1) for mode in range(1, most + 1)}
        return places, ColourScale(1.0, float(most), "number of the singular value")
    places = {mode: math.log(mode) / math.log(most) for mode in _spaced(most, MOST_MODES)}
    return places, ColourScale(0.0, math.log10(most), "log₁₀ of its number")


def _shown(values: Sequence[float], place: int) -> Value:
    """The singular value of this number, None below the floor of the axis."""
    value = values[place - 1] if place <= len(values) else 0.0
    return value if value >= FLOOR else None


def _with_threshold(series: Sequence[Series], xs: Sequence[Value]) -> tuple[Series, ...]:
    ends = [xs[0], xs[-1]] if xs else []
    line = Series(ends, [RANK] * len(ends), f"{show(RANK)} of the largest", GREY, "dash", 1.4)
    return (*series, line)


def _merged(bands: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    merged: list[tuple[float, float]] = []
    for low, high in bands:
        if merged and merged[-1][1] >= low:
            merged[-1] = (merged[-1][0], high)
        else:
            merged.append((low, high))
    return tuple(merged)
