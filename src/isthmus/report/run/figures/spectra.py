"""Singular values of representations and weights along p (Figure 1b of the paper)."""

import polars as pl

from isthmus.report._numbers import finite, number, show
from isthmus.report.run.words import estimate
from isthmus.report.spec import Figure, Panel, Series, Value, joined
from isthmus.report.style import BLUE, INK, PALE, VERMILION
from isthmus.runs.reader import RunData
from isthmus.thresholds import RANK

FLOOR = 1e-6
HOVER_POINTS = 6000


def spectra_figure(run: RunData) -> Figure | None:
    """Spectra of A_p and of W_p, the leading ones picked out; None where the run has none."""
    if run.spectra is None or run.spectra.height == 0:
        return None
    threshold = run.value("rank_threshold") or RANK
    rank = estimate(run)
    panels, notes = [], []
    for kind, symbol, colour in (("A", "{A}", BLUE), ("W", "{W}", VERMILION)):
        table = run.spectra.filter(pl.col("kind") == kind).sort("index", "p", "layer")
        panel, hidden = _panel(table, symbol, colour, threshold, rank)
        panels.append(panel)
        if hidden:
            notes.append(f"{hidden} singular values of {kind} below {show(FLOOR)} of the largest are not drawn.")
    return Figure(
        "spectra",
        "Spectra along {p}",
        tuple(panels),
        "Each line is one singular value. A bottleneck shows as a stretch in the middle where only a few stay above "
        "the dashed threshold while the rest fall far below it; a tail that hugs the threshold makes the rank a matter "
        "of taste. Counterpart of Figure 1b of arXiv:2405.17573.",
        notes=tuple(notes),
    )


def _panel(table: pl.DataFrame, symbol: str, colour: str, threshold: float, rank: int | None) -> tuple[Panel, int]:
    """One spectrum along p, and how many of its values lie under the axis."""
    lines = [
        (index, part["p"].to_list(), part["value"].to_list())
        for (index,), part in table.group_by(["index"], maintain_order=True)
    ]
    values = finite(table["value"].to_list())
    top = max(values, default=0.0)
    floor = FLOOR * top
    lines = [line for line in lines if any(v >= floor and v > 0 for v in finite(line[2]))]
    leading = [(p, v) for i, p, v in lines if rank is not None and number(i) is not None and i < rank]
    others = [(p, v) for i, p, v in lines if rank is None or number(i) is None or i >= rank]
    layers = len(lines[0][1]) if lines else 0
    dots = "circle" if layers <= 60 else ""
    series = []
    dense = len(lines) * layers > HOVER_POINTS
    if others:
        x, y = joined(others)
        label = "the others" if leading else "singular values"
        shade = PALE if leading else colour
        series.append(Series(x, y, label, shade, width=1.2, hover=[] if dense else _names(others, len(leading))))
    if leading:
        x, y = joined(leading)
        label = f"largest {rank} (rank estimate)" if rank != 1 else "largest (rank estimate)"
        series.append(
            Series(
                x,
                y,
                label,
                colour,
                width=2.0,
                marker=dots if rank is not None and rank <= 4 else "",
                size=4,
                hover=[] if dense else _names(leading, 0),
            )
        )
    largest = table.group_by("layer", maintain_order=True).agg(pl.col("p").first(), pl.col("value").max()).sort("p")
    bar = [None if (v := number(value)) is None else threshold * v for value in largest["value"].to_list()]
    series.append(Series(largest["p"].to_list(), bar, f"{show(threshold)} × the largest (threshold)", INK, "dash", 1.4))
    hidden = sum(1 for v in values if v < floor)
    smallest = min((v for v in values if v >= floor and v > 0), default=floor)
    view = (min(smallest, threshold * top) / 1.8, 1.8 * top) if top > 0 else None
    return (
        Panel(
            f"{symbol}",
            "{p}",
            f"singular values of {symbol}",
            tuple(series),
            log=True,
            view=view,
            empty="every singular value is zero: the network has collapsed" if values else "no spectrum was recorded",
        ),
        hidden,
    )


def _names(lines: list[tuple[list[Value], list[Value]]], first: int) -> list[str]:
    """Text per point of the joined lines: which singular value."""
    names: list[str] = []
    for place, (p, _) in enumerate(lines, start=first + 1):
        names += [f"singular value {place}"] * len(p) + [""]
    return names[:-1]
