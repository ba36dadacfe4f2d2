"""The figures of a branch: the curve of the paper's Figure 1a with its events, costs and rank, residuals, spectra."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from isthmus.report._numbers import finite, positive, show
from isthmus.report.branch.columns import LABELS, LOGARITHMIC, NAMES, kind
from isthmus.report.branch.words import KINDS
from isthmus.report.spec import Figure, Frames, Panel, Reference, Series, Value, count_unloggable, joined
from isthmus.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, VERMILION
from isthmus.runs.branch_folder import BranchData
from isthmus.runs.branch_points import PointSpectra
from isthmus.thresholds import CRITICAL, RANK

KEYS = ("curve", "objective", "residual", "spectra")

DEEPEST = -3.0
"""Below this −2H/L̃ says nothing of a dimension: the curve's axis ends here where points lie lower."""
MOST_LINES = 12
APART = 0.06  # of the axis: labels of events nearer than this would cover each other
FLOOR = 1e-6  # of the largest singular value: smaller ones are not drawn


def branch_figures(data: BranchData, spectra: Sequence[PointSpectra]) -> tuple[Figure, ...]:
    """Every figure that there are data for, in the order of the page."""
    made = (curve_figure(data), objective_figure(data), residual_figure(data), spectra_figure(data, spectra))
    return tuple(figure for figure in made if figure is not None)


def curve_figure(data: BranchData) -> Figure | None:
    """−2H/L̃ and the least stable cost of identity against the parameter (the paper's Figure 1a)."""
    lower = _curve(data, "minus_2h_over_l", "{rank}", VERMILION)
    upper = _curve(data, "coi_least", "least stable {COI}", BLUE)
    if not lower and not upper:
        return None
    series = [*upper, *lower]
    if any(one.marker == "open" for one in series):
        series.append(Series([None], [None], "not certified, or no minimum", GREY, "dash", 1.0, marker="open"))
    values = [y for key in ("minus_2h_over_l", "coi_least") for y in finite(data.column(key))]
    view, notes = _seen(values)
    top = math.ceil(max(values)) if view is None else view[1]
    lines = tuple(Reference(float(k), "") for k in range(1, min(math.floor(top), MOST_LINES) + 1))
    panel = _panel(data, "", "dimensions", tuple(series), horizontals=lines, view=view)
    panel = replace(panel, verticals=_events(data))
    return Figure(
        "curve",
        f"The bottleneck's rank against {NAMES.get(data.parameter, data.parameter)}",
        (panel,),
        "{rank} estimates the rank {k} from below and the least cost of identity from above (E11); the dashed lines "
        "are whole numbers. Filled points are certified minima. Dotted lines mark what happened on the way, in words "
        "below. Counterpart of Figure 1a of arXiv:2405.17573.",
        notes=notes,
    )


def _seen(values: list[float]) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """Limits of y where −2H/L̃ falls far below zero, and a note of what they hide."""
    below = [v for v in values if v < DEEPEST]
    if not below:
        return None, ()
    count = "1 point of −2H/L̃ lies" if len(below) == 1 else f"{len(below)} points of −2H/L̃ lie"
    note = f"{count} below the axis, down to {show(min(below), 3)}."
    return (DEEPEST, max(1.0, 1.08 * max(values))), (note,)


def objective_figure(data: BranchData) -> Figure | None:
    """Objective with its parts, and the rank."""
    costs = (
        *_curve(data, "objective", "objective", INK),
        *_curve(data, "data_cost", "data cost", GREEN, markers=False),
        *_curve(data, "penalty", "penalty", ORANGE, markers=False),
    )
    if not costs:
        return None
    panels = [_panel(data, "objective (E3)", "objective", costs)]
    ranks = (
        *_curve(data, "k_star", "{k}, about the mean", VERMILION),
        *_curve(data, "rank", "rank, with the mean", BLUE),
    )
    if ranks:
        top = max(y for one in ranks for y in finite(one.y))
        panels.append(_panel(data, "rank", "rank", ranks, view=(0.0, top + 1.0)))
    return Figure(
        "objective",
        "Objective and rank along the branch",
        tuple(panels),
        "A branch of minima keeps its objective smooth; where it ends, the next minimum may lie lower or higher. The "
        f"rank counts singular values above {show(RANK)} of the largest, and one of these directions may be the mean; "
        "{k} counts those in which the representation varies about its mean.",
    )


