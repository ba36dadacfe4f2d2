"""Every claim, with the rule that decides it. Rules were written before anything was measured by them (2026-11-28).

A claim is measured on every seed by itself, or, where it compares step-sizes, on every seed and number of layers. Its
estimate is the median, its interval that of a bootstrap over seeds (`isthmus.claims.intervals`), and its verdict
follows from where the interval lies (`isthmus.claims.verdicts.Rule`).
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from isthmus.claims.intervals import stratified_interval
from isthmus.claims.pictures import CRITICAL, PAPER, READINGS, SEARCH
from isthmus.claims.study import Numbers, Study, column, value
from isthmus.claims.verdicts import Row, Rule
from isthmus.thresholds import CRITICAL as CRITICAL_RESIDUAL
from isthmus.thresholds import INTERVAL_SLACK

OURS = "arXiv:2405.17573"
BOTH, ONLY_CRITICAL, ONLY_PAPER = (PAPER, CRITICAL), (CRITICAL,), (PAPER,)
MESHES = "meshes"

Seed = Callable[[Study, str, int], float]
Strata = list[list[float]]


@dataclass(frozen=True)
class Claim:
    """A sentence that a run can contradict.

    Args:
        key: short name.
        statement: the sentence.
        source: where it is made.
        measure: what is measured on each seed, in words.
        rule: where the estimate has to lie.
        readings: of `isthmus.claims.pictures.READINGS`: a row of the table for each.
        strata: measures it: values by stratum, of a study under a reading.
        figure: whose networks it needs, of `isthmus.claims.plan.FIGURES`.
        note: what to know about it.
    """

    key: str
    statement: str
    source: str
    measure: str
    rule: Rule
    readings: tuple[str, ...]
    strata: Callable[[Study, str], Strata]
    figure: str = "figure1"
    note: str = ""

    def row(self, study: Study, reading: str, command: str) -> Row:
        """Measure it, and judge."""
        interval = stratified_interval(self.strata(study, reading))
        networks, certified = study.counted_meshes() if self.figure == "figure2" else study.counted(reading)
        return Row(
            self.key,
            self.statement,
            self.source,
            reading,
            self.measure,
            str(self.rule),
            interval.estimate,
            interval.low,
            interval.high,
            interval.seeds,
            networks,
            certified,
            self.rule.judge(interval),
            command,
            self.note,
        )


def rows(study: Study, command: str, figures: tuple[str, ...] = ("figure1", "figure2", "figure3")) -> list[Row]:
    """The table: every claim under each of its readings.

    Args:
        study: what was computed.
        command: that reproduces it.
        figures: whose networks there are.
    """
    wanted = set(figures) | ({"figure1"} if "figure3" in figures else set())
    return [
        claim.row(study, reading, command)
        for claim in CATALOGUE
        if claim.figure in wanted
        for reading in claim.readings
    ]


def _each(measure: Seed) -> Callable[[Study, str], Strata]:
    """One stratum: a value a seed."""
    return lambda study, reading: [[measure(study, reading, seed) for seed in range(study.seeds)]]


def _over(pick: Callable[[Numbers], float], combine: Callable[[list[float]], float]) -> Callable[[Study, str], Strata]:
    """A number of every network along L̃, combined to one a seed."""

    def measure(study: Study, reading: str, seed: int) -> float:
        found = [v for network in study.along(reading, seed) if math.isfinite(v := pick(network))]
        return combine(found) if found else math.nan

    return _each(measure)


def _steps(name: str, good: Callable[[float], bool]) -> Callable[[Study, str], Strata]:
    """The share of neighbouring L̃ between which a value changes as it should."""

    def measure(study: Study, reading: str, seed: int) -> float:
        values = [v for network in study.along(reading, seed) if math.isfinite(v := value(network, name))]
        changes = [b - a for a, b in itertools.pairwise(values)]
        return sum(map(good, changes)) / len(changes) if changes else math.nan

    return _each(measure)


def _ends(combine: Callable[[Numbers, Numbers], float]) -> Callable[[Study, str], Strata]:
    """A number of the networks at the least and the largest L̃; undefined where one of them is not there."""

    def measure(study: Study, reading: str, seed: int) -> float:
        first, last = (study.network(reading, seed, study.size.leaks[i]) for i in (0, -1))
        return math.nan if first is None or last is None else combine(first, last)

    return _each(measure)


def _growth(name: str) -> Callable[[Study, str], Strata]:
    return _ends(lambda first, last: _quotient(value(last, name), value(first, name)))


def _quotient(a: float, b: float) -> float:
    return a / b if b != 0 else math.nan


def _extreme(name: str, which: Callable[[list[float]], float]) -> Callable[[Study, str], Strata]:
    """An extreme value over L̃, less the teacher's k*."""

    def strata(study: Study, reading: str) -> Strata:
        inner = _over(lambda network: value(network, name), which)(study, reading)
        return [[v - study.k_star for v in stratum] for stratum in inner]

    return strata


