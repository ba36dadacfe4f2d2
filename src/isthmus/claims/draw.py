"""From a study to its pictures: what is behind each figure, with a sentence that says what it shows."""

import math
from collections.abc import Callable, Sequence
from statistics import median

from isthmus.claims.intervals import median_interval
from isthmus.claims.pictures import CRITICAL, PAPER, READINGS, Curve, Network, Numbers, Picture, Plot, Way
from isthmus.claims.study import Numbers as Found
from isthmus.claims.study import Study, column, value
from isthmus.claims.work import RULES

SOURCE = "arXiv:2405.17573"
ORDER = (PAPER, CRITICAL)
NONE = "There is no such network yet."


def pictures(study: Study, figures: Sequence[str]) -> tuple[Picture, ...]:
    """Those of the figures that are asked for, in the paper's order.

    Args:
        study: what was computed.
        figures: of `isthmus.claims.plan.FIGURES`.
    """
    found: list[Picture] = []
    if "figure1" in figures:
        found += [figure1a(study), figure1b(study), figure1c(study)]
    if "figure2" in figures:
        found += [figure2a(study), figure2b(study), figure2c(study)]
    if "figure3" in figures:
        found.append(figure3(study))
    return tuple(found)


def figure1a(study: Study) -> Picture:
    """−2H/L̃ and the least cost of identity against L̃."""
    kept, plots = study.k_star, []
    for reading in ORDER:
        along = _along(study, reading)
        curves = (
            _curve("−2H/L̃, median over layers", along, lambda n: value(n, "minus_2h_over_l")),
            _range("−2H/L̃, least to largest over layers", along),
            _curve("least stable COI", along, lambda n: value(n, "coi_least")),
            _curve("least COI", along, lambda n: min(column(n, "coi"))),
        )
        plots.append(
            Plot(
                READINGS[reading],
                "effective depth {L}",
                "dimensions",
                tuple(c for c in curves if c is not None),
                ((float(kept), f"k* = {kept}"),),
            )
        )
    return Picture(
        "figure1a",
        "Figure 1a: −2H/L̃ and the cost of identity against L̃",
        f"−2H/L̃ rises towards the bottleneck rank from below, and the least cost of identity falls towards it from "
        f"above ({SOURCE}, Figure 1a; one network at each L̃).",
        " ".join(_said_1a(study, reading) for reading in ORDER),
        "curves",
        plots=tuple(plots),
        notes=_missing(study),
    )


def figure1b(study: Study) -> Picture:
    """Spectra along p, at one L̃."""
    networks = _shown(study, lambda n: "spectra_a" in n)
    return Picture(
        "figure1b",
        f"Figure 1b: spectra of A and W along p, L̃ = {study.size.shown:g}",
        f"A few singular values stay large inside, all others decay ({SOURCE}, Figure 1b).",
        " ".join(_said_1b(n) for n in networks) or NONE,
        "spectra",
        networks=tuple(network for network, _ in networks),
    )


def figure1c(study: Study) -> Picture:
    """Energies and H along p, at one L̃."""
    networks = _shown(study, lambda n: "layers" in n)
    return Picture(
        "figure1c",
        f"Figure 1c: energies and the Hamiltonian along p, L̃ = {study.size.shown:g}",
        f"Kinetic and potential energy balance, and H is constant along p ({SOURCE}, Figure 1c).",
        " ".join(_said_1c(n) for n in networks) or NONE,
        "energies",
        networks=tuple(network for network, _ in networks),
    )


