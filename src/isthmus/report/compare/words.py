"""A comparison in words: which layers correspond, whether depth matters, what the controls say. Plain text."""

from typing import TYPE_CHECKING

from isthmus.report._numbers import MISSING, finite, show
from isthmus.report.tables import Account, Card

if TYPE_CHECKING:
    from isthmus.probe import Comparison

CLEAR_P = 0.05
"""Share of random orders of layers, as alike as the order itself, below which similarity is said to follow depth."""

LEAST_EXCESS = 0.02
"""By how much layers at the same relative depth must be more alike, at least, to be called so: less may be no chance,
and is still of no use."""


def account(comparison: "Comparison") -> Account:
    """The comparison in words, with every doubt."""
    sentences = [*_depth(comparison), *_clear(comparison), *_controls(comparison)]
    return Account(comparison.verdict, tuple(sentences), tuple(comparison.doubts))


def _depth(comparison: "Comparison") -> list[str]:
    test = comparison.depth
    if test is None:
        return []
    numbers = f"{show(test.matched, 3)} against {show(test.shuffled, 3)} in random order, p = {show(test.p, 2)}"
    if test.p < CLEAR_P and test.excess < LEAST_EXCESS:
        return [f"Similarity hardly depends on depth: CKA at the same relative depth is {numbers}."]
    if test.p < CLEAR_P:
        return [f"Similarity follows depth: layers at the same relative depth have a mean CKA of {numbers}."]
    return [f"That similarity follows depth is not shown: CKA at the same relative depth is {numbers}."]


def _clear(comparison: "Comparison") -> list[str]:
    near = [one for one in comparison.nearest if one.clear is not None]
    if not near:
        return []
    clear = sum(bool(one.clear) for one in near)
    return [
        f"The nearest layer is told from the second nearest for {clear} of {len(near)} layers (95 %, each by itself)."
    ]


def _controls(comparison: "Comparison") -> list[str]:
    found = []
    for name, one in comparison.controls.items():
        own = finite(one.own)
        if own and one.mean == one.mean:
            found.append(
                f"Control, {name}: mean CKA at the same relative depth {show(one.mean, 2)}, against "
                f"{show(sum(own) / len(own), 3)}."
            )
    return found


def compare_cards(comparison: "Comparison") -> list[Card]:
    """Key numbers."""
    near, test = comparison.nearest, comparison.depth
    cards = []
    if near:
        best, worst = max(near, key=lambda one: one.cka), min(near, key=lambda one: one.cka)
        cards.append(Card("Most alike", show(best.cka, 3), f"{best.layer} ↔ {best.to}", "Debiased CKA."))
        cards.append(Card("Least alike", show(worst.cka, 3), f"{worst.layer} ↔ {worst.to}", "To its nearest layer."))
    if test is not None:
        cards.append(Card("Matched depth", show(test.matched, 3), f"p = {show(test.p, 2)}", "Mean debiased CKA."))
    if comparison.itself:
        cards.append(
            Card("Groups", show(len(comparison.groups)), "", "Of consecutive layers with a CKA of 0.9 or more.")
        )
    for name, one in comparison.controls.items():
        value = show(one.mean, 2) if one.mean == one.mean else MISSING
        cards.append(Card(name.capitalize(), value, "control", "Mean CKA at matched depths."))
    return cards
