"""Panels by matplotlib: SVG, PDF and PNG files for print and for slides, the same bytes for the same run."""

import io
import textwrap
from collections.abc import Callable
from typing import Any

from isthmus.report._numbers import number, positive, show
from isthmus.report._optional import require
from isthmus.report.spec import Figure, Panel, Series, short_log_ticks
from isthmus.report.style import BAND, GREY, GRID, INK, SCALE, tex

DPI = 200
"""Of PNG files."""

WIDEST = 3
"""Panels in a row; of more, two."""
_TITLE = 50  # characters of a line of a panel's title

_RC: dict[str, Any] = {
    "svg.hashsalt": "isthmus",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "mathtext.fontset": "dejavusans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "axes.unicode_minus": True,
}
_METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": "isthmus"},
    "pdf": {"CreationDate": None, "ModDate": None, "Creator": "isthmus", "Producer": None},
    "png": {"Software": "isthmus"},
}
_DASHES: dict[str, Any] = {"solid": "-", "dash": (0, (5, 2.5)), "dot": (0, (1, 1.6))}


def draw(figure: Figure, formats: tuple[str, ...] = ("svg", "pdf")) -> dict[str, bytes]:
    """The figure in each of `formats`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib")
    canvas = require("matplotlib.figure").Figure  # no pyplot: no global state, no window, nothing left to close
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_RC, "backend": "agg"}):
        number_of = len(figure.panels)
        columns = number_of if number_of <= WIDEST else 2
        rows = -(-number_of // columns)
        height = 4.6 if any(panel.square for panel in figure.panels) else 3.5
        page = canvas(figsize=(6.2 if columns == 1 else 4.9 * columns, height * rows), layout="constrained")
        axes = page.subplots(rows, columns, squeeze=False).flatten()
        for ax, panel in zip(axes, figure.panels, strict=False):
            _panel(page, ax, panel)
        for ax in axes[number_of:]:
            ax.axis("off")
        if figure.caveat:
            page.supxlabel(tex(figure.caveat), fontsize=8.5, color="#a33a00")
        files = {}
        for name in formats:
            files[name] = _save(page, name)
            page.set_layout_engine(
                "none"
            )  # the first file has settled the layout: the others match it, and save the time
        return files


def _save(page: Any, name: str) -> bytes:
    """The bytes of one file."""
    buffer = io.BytesIO()
    page.savefig(buffer, format=name, metadata=_METADATA[name], facecolor="white", dpi=DPI)
    return buffer.getvalue()


def _panel(page: Any, ax: Any, panel: Panel) -> None:
    """Draw one panel."""
    if not panel.drawable:
        ax.set_title(_title(panel), loc="left")
        ax.set(xticks=[], yticks=[])
        ax.text(
            0.5,
            0.5,
            tex(panel.empty),
            transform=ax.transAxes,
            ha="center",
            va="center",
            color=GREY,
            wrap=True,
        )
        return
    ax.set_xlabel(tex(panel.x_label))
    ax.set_ylabel(tex(panel.y_label))
    if panel.log:
        ax.set_yscale("log")
    if panel.log_x:
        ax.set_xscale("log")
    for low, high in panel.bands:
        ax.axvspan(low, high, color=BAND, linewidth=0, zorder=0)
    for series in panel.series:
        _series(ax, series, panel.log)
    _references(ax, panel)
    if panel.view is not None:
        ax.set_ylim(*panel.view)
    ticks = short_log_ticks(panel) if panel.log else None
    if ticks is not None:
        low, high = ax.get_ylim()
        kept = [tick for tick in ticks if low <= tick <= high]
        ax.set_yticks(kept, [show(tick, 3) for tick in kept])
        ax.set_yticks([], minor=True)
    if panel.names:
        places, names = zip(*panel.names, strict=True)
        ax.set_xticks(places, [tex(name) for name in names], rotation=40, ha="right", fontsize=8)
    if panel.square:
        ax.set_aspect("equal", adjustable="datalim")
        ax.grid(True, axis="both")
    elif not panel.log and panel.view is None and ax.get_ylim()[0] <= 0 <= ax.get_ylim()[1]:
        ax.axhline(0.0, color=GREY, linewidth=0.6, zorder=0.5)
    ax.margins(x=0.02)
    if panel.x_label.startswith("{p}"):
        ax.set_xlim(-0.02, 1.02)
    _legend(page, ax, panel)


def _title(panel: Panel) -> str:
    """The title, in as many lines as it needs."""
    return "\n".join(tex(line) for line in textwrap.wrap(panel.title, _TITLE))


def _series(ax: Any, series: Series, log: bool) -> None:
    """Draw one series; gaps stay gaps."""
    nan = float("nan")
    x = [nan if (v := number(value)) is None else v for value in series.x]
    ordinates = positive(series.y) if log else [number(value) for value in series.y]
    y = [nan if value is None else value for value in ordinates]
    label = tex(series.label) if series.label else "_"
    points = series.size**2 * 0.45
    if series.error:
        above, below = (
            [nan if (v := number(value)) is None else v for value in bars]
            for bars in (series.error, series.error_below or series.error)
        )
        colour = series.colour if isinstance(series.colour, str) else GREY
        ax.errorbar(x, y, yerr=[below, above], fmt="none", ecolor=colour, elinewidth=0.9, capsize=2)
    if isinstance(series.colour, str) and series.dash != "none":
        style: dict[str, Any] = {
            "color": series.colour,
            "linewidth": 0.8 * series.width,
            "linestyle": _DASHES[series.dash],
            "alpha": series.opacity,
            "solid_joinstyle": "round",
            "label": label,
        }
        if series.marker:
            style |= {"marker": "o", "markersize": 0.62 * series.size, "markeredgewidth": 0}
        if series.step:
            style["drawstyle"] = "steps-post"
        ax.plot(x, y, **style)
    elif series.marker == "open":
        ax.scatter(x, y, s=points, facecolors="none", edgecolors=series.colour, linewidths=0.9, label=label, zorder=3)
    else:
        ax.scatter(x, y, s=points, c=series.colour, linewidths=0, label=label, zorder=3)


def _references(ax: Any, panel: Panel) -> None:
    """Reference lines with their labels, and strokes at the layer positions."""
    for line in panel.horizontals:
        ax.axhline(line.value, color=GREY, linewidth=0.8, linestyle=(0, (5, 3)), zorder=0.8)
        if line.label:
            ax.annotate(
                tex(line.label),
                (0.0 if line.left else 1.0, line.value),
                xycoords=("axes fraction", "data"),
                xytext=(2 if line.left else -2, 2),
                textcoords="offset points",
                ha="left" if line.left else "right",
                va="bottom",
                fontsize=8,
                color=GREY,
            )
    for line in panel.verticals:
        ax.axvline(line.value, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0.8)
        if line.label:
            ax.annotate(
                tex(line.label),
                (line.value, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, -1),
                textcoords="offset points",
                ha="left",
                va="top",
                fontsize=8,
                color=GREY,
            )
    if panel.ticks:
        ax.vlines(panel.ticks, 0.0, 0.035, transform=ax.get_xaxis_transform(), color=INK, linewidth=0.8)


def _legend(page: Any, ax: Any, panel: Panel) -> None:
    """A legend above the axes, and the colour bar at their side: neither can cover a curve or the other."""
    handles, labels = ax.get_legend_handles_labels()
    if panel.bands and panel.band_label:
        handles.append(require("matplotlib.patches").Patch(facecolor=BAND, edgecolor="#b7cde0", linewidth=0.6))
        labels.append(tex(panel.band_label))
    style = {"title": _title(panel) or None, "title_fontsize": 10.5, "alignment": "left", "borderpad": 0}
    if len(handles) > 5 and labels[0].startswith("class "):
        ax.legend(handles, labels, loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0, **style)
    elif handles:
        ax.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            ncols=2,
            borderaxespad=0.4,
            columnspacing=1.2,
            handlelength=1.8,
            **style,
        )
    if panel.scale is not None:
        _colour_bar(page, ax, panel)


def _colour_bar(page: Any, ax: Any, panel: Panel) -> None:
    """The colour bar of a panel."""
    assert panel.scale is not None
    colours, cm = require("matplotlib.colors"), require("matplotlib.cm")
    scale: Callable[..., Any] = colours.LinearSegmentedColormap.from_list
    mapping = cm.ScalarMappable(colours.Normalize(panel.scale.low, panel.scale.high), scale("isthmus", list(SCALE)))
    bar = page.colorbar(mapping, ax=ax, pad=0.02, aspect=28)
    bar.set_label(tex(panel.scale.label))
    bar.outline.set_visible(False)