def figure2a(study: Study) -> Picture:
    """Test cost against L for each choice of step-sizes."""
    curves = []
    for rule in RULES:
        along = [
            (float(depth), [n for seed in range(study.seeds) if (n := study.mesh(seed, depth, rule)) is not None])
            for depth in study.size.mesh_depths
        ]
        curves.append(_curve(rule, along, lambda n: value(n, "test_cost")))
    best = {c.label: c for c in curves if c is not None}
    return Picture(
        "figure2a",
        f"Figure 2a: test cost against the number of layers, L̃ = {study.size.mesh_leak:g}",
        "Adaptive and irregular step-sizes are slightly but consistently better than equal ones "
        f"({SOURCE}, Figure 2a).",
        _said_2a(best),
        "curves",
        plots=(
            Plot(READINGS[PAPER], "number of layers L", "test cost", tuple(best.values())),
            _paired(study),
        ),
    )  # fmt: skip


def _paired(study: Study) -> Plot:
    """Test costs over those of equal step-sizes, of the same teacher, start and number of layers."""
    curves = []
    for rule in RULES:
        if rule == "equidistant":
            continue
        along = []
        for depth in study.size.mesh_depths:
            networks = []
            for seed in range(study.seeds):
                equal, own = study.mesh(seed, depth, "equidistant"), study.mesh(seed, depth, rule)
                cost = value(equal, "test_cost")
                if own is not None and cost > 0:
                    networks.append({"values": own["values"] | {"relative": value(own, "test_cost") / cost}})
            along.append((float(depth), networks))
        curves.append(_curve(rule, along, lambda n: value(n, "relative")))
    found = tuple(c for c in curves if c is not None)
    title, label = "over the test cost of equal step-sizes, paired by seed", "relative test cost"
    return Plot(title, "number of layers L", label, found, ((1.0, "equal step-sizes"),))


def figure2b(study: Study) -> Picture:
    """Spectra of W with an adaptive mesh."""
    ways = study.ways()
    found = None if ways is None else ways["adaptive"]
    if found is None or "spectra_w" not in found:
        networks: tuple[Network, ...] = ()
        finding = NONE if ways is None else "The network has collapsed."
    else:
        networks = (_network(f"adaptive, L = {study.size.mesh_shown}, seed 0", found),)
        inner = [sum(s > 0.1 * row[0] for s in row) for row in networks[0].spectra_w]
        finding = (
            f"W has {min(inner)} to {max(inner)} singular values above a tenth of its largest, fewest near p = "
            f"{_middle(networks[0], inner.index(min(inner))):.2f}."
        )
    return Picture(
        "figure2b",
        f"Figure 2b: spectra of W with adaptive step-sizes, L = {study.size.mesh_shown}",
        "The representation passes through the teacher's inner dimensions one after the other: about six near p = 0.3, "
        f"then three ({SOURCE}, Figure 2b).",
        finding + f" The teacher's inner dimensions are {' and '.join(map(str, study.size.deep_dims[1:-1]))}.",
        "spectra",
        networks=networks,
    )


def figure2c(study: Study) -> Picture:
    """Paths in two dimensions under each choice of step-sizes."""
    ways = study.ways()
    lines: tuple[Way, ...] = ()
    finding = NONE
    if ways is not None:
        lines = tuple(
            Way(rule, bool(ways[rule]["values"]["certified"]), tuple(ways[rule]["way"][0]), tuple(ways[rule]["way"][1]))
            for rule in RULES
        )
        uneven = {way.label: _unevenness(way) for way in lines}
        finding = (
            f"The plane holds {100 * ways['kept']['share']:.0f} % of the variation. The longest step between two "
            f"layers there is {', '.join(f'{v:.1f} times the median ({rule})' for rule, v in uneven.items())}."
        )
    return Picture(
        "figure2c",
        f"Figure 2c: the path in two dimensions, L = {study.size.mesh_shown}",
        f"Adaptive step-sizes spread the layers evenly along the path ({SOURCE}, Figure 2c).",
        finding,
        "ways",
        ways=lines,
    )