def residual_figure(data: BranchData) -> Figure | None:
    """Residuals, with what counts as critical, and the least eigenvalue of the Hessian."""
    residual = _curve(data, "residual", "largest residual", PURPLE)
    if not residual:
        return None
    lines = (Reference(CRITICAL, f"critical up to {show(CRITICAL)}"),)
    panels = [_panel(data, "residual (E9)", "residual", residual, log=True, horizontals=lines)]
    least = _curve(data, "least", "least eigenvalue", GREEN)
    if least:
        panels.append(_panel(data, "least eigenvalue of the Hessian", "relative to the metric", least))
    lost = sum(map(count_unloggable, panels))
    return Figure(
        "residual",
        "How critical the points are",
        tuple(panels),
        "At a critical point the stationarity residual is zero. The least eigenvalue of the Hessian, relative to the "
        "metric of Newton's method, is positive at a minimum and negative at a saddle; it is computed as far as its "
        "sign needs.",
        notes=(f"{lost} residuals are zero and have no place on the logarithmic axis.",) if lost else (),
    )


def spectra_figure(data: BranchData, spectra: Sequence[PointSpectra]) -> Figure | None:
    """Singular values of the states along p, for the point that a slider chooses; and half-way, against the parameter.

    Args:
        data: the branch.
        spectra: of some of its points, in order.
    """
    if not spectra:
        return None
    top = max((v for point in spectra for state in point.values for v in state), default=0.0)
    if top <= 0:
        return None
    number_of = len(spectra[0].values[0])
    shown = [k for k in range(number_of) if any(s[k] >= FLOOR * top for point in spectra for s in point.values)]
    frames = [_lines(point, shown, FLOOR * top) for point in spectra]
    bars = [[RANK * max(state) for state in point.values] for point in spectra]
    first, p = len(spectra) - 1, spectra[-1].p
    x, _ = joined([(p, p)] * len(shown))
    series = (
        Series(x, frames[first], "singular values of {A}", BLUE, width=1.3),
        Series(p, bars[first], f"{show(RANK)} × the largest (threshold)", INK, "dash", 1.4),
    )
    name = NAMES.get(data.parameter, data.parameter)
    slider = Frames(name, [show(point.value) for point in spectra], [list(pair) for pair in zip(frames, bars)], first)  # noqa: B905
    view = (FLOOR * top, 1.8 * top)
    at = show(spectra[first].value)
    along = Panel(
        f"along {{p}}, at {name} = {at}", "{p}", "singular values", series, log=True, view=view, frames=slider
    )
    drawn = "" if len(spectra) == len(data.points) else f"{len(spectra)} of {len(data.points)} points are drawn."
    return Figure(
        "spectra",
        "Spectra along the branch",
        (along, _half_way(data, spectra, shown, view)),
        "Left: the singular values of the states along {p}; on the page the slider chooses the point. Right: those "
        "of the state half-way, against the parameter: a line that falls through the dashed threshold is a direction "
        "that the bottleneck gives up.",
        notes=(drawn,) if drawn else (),
    )


def _lines(point: PointSpectra, shown: list[int], floor: float) -> list[Value]:
    """The chosen singular values along p, one line after the other; None where they are too small to draw."""
    lines = [[state[k] if state[k] >= floor else None for state in point.values] for k in shown]
    _, y = joined([(point.p, line) for line in lines])
    return y