def _gap(network: Numbers) -> float:
    return value(network, "coi_least") - value(network, "minus_2h_over_l")


def _distance(study: Study, reading: str, seed: int) -> float:
    last = study.network(reading, seed, study.size.leaks[-1])
    return abs(value(last, "minus_2h_over_l") - study.k_star)


def _trusted(study: Study, reading: str, seed: int) -> float:
    found = [network["values"] for network in study.along(reading, seed) if network["values"]["trusted"]]
    return sum(v["k_star"] == study.k_star for v in found) / len(found) if found else math.nan


def _fall_with_mu(study: Study, reading: str, seed: int) -> float:
    points = [p for p in study.points(seed, "mu") if p["values"]["certified"] and not p["values"]["collapsed"]]
    by_mu = {p["values"]["mu"]: value(p, "minus_2h_over_l") for p in points}
    first, last = (by_mu.get(study.size.decays[i], math.nan) for i in (0, -1))
    return first - last


def _kept(study: Study, reading: str) -> Strata:
    """The count about the mean at the largest L̃, less the teacher's k*."""
    inner = _ends(lambda first, last: value(last, "k_star"))(study, reading)
    return [[v - study.k_star for v in stratum] for stratum in inner]


def _jumps(study: Study, reading: str, seed: int) -> float:
    events = study.events(seed, "effective_depth")
    return math.nan if events is None else float(sum(event["kind"] == "jump" for event in events))


def _spread(names: tuple[str, ...]) -> Callable[[Study, str], Strata]:
    """The spread over layers of −2H/L̃, the least of several columns, over k*; median over L̃."""

    def spread(network: Numbers) -> float:
        found = [[v for v in column(network, name) if math.isfinite(v)] for name in names]
        return min((max(values) - min(values) for values in found if values), default=math.nan)

    def strata(study: Study, reading: str) -> Strata:
        return [[v / study.k_star for v in s] for s in _over(spread, median)(study, reading)]

    return strata


def _slope(network: Numbers) -> float:
    """Least-squares slope of the kinetic energy over (L̃/2)·COI, by layer."""
    y, x = column(network, "kinetic_stable"), [-v for v in column(network, "potential_stable")]
    middle = sum(x) / len(x)
    size = sum((v - middle) ** 2 for v in x)
    return _quotient(sum((v - middle) * w for v, w in zip(x, y, strict=True)), size)


def _weighted(network: Numbers, name: str) -> float:
    """``∫|·| dp`` of a column by layer."""
    return sum(r * abs(v) for r, v in zip(column(network, "rho"), column(network, name), strict=True))


def _cross(network: Numbers) -> float:
    whole = _weighted(network, "kinetic_stable") + _weighted(network, "potential_stable")
    return _quotient(_weighted(network, "cross_stable"), whole)


def _off_image(network: Numbers) -> float:
    names = ("kinetic_stable_off_image", "potential_stable_off_image", "cross_stable_off_image")
    return max(median(column(network, name)) for name in names)


def _half_way(network: Numbers) -> float:
    """The negative share of the state nearest to p = 1/2."""
    ends = [0.0, *column(network, "p")]
    return column(network, "negative_share")[min(range(len(ends)), key=lambda i: abs(ends[i] - 0.5))]