def figure3(study: Study) -> Picture:
    """What stays bounded as L̃ grows."""
    columns = (
        ("path_length", "path length", "∫{speed} d{p}"),
        ("norm_b_max", "largest ‖B‖", "‖{B}‖"),
        ("norm_b_features_max", "largest ‖Bσ(A)ᵀ‖", "‖{B}σ({A})ᵀ‖"),
    )
    plots, words = [], []
    for name, title, label in columns:
        curves = [
            _curve(READINGS[reading], _along(study, reading), lambda n, name=name: value(n, name))  # type: ignore[misc]
            for reading in ORDER
        ]
        kept = tuple(c for c in curves if c is not None)
        plots.append(Plot(title, "effective depth {L}", label, kept))
        words += [f"{title} {_change(c)} {c.label}" for c in kept if len(c.x) > 1]
    return Picture(
        "figure3",
        "Figure 3: what stays bounded as L̃ grows",
        f"The path length, ‖B‖ and ‖Bσ(A)ᵀ‖ stay bounded as L̃ grows ({SOURCE}, Figure 3).",
        f"From the least L̃ to the largest: {'; '.join(words)}." if words else NONE,
        "curves",
        plots=tuple(plots),
        notes=_missing(study),
    )


Along = Sequence[tuple[float, list[Found]]]


def _along(study: Study, reading: str) -> Along:
    """Networks by L̃."""
    return [
        (leak, [n for seed in range(study.seeds) if (n := study.network(reading, seed, leak)) is not None])
        for leak in study.size.leaks
    ]


def _curve(label: str, along: Along, pick: Callable[[Found], float]) -> Curve | None:
    """Medians with intervals; None where there is nothing to draw."""
    xs, middle, low, high, count, certified = [], [], [], [], [], []
    for x, networks in along:
        usable = [n for n in networks if not n["values"]["collapsed"] and math.isfinite(pick(n))]
        if not usable:
            continue
        interval = median_interval([pick(n) for n in usable])
        several = interval.seeds >= 3
        xs.append(x)
        middle.append(interval.estimate)
        low.append(interval.low if several else None)
        high.append(interval.high if several else None)
        count.append(len(usable))
        certified.append(sum(bool(n["values"]["certified"]) for n in usable))
    if not xs:
        return None
    return Curve(label, tuple(xs), tuple(middle), tuple(low), tuple(high), tuple(count), tuple(certified))


def _range(label: str, along: Along) -> Curve | None:
    """The least and the largest −2H/L̃ over layers, medians over seeds."""

    def ends(network: Found) -> tuple[float, float]:
        values = [v for v in column(network, "minus_2h_over_l") if math.isfinite(v)]
        return (min(values), max(values)) if values else (math.nan, math.nan)

    base = _curve(label, along, lambda n: sum(ends(n)) / 2)
    if base is None:
        return None
    by_x = {x: [ends(n) for n in networks] for x, networks in along}
    low: Numbers = tuple(median(a for a, _ in by_x[x]) for x in base.x)
    high: Numbers = tuple(median(b for _, b in by_x[x]) for x in base.x)
    return Curve(label, base.x, (None,) * len(base.x), low, high, base.networks, base.certified, band=True)


def _shown(study: Study, usable: Callable[[Found], bool]) -> list[tuple[Network, Found]]:
    """The first seed's network of each reading at the L̃ that Figures 1b and 1c show."""
    found = []
    for reading in ORDER:
        for seed in range(study.seeds):
            network = study.network(reading, seed, study.size.shown)
            if network is not None and usable(network):
                label = f"{READINGS[reading]}, {{L}} = {study.size.shown:g}, seed {seed}"
                found.append((_network(label, network), network))
                break
    return found


def _network(label: str, found: Found) -> Network:
    rho = found["layers"]["rho"]
    positions = [0.0]
    for r in rho:
        positions.append(positions[-1] + r)
    kept = ("kinetic_stable", "potential_stable", "hamiltonian", "residual")
    return Network(
        label,
        bool(found["values"]["certified"]),
        float(found["values"]["residual_max"]),
        tuple(positions),
        tuple(map(tuple, found.get("spectra_a", ()))),
        tuple(map(tuple, found.get("spectra_w", ()))),
        {name: tuple(found["layers"][name]) for name in kept},
    )


