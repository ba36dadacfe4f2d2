"""A profile in words: where it is narrow, which layers idle, what it costs to doubt it. Plain text."""

from dataclasses import dataclass

from isthmus.probe.printed import by_reason, listed, neighbour_lines
from isthmus.report._numbers import finite, show
from isthmus.report.profile.data import STATES, Layer, ProfileData
from isthmus.report.tables import Account, Card
from isthmus.thresholds import IDLE

DIMENSION, COST, RATIO = "participation_ratio_rows", "coi_stable", "participation_ratio_centred"
CLEAR = 3.0
"""Standard errors below the null control from which a dimension counts as lower than chance would have it."""
ROUGH = 0.2
"""Standard error, over the value, above which a dimension is called rough."""
FEW_ROWS = 10
"""Rows a neuron below which ranks are bounded by the rows as much as by the network: a rule of thumb."""


@dataclass(frozen=True)
class Narrow:
    """The narrowest layer, and the quantity by which it is."""

    layer: Layer
    key: str

    @property
    def value(self) -> float:
        """The dimension."""
        return self.layer.value(self.key) or 0.0


def account(data: ProfileData) -> Account:
    """The profile in words, with every doubt."""
    narrow = narrowest(data)
    sentences = [*_against_null(narrow, data), *_idle(data), *_depths(data)]
    return Account(_headline(narrow), tuple(sentences), tuple(_doubts(data, narrow)))


def narrowest(data: ProfileData) -> Narrow | None:
    """The layer of the least dimension, the participation ratio without the bias of finite rows; where it is defined
    nowhere, of the least one with it. The last layer of a network without a stream, its output, does not count.
    """
    streams = any(layer.row["kind"] in STATES for layer in data.layers)
    candidates = data.main if streams or len(data.main) < 2 else data.main[:-1]
    for key in (DIMENSION, RATIO):
        found = [Narrow(layer, key) for layer in candidates if (layer.value(key) or 0.0) > 0]
        if found:
            return min(found, key=lambda one: one.value)
    return None


def measured(layer: Layer, key: str, digits: int = 4) -> str:
    """A quantity as ``12.3 ± 0.4``."""
    value, error = layer.value(key), layer.error(key)
    return show(value, digits) if error is None else f"{show(value, digits)} ± {show(error, 2)}"


def _headline(narrow: Narrow | None) -> str:
    if narrow is None:
        return "No layer's dimension can be read."
    layer = narrow.layer
    biased = "" if narrow.key == DIMENSION else ", not corrected for finite rows"
    return (
        f"Narrowest at {layer.name}: dimension {measured(layer, narrow.key)} (participation ratio{biased}), of width "
        f"{layer.row['width']}."
    )


def _against_null(narrow: Narrow | None, data: ProfileData) -> list[str]:
    below = None if narrow is None else narrow.layer.below_null(narrow.key)
    if narrow is None or below is None or below > -CLEAR:
        return []
    null = narrow.layer.null[narrow.key][0]
    return [
        f"That is lower than the {data.null_kind} null control has it ({show(null)}), by {show(-below, 3)} standard "
        "errors."
    ]


def _idle(data: ProfileData) -> list[str]:
    steps = sorted(data.steps, key=lambda layer: layer.value("step_change") or 0.0)
    idle = [layer for layer in steps if (layer.value("step_change") or 0.0) < IDLE]
    if not steps:
        return ["No layer's step can be read: no two consecutive states of the same shape."]
    if not idle:
        least = steps[0]
        change = show(100 * (least.value("step_change") or 0.0), 3)
        return [f"No layer idles: the smallest step, of {least.name}, moves the state by {change} % of its size."]
    named = [f"{layer.name} ({show(100 * (layer.value('step_change') or 0.0), 2)} %)" for layer in idle]
    how = "moves" if len(idle) == 1 else "move"
    return [
        f"{listed(named, 5)} {how} the state by less than {IDLE:.0%}: what dropping such layers costs, "
        "isthmus.probe.simplify predicts and measures."
    ]


def _depths(data: ProfileData) -> list[str]:
    lines = [f"Implied effective depth of {name}: {depth}." for name, depth in data.profile.effective_depth.items()]
    lines += [f"Path along {name}: {path}." for name, path in data.profile.paths.items()]
    try:
        return lines + [f"Hamiltonian of {name}: {estimate}." for name, estimate in data.profile.hamiltonian().items()]
    except ValueError:  # no loss was given, or no effective depth is implied
        return lines


