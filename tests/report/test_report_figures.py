"""Figures as data, and the two ways of drawing them."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from isthmus.report import load_run
from isthmus.report.printed import draw
from isthmus.report.run.figures.build import KEYS, build_figures
from isthmus.report.run.figures.training import stage_marks, stages
from isthmus.report.spec import Figure, Panel, Series, joined, short_log_ticks, slow_bands
from isthmus.report.style import quoted, shade, tex, web
from isthmus.report.web import specification

Make = Callable[..., Path]
VARIANTS: dict[str, dict[str, Any]] = {
    "as in the paper": {},
    "not converged": {"residual": 0.9},
    "classes": {"classes": 10, "rank": 8, "effective_depth": 3.0},
    "resnet": {"effective_depth": 0.0},
    "collapsed": {"collapsed": True},
    "diverged": {"status": "diverged", "rows": 2},
    "no history": {"status": "diverged", "rows": 0},
    "one layer": {"depth": 1},
    "deep and long": {"depth": 200, "rows": 1000, "samples": 200},
}


def built(make_run: Make, **changes: Any) -> dict[str, Figure]:
    return {figure.key: figure for figure in build_figures(load_run(make_run(**changes)))}


@pytest.mark.parametrize("variant", VARIANTS)
def test_plotly_accepts_every_panel(make_run: Make, variant: str) -> None:
    import plotly.graph_objects as go

    figures = built(make_run, **VARIANTS[variant])
    assert tuple(figures) == KEYS
    for figure in figures.values():
        for panel in figure.panels:
            spec = specification(panel)
            json.dumps(spec, allow_nan=False)
            go.Figure(spec)


@pytest.mark.parametrize("variant", ["collapsed", "no history", "one layer", "classes"])
def test_matplotlib_draws_the_odd_ones(make_run: Make, variant: str) -> None:
    figures = built(make_run, **VARIANTS[variant])
    for key in {"collapsed": ("spectra", "energies"), "no history": ("objective",)}.get(variant, ("mesh", "path")):
        ElementTree.fromstring(draw(figures[key], ("svg",))["svg"])


def test_same_run_same_bytes(make_run: Make) -> None:
    figure = built(make_run)["rank"]
    assert draw(figure) == draw(figure)


def test_a_deep_run_stays_small(make_run: Make) -> None:
    figures = built(make_run, **VARIANTS["deep and long"])
    text = json.dumps([specification(panel) for figure in figures.values() for panel in figure.panels])
    assert len(text) < 3e6
    assert "50 of 200 recorded" in figures["path"].reading


def test_caveats_follow_the_residual(make_run: Make) -> None:
    needs = {"energies", "rank", "bounds"}
    for where, residual, start in (
        ("a", 0.9, "Optimisation error, not physics"),
        ("b", 0.05, "Read shapes, not digits"),
    ):
        figures = built(make_run, where=where, residual=residual)
        assert {key for key, figure in figures.items() if figure.caveat} == needs
        assert figures["rank"].caveat.startswith(start)
    assert not any(figure.caveat for figure in built(make_run, where="c").values())
    figures = built(make_run, where="d", summary={"residual_max": None})
    assert figures["energies"].caveat.startswith("Unverified")


def test_what_is_hidden_is_said(make_run: Make) -> None:
    figures = built(make_run)
    assert figures["spectra"].notes[0] == "1470 singular values of A below 1e-6 of the largest are not drawn."
    assert figures["rank"].notes[1] == "Exact norms: 2 of 41 points of the curves lie off the axis, up to 27.05."
    zeros = built(make_run, where="collapsed", collapsed=True)
    assert "zero or negative numbers have no place on the logarithmic axis" in zeros["spectra"].notes[-1]
    assert not zeros["spectra"].panels[0].drawable
    steep = built(make_run, where="one", depth=1)
    assert "ρL̃ = 7 > 1, which flips the sign of the skip" in steep["mesh"].notes[0]


def test_a_wild_hamiltonian_does_not_flatten_the_rest(make_run: Make) -> None:
    import polars as pl

    folder = make_run()
    table = pl.read_parquet(folder / "layers.parquet")
    table.with_columns(pl.lit(1e6).alias("hamiltonian")).write_parquet(folder / "layers.parquet")
    energies = {figure.key: figure for figure in build_figures(load_run(folder))}["energies"]
    _stable, exact = energies.panels
    assert exact.view is not None and exact.view[1] < 1e3
    (note,) = [note for note in energies.notes if note.startswith("Exact norms")]
    assert "lie off the axis, up to 1e6." in note and int(note.split()[2]) >= 20


def test_the_jumps_do_not_flatten_the_slow_layers(make_run: Make) -> None:
    import polars as pl

    folder = make_run()
    table = pl.read_parquet(folder / "layers.parquet")
    jump = pl.when(pl.col("layer") == 1).then(1e4).otherwise(pl.col("kinetic_stable"))
    table.with_columns(jump.alias("kinetic_stable")).write_parquet(folder / "layers.parquet")
    energies = {figure.key: figure for figure in build_figures(load_run(folder))}["energies"]
    stable = energies.panels[0]
    slow = [abs(v) for v, s in zip(table["potential_stable"], table["slow"], strict=True) if s]
    assert stable.view is not None and max(slow) < stable.view[1] < 20 * max(slow)
    assert any("lie off the axis, up to 1e4" in note for note in energies.notes)


def test_curves_stand_where_their_quantities_do(make_run: Make) -> None:
    run = load_run(make_run())
    figures = {figure.key: figure for figure in build_figures(run)}
    states = [0.0, *run.column("p")]
    middles = [(low + high) / 2 for low, high in pairwise(states)]
    cost, estimate, _ = figures["rank"].panels[0].series
    assert list(cost.x) == states and cost.y == run.state("coi_stable") and cost.x[-1] == pytest.approx(1.0)
    assert list(estimate.x) == pytest.approx(middles) and estimate.y == run.column("minus_2h_over_l_stable")
    ranks = {series.label: series for series in figures["ranks"].panels[0].series}
    assert list(ranks["rank of {A}"].x) == states and ranks["rank of {A}"].y == run.state("rank_a")
    kinetic = figures["energies"].panels[0].series[0]
    assert list(kinetic.x) == pytest.approx(middles)
    assert "midpoints" in figures["energies"].panels[0].x_label
    spectra = run.spectra
    assert spectra is not None
    for p, rank in zip(ranks["rank of {A}"].x, ranks["rank of {A}"].y, strict=True):
        values = spectra.filter(kind="A").filter(p=p)["value"]
        assert rank == (values > 0.01 * values.max()).sum()


def test_energies_are_absent_at_zero_depth(make_run: Make) -> None:
    figures = built(make_run, effective_depth=0.0)
    assert not any(panel.drawable for panel in figures["energies"].panels)
    annotation = specification(figures["energies"].panels[0])["layout"]["annotations"][0]
    assert annotation["text"].startswith("not defined at L̃ = 0")


def test_stages_are_marked_and_listed(make_run: Make) -> None:
    run = load_run(make_run())
    assert stages(run) == [(0.0, "muon"), (1500.0, "muon, sharper σ"), (2400.0, "l-bfgs")]
    assert [(mark.value, mark.label) for mark in stage_marks(run)] == [(1500.0, "2"), (2400.0, "3")]
    figures = {figure.key: figure for figure in build_figures(run)}
    assert figures["objective"].reading.endswith("1 muon; 2 muon, sharper σ; 3 l-bfgs.")


def test_unrecorded_points_leave_no_gap_but_zeros_do(make_run: Make) -> None:
    figures = built(make_run)
    largest = figures["residual"].panels[0].series[0]
    assert None not in largest.y and len(largest.y) == 200
    trace = specification(Panel("", "x", "y", (Series([0, 1, 2], [1.0, 0.0, 100.0], "a"),), log=True))["data"][0]
    assert trace["y"] == [1.0, None, 100.0]


def test_missing_tables_leave_their_figures_out(make_run: Make) -> None:
    folder = make_run()
    (folder / "spectra.parquet").unlink()
    (folder / "projection.parquet").unlink()
    keys = [figure.key for figure in build_figures(load_run(folder))]
    assert keys == [key for key in KEYS if key not in ("spectra", "path")]


def test_bands_merge_neighbours_only() -> None:
    bands = slow_bands([0.25, 0.5, 0.75, 1.0], [0.25] * 4, [True, True, False, True])
    assert bands == ((0.0, 0.5), (0.75, 1.0))
    assert slow_bands([None, 1.0], [None, None], [True, None]) == ()


def test_joined_lines_break_between() -> None:
    assert joined([([1, 2], [3, 4]), ([5], [6])]) == ([1, 2, None, 5], [3, 4, None, 6])


def test_short_logarithmic_axes_get_ticks() -> None:
    def panel(*y: float) -> Panel:
        return Panel("", "x", "y", (Series(list(range(len(y))), y, "a"),), log=True)

    assert short_log_ticks(panel(1.0, 1e5)) is None
    ticks = short_log_ticks(panel(0.5, 4.0))
    assert ticks is not None and {0.5, 1.0, 2.0, 5.0} <= set(ticks)
    assert short_log_ticks(panel(2.0, 2.0)) is not None


def test_labels_and_colours() -> None:
    assert tex("spectrum of {A}") == "spectrum of $A_p$" and web("{p}") == "<i>p</i>"
    assert web(quoted("<b>{A}&$")) == "‹b›{A}+S"
    assert shade(0.0) == "#440154" and shade(1.0) == shade(7.0) == "#d8c81f"