def _middle_length(network: Numbers) -> float:
    """The share of the path length that lies in ``1/4 ≤ p ≤ 3/4``."""
    rho, speed, end = (column(network, name) for name in ("rho", "speed_k", "p"))
    inside = whole = 0.0
    for r, s, p in zip(rho, speed, end, strict=True):
        part = max(0.0, min(p, 0.75) - max(p - r, 0.25))
        inside, whole = inside + part * s, whole + r * s
    return _quotient(inside, whole)


def _holds(network: Numbers) -> float:
    found = [b["lower"] <= b["value"] <= b["upper"] for b in network["bounds"]]
    return sum(found) / len(found)


def _narrowest(network: Numbers, lower: str, upper: str) -> float:
    widths = [b[upper] - b[lower] for b in network["bounds"] if b[upper] is not None and b[lower] is not None]
    return min(widths, default=math.nan)


def _says(network: Numbers) -> float:
    """The largest lower bound on −2H/L̃ that Theorem 4 gives, over γ: ``min_p‖A_p‖² + lower``."""
    low = median(v for v in column(network, "minus_2h_over_l") if math.isfinite(v))
    return max(low - b["value"] + b["lower"] for b in network["bounds"])


def _inverse_length(network: Numbers) -> float:
    """The path length in the norm with γ = 1/L̃."""
    return float(next(b["length"] for b in network["bounds"] if b["gamma0"] is None))


def _mid_path(network: Numbers) -> float:
    """Whether a layer in ``1/4 < p < 3/4`` is fast (above half the mean speed) with slow layers before and behind."""
    rho, speed, end = (column(network, name) for name in ("rho", "speed_k", "p"))
    half = 0.5 * sum(r * s for r, s in zip(rho, speed, strict=True)) / sum(rho)
    slow = [s <= half for s in speed]
    inner = [i for i, (p, r) in enumerate(zip(end, rho, strict=True)) if 0.25 < p - r / 2 < 0.75]
    return float(any(not slow[i] and any(slow[:i]) and any(slow[i + 1 :]) for i in inner))


def _against(study: Study, reading: str, seed: int) -> float:
    found = study.minima(seed)
    return math.nan if found is None or not found["minima"] else found["against"] / found["minima"]


def _better(rule: str, deeper: bool = False) -> Callable[[Study, str], Strata]:
    """By how much of the equidistant network's test cost another choice of step-sizes is below it; a stratum an L.

    With ``deeper`` the equidistant network has the next number of layers.
    """

    def strata(study: Study, reading: str) -> Strata:
        depths = study.size.mesh_depths
        pairs = list(itertools.pairwise(depths)) if deeper else [(d, d) for d in depths]
        found = []
        for depth, other in pairs:
            equal, ours = (
                [value(study.mesh(seed, number, choice), "test_cost") for seed in range(study.seeds)]
                for number, choice in ((other, "equidistant"), (depth, rule))
            )
            found.append([_quotient(a - b, a) for a, b in zip(equal, ours, strict=True)])
        return found

    return strata


def _uneven(study: Study, reading: str) -> Strata:
    """The spread of relative changes over layers of adaptive networks: standard deviation over mean; a stratum an L."""

    def of(network: Numbers | None) -> float:
        if network is None or network["values"]["collapsed"]:
            return math.nan
        changes = column(network, "step_change")
        mean = sum(changes) / len(changes)
        return _quotient(math.sqrt(sum((c - mean) ** 2 for c in changes) / len(changes)), mean)

    return [
        [of(study.mesh(seed, depth, "adaptive")) for seed in range(study.seeds)] for depth in study.size.mesh_depths
    ]


