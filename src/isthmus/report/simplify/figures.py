"""Figures of a simplified network: the loss as blocks go, and the first ranking."""

from itertools import accumulate
from typing import TYPE_CHECKING

from isthmus.report.spec import Figure, Panel, Reference, Series, Value
from isthmus.report.style import BLUE, GREEN, VERMILION, quoted, shortened

if TYPE_CHECKING:
    from isthmus.probe import Simplified

KEYS = ("simplify-loss", "simplify-ranking")
LONGEST_NAME = 22
MOST_NAMES = 24


def simplify_figures(found: "Simplified") -> tuple[Figure, ...]:
    """Every figure that there are numbers for."""
    made = (_loss(found), _ranking(found))
    return tuple(figure for figure in made if figure is not None)


def _loss(found: "Simplified") -> Figure | None:
    if not found.rounds:
        return None
    places: list[Value] = list(range(len(found.rounds) + 1))
    measured = list(accumulate((r.measured for r in found.rounds), initial=found.loss_before))
    predicted = list(accumulate((r.predicted for r in found.rounds), initial=found.loss_before))
    hover = ["the whole network", *(f"without {quoted(r.name)}" for r in found.rounds)]
    lines = (
        Series(places, measured, "measured", BLUE, marker="circle", hover=hover),
        Series(places, predicted, "predicted", VERMILION, "dash", 1.6, marker="circle", hover=hover),
    )
    names = ((0, "none"), *((i + 1, quoted(shortened(r.name, LONGEST_NAME))) for i, r in enumerate(found.rounds)))
    before = Reference(found.loss_before, "whole network")
    panel = Panel("mean loss", "block that went, in order", "loss", lines, horizontals=(before,), names=names)
    return Figure(
        "simplify-loss",
        "The loss as blocks go",
        (panel,),
        "Each block that goes takes the loss to the next point. Predictions are made anew after each, by a Taylor "
        "expansion at the network that is left; the dashed line adds them up. Where it parts from the measured one, "
        "blocks that matter have gone.",
    )


def _ranking(found: "Simplified") -> Figure | None:
    known = [one for one in found.candidates if one.predicted == one.predicted]
    if not known:
        return None
    gone = set(found.dropped)
    places = {one.name: i + 1 for i, one in enumerate(known)}

    def series(label: str, colour: str, went: bool) -> Series:
        chosen = [one for one in known if (one.name in gone) == went]
        hover = [quoted(one.name) for one in chosen]
        x: list[Value] = [places[one.name] for one in chosen]
        return Series(x, [one.predicted for one in chosen], label, colour, "none", marker="circle", size=8, hover=hover)

    step = -(-len(known) // MOST_NAMES)
    names = tuple((i + 1, quoted(shortened(known[i].name, LONGEST_NAME))) for i in range(0, len(known), step))
    panel = Panel(
        "predicted change of the loss",
        "block, in the order of the first ranking",
        "change if it went alone",
        (series("went", VERMILION, True), series("stayed", GREEN, False)),
        names=names,
    )
    return Figure(
        "simplify-ranking",
        "The first ranking",
        (panel,),
        "What dropping each block alone would do to the loss of the whole network, by prediction. Blocks near 0 idle.",
    )
