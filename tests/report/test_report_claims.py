"""The page of a study: hollow marks where networks are no critical points, and the same numbers as the data."""

import math
import re

import pytest

from isthmus.claims.pictures import Curve, Network, Picture, Plot, Way
from isthmus.claims.verdicts import Row, Verdict
from isthmus.report import plain_claims, write_claims_page
from isthmus.report.claims.figures import HOLLOW, claims_figures
from isthmus.report.printed import draw
from isthmus.report.web import specification

FOUND = {
    "size": {"name": "quick", "dims": [4, 1, 4], "width": 8, "rows": 40, "depth": 10, "mu": 0.02},
    "seeds": 3,
    "seconds": 61,
    "command": "isthmus claims --quick",
    "environment": {"versions": {"torch": "2.13.0"}},
    "failures": [{"job": "branch-1", "settings": {}, "reason": "ArithmeticError: <none> & nowhere"}],
}


def curve(certified, label="least stable COI", low=(2.8, 1.9, None), **options):
    return Curve(label, (2.0, 3.0, 4.0), (3.0, 2.0, 1.5), low, (3.5, 2.2, None), (3, 3, 1), certified, **options)


def picture(certified=(3, 3, 1), **options):
    plots = (Plot("at critical points", "effective depth {L}", "dimensions", (curve(certified),), ((1.0, "k* = 1"),)),)
    return Picture("figure1a", "Figure 1a", "it rises.", "It does.", "curves", plots=plots, **options)


def network(certified):
    return Network(
        "seed 0",
        certified,
        1e-6 if certified else 0.3,
        (0.0, 0.5, 1.0),
        ((3.0, 1.0), (2.0, 1e-9), (3.0, 0.5)),
        ((3.0, 1.0), (2.0, 1.0)),
        {"kinetic_stable": (1.0, 2.0), "potential_stable": (-1.0, -2.0), "hamiltonian": (0.5, None)},
    )


def row(verdict=Verdict.HOLDS, **options):
    given = {
        "key": "below", "statement": "−2H/L̃ estimates k* from below.", "source": "Figure 1a", "reading": "critical",
        "measure": "largest, less k*", "rule": "≤ 0.05", "estimate": -0.125, "low": -0.25, "high": -0.0625, "seeds": 3,
        "networks": 9, "certified": 8, "verdict": verdict, "command": "isthmus claims",
    }  # fmt: skip
    return Row(**(given | options))


def marks(figure):
    """Of the marks that are drawn: circle or open, by what the browser and what matplotlib are given."""
    series = [one for panel in figure.panels for one in panel.series if one.marker]
    traces = [trace for panel in figure.panels for trace in specification(panel)["data"] if "marker" in trace]
    hollow = [trace["marker"].get("symbol") == "circle-open" for trace in traces]
    assert hollow == [one.marker == "open" for one in series]
    return [one.marker for one in series], [len(one.x) for one in series]


@pytest.mark.parametrize(
    ("certified", "kinds", "sizes"),
    [((3, 3, 1), ["circle"], [3]), ((0, 0, 0), ["open"], [3]), ((3, 2, 1), ["circle", "open"], [2, 1])],
)
def test_marks_are_filled_where_every_network_is_certified_and_hollow_elsewhere(certified, kinds, sizes):
    (figure,) = claims_figures([picture(certified)])
    assert marks(figure) == (kinds, sizes)
    whole = kinds == ["circle"]
    assert (HOLLOW in figure.notes) is not whole
    assert figure.panels[0].series[0].dash == ("solid" if whole else "dash")
    # in the printed figure hollow circles are outlines of the curve's colour (bars of intervals are as well)
    bare = Curve("least stable COI", (2.0, 3.0), (3.0, 2.0), (None, None), (None, None), (3, 3), certified[:2])
    plot = Plot("", "effective depth {L}", "dimensions", (bare,))
    (figure,) = claims_figures([Picture("k", "t", "s.", "f.", "curves", plots=(plot,))])
    svg = draw(figure, ("svg",))["svg"].decode()
    outlines = re.findall(r'style="[^"]*fill: none[^"]*stroke: #d55e00[^"]*stroke-width: 0\.9', svg)
    assert bool(outlines) is (not whole)


