"""The path in two dimensions, and the layer step-sizes."""

from isthmus.report._numbers import finite, number, show
from isthmus.report.run.figures.mechanics import bands
from isthmus.report.spec import ColourScale, Figure, Panel, Reference, Series, Value, joined
from isthmus.report.style import BLUE, CLASSES, INK, shade
from isthmus.runs.reader import RunData

BINS = 24
POINTS = 12_000  # beyond it a page grows by megabytes and a reader sees no more
DOTTED = 6_000

# sample, colour, first and second coordinate along the path, p
Line = tuple[int, float | None, list[Value], list[Value], list[Value]]


def mesh_figure(run: RunData) -> Figure:
    """Step-sizes ρ_l against p with the positions p_l."""
    p = [x for x in run.column("p") if x is not None]
    rho = run.column("rho")
    first = number(rho[0])
    start = [p[0] - first if p and first is not None else 0.0]
    steps = Series([*start, *p], [*rho, rho[-1]], "step-size {rho}", BLUE, step=True) if len(p) == len(rho) else None
    dots = Series(run.midpoints(), rho, "", BLUE, "none", marker="circle", size=5)
    lines = [Reference(1 / len(rho), "1/L (equidistant)")]
    effective = run.value("effective_depth")
    biggest = max(finite(rho), default=0.0)
    if effective and 0.4 / effective <= biggest:
        lines.append(Reference(1 / effective, "1/L̃ (no skip left)"))
    series = (dots,) if steps is None else (steps, dots)
    note = ""
    if effective and biggest * effective > 1 + 1e-9:
        note = f"The largest step has ρL̃ = {show(biggest * effective)} > 1, which flips the sign of the skip (E2)."
    return Figure(
        "mesh",
        "Layer step-sizes",
        (
            Panel(
                "",
                "{p}",
                "{rho}",
                series,
                horizontals=tuple(lines),
                bands=bands(run),
                band_label="slow layers",
                ticks=(0.0, *p),
                view=(0.0, 1.15 * max(biggest, *(line.value for line in lines))),
            ),
        ),
        "Each layer spans from one stroke on the axis to the next and is as tall as its step. Long steps belong in the "
        "slow stretch (shaded), short ones in the jumps; a layer with {rho}{L} = 1 is a fully connected one (E2).",
        notes=(note,) if note else (),
    )


def path_figure(run: RunData) -> Figure | None:
    """Trajectories of samples in the plane of the projection; None where the run has none."""
    if run.projection is None or run.projection.height == 0:
        return None
    lines = [
        (sample, number(part["colour"][0]), part["pc1"].to_list(), part["pc2"].to_list(), part["p"].to_list())
        for (sample,), part in run.projection.sort("sample", "layer").group_by(["sample"], maintain_order=True)
    ]
    layers, recorded = max(len(line[2]) for line in lines), len(lines)
    lines = lines[:: -(-recorded * layers // POINTS)]
    dots = len(lines) * layers <= DOTTED
    colours = finite(colour for _, colour, *_ in lines)
    low, high = min(colours, default=0.0), max(colours, default=0.0)
    if run.classification:
        series, scale = _by_class(lines, dots), None
    else:
        series = _by_value(lines, low, high, dots)
        scale = ColourScale(low, high, "first output coordinate") if high > low else None
    by_class = run.classification
    strides = "A dot per layer: dots that crowd together are slow layers, long strides are the jumps." if dots else ""
    starts = [(line[2][0], line[3][0]) for line in lines]
    tints = [_tint(colour, low, high, by_class) for _, colour, *_ in lines]
    clouds = (
        Series(
            [x for x, _ in starts],
            [y for _, y in starts],
            "inputs ({p} = 0)",
            tints,
            "none",
            marker="open",
            size=6,
        ),
        *(_ends_by_class(lines) if by_class else [_ends(lines, "outputs ({p} = 1)", tints)]),
    )
    return Figure(
        "path",
        "The path of the data, projected to two dimensions",
        (
            Panel(
                "",
                "first principal direction",
                "second principal direction",
                (*series, *clouds),
                square=True,
                scale=scale,
            ),
        ),
        f"One line per sample ({len(lines)} of {recorded} recorded), from its input (open circle) to its "
        f"output (filled). {strides} Two dimensions hide the rest: judge ranks by the spectra.",
    )


def _tint(colour: float | None, low: float, high: float, by_class: bool) -> str:
    """The colour of one sample."""
    if colour is None:
        return INK
    if by_class:
        return CLASSES[int(colour) % len(CLASSES)]
    return shade((colour - low) / (high - low) if high > low else 0.4)


def _classes(lines: list[Line]) -> list[tuple[int, str, list[Line]]]:
    """Class, colour and lines of each class that occurs."""
    found = sorted(set(finite(line[1] for line in lines)))
    return [(int(k), CLASSES[int(k) % len(CLASSES)], [line for line in lines if line[1] == k]) for k in found]


def _by_class(lines: list[Line], dots: bool) -> tuple[Series, ...]:
    """Trajectories in the colour of their class."""
    return tuple(_strokes(chosen, "", colour, dots) for _, colour, chosen in _classes(lines))


def _ends_by_class(lines: list[Line]) -> list[Series]:
    """End points, an entry of the legend per class."""
    return [_ends(chosen, f"class {label}", colour) for label, colour, chosen in _classes(lines)]


def _ends(lines: list[Line], label: str, colour: str | list[str]) -> Series:
    """The end points of trajectories."""
    return Series(
        [line[2][-1] for line in lines],
        [line[3][-1] for line in lines],
        label,
        colour,
        "none",
        2.0,
        "circle",
        7,
    )


def _by_value(lines: list[Line], low: float, high: float, dots: bool) -> tuple[Series, ...]:
    """Samples grouped into bins of colour: few objects to draw, no visible steps."""
    groups: dict[int, list[Line]] = {}
    for line in lines:
        place = 0.4 if line[1] is None or high <= low else (line[1] - low) / (high - low)
        groups.setdefault(min(int(place * BINS), BINS - 1), []).append(line)
    return tuple(_strokes(groups[place], "", shade((place + 0.5) / BINS), dots) for place in sorted(groups))


def _strokes(lines: list[Line], label: str, colour: str, dots: bool) -> Series:
    """Trajectories of one colour as a single broken line."""
    paths: list[tuple[list[Value], list[Value]]] = [(x, y) for _, _, x, y, _ in lines]
    x, y = joined(paths)
    hover: list[str] = []
    for sample, _, _, _, p in lines if dots else ():
        hover += [f"sample {sample}, p = {show(at, 3)}" for at in p] + [""]
    return Series(
        x,
        y,
        label,
        colour,
        width=0.9,
        marker="circle" if dots else "",
        size=2.6,
        opacity=0.5,
        hover=hover[: len(x)],
    )
