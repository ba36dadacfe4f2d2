"""Panels as plotly specifications: plain JSON, so that a page needs plotly's script and nothing else."""

import math
from typing import Any

from isthmus.report._numbers import number, positive, rounded, show
from isthmus.report.spec import Panel, Series, log_range, short_log_ticks
from isthmus.report.style import BAND, GREY, GRID, INK, SCALE, web

FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
HEIGHT = 400


def specification(panel: Panel) -> dict[str, Any]:
    """Data and layout of one panel for `Plotly.newPlot`."""
    if not panel.drawable:
        return {"data": [], "layout": _empty_layout(panel)}
    shapes, annotations = _marks(panel)
    data = [_trace(series, panel.log) for series in panel.series]
    if panel.bands and panel.band_label:
        data.append(_legend_only(panel.band_label))
    if panel.scale is not None:
        data.append(_colour_bar(panel))
    layout: dict[str, Any] = {
        **_frame(),
        "xaxis": {**_axis(panel.x_label), "showgrid": panel.square},
        "yaxis": _y_axis(panel),
        "shapes": shapes,
        "annotations": annotations,
    }
    if panel.names:
        places, names = zip(*panel.names, strict=True)
        layout["xaxis"] |= {
            "tickvals": list(places),
            "ticktext": [web(name) for name in names],
            "tickangle": -40,
            "ticklabeloverflow": "allow",
        }
        layout["xaxis"]["tickfont"] = {"size": 12}
    if panel.square:
        layout["yaxis"] |= {"scaleanchor": "x", "scaleratio": 1}
        layout["height"] = 520
    elif not any(mark.label for mark in panel.verticals):
        layout["xaxis"] |= {"range": _x_range(panel)}
    if panel.log_x:
        layout["xaxis"] |= {"type": "log", "exponentformat": "power"}
    if panel.frames is not None:
        layout |= _slider(panel, layout["margin"])
    return {"data": data, "layout": layout}


def _slider(panel: Panel, margin: dict[str, Any]) -> dict[str, Any]:
    """A slider under the axes that puts other ordinates into the same series, and the room for it."""
    frames = panel.frames
    assert frames is not None
    places = list(range(len(panel.series)))
    steps = [
        {
            "label": label,
            "method": "restyle",
            "args": [{"y": [rounded(positive(y) if panel.log else y, 4) for y in ys]}, places],
        }
        for label, ys in zip(frames.labels, frames.ys, strict=True)
    ]
    slider = {
        "active": frames.first,
        "steps": steps,
        "currentvalue": {"prefix": f"{web(frames.name)} = ", "font": {"size": 14, "color": INK}},
        "pad": {"t": 52, "b": 8},
        "len": 1,
        "minorticklen": 0,
        "font": {"size": 11, "color": GREY},
    }
    return {"sliders": [slider], "height": HEIGHT + 90, "margin": margin | {"b": 130}}


def _frame() -> dict[str, Any]:
    """What every layout shares: fonts, margins, a legend above the axes, clear of any colour bar."""
    return {
        "height": HEIGHT,
        "autosize": True,
        "font": {"family": FONT, "size": 14, "color": INK},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "margin": {"l": 68, "r": 18, "t": 26, "b": 54},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.03,
            "yanchor": "bottom",
            "font": {"size": 13},
            "itemsizing": "trace",
            "bgcolor": "rgba(0,0,0,0)",
        },
        "hoverlabel": {"bgcolor": "#ffffff", "font": {"color": INK, "size": 13}},
        "hovermode": "closest",
        "showlegend": True,
    }


def _axis(label: str) -> dict[str, Any]:
    """An axis with its label, a frame line and light grid."""
    return {
        "title": {"text": web(label), "standoff": 8},
        "showline": True,
        "linecolor": GREY,
        "linewidth": 1,
        "ticks": "outside",
        "tickcolor": GREY,
        "exponentformat": "power",
        "ticklen": 4,
        "gridcolor": GRID,
        "zeroline": False,
        "automargin": True,
    }


def _y_axis(panel: Panel) -> dict[str, Any]:
    """The y axis: logarithmic with powers of ten, or linear with a line at zero."""
    axis = _axis(panel.y_label)
    if panel.log:
        axis |= {"type": "log", **_log_ticks(panel)}
    elif not panel.square:
        axis |= {"zeroline": True, "zerolinecolor": "#b9bec5", "zerolinewidth": 1}
    if panel.view is not None:
        axis["range"] = [math.log10(x) for x in panel.view] if panel.log else list(panel.view)
    return axis


def _log_ticks(panel: Panel) -> dict[str, Any]:
    """Ticks at powers of ten, or at 1, 2, 5 and their multiples where the range is short."""
    values = short_log_ticks(panel)
    if values is not None:
        return {"tickvals": values, "ticktext": [show(value, 3) for value in values]}
    decades = math.log10(log_range(panel)[1] / log_range(panel)[0])
    return {"dtick": 1 if decades < 9 else 2 if decades < 18 else 4}


def _x_range(panel: Panel) -> list[float]:
    """Limits of x with a little air, over all points; all of [0, 1] for p."""
    xs = [x for series in panel.series for x in map(number, series.x) if x is not None]
    xs += [0.0, 1.0] if panel.x_label.startswith("{p}") else []
    if panel.log_x:
        xs = [math.log10(x) for x in xs]
    low, high = min(xs), max(xs)
    air = 0.02 * (high - low) or 0.5
    return [low - air, high + air]