def _middle(network: Network, layer: int) -> float:
    return (network.positions[layer] + network.positions[layer + 1]) / 2


def _said_1a(study: Study, reading: str) -> str:
    """One reading of Figure 1a in a sentence."""
    low = _curve("", _along(study, reading), lambda n: value(n, "minus_2h_over_l"))
    high = _curve("", _along(study, reading), lambda n: value(n, "coi_least"))
    name = READINGS[reading].capitalize()
    if low is None or high is None:
        return f"{name}: no network yet."
    return (
        f"{name}: −2H/L̃ goes from {_two(low.median[0])} to {_two(low.median[-1])}, the least stable cost of identity "
        f"from {_two(high.median[0])} to {_two(high.median[-1])} (k* = {study.k_star}); {sum(low.certified)} of "
        f"{sum(low.networks)} networks are certified critical points."
    )


def _two(number: float | None) -> str:
    return "–" if number is None else f"{number:.2f}".replace("-", "−")


def _said_1b(shown: tuple[Network, Found]) -> str:
    network, found = shown
    above = [sum(s > 0.01 * row[0] for s in row) for row in network.spectra_a]
    inside = above[1:-1]
    where = "a critical point" if network.certified else f"residual {network.residual:.1g}"
    kept = found["values"]["k_star"]
    return (
        f"{network.label.split(',')[0].capitalize()} ({where}): at least {min(inside)} singular values above 1 % of "
        f"the largest inside, {kept} directions about the mean."
    )


def _said_1c(shown: tuple[Network, Found]) -> str:
    network, _ = shown
    H = [v for v in network.layers["hamiltonian"] if v is not None]
    kinetic = [v for v in network.layers["kinetic_stable"] if v is not None]
    where = "a critical point" if network.certified else f"residual {network.residual:.1g}"
    return (
        f"{network.label.split(',')[0].capitalize()} ({where}): H varies by {max(H) - min(H):.3g} over layers, the "
        f"kinetic energy by {max(kinetic) - min(kinetic):.3g}."
    )


def _said_2a(curves: dict[str, Curve]) -> str:
    equal = curves.get("equidistant")
    words = []
    for rule, curve in curves.items():
        if rule == "equidistant" or equal is None:
            continue
        better = sum(
            a is not None and b is not None and a < b for a, b in zip(curve.median, equal.median, strict=False)
        )
        words.append(
            f"{rule} step-sizes have a lower median test cost than equal ones at {better} of {len(curve.x)} depths"
        )
    return f"{'; '.join(words).capitalize()}." if words else NONE


def _unevenness(way: Way) -> float:
    steps = [
        math.hypot(x1 - x0, y1 - y0)
        for x0, x1, y0, y1 in zip(way.x[:-1], way.x[1:], way.y[:-1], way.y[1:], strict=True)
    ]
    middle = median(steps)
    return max(steps) / middle if middle > 0 else math.inf


def _change(curve: Curve) -> str:
    first, last = curve.median[0], curve.median[-1]
    assert first is not None and last is not None
    return f"goes from {first:.3g} to {last:.3g}"


def _missing(study: Study) -> tuple[str, ...]:
    """Seeds and values of L̃ that are not there, in words."""
    notes = []
    for reading in ORDER:
        there = sum(
            study.network(reading, seed, leak) is not None for seed in range(study.seeds) for leak in study.size.leaks
        )
        wanted = study.seeds * len(study.size.leaks)
        if there < wanted:
            notes.append(
                f"{READINGS[reading].capitalize()}: {there} of {wanted} networks are there; the others have collapsed, "
                "are not certified, or were not reached."
                if reading == CRITICAL
                else f"{READINGS[reading].capitalize()}: {there} of {wanted} networks are there; the others have "
                "collapsed or were not computed."
            )
    if study.seeds < 3:
        notes.append("Fewer than three seeds: no intervals.")
    return tuple(notes)