def _doubts(data: ProfileData, narrow: Narrow | None) -> list[str]:
    found: list[str] = []
    above = [layer.name for layer in data.layers if (layer.value(COST) or 0.0) > layer.row["width"]]
    if above:
        found.append(
            f"{listed(above, 5)}: the cost of identity (COI) is above the width, so it is no dimension there: the "
            "states have entries that σ does not carry along. Quote the column dimension."
        )
    few = [layer for layer in data.layers if layer.row["rows"] < FEW_ROWS * layer.row["width"]]
    if few:
        least = min(few, key=lambda layer: layer.row["rows"] / layer.row["width"])
        found.append(
            f"{listed([layer.name for layer in few], 5)}: fewer than {FEW_ROWS} rows a neuron (least: "
            f"{least.row['rows']} for width {least.row['width']} at {least.name}), so ranks may be those of the "
            "sample; give more data."
        )
    found += [f"{reason[0].upper()}{reason[1:]}" for reason in neighbour_lines(data.profile)]
    found += _doubts_of_the_narrowest(data, narrow)
    found += _doubts_of_arithmetic(data)
    found += data.profile.doubts
    lost = by_reason([one for one in data.profile.skipped if one.chosen])
    if lost:
        named = [f"{listed(names, 3)} ({reason})" for reason, names in lost.items()]
        found.append(f"{sum(map(len, lost.values()))} chosen but not read: {'; '.join(named[:3])}.")
    if not data.whole:
        found.append("Only the first batches were read (--max-batches): fine if the data come in random order.")
    return found


def _doubts_of_the_narrowest(data: ProfileData, narrow: Narrow | None) -> list[str]:
    if narrow is None:
        return []
    found = []
    layer, key = narrow.layer, narrow.key
    error, below = layer.error(key), layer.below_null(key)
    if error is None:
        found.append("No standard error: one shard, or no samples to spare; with 8 shards (--shards 8) there is one.")
    elif error > ROUGH * narrow.value:
        found.append(f"The dimension of {layer.name} is known to {show(100 * error / narrow.value, 2)} % only.")
    if below is not None and below > -CLEAR:
        found.append(
            f"{layer.name} is not lower than the {data.null_kind} null control has it ({show(layer.null[key][0])}): "
            "a dimension that chance and unequal variances would give too."
        )
    if below is None:
        found.append("No null control was made: a low dimension may come of few samples or unequal variances.")
    return found


def _doubts_of_arithmetic(data: ProfileData) -> list[str]:
    found = []
    short = sorted({layer.row["dtype"] for layer in data.layers} & {"float16", "bfloat16"})
    if short:
        digits = "4e-3" if "bfloat16" in short else "5e-4"
        found.append(f"States came in {' and '.join(short)}: directions below {digits} of the largest are rounding.")
    bad = [layer.name for layer in data.layers if (layer.value("coi_stable_error") or 0.0) > 0.01]
    if bad:
        found.append(f"{listed(bad, 5)}: rounding may change the stable cost by over 1 %; --method qr does not square.")
    if not finite([layer.value("participation_ratio") for layer in data.layers]):
        found.append("No spectra were summed, hence no ranks of the states.")
    return found


def profile_cards(data: ProfileData) -> list[Card]:
    """The key numbers of a profile."""
    narrow, profile = narrowest(data), data.profile
    sigmas = list(dict.fromkeys(_sigma(layer) for layer in data.layers))
    rows = max((layer.row["rows"] for layer in data.layers), default=0)
    cards = [
        Card("Samples", show(profile.samples), f"up to {show(rows)} rows a layer", "Rows are samples times positions."),
        Card(
            "Layers read",
            show(len(data.layers)),
            f"{len(profile.skipped)} not read, each with its reason" if profile.skipped else "all there are",
            "In order of execution.",
        ),
    ]
    if narrow is not None:
        cards.append(
            Card(
                "Least dimension",
                show(narrow.value, 3),
                f"{narrow.layer.name}, width {narrow.layer.row['width']}",
                "Participation ratio about the mean"
                + (", corrected for finite rows." if narrow.key == DIMENSION else "."),
            )
        )
    steps = data.steps
    if steps:
        least = min(steps, key=lambda layer: layer.value("step_change") or 0.0)
        cards.append(
            Card("Idlest layer", f"{show(100 * (least.value('step_change') or 0.0), 3)} %", least.name, "‖ΔA‖/‖A‖.")
        )
    cards.append(
        Card(
            "σ of the cost",
            sigmas[0] if len(sigmas) == 1 else f"{len(sigmas)} kinds",
            ("" if len(sigmas) == 1 else "; ".join(sigmas) + "; ") + f"γ₀ = {show(profile.gamma0)}",
            "What takes the states in, as read off the network or chosen.",
        )
    )
    return cards


def _sigma(layer: Layer) -> str:
    """The name of a layer's σ from its representation, ``ReLU(append_one=True)``."""
    text = str(layer.row["activation"])
    name, _, options = text.partition("(")
    return name + (" without the 1" if "append_one=False" in options else ", 1 appended" if "True" in options else "")
