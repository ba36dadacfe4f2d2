"""The maps of a comparison, layers by layers, and the figure of the nearest layers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isthmus.report._numbers import MISSING, show
from isthmus.report.spec import Figure, Panel, Series, Value
from isthmus.report.style import BLUE, GREEN, GREY, ORANGE, VERMILION, quoted, shade, shortened

if TYPE_CHECKING:
    from isthmus.probe import Comparison

KEYS = ("compare-nearest",)
MOST_NAMES = 18
LONGEST_NAME = 22
DARK = 0.6
"""Place on the colour scale up to which letters on it are white."""
_CONTROL_COLOURS = {"shuffled rows": GREY, "random weights": ORANGE}


@dataclass(frozen=True)
class Cell:
    """A cell of a map: its text, colours, what hovering shows, and whether it is the nearest of its row."""

    text: str
    background: str
    ink: str
    title: str
    nearest: bool


@dataclass(frozen=True)
class Map:
    """A table of colours, a's layers down and b's across."""

    key: str
    title: str
    reading: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


def maps(comparison: "Comparison") -> list[Map]:
    """Debiased CKA, and Procrustes distances where they were computed."""
    a, b = comparison.names
    where = "Layers of the network down and across" if comparison.itself else f"Layers of {a} down, of {b} across"
    framed = "the nearest other layer" if comparison.itself else f"the layer of {b} nearest to each of {a}"
    found = [
        _map(
            comparison,
            "cka",
            "Debiased CKA",
            f"{where}, in order of execution. 1: equal up to rotation, scale and shift; 0: no more alike than chance. "
            f"Framed: {framed}. Hover a cell for its interval.",
        )
    ]
    if bool(comparison.procrustes.isfinite().any()):
        found.append(
            _map(
                comparison,
                "procrustes",
                "Procrustes distance",
                "What is left between the states, each about its mean and at unit norm, after the best rotation: 0 to "
                "√2. It weighs small directions more than CKA does, and falls where rows are few. Framed as above: "
                "nearest by CKA.",
            )
        )
    return found


def _map(comparison: "Comparison", what: str, title: str, reading: str) -> Map:
    values = getattr(comparison, what).tolist()
    ends = getattr(comparison, f"{what}_interval")
    near = {one.layer: one.to for one in comparison.nearest}
    rows = []
    for i, layer in enumerate(comparison.layers_a):
        cells = []
        for j, other in enumerate(comparison.layers_b):
            value = values[i][j]
            said = f"{layer} ↔ {other}: {show(value)}"
            if ends is not None and math.isfinite(float(ends[0][i, j])):
                said += f" ({show(float(ends[0][i, j]), 3)} to {show(float(ends[1][i, j]), 3)})"
            cells.append(_cell(value, said, what, near.get(layer) == other))
        rows.append((layer, cells))
    return Map(what, title, reading, list(comparison.layers_b), rows)


def _cell(value: float, said: str, what: str, nearest: bool) -> Cell:
    if not math.isfinite(value):
        return Cell(MISSING, "#ffffff", "#5b6370", said, False)
    place = min(max(value if what == "cka" else 1 - value / 2**0.5, 0.0), 1.0)
    text = f"{value:.2f}".replace("-", "−")
    return Cell(text, shade(place), "#ffffff" if place <= DARK else "#1b1f24", said, nearest)


def compare_figures(comparison: "Comparison") -> tuple[Figure, ...]:
    """The nearest layers with their intervals and controls; none where nothing is defined."""
    near = comparison.nearest
    if not near:
        return ()
    places = {name: i + 1 for i, name in enumerate(comparison.layers_a)}
    columns = {name: i + 1 for i, name in enumerate(comparison.layers_b)}
    x: list[Value] = [places[one.layer] for one in near]
    errors: Sequence[Value] = [None if one.high is None else one.high - one.cka for one in near]
    hover = [f"{quoted(one.layer)} ↔ {quoted(one.to)}" for one in near]
    label = "nearest other layer" if comparison.itself else "nearest layer"
    lines = [
        Series(
            x, [one.cka for one in near], label, BLUE, marker="circle", hover=hover,
            error=errors if any(e is not None for e in errors) else (),
        )
    ]  # fmt: skip
    if not comparison.itself:
        known = [(places[a], v) for a, _, v in comparison.at_matched_depth if math.isfinite(v)]
        lines.append(
            Series([p for p, _ in known], [v for _, v in known], "same relative depth", VERMILION, "dash", 1.6)
        )
    for name, one in comparison.controls.items():
        shown: list[Value] = [v if math.isfinite(v) else None for v in one.values]
        where: list[Value] = [places[a] for a in one.layers_a]
        lines.append(Series(where, shown, f"control: {name}", _CONTROL_COLOURS[name], "dot", 1.8))
    names = _ticks(comparison.layers_a)
    panels = [Panel("how near", f"layer of {quoted(comparison.names[0])}", "debiased CKA", tuple(lines), names=names)]
    if not comparison.itself:
        panels.append(_correspondence(comparison, x, [columns[one.to] for one in near], hover))
    notes = ("Bars are 95 % intervals, jackknifed over samples.",) if comparison.cka_error is not None else ()
    return (
        Figure(
            "compare-nearest",
            "The nearest layers",
            tuple(panels),
            "Left: how like its nearest layer each layer is, with the controls, in which there is nothing to find. A "
            "layer that is no more alike than with random weights has what the architecture and the data give. Right: "
            "which layer that is; on the dashed line, the one at the same relative depth."
            if not comparison.itself
            else "How like its nearest other layer each layer is, with the controls, in which nothing is to be found.",
            notes=notes,
        ),
    )


def _correspondence(comparison: "Comparison", x: list[Value], y: list[int], hover: list[str]) -> Panel:
    last = len(comparison.layers_b)
    matched = [comparison.layers_b.index(b) + 1 for _, b, _ in comparison.at_matched_depth]
    diagonal = Series(list(range(1, len(matched) + 1)), matched, "same relative depth", GREY, "dash", 1.4)
    near = Series(x, list(y), "nearest", GREEN, "none", marker="circle", size=8, hover=hover)
    a, b = (quoted(name) for name in comparison.names)
    return Panel(
        "which",
        f"layer of {a}",
        f"layer of {shortened(b, LONGEST_NAME)}, by number",
        (diagonal, near),
        names=_ticks(comparison.layers_a),
        view=(0.5, last + 0.5),
    )


def _ticks(names: Sequence[str]) -> tuple[tuple[float | int, str], ...]:
    step = -(-len(names) // MOST_NAMES)
    return tuple((i + 1, quoted(shortened(names[i], LONGEST_NAME))) for i in range(0, len(names), step))
