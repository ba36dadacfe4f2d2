"""Verdicts follow from rules by code alone: made-up data of both kinds, and every way in which data may be wanting."""

import math

import pytest
from made_up import SIZE, study

from isthmus.claims.catalogue import CATALOGUE, rows
from isthmus.claims.draw import pictures
from isthmus.claims.intervals import Interval, median_interval, stratified_interval
from isthmus.claims.pictures import CRITICAL, PAPER
from isthmus.claims.plan import FIGURES
from isthmus.claims.verdicts import Rule, Verdict

EACH = [(claim, reading) for claim in CATALOGUE for reading in claim.readings]
NAMES = [f"{claim.key}-{reading}" for claim, reading in EACH]


@pytest.mark.parametrize(("claim", "reading"), EACH, ids=NAMES)
def test_the_verdict_is_that_of_the_data_and_flips_with_them(claim, reading):
    true, false = (claim.row(study(kind), reading, "isthmus claims") for kind in (True, False))
    assert true.verdict is Verdict.HOLDS, true
    assert false.verdict is Verdict.FAILS, false
    assert true.seeds == 10 and true.low <= true.estimate <= true.high
    assert true.networks > 0 and true.command == "isthmus claims"
    assert true.certified == (0 if reading == PAPER else true.networks)


@pytest.mark.parametrize(("claim", "reading"), EACH, ids=NAMES)
def test_half_and_half_is_undecided_and_so_are_two_seeds_or_none(claim, reading):
    assert claim.row(study(lambda seed: seed % 2 == 0), reading, "").verdict is Verdict.UNDECIDED
    for few in (study(True, 2), study(True, 10, without=range(10))):
        row = claim.row(few, reading, "")
        assert row.verdict is Verdict.UNDECIDED
        assert row.seeds == (2 if few.seeds == 2 else 0)


def test_points_that_are_not_certified_are_not_read_as_critical():
    some = study(True, 10, uncertified=range(8))
    below = next(claim for claim in CATALOGUE if claim.key == "below")
    row = below.row(some, CRITICAL, "")
    assert (row.seeds, row.networks, row.certified, row.verdict) == (2, 8, 8, Verdict.UNDECIDED)
    (curves,) = (p for p in pictures(some, ["figure1"]) if p.key == "figure1a")
    assert {n for curve in curves.plots[1].curves for n in curve.networks} == {2}


def test_every_claim_says_what_where_and_how_and_has_a_key_of_its_own():
    assert len({claim.key for claim in CATALOGUE}) == len(CATALOGUE) >= 25
    for claim in CATALOGUE:
        assert claim.statement.endswith(".") and claim.source and claim.measure
        assert claim.figure in FIGURES and claim.readings


def test_only_claims_whose_networks_were_asked_for_are_judged():
    assert {row.key for row in rows(study(True), "", ("figure2",))} == {"adaptive", "irregular", "layers", "even"}
    assert "below" in {row.key for row in rows(study(True), "", ("figure3",))}
    assert len(rows(study(True), "")) == len(EACH)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.0, -1.0, 1.0), Verdict.HOLDS),
        ((0.0, -2.0, 2.0), Verdict.HOLDS),
        ((3.0, 2.5, 4.0), Verdict.FAILS),
        ((-3.0, -4.0, -2.5), Verdict.FAILS),
        ((0.0, -3.0, 1.0), Verdict.UNDECIDED),
        ((0.0, -3.0, 3.0), Verdict.UNDECIDED),
        ((0.0, math.nan, math.nan), Verdict.UNDECIDED),
    ],
)
def test_a_rule_judges_by_the_whole_interval(interval, verdict):
    assert Rule(-2.0, 2.0).judge(Interval(*interval, 10)) is verdict
    assert Rule(-2.0, 2.0).judge(Interval(*interval, 2)) is Verdict.UNDECIDED