def _half_way(data: BranchData, spectra: Sequence[PointSpectra], shown: list[int], view: tuple[float, float]) -> Panel:
    """Singular values of the middle state against the parameter, a line for each; branches apart."""
    middle = len(spectra[0].values) // 2
    xs: list[Value] = [point.value for point in spectra]
    branches = [data.points[point.index].get("branch") for point in spectra]

    def line(value: Callable[[PointSpectra], float]) -> tuple[list[Value], list[Value]]:
        ys: list[Value] = [y if (y := value(point)) >= view[0] else None for point in spectra]
        return _broken(xs, ys, branches)

    lines = [line(lambda point, k=k: point.values[middle][k]) for k in shown]  # type: ignore[misc]
    x, y = joined(lines)
    bar = line(lambda point: RANK * max(point.values[middle]))
    p = show(spectra[0].p[middle], 2)
    series = (
        Series(x, y, f"singular values at {{p}} = {p}", BLUE, width=1.3, marker="circle", size=3.5),
        Series(*bar, f"{show(RANK)} × the largest", INK, "dash", 1.4),
    )
    return _panel(data, "half-way", "singular values", series, log=True, view=view)


def _curve(data: BranchData, key: str, label: str, colour: str, markers: bool = True) -> tuple[Series, ...]:
    """A column against the parameter: a line broken between branches, points filled where they are certified minima."""
    xs: list[Value] = list(data.values)
    ys: list[Value] = list(data.column(key))
    if not finite(ys):
        return ()
    x, y = _broken(xs, ys, [point.get("branch") for point in data.points])
    found = [Series(x, y, label, colour, width=1.8)]
    good = [data.certified(i) and data.minimum(i) for i in range(len(xs))]
    for wanted, marker in ((True, "circle"), (False, "open")) if markers else ():
        chosen = [i for i, is_good in enumerate(good) if is_good is wanted and ys[i] is not None]
        if chosen:
            hover = [_hover(data, i) for i in chosen]
            points = [xs[i] for i in chosen], [ys[i] for i in chosen]
            found.append(Series(*points, "", colour, "none", marker=marker, size=7, hover=hover))
    return tuple(found)


def _broken(xs: list[Value], ys: list[Value], branches: Sequence[object]) -> tuple[list[Value], list[Value]]:
    """A line with a gap wherever the branch changes."""
    x: list[Value] = []
    y: list[Value] = []
    for i, branch in enumerate(branches):
        if i and branch != branches[i - 1]:
            x.append(None)
            y.append(None)
        x.append(xs[i])
        y.append(ys[i])
    return x, y


def _hover(data: BranchData, index: int) -> str:
    point = data.points[index]
    certified = "certified" if data.certified(index) else "not certified"
    return f"point {index}, branch {point.get('branch')}: {kind(data, index)}, {certified}"


def _panel(
    data: BranchData,
    title: str,
    y_label: str,
    series: tuple[Series, ...],
    *,
    log: bool = False,
    horizontals: tuple[Reference, ...] = (),
    view: tuple[float, float] | None = None,
) -> Panel:
    """A panel against the parameter, with a line for every event; what each is, the curve says."""
    if log and view is None and not any(y for one in series for y in positive(one.y)):
        log = False
    return Panel(
        title,
        LABELS.get(data.parameter, data.parameter),
        y_label,
        series,
        log=log,
        horizontals=horizontals,
        verticals=tuple(Reference(event.value, "") for event in _events(data)),
        view=view,
        log_x=data.parameter in LOGARITHMIC,
        empty="no point has such a number",
    )


def _events(data: BranchData) -> tuple[Reference, ...]:
    """A line for each event; labels where there is room for them."""
    if not data.points:
        return ()
    scale = math.log if data.parameter in LOGARITHMIC else float
    places = [scale(value) for value in data.values]
    room = APART * ((max(places) - min(places)) or 1.0)
    last, found = -math.inf, []
    for event in sorted(data.events, key=lambda event: float(event["value"])):
        at = scale(float(event["value"]))
        name = KINDS.get(str(event["kind"]), (str(event["kind"]), ""))[0].split(" ")[
            -1 if event["kind"] == "rank" else 0
        ]
        label = name if at - last >= room else ""
        last = at if label else last
        found.append(Reference(float(event["value"]), label))
    return tuple(found)