CATALOGUE: tuple[Claim, ...] = (
    Claim(
        "critical",
        "The paper's recipe ends at critical points.",
        f"{OURS}, section 6",
        "largest stationarity residual of a network, median over L̃",
        Rule(high=CRITICAL_RESIDUAL),
        ONLY_PAPER,
        _over(lambda n: value(n, "residual_max"), median),
        note="The paper's quantities are defined at critical points.",
    ),
    Claim(
        "below",
        "−2H/L̃ estimates the bottleneck rank k* from below.",
        f"{OURS}, Figure 1a",
        "largest −2H/L̃ over L̃, less k*",
        Rule(high=INTERVAL_SLACK),
        BOTH,
        _extreme("minus_2h_over_l", max),
    ),
    Claim(
        "rises",
        "−2H/L̃ rises with L̃.",
        f"{OURS}, Figure 1a",
        "share of neighbouring L̃ between which it rises",
        Rule(low=0.9),
        BOTH,
        _steps("minus_2h_over_l", lambda change: change > 0),
        note="Of the five pairs of neighbouring L̃ of the small study the rule asks for all.",
    ),
    Claim(
        "above",
        "The least stable cost of identity estimates k* from above.",
        f"{OURS}, Figure 1a",
        "least stable COI over p and L̃, less k*",
        Rule(low=-INTERVAL_SLACK),
        BOTH,
        _extreme("coi_least", min),
    ),
    Claim(
        "falls",
        "The least stable cost of identity falls with L̃.",
        f"{OURS}, Figure 1a",
        "share of neighbouring L̃ between which it falls",
        Rule(low=0.9),
        BOTH,
        _steps("coi_least", lambda change: change < 0),
    ),
    Claim(
        "closes",
        "The two close in on each other as L̃ grows.",
        f"{OURS}, Figure 1a",
        "their gap at the largest L̃ over that at the least",
        Rule(high=0.5),
        BOTH,
        _ends(lambda first, last: _quotient(_gap(last), _gap(first))),
    ),
    Claim(
        "reaches",
        "At the largest L̃, −2H/L̃ has come within a half of k*.",
        f"{OURS}, Figure 1a",
        "distance of −2H/L̃ from k* at the largest L̃",
        Rule(high=0.5),
        BOTH,
        _each(_distance),
    ),
    Claim(
        "named",
        "Where this program's verdict is trusted, its k* is the teacher's.",
        "isthmus.bottleneck",
        "share of right numbers among the trusted verdicts along L̃",
        Rule(low=1.0),
        ONLY_CRITICAL,
        _each(_trusted),
        note="Seeds without a trusted verdict do not count. Overfitting, which is a doubt elsewhere, is left out here.",
    ),
    Claim(
        "decay",
        "At fixed L̃, −2H/L̃ falls as the weight decay μ falls.",
        "docs/theory.md, trials",
        "−2H/L̃ at the largest μ less that at the smallest, at the least L̃",
        Rule(low=0.0),
        ONLY_CRITICAL,
        _each(_fall_with_mu),
    ),
    Claim(
        "rank",
        "The number of directions in the bottleneck does not rise with L̃.",
        f"{OURS}, section 4; arXiv:2209.15055",
        "share of neighbouring L̃ between which it does not rise",
        Rule(low=0.9),
        ONLY_CRITICAL,
        _steps("k_star", lambda change: change <= 0),
    ),
    Claim(
        "keeps",
        "The largest L̃ still lies in the range of depths that keep the teacher's rank.",
        "arXiv:2209.15055",
        "directions in the bottleneck about its mean at the largest L̃, less k*",
        Rule(0.0, 0.0),
        ONLY_CRITICAL,
        _kept,
    ),
    Claim(
        "jumps",
        "Along L̃ the network jumps between branches of minima.",
        "docs/theory.md, trials",
        "jumps of the branch between the least L̃ and the largest",
        Rule(low=1.0),
        ONLY_CRITICAL,
        _each(_jumps),
    ),
    Claim(
        "constant",
        "H is constant along p.",
        f"{OURS}, Figure 1c",
        "spread of −2H/L̃ over layers, over k*, median over L̃",
        Rule(high=0.1),
        BOTH,
        _spread(("minus_2h_over_l",)),
    ),
    Claim(
        "modified",
        "The modified Hamiltonian of the layers' scheme is constant along p.",
        "docs/theory.md, (E15)",
        "spread of −2H̃/L̃ over layers, of the order that leaves the least, over k*, median over L̃",
        Rule(high=0.1),
        ONLY_CRITICAL,
        _spread(("minus_2h_over_l", "minus_2h_over_l_order2", "minus_2h_over_l_order3")),
    ),
    Claim(
        "kinetic",
        "Kinetic energy grows in proportion to the extra cost of identity.",
        f"{OURS}, section 4, (E11)",
        "slope of the stable kinetic energy over (L̃/2)·COI, by layer, median over L̃",
        Rule(0.9, 1.1),
        BOTH,
        _over(_slope, median),
    ),
    Claim(
        "balance",
        "Layers are balanced: ‖W_p‖² = ‖W_0‖² + 2L̃∫‖b‖².",
        "docs/theory.md, (E4)",
        "largest relative defect over layers, median over L̃",
        Rule(high=0.05),
        BOTH,
        _over(lambda n: max(map(abs, column(n, "balancedness_defect"))), median),
        note="The law is of the flow and of homogeneous σ: the layers' own error, O(ρ), and a smooth ReLU count here.",
    ),
    Claim(
        "theorem4",
        "The first bound of Theorem 4 holds.",
        f"{OURS}, Theorem 4, (E12)",
        "share of three values of γ at which it does, least over L̃",
        Rule(low=1.0),
        BOTH,
        _over(_holds, min),
    ),
    Claim(
        "theorem4-speed",
        "The second bound of Theorem 4 holds.",
        f"{OURS}, Theorem 4, (E12)",
        "share of layers at which it does, least over γ and L̃",
        Rule(low=1.0),
        BOTH,
        _over(lambda n: min(b["speed_share"] for b in n["bounds"]), min),
    ),
    Claim(
        "theorem4-tight",
        "Theorem 4 tells −2H/L̃ to within 1.",
        f"{OURS}, Theorem 4, (E12)",
        "upper bound less lower bound at the best γ, median over L̃",
        Rule(high=1.0),
        ONLY_CRITICAL,
        _over(lambda n: _narrowest(n, "lower", "upper"), median),
    ),
    Claim(
        "theorem4-says",
        "Theorem 4's lower bound on −2H/L̃ is not empty: it says more than −2H/L̃ ≥ 0.",
        f"{OURS}, Theorem 4, (E12)",
        "lower bound on −2H/L̃ at the best γ, median over L̃",
        Rule(low=0.0),
        ONLY_CRITICAL,
        _over(_says, median),
    ),
    Claim(
        "pointwise-tight",
        "Its pointwise form, with γ_p, tells −2H/L̃ to within 1.",
        "docs/theory.md, (E13)",
        "least upper bound less largest lower bound over layers, at the best γ_0, median over L̃",
        Rule(high=1.0),
        ONLY_CRITICAL,
        _over(lambda n: _narrowest(n, "pointwise_lower", "pointwise_upper"), median),
    ),
    Claim(
        "cross",
        "The cross term of the Lagrangian is minor.",
        f"{OURS}, section 3",
        "∫|cross term| dp over ∫(kinetic + |potential|) dp, median over L̃",
        Rule(high=0.1),
        BOTH,
        _over(_cross, median),
        note="Both integrals are ruled by the jumps at the ends, where ∂_pA ≈ −L̃A and the three terms cancel.",
    ),
    Claim(
        "image",
        "Little of the energies lies off the image of K.",
        f"{OURS}, section 3, (E7)",
        "share off the image, median over layers, largest of the three energies, median over L̃",
        Rule(high=0.1),
        BOTH,
        _over(_off_image, median),
    ),
    Claim(
        "non-negative",
        "The interior of the path is non-negative at large L̃.",
        f"{OURS}, section 4",
        "negative entries' share of ‖A‖² half-way, at the largest L̃",
        Rule(high=0.05),
        BOTH,
        _ends(lambda first, last: _half_way(last)),
    ),
    Claim(
        "ends",
        "At large L̃ the representation moves at the two ends.",
        f"{OURS}, section 4",
        "share of the path length in the middle half of p, at the largest L̃",
        Rule(high=0.25),
        BOTH,
        _ends(lambda first, last: _middle_length(last)),
    ),
    Claim(
        "mid-path",
        "The representation never jumps in the middle of the path.",
        "asked by the paper's readers",
        "share of networks along L̃ with a fast layer in the middle half of p that has slow ones before and behind",
        Rule(high=0.05),
        BOTH,
        _over(_mid_path, lambda values: sum(values) / len(values)),
    ),
    Claim(
        "minima",
        "Minima of the COI that stay minima when a neuron is added are non-negative, with COI = rank.",
        f"{OURS}, section 3",
        "share of the minima found from random starts that are not",
        Rule(high=0.0),
        (SEARCH,),
        _each(_against),
        note="Counted as networks: minima that the search was led to; as certified: those that have converged.",
    ),
    Claim(
        "length",
        "The path length stays bounded as L̃ grows.",
        f"{OURS}, Figure 3",
        "path length at the largest L̃ over that at the least",
        Rule(high=1.5),
        BOTH,
        _growth("path_length"),
        note="The study's largest L̃ is 2.55 times its least: the rule allows for less than half of that growth.",
    ),
    Claim(
        "length-gamma",
        "With γ = 1/L̃, too, the path length stays bounded as L̃ grows.",
        "asked by the paper's readers",
        "path length in the norm of K + I/L̃ at the largest L̃ over that at the least",
        Rule(high=1.5),
        BOTH,
        _ends(lambda first, last: _quotient(_inverse_length(last), _inverse_length(first))),
    ),
    Claim(
        "momenta",
        "‖B_p‖ stays bounded as L̃ grows.",
        f"{OURS}, Figure 3",
        "largest ‖B_p‖ at the largest L̃ over that at the least",
        Rule(high=1.5),
        BOTH,
        _growth("norm_b_max"),
    ),
    Claim(
        "products",
        "‖B_pσ(A_p)ᵀ‖ stays bounded as L̃ grows.",
        f"{OURS}, Figure 3",
        "largest ‖B_pσ(A_p)ᵀ‖ at the largest L̃ over that at the least",
        Rule(high=1.5),
        BOTH,
        _growth("norm_b_features_max"),
    ),
    Claim(
        "sparse",
        "Initial momenta are sparse over the samples.",
        "arXiv:2008.03920",
        "least share of samples that holds 90 % of ‖M_0‖², median over L̃",
        Rule(high=0.5),
        ONLY_CRITICAL,
        _over(lambda n: value(n, "rows_of_momentum"), median),
        note="Independent Gaussian momenta would need some 85 %.",
    ),
    Claim(
        "adaptive",
        "Adaptive step-sizes have a lower test cost than equal ones, at the same number of layers.",
        f"{OURS}, Figure 2a",
        "relative difference of test costs, paired by seed, over all L",
        Rule(low=0.0),
        ONLY_PAPER,
        _better("adaptive"),
        "figure2",
    ),
    Claim(
        "irregular",
        "Irregular step-sizes have a lower test cost than equal ones, at the same number of layers.",
        f"{OURS}, Figure 2a",
        "relative difference of test costs, paired by seed, over all L",
        Rule(low=0.0),
        ONLY_PAPER,
        _better("irregular"),
        "figure2",
    ),
    Claim(
        "layers",
        "Adaptive step-sizes are as good as the next larger number of equal layers.",
        "asked by the paper's readers",
        "relative difference of test costs, paired by seed, over all L but the last",
        Rule(low=0.0),
        ONLY_PAPER,
        _better("adaptive", deeper=True),
        "figure2",
    ),
    Claim(
        "even",
        "The adaptive mesh has equal relative changes in all layers.",
        f"{OURS}, section 5",
        "standard deviation over mean of the relative changes, over all L",
        Rule(high=0.1),
        ONLY_PAPER,
        _uneven,
        "figure2",
    ),
)
"""In the order of the table."""

assert all(reading in READINGS for claim in CATALOGUE for reading in claim.readings)
