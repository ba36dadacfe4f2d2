"""A simplified network in words. Plain text."""

from typing import TYPE_CHECKING

from isthmus.probe.printed import listed
from isthmus.report._numbers import show
from isthmus.report.tables import Account, Card

if TYPE_CHECKING:
    from isthmus.probe import Simplified

FAR = 2.0
"""Measured change of the loss over the predicted, or the other way round, from which a prediction is called far off."""


def signed(value: float, digits: int = 3) -> str:
    """A change, with its sign."""
    return ("+" if value > 0 else "") + show(value, digits)


def account(found: "Simplified") -> Account:
    """What went, what it cost, and what to be careful about."""
    if not found.rounds:
        headline = "Nothing was dropped: no block could go within what was asked for."
        return Account(headline, (), tuple(found.notes))
    whole = len(found.kept) + len(found.dropped)
    headline = (
        f"{len(found.dropped)} of {whole} blocks went: {listed(found.dropped)}. The loss went from "
        f"{show(found.loss_before, 4)} to {show(found.loss_after, 4)}."
    )
    sentences = [
        f"Predicted {signed(found.predicted)}, measured {signed(found.measured)}, on the data that were given."
    ]
    sentences += [
        f"{name}: {show(size, 6)} before, {show(found.size_after[name], 6)} after."
        for name, size in found.size_before.items()
    ]
    doubts = list(found.notes)
    if max(abs(found.measured), abs(found.predicted)) > FAR * min(abs(found.measured), abs(found.predicted)):
        doubts.append(
            "The prediction is far off. It is a Taylor expansion at the whole network: good for blocks that do little."
        )
    doubts.append("Blocks were chosen and the loss was measured on the same data: report accuracy on other data.")
    return Account(headline, tuple(sentences), tuple(doubts))


def simplify_cards(found: "Simplified") -> list[Card]:
    """The key numbers."""
    whole = len(found.kept) + len(found.dropped)
    cards = [
        Card("Blocks", show(len(found.kept)), f"of {whole}", "What is left of those that could go."),
        Card("Loss", show(found.loss_after, 4), f"{show(found.loss_before, 4)} before", "Mean over the data given."),
        Card("Measured change", signed(found.measured), "of the mean loss", "The smaller network less the whole."),
        Card("Predicted change", signed(found.predicted), "sum over rounds", "To second order in the gates."),
    ]
    return cards + [
        Card(name, show(found.size_after[name], 4), f"{show(size, 4)} before", "In the units of the budget.")
        for name, size in found.size_before.items()
    ]
