"""A figure as data: panels of series, reference lines and bands, whatever library draws them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from isthmus.report._numbers import finite, number, positive
from isthmus.report.style import INK

Value = float | int | None


@dataclass(frozen=True)
class Series:
    """One curve or cloud; None in x or y breaks the line.

    Attributes:
        x: abscissae.
        y: ordinates, as many.
        label: entry of the legend (symbols in braces); "" keeps it out.
        colour: "#rrggbb", or one per point (markers only).
        dash: "solid", "dash" or "dot"; "none" draws markers only.
        marker: "", "circle" or "open".
        step: draw as a staircase, each y held to the next x.
        hover: text per point for the page; empty for plain coordinates.
        error: standard error of each y, drawn as bars; None where there is none; empty for no bars.
        error_below: length of the bar below, where it is another than above; empty for the same.
    """

    x: Sequence[Value]
    y: Sequence[Value]
    label: str
    colour: str | Sequence[str] = INK
    dash: str = "solid"
    width: float | int = 2.0
    marker: str = ""
    size: float | int = 6.0
    opacity: float | int = 1.0
    step: bool = False
    hover: Sequence[str] = ()
    error: Sequence[Value] = ()
    error_below: Sequence[Value] = ()


@dataclass(frozen=True)
class Reference:
    """A straight line across the panel at `value`, with its label (may be ""); `left` puts it at the left end."""

    value: float
    label: str
    left: bool = False


@dataclass(frozen=True)
class ColourScale:
    """A continuous colour scale and what it measures."""

    low: float
    high: float
    label: str


@dataclass(frozen=True)
class Frames:
    """What a panel shows one at a time: the page has a slider for it, print shows the one that comes first.

    Attributes:
        name: of what the slider changes, as its label begins.
        labels: of the frames.
        ys: for each frame, the y of every series of the panel.
        first: index of the frame that the series themselves hold.
    """

    name: str
    labels: Sequence[str]
    ys: Sequence[Sequence[Sequence[Value]]]
    first: int


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        bands: intervals of x to shade; `band_label` is their entry of the legend.
        ticks: places on the x axis marked by short strokes (layer positions).
        view: limits of y that hide part of the data; say so in the figure's notes.
        square: same scale on both axes.
        names: what the ticks at given places of the x axis are called, in place of numbers; a user's text `quoted`.
        empty: what to print where no series has a point to show.
        log_x: a logarithmic x axis; every x is positive.
        frames: what a slider changes; None for no slider.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log: bool = False
    horizontals: tuple[Reference, ...] = ()
    verticals: tuple[Reference, ...] = ()
    bands: tuple[tuple[float, float], ...] = ()
    band_label: str = ""
    ticks: tuple[float, ...] = ()
    view: tuple[float, float] | None = None
    square: bool = False
    names: tuple[tuple[float | int, str], ...] = ()
    scale: ColourScale | None = None
    empty: str = "nothing to draw: the run has no such numbers"
    log_x: bool = False
    frames: Frames | None = None

    @property
    def drawable(self) -> bool:
        """Whether any series has a point that the axes can show."""
        for series in self.series:
            ys = positive(series.y) if self.log else [number(y) for y in series.y]
            if any(y is not None and number(x) is not None for x, y in zip(series.x, ys, strict=True)):
                return True
        return False


@dataclass(frozen=True)
class Figure:
    """One figure: `key` names its files, `reading` says how to read it, `notes` say what is hidden.

    `needs_momenta` marks figures whose numbers use B or H, and so mean nothing far from a critical point.
    """

    key: str
    title: str
    panels: tuple[Panel, ...]
    reading: str
    needs_momenta: bool = False
    caveat: str = ""
    notes: tuple[str, ...] = field(default=())


def slow_bands(p: Sequence[Any], rho: Sequence[Any], slow: Sequence[Any]) -> tuple[tuple[float, float], ...]:
    """Intervals [p_{l-1}, p_l] of the slow layers, neighbours merged."""
    bands: list[tuple[float, float]] = []
    start = 0.0
    for end, width, flag in zip(p, rho, slow, strict=True):
        end_, width_ = number(end), number(width)
        if end_ is None:
            continue
        low = end_ - width_ if width_ is not None else start
        if flag:
            if bands and abs(bands[-1][1] - low) < 1e-9:
                bands[-1] = (bands[-1][0], end_)
            else:
                bands.append((low, end_))
        start = end_
    return tuple(bands)


def joined(lines: Sequence[tuple[Sequence[Value], Sequence[Value]]]) -> tuple[list[Value], list[Value]]:
    """Several lines as one, a gap between neighbours: one entry of the legend, one object to draw."""
    xs: list[Value] = []
    ys: list[Value] = []
    for x, y in lines:
        if xs:
            xs.append(None)
            ys.append(None)
        xs.extend(x)
        ys.extend(y)
    return xs, ys


def log_range(panel: Panel) -> tuple[float, float]:
    """Smallest and largest positive number that a logarithmic panel shows."""
    if panel.view is not None:
        return panel.view
    shown = [y for series in panel.series for y in positive(series.y) if y is not None]
    shown += [line.value for line in panel.horizontals if line.value > 0]
    return min(shown), max(shown)


def short_log_ticks(panel: Panel) -> list[float] | None:
    """Ticks for a logarithmic axis of less than two decades; None where powers of ten will do."""
    low, high = log_range(panel)
    decades = math.log10(high / low)
    if decades >= 1.7:
        return None
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    digits = (1, 2, 5) if decades >= 0.6 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    return [float(f"{digit * 10.0**power:.6g}") for power in powers for digit in digits]


def count_unloggable(panel: Panel) -> int:
    """Numbers that a logarithmic axis cannot show: zeros and negatives."""
    if not panel.log:
        return 0
    return sum(1 for series in panel.series for y in finite(series.y) if y <= 0)
