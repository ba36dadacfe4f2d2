"""What the report says: certificate, verdict, cards. Plain text; the template escapes it."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from isthmus._support import command
from isthmus.report._numbers import MISSING, finite, number, show, span
from isthmus.report.tables import Card
from isthmus.runs.advice import further
from isthmus.runs.reader import RunData
from isthmus.status import Status
from isthmus.thresholds import CRITICAL, DIGITS, SHAPES

Level = Literal["good", "near", "bad", "unknown"]


@dataclass(frozen=True)
class Headline:
    """What the stationarity residual allows one to say."""

    level: Level
    headline: str
    meaning: str
    residual_max: str
    residual_median: str
    advice: str = ""


@dataclass(frozen=True)
class Verdict:
    """The bottleneck in words, and what speaks against it."""

    headline: str
    method: str
    doubts: tuple[str, ...]
    trusted: bool


def level(run: RunData) -> Level:
    """How near to a critical point the run ended, by its largest residual: digits, shapes, or neither can be read."""
    residual = run.value("residual_max")
    if residual is None:
        return "unknown"
    return "good" if residual <= DIGITS else "near" if residual <= SHAPES else "bad"


def estimate(run: RunData) -> int | None:
    """The rank estimate; None where there is none, or no verdict by the residual."""
    found = run.value("rank_estimate")
    return None if found is None or level(run) == "bad" else int(found)


def certificate(run: RunData) -> Headline:
    """The stationarity residual and its meaning."""
    which = level(run)
    residual = run.value("residual_max")
    critical = residual is not None and residual <= CRITICAL
    headline, meaning = {
        "good": (
            "A critical point, for practical purposes" if critical else "Nearly a critical point: digits can be read",
            f"Every layer satisfies the first of (E9) to {show(CRITICAL if critical else DIGITS)}: momenta, "
            "Hamiltonian and −2H/L̃ mean what the theory says, up to the O(ρ) error of finitely many layers."
            + (_kind(run) if critical else ""),
        ),
        "near": (
            "Near a critical point",
            "The layers satisfy the first of (E9) to within a tenth: shapes and medians of the energies can be read, "
            "their digits cannot.",
        ),
        "bad": (
            "Not a critical point",
            "These energies show optimisation error, not physics: in at least one layer the weights are "
            "far from those that their own momenta ask for (E9). Spectra describe this network all the same.",
        ),
        "unknown": (
            "No certificate",
            "The run recorded no stationarity residual, so nothing says whether this is a critical point: read the "
            "energies as unverified.",
        ),
    }[which]
    median = run.value("residual_median")
    advice = _advice(run) if which == "bad" else ""
    return Headline(which, headline, meaning, show(residual, 3), show(median, 3), advice)


def _kind(run: RunData) -> str:
    """A sentence on minimum or saddle; "" where the run did not look."""
    kind, reason, least = run.summary.get("kind"), run.summary.get("kind_reason"), run.value("least_eigenvalue")
    if not isinstance(kind, str) or not isinstance(reason, str):
        return ""
    if least is None or kind == "undecided":
        return f" Minimum or saddle is undecided: {reason}."
    return f" It is a {kind}: {reason}; the least is {show(least, 3)} μ."


def _advice(run: RunData) -> str:
    """What brings this run nearer to a critical point, by its own recipe and precision; "" where it diverged."""
    train, model = run.config.get("train"), run.config.get("model")
    if run.status == Status.DIVERGED or not isinstance(train, dict) or not isinstance(model, dict):
        return ""
    if run.status == Status.INTERRUPTED:
        return f"Train to the end: {command('train', '--resume', '--out', run.folder)}"
    solver = "kinks" if model.get("activation") == "relu" else "geodesic"
    steps = max(int(run.value("steps") or 1), 1)
    return f"Go on from here with: {further(train, run.folder, solver, lambda: steps)}"


def momenta_caveat(run: RunData) -> str:
    """The warning below each figure that uses B or H; "" where the residual is small enough."""
    which = level(run)
    if which == "good":
        return ""
    if which == "unknown":
        return "Unverified: no stationarity residual was recorded, and everything made from B or H depends on it."
    residual = show(run.value("residual_max"), 3)
    if which == "near":
        limit = show(DIGITS)
        return (
            f"Read shapes, not digits: the largest residual is {residual} (above {limit}), so B and H are approximate."
        )
    return (
        f"Optimisation error, not physics: the largest residual is {residual} (above {show(SHAPES)}), so curves made "
        "from B or H mean little."
    )


def verdict(run: RunData) -> Verdict:
    """The verdict of summary.json with its doubts; made from the numbers where the sentence is missing."""
    count = run.value("rank_estimate")
    doubts_given = run.summary.get("doubts")
    doubts = tuple(str(doubt) for doubt in doubts_given) if isinstance(doubts_given, list) else ()
    trusted = run.summary.get("trusted") is True
    text = str(run.summary.get("verdict") or "")
    if not text:
        text = "No estimate of the bottleneck rank." if count is None else f"Rank estimate: {show(int(count))}."
    if level(run) == "bad" and not text.startswith("No "):  # said by an earlier version
        text = f"No verdict: the residual is {show(run.value('residual_max'), 2)}, beyond {show(SHAPES)}."
    if trusted and level(run) in ("bad", "unknown"):
        doubts = (*doubts, "The stationarity residual does not support an estimate made from H.")
        trusted = False
    return Verdict(text, str(run.summary.get("method") or "not recorded"), doubts, trusted)


def status_line(run: RunData) -> str:
    """How the training ended, in a line with its message and advice."""
    steps = run.value("steps")
    parts = [
        f"{run.status}: {show(int(steps)) if steps is not None else MISSING} steps in {span(run.value('seconds'))}"
    ]
    for key in ("message", "advice"):
        text = str(run.summary.get(key) or "").strip()
        if text:
            parts.append(text if text.endswith((".", "!", "?")) else text + ".")
    return " – ".join(parts[:2]) + ("" if len(parts) < 3 else " " + parts[2])


_ALWAYS = ("Rank estimate k*", "−2H/L̃, median")


def cards(run: RunData) -> tuple[Card, ...]:
    """Key numbers, each with a line of explanation."""
    made = [*_estimate_cards(run), *_cost_cards(run), *_size_cards(run)]
    return tuple(card for card in made if card.value != MISSING or card.label in _ALWAYS)


def _estimate_cards(run: RunData) -> list[Card]:
    """What the bottleneck is estimated from."""
    value = run.value
    low, high = value("minus_2h_over_l_min"), value("minus_2h_over_l_max")
    spread = "" if low is None or high is None else f"from {show(low, 3)} to {show(high, 3)} over the layers"
    if spread and level(run) in ("bad", "unknown"):
        spread += "; optimisation error: see the certificate" if level(run) == "bad" else "; unverified"
    exact = value("min_coi")
    least = "" if exact is None else f"least exact: {show(exact)}"
    if run.states is not None:
        costs = [inf if (cost := number(x)) is None else cost for x in run.state("coi_stable")]
        state = costs.index(min(costs))
        at = f"at p = {show(run.state('p')[state], 3)} (A_{run.state('state')[state]})"
        there = number(run.state("coi")[state])
        least = at if there is None else f"{at}; exact there: {show(there)}"
    path = finite(run.column("path_length"))
    count = value("rank_estimate")
    doubt = "" if verdict(run).trusted else "not to be trusted: see the doubts"
    if count is not None and estimate(run) is None:
        doubt = f"no verdict; a count of {int(count)} is not to be trusted"
    zero = value("effective_depth") == 0
    hamiltonian = "Not defined at L̃ = 0." if zero else "Estimates k* from below (E11); constant along p on a geodesic."
    return [
        Card(
            "Rank estimate k*",
            show(estimate(run)),
            doubt,
            "Dimension of the slow stretch.",
        ),
        _hamiltonian_card(run, spread, hamiltonian),
        Card(
            "Smallest stable COI",
            show(value("min_coi_stable")),
            least,
            "Cost of identity; bounds k* from above.",
        ),
        Card(
            "Path length",
            show(path[-1] if path else None),
            "",
            "Stays bounded as L̃ grows, in the theory (E12).",
        ),
    ]


def _hamiltonian_card(run: RunData, spread: str, meaning: str) -> Card:
    """−2H̃/L̃ with the optimiser's error, the layers' own removed; of earlier versions the raw median."""
    low, error = run.value("k_star_low"), run.value("k_star_low_error")
    if low is None:
        return Card("−2H/L̃, median", show(run.value("minus_2h_over_l_median")), spread, meaning)
    shown = show(low) if error is None else f"{show(low)} ± {show(error, 2)}"
    raw = show(run.value("minus_2h_over_l_median"))
    note = f"{raw} with the layers' error, {spread}" if spread else f"{raw} with the layers' error"
    return Card("−2H̃/L̃, median", shown, note, meaning)


def _cost_cards(run: RunData) -> list[Card]:
    """Objective and errors."""
    value = run.value
    data, penalty = value("data_cost"), value("penalty")
    parts = "" if data is None or penalty is None else f"data {show(data)} + penalty {show(penalty)}"
    test, train = value("test_accuracy"), value("train_accuracy")
    return [
        Card("Objective", show(value("objective")), parts, "What training minimises (E3)."),
        Card("Test cost", show(value("test_cost")), "", "The same cost on data never trained on."),
        Card(
            "Test accuracy",
            _percent(test),
            f"training: {_percent(train)}" if train is not None else "",
            "Share of test rows given their class.",
        ),
        Card(
            "Training accuracy",
            _percent(train) if test is None else MISSING,
            "",
            "Share of training rows given their class.",
        ),
    ]


def _size_cards(run: RunData) -> list[Card]:
    """What was trained."""
    value = run.value
    steps, seconds = value("steps"), value("seconds")
    depth, width = value("depth"), value("width")
    mu = value("mu")
    return [
        Card(
            "Effective depth L̃",
            show(value("effective_depth")),
            "" if mu is None else f"weight decay μ = λ/L̃ = {show(mu)}",
            "Pull of the leak in (E1); 0 is a ResNet.",
        ),
        Card(
            "Layers L",
            show(None if depth is None else int(depth)),
            "" if width is None else f"width {show(int(width))}",
            "Steps of the discretised flow (E2).",
        ),
        Card(
            "Training",
            show(None if steps is None else int(steps)),
            "" if seconds is None else f"steps in {span(seconds)}",
            "Optimiser steps taken, all stages.",
        ),
    ]


def _percent(share: float | None) -> str:
    """A share as a percentage."""
    return MISSING if share is None else f"{100 * share:.4g} %"