@pytest.mark.parametrize("certified", [True, False])
def test_single_networks_say_in_their_title_whether_they_are_critical_points(certified):
    shown = [Picture(k, k, "s.", "f.", k, networks=(network(certified),)) for k in ("spectra", "energies")]
    for figure in claims_figures(shown):
        assert set(marks(figure)[0]) == {"circle" if certified else "open"}
        for panel in figure.panels:
            said = "a critical point" if certified else "not a critical point, residual 0.3"
            assert panel.title.endswith(f": {said}")
    way = Way("adaptive", certified, (0.0, 1.0), (0.0, 1.0))
    (figure,) = claims_figures([Picture("figure2c", "t", "s.", "f.", "ways", ways=(way,))])
    assert marks(figure)[0] == ["circle" if certified else "open"] * 3  # the last two: start and end


def test_intervals_are_drawn_with_both_their_lengths():
    (figure,) = claims_figures([picture()])
    points = figure.panels[0].series[1]
    assert points.error == [0.5, pytest.approx(0.2), None]
    assert points.error_below == [pytest.approx(0.2), pytest.approx(0.1), None]
    assert points.hover[0] == "3 networks, 3 certified, 95 % interval 2.8 to 3.5"
    assert points.hover[2] == "1 network, 1 certified"
    bars = specification(figure.panels[0])["data"][1]["error_y"]
    assert bars["symmetric"] is False and bars["arrayminus"][0] == pytest.approx(0.2)
    assert b"svg" in draw(figure, ("svg",))["svg"]


def test_an_axis_that_hides_numbers_says_so():
    deep = curve((3, 3, 1), "−2H/L̃, median over layers", low=(-40.0, 1.0, None))
    wild = Curve("least COI", (2.0,), (30.0,), (None,), (None,), (1,), (1,))
    plot = Plot("at critical points", "effective depth {L}", "dimensions", (deep, wild), ((1.0, "k* = 1"),))
    (figure,) = claims_figures([Picture("figure1a", "t", "s.", "f.", "curves", plots=(plot,))])
    assert figure.panels[0].view is not None and figure.panels[0].view[1] < 5
    assert "At critical points: numbers beyond the axis go down to −40 and up to 30." in figure.notes


def test_page_and_terminal_say_the_numbers_of_the_rows(tmp_path):
    rows = (row(), row(Verdict.FAILS, reading="paper", low=math.nan, high=math.nan, estimate=math.nan, seeds=0))
    page = write_claims_page(tmp_path, [picture((0, 0, 0))], rows, FOUND)
    text = page.read_text()
    body = text[: text.index('<script type="application/json"')]
    assert page.name == "claims.html"
    for words in ("−0.125", "−0.25 to −0.0625", "8 of 9", "≤ 0.05", "holds", "fails", "it rises.", "It does."):
        assert words in body
    assert "1 hold, 1 fail, 0 undecided (of 2 judgements)" in body
    assert "nan" not in body.lower().replace("pointer-events", "") and "None" not in body
    assert "&lt;none&gt; &amp; nowhere" in body and "isthmus claims --quick" in body
    assert {f.name for f in (tmp_path / "figures").iterdir()} == {f"figure1a.{s}" for s in ("svg", "pdf", "png")}
    assert (tmp_path / "figures" / "figure1a.png").read_bytes().startswith(b"\x89PNG")
    shown = plain_claims(rows)
    assert "HOLDS" in shown and "−0.125 [−0.25 to −0.0625], 3 seeds, certified 8 of 9" in shown
    assert "FAILS" in shown and "– [–]" in shown and "nan" not in shown
    assert all(len(line) <= 100 for line in shown.splitlines())


def test_figures_alone_have_a_page_of_their_own_and_an_empty_study_is_none_the_worse(tmp_path):
    assert write_claims_page(tmp_path, [picture()], (), FOUND).name == "figures.html"
    empty = Picture("figure2c", "Figure 2c", "s.", "There is no such network yet.", "ways")
    text = write_claims_page(tmp_path / "none", [empty], (), {}).read_text()
    assert "no such network was computed" in text
    assert plain_claims([]).endswith("(of 0 judgements)")
    # figures of another call stay
    assert write_claims_page(tmp_path, [empty], (), FOUND)
    assert (tmp_path / "figures" / "figure1a.svg").exists()
