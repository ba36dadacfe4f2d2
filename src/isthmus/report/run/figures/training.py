"""Figures of the training: objective, test error, and the stationarity residual."""

from isthmus.report._numbers import finite, number, show
from isthmus.report.spec import Figure, Panel, Reference, Series
from isthmus.report.style import BLUE, GREEN, INK, PURPLE, VERMILION, quoted
from isthmus.runs.reader import RunData
from isthmus.thresholds import CRITICAL, DIGITS, SHAPES


def stages(run: RunData) -> list[tuple[float, str]]:
    """First step and name of each stage, in order."""
    found: list[tuple[float, str]] = []
    for step, stage in zip(run.trace("step"), run.trace("stage"), strict=True):
        if step is not None and stage is not None and (not found or found[-1][1] != stage):
            found.append((float(step), stage))
    return found


def stage_marks(run: RunData) -> tuple[Reference, ...]:
    """A vertical where each stage after the first begins, with its number where there is room for it."""
    found = stages(run)
    steps = finite(run.trace("step"))
    room = 0.04 * (max(steps) - min(steps)) if steps else 0.0
    marks: list[Reference] = []
    labelled = float("-inf")
    for place, (step, _) in enumerate(found[1:], start=2):
        roomy = step - labelled >= room
        labelled = step if roomy else labelled
        marks.append(Reference(step, str(place) if roomy else ""))
    return tuple(marks)


def recorded(run: RunData, key: str) -> tuple[list[float], list[float]]:
    """Steps and values of a trace where it has one: what is not computed at every log point leaves no gap."""
    pairs = zip(run.trace("step"), run.trace(key), strict=True)
    kept = [(float(step), x) for step, value in pairs if step is not None and (x := number(value)) is not None]
    return [step for step, _ in kept], [x for _, x in kept]


def objective_figure(run: RunData) -> Figure:
    """Objective (E3), its two parts and the test cost over training; accuracy where there are classes."""
    steps = run.trace("step")
    marks = stage_marks(run)
    dots = "circle" if len(steps) < 12 else ""
    curves = [("objective", "objective", INK, "solid", 2.6), ("data_cost", "data cost", BLUE, "solid", 2.0)]
    curves += [
        ("penalty", "penalty", VERMILION, "solid", 2.0),
        ("test_cost", "test cost", GREEN, "dash", 2.0),
    ]
    series = tuple(
        Series(*recorded(run, key), label, colour, dash, width, marker=dots)
        for key, label, colour, dash, width in curves
        if finite(run.trace(key))
    )
    empty = "no training history was recorded"
    panels = [Panel("", "step", "cost", series, log=True, verticals=marks, empty=empty)]
    reading = (
        "The objective (E3) is the data cost plus the penalty; a flat end means that the optimiser has stopped "
        "gaining, not that it has arrived: for that, see the residual."
    )
    if finite(run.trace("test_accuracy")):
        accuracy = (Series(*recorded(run, "test_accuracy"), "test accuracy", GREEN, marker=dots),)
        panels.append(Panel("", "step", "accuracy", accuracy, verticals=marks))
    if marks:
        listed = "; ".join(f"{place} {quoted(name)}" for place, (_, name) in enumerate(stages(run), start=1))
        reading += f" Dotted verticals mark where a stage begins: {listed}."
    return Figure("objective", "Objective over training", tuple(panels), reading)


def residual_figure(run: RunData) -> Figure:
    """Stationarity residual over training, and per layer at the end."""
    steps = run.trace("step")
    dots = "circle" if len(steps) < 12 else ""
    over_training = tuple(
        Series(*recorded(run, key), label, colour, dash, marker=dots)
        for key, label, colour, dash in (
            ("residual_max", "largest over layers", VERMILION, "solid"),
            ("residual_median", "median over layers", BLUE, "solid"),
        )
    )
    lines = (Reference(SHAPES, "shapes"), Reference(DIGITS, "digits"), Reference(CRITICAL, "critical"))
    per_layer = (Series(run.midpoints(), run.column("residual"), "at the end", PURPLE, marker="circle"),)
    return Figure(
        "residual",
        "Stationarity residual: is this a critical point?",
        (
            Panel(
                "over training",
                "step",
                "relative residual",
                over_training,
                log=True,
                horizontals=lines,
                verticals=stage_marks(run),
                empty="no training history was recorded",
            ),
            Panel(
                "per layer, at the end",
                "{p}, layers at their midpoints",
                "relative residual",
                per_layer,
                log=True,
                horizontals=lines,
            ),
        ),
        "The relative distance of the weights from the first of (E9); it is the gradient of the objective "
        "in the scale of "
        f"the weights. Below {show(CRITICAL)} (line “critical”) the run sits on a critical point for practical "
        f"purposes; below {show(DIGITS)} the digits of energies may be read, below {show(SHAPES)} their shapes; above, "
        "the Hamiltonian and everything made from it show where the optimiser stopped, not the theory.",
    )