def _trace(series: Series, log: bool) -> dict[str, Any]:
    """One series as a scatter trace."""
    lines, markers = series.dash != "none", bool(series.marker)
    mode = "+".join([*(["lines"] if lines else []), *(["markers"] if markers else [])])
    name = web(series.label)
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": mode,
        "x": rounded(series.x),
        "y": rounded(positive(series.y) if log else series.y),
        "name": name,
        "showlegend": bool(series.label),
        "opacity": series.opacity,
        "connectgaps": False,
        "hovertemplate": ("%{text}<br>" if series.hover else "") + "%{x:.4g}, %{y:.4g}<extra>" + name + "</extra>",
    }
    if series.hover:
        trace["text"] = list(series.hover)
    colour = series.colour if isinstance(series.colour, str) else list(series.colour)
    if series.error:
        trace["error_y"] = {
            "type": "data",
            "array": rounded(series.error),
            **({"symmetric": False, "arrayminus": rounded(series.error_below)} if series.error_below else {}),
            "color": colour if isinstance(colour, str) else GREY,
            "thickness": 1.2,
            "width": 3,
        }
    if lines:
        trace["line"] = {"color": colour, "width": series.width, "dash": series.dash}
        if series.step:
            trace["line"]["shape"] = "hv"
    if markers and series.marker == "open":
        trace["marker"] = {
            "symbol": "circle-open",
            "size": series.size,
            "color": colour,
            "line": {"width": 1.2},
        }
    elif markers:
        trace["marker"] = {"size": series.size, "color": colour}
    return trace


def _legend_only(label: str) -> dict[str, Any]:
    """A square in the legend for the shaded bands."""
    marker = {"symbol": "square", "size": 13, "color": BAND, "line": {"width": 1, "color": "#b7cde0"}}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [None],
        "y": [None],
        "name": web(label),
        "marker": marker,
        "hoverinfo": "skip",
    }


def _colour_bar(panel: Panel) -> dict[str, Any]:
    """An invisible point that carries the colour bar."""
    scale = panel.scale
    assert scale is not None
    stops = [[i / (len(SCALE) - 1), colour] for i, colour in enumerate(SCALE)]
    bar = {
        "title": {"text": web(scale.label), "side": "right"},
        "thickness": 12,
        "outlinewidth": 0,
        "len": 0.9,
    }
    marker = {
        "color": [scale.low],
        "cmin": scale.low,
        "cmax": scale.high,
        "colorscale": stops,
        "showscale": True,
        "colorbar": bar,
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [None],
        "y": [None],
        "marker": marker,
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _marks(panel: Panel) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Bands, reference lines and strokes as shapes, with the labels of the lines as annotations."""
    shapes: list[dict[str, Any]] = [
        {
            "type": "rect",
            "xref": "x",
            "yref": "paper",
            "x0": low,
            "x1": high,
            "y0": 0,
            "y1": 1,
            "fillcolor": BAND,
            "line": {"width": 0},
            "layer": "below",
        }
        for low, high in panel.bands
    ]
    annotations: list[dict[str, Any]] = []
    small = {"size": 12, "color": GREY}
    thin = {"color": GREY, "width": 1, "dash": "dash"}
    for line in panel.horizontals:
        shapes.append(
            {
                "type": "line",
                "xref": "paper",
                "yref": "y",
                "x0": 0,
                "x1": 1,
                "y0": line.value,
                "y1": line.value,
                "line": thin,
            }
        )
        if line.label:
            place = math.log10(line.value) if panel.log else line.value
            annotations.append(
                {
                    "xref": "paper",
                    "yref": "y",
                    "x": 0 if line.left else 1,
                    "y": place,
                    "text": web(line.label),
                    "bgcolor": "rgba(255,255,255,0.6)",
                    "showarrow": False,
                    "xanchor": "left" if line.left else "right",
                    "yanchor": "bottom",
                    "font": small,
                }
            )
    for line in panel.verticals:
        shapes.append(
            {
                "type": "line",
                "xref": "x",
                "yref": "paper",
                "x0": line.value,
                "x1": line.value,
                "y0": 0,
                "y1": 1,
                "line": thin | {"dash": "dot"},
            }
        )
        if line.label:
            annotations.append(
                {
                    "xref": "x",
                    "yref": "paper",
                    "x": math.log10(line.value) if panel.log_x else line.value,
                    "y": 1,
                    "text": web(line.label),
                    "showarrow": False,
                    "xanchor": "left",
                    "yanchor": "top",
                    "xshift": 3,
                    "font": small,
                }
            )
    shapes += [
        {
            "type": "line",
            "xref": "x",
            "yref": "paper",
            "x0": x,
            "x1": x,
            "y0": 0,
            "y1": 0.035,
            "line": {"color": INK, "width": 1},
        }
        for x in panel.ticks
    ]
    return shapes, annotations


def _empty_layout(panel: Panel) -> dict[str, Any]:
    """Axes without numbers and a sentence in the middle."""
    note = {
        "text": web(panel.empty),
        "xref": "paper",
        "yref": "paper",
        "x": 0.5,
        "y": 0.5,
        "showarrow": False,
        "font": {"size": 14, "color": GREY},
    }
    bare = {
        "showticklabels": False,
        "showgrid": False,
        "zeroline": False,
        "showline": True,
        "linecolor": GRID,
        "mirror": True,
    }
    return {**_frame(), "height": 240, "xaxis": bare, "yaxis": bare, "annotations": [note]}
