"""What is said of a branch: how far it goes, how good its points are, what its end shows. Without torch."""

from collections import Counter
from dataclasses import dataclass

from isthmus.report._numbers import MISSING, finite, number, show, span
from isthmus.report.branch.columns import NAMES
from isthmus.report.tables import Card
from isthmus.runs.branch_folder import BranchData
from isthmus.status import Status
from isthmus.thresholds import CRITICAL

KINDS = {
    "fold": ("fold", "folds"),
    "bifurcation": ("bifurcation", "bifurcations"),
    "switch": ("switch to another branch", "switches to another branch"),
    "jump": ("jump to another branch", "jumps to another branch"),
    "rank": ("change of rank", "changes of rank"),
    "collapse": ("collapse", "collapses"),
}
"""What each kind of event is called, one and several."""


@dataclass(frozen=True)
class Summary:
    """The branch in words.

    Args:
        level: class of the box, "good", "near" or "bad".
        headline: what every point is.
        sentences: how far, by what steps, what happened.
    """

    level: str
    headline: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class End:
    """What the last point shows.

    Args:
        headline: the verdict on its bottleneck.
        method: how the estimate was made.
        doubts: what speaks against it.
        trusted: whether nothing does.
        where: the point.
        kind: minimum, saddle or undecided, with the reason, a sentence; "" where it was not asked.
    """

    headline: str
    method: str
    doubts: tuple[str, ...]
    trusted: bool
    where: str
    kind: str


def name(data: BranchData) -> str:
    """The parameter as one says it."""
    return NAMES.get(data.parameter, data.parameter)


def summary(data: BranchData) -> Summary:
    """How good the points are, and how far they go."""
    number_of = len(data.points)
    if not number_of:
        return Summary("bad", "No point yet", (_ended(data),))
    uncertified = sum(not data.certified(i) for i in range(number_of))
    saddles = sum(not data.minimum(i) for i in range(number_of))
    what = "A critical point" if number_of == 1 else f"{number_of} critical points"
    if not uncertified and not saddles:
        headline, level = f"{what}, certified", "good"
    else:
        parts = [f"{uncertified} not certified"] if uncertified else []
        parts += [f"{saddles} no minimum"] if saddles else []
        headline, level = f"{what}: {', '.join(parts)}", "bad" if uncertified == number_of else "near"
    largest = max(finite(data.column("residual")), default=float("nan"))
    seen = "the least eigenvalue of the Hessian was computed at each" if data.settings["eigenvalues"] else (
        "of the Hessian's eigenvalues only those were seen that the tangents met"
    )  # fmt: skip
    return Summary(
        level,
        headline,
        (
            f"{name(data)} from {show(data.values[0], 6)} to {show(data.values[-1], 6)}, in {span(data.seconds)}. The "
            f"largest stationarity residual is {show(largest, 2)} (certified up to {show(CRITICAL)}); {seen}.",
            happened(data),
            _ended(data),
        ),
    )


def happened(data: BranchData) -> str:
    """The events counted, in a sentence."""
    counts = Counter(str(event["kind"]) for event in data.events)
    if not counts:
        return "Nothing happened on the way: one branch, without a change of rank."
    words = [f"{n} {KINDS.get(kind, (kind, kind + 's'))[n > 1]}" for kind, n in counts.items()]
    return f"On the way: {', '.join(words)}."


def _ended(data: BranchData) -> str:
    """How the branch ended, in a sentence."""
    to = show(number(data.settings.get("to")), 6)
    if data.status == Status.CONVERGED:
        return f"It reached {name(data)} = {to}."
    advice = f": {data.advice}" if data.advice else ""
    return f"It was to reach {name(data)} = {to}; status: {data.status}{advice}."


def end(data: BranchData) -> End | None:
    """The verdict on the last point; None where there is none."""
    reading = data.reading
    if not reading or not data.points:
        return None
    doubts = reading.get("doubts")
    return End(
        headline=str(reading.get("verdict") or "No verdict."),
        method=str(reading.get("method") or "not recorded"),
        doubts=tuple(map(str, doubts)) if isinstance(doubts, list) else (),
        trusted=reading.get("trusted") is True,
        where=f"{name(data)} = {show(data.values[-1], 6)}",
        kind=_kind(reading),
    )


_KINDS = {"minimum": "It is a minimum", "saddle": "It is a saddle"}


def _kind(reading: dict[str, object]) -> str:
    """What kind of point it is, and why, in a sentence."""
    reason = reading.get("kind_reason")
    if not reading.get("kind"):
        return ""
    words = _KINDS.get(str(reading["kind"]), "Minimum or saddle is undecided")
    return f"{words}: {reason}." if reason else f"{words}."


def event_line(data: BranchData, event: dict[str, object]) -> str:
    """An event as a line: what, where, in words."""
    return f"{event['kind']} at {name(data)} = {place(event)}: {event['message']}"


def place(event: dict[str, object]) -> str:
    """Where an event is, with its error where it was located."""
    error = number(event.get("error"))
    located = "" if error is None else f" ± {show(error, 2)}"
    return f"{show(number(event.get('value')), 8 if located else 6)}{located}"


def cards(data: BranchData) -> tuple[Card, ...]:
    """Key numbers of the end, against those of the start."""
    found = []
    for key, label, meaning in (
        ("objective", "Objective", "Data cost and penalty (E3)."),
        ("minus_2h_over_l", "−2H/L̃", "Estimates k* from below (E11)."),
        ("coi_least", "Least stable COI", "Bounds k* from above."),
        ("k_star", "k*", "Directions of the bottleneck about its mean."),
        ("residual", "Residual", "The largest over the layers, 0 at a critical point (E9)."),
    ):
        values = [v for v in data.column(key) if v is not None]
        if values:
            start = "" if len(values) < 2 else f"{show(values[0])} at the start"
            found.append(Card(f"{label} at the end", show(values[-1]), start, meaning))
    counted = sum(v or 0 for v in data.column("products"))
    found.append(Card("Hessian products", show(int(counted)), f"{len(data.points)} points", "Spent on all points."))
    return tuple(card for card in found if card.value != MISSING)