def test_a_rule_needs_a_border_and_says_what_it_wants():
    for wrong in ({}, {"low": 2.0, "high": 1.0}, {"low": math.nan}):
        with pytest.raises(ValueError, match="a rule needs a range with a border"):
            Rule(**wrong)
    assert [str(r) for r in (Rule(high=0.1), Rule(low=0.9), Rule(0.9, 1.1), Rule(1.0, 1.0))] == [
        "≤ 0.1", "≥ 0.9", "0.9 to 1.1", "= 1",
    ]  # fmt: skip


# Ten runs of four tasks, and what rliable 1.2.0 gives for them (arch 7.2.0, pandas 2.3.3, numpy 2.4.6):
# get_interval_estimates({"a": SCORES}, lambda x: np.array([np.median(x)]), reps=50000)
SCORES = [
    [1.764, 0.7, 1.579, 3.141], [1.868, -0.677, 1.55, 0.749], [-0.103, 0.711, 0.744, 2.354],
    [0.761, 0.422, 1.044, 1.234], [1.494, 0.095, 0.913, 0.046], [-2.553, 0.954, 1.464, 0.158],
    [2.27, -1.154, 0.646, 0.713], [1.533, 1.769, 0.755, 1.278], [-0.888, -1.681, 0.252, 1.056],
    [1.23, 1.502, 0.213, 0.598],
]  # fmt: skip
RLIABLE = (0.758, 0.673, 1.23)


def test_intervals_are_those_of_rliable():
    found = stratified_interval([list(task) for task in zip(*SCORES, strict=True)], resamples=50_000)
    assert (found.estimate, found.low, found.high) == pytest.approx(RLIABLE, abs=5e-3)
    assert found.seeds == 10


def test_strata_are_resampled_apart():
    """Two constant strata have no spread by themselves; resampled as one they would have."""
    assert stratified_interval([[0.0] * 6, [1.0] * 5]) == Interval(0.0, 0.0, 0.0, 6)
    assert median_interval([0.0] * 6 + [1.0] * 5).high == 1.0


def test_intervals_leave_out_what_is_not_finite_and_repeat():
    assert median_interval([1.0, math.nan, 3.0, math.inf, 2.0]) == median_interval([1.0, 3.0, 2.0])
    assert median_interval([1.0, 2.0, 4.0, 9.0]) == median_interval([1.0, 2.0, 4.0, 9.0])
    one, none = median_interval([5.0]), median_interval([math.nan])
    assert (one.estimate, one.seeds, none.seeds) == (5.0, 1, 0)
    assert math.isnan(one.low) and math.isnan(none.estimate)
    with_single = stratified_interval([[1.0, 2.0, 3.0], [7.0]])
    assert with_single.seeds == 3 and with_single.high < 7.0 + 1e-12


def test_pictures_say_which_networks_are_certified_and_what_is_missing():
    found = {p.key: p for p in pictures(study(True), FIGURES)}
    assert list(found) == ["figure1a", "figure1b", "figure1c", "figure2a", "figure2b", "figure2c", "figure3"]
    trained, critical = found["figure1a"].plots
    assert all(set(curve.certified) == {0} and set(curve.networks) == {10} for curve in trained.curves)
    assert all(curve.certified == curve.networks for curve in critical.curves)
    assert [n.certified for n in found["figure1b"].networks] == [False, True]
    assert all(p.statement and p.finding for p in found.values())
    assert found["figure1a"].plots[0].horizontals == ((float(SIZE.dims[1]), "k* = 2"),)
    band = next(curve for curve in critical.curves if curve.band)
    assert all(low < high for low, high in zip(band.low, band.high, strict=True))
    few = {p.key: p for p in pictures(study(True, 2), FIGURES)}
    assert all(v is None for v in few["figure1a"].plots[0].curves[0].low)
    assert any("Fewer than three seeds" in note for note in few["figure1a"].notes)
    none = pictures(study(True, 3, without=range(3)), FIGURES)
    assert all("yet" in p.finding for p in none)
    assert any("0 of 12 networks are there" in note for note in none[0].notes)
    part = {p.key: p for p in pictures(study(True, 5, without=(1, 2)), FIGURES)}
    assert any("12 of 20 networks are there" in note for note in part["figure1a"].notes)
    assert PAPER != CRITICAL
