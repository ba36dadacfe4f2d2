"""The document of a branch: page and terminal say what branch.json says; figures mark events and doubtful points."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from isthmus.report.branch.columns import point_columns
from isthmus.report.branch.figures import KEYS, branch_figures
from isthmus.report.branch.page import BranchPage
from isthmus.report.branch.terminal import plain_branch
from isthmus.report.branch.words import happened, summary
from isthmus.report.spec import Frames, Panel, Series
from isthmus.report.web import specification
from isthmus.runs.branch_folder import BranchData, load_branch
from isthmus.runs.branch_points import PointSpectra

EVENTS = [
    {"kind": "rank", "value": 6.0, "after": 1, "message": "the rank goes from 3 to 2", "error": None},
    {"kind": "fold", "value": 7.25, "after": 2, "message": "the branch turns back", "error": 1e-7},
    {"kind": "jump", "value": 8.0, "after": 2, "message": "the branch ends between 7 and here", "error": None},
]


def point(index: int, **changes: Any) -> dict[str, Any]:
    """A point of the branch by hand; L̃ from 5 upwards."""
    leak = 5.0 + index
    row = {
        **{"branch": 0, "value": leak, "objective": 1.0 + 0.1 * index, "data_cost": 0.3, "penalty": 0.7 + 0.1 * index},
        **{"residual": 3e-6, "stable": True, "least": 0.02, "speed": 0.1, "direction": 1, "steps": 4, "products": 90},
        **{"seconds": 1.5, "collapsed": 0.0, "coi_least": 2.0 + 5 / leak, "minus_2h_over_l": 2.0 - 9 / leak},
        **{"h_spread": 0.4, "rank": 3.0 if index < 2 else 2.0},
    }
    return row | changes


def made(folder: Path, **changes: Any) -> BranchData:
    """A branch of four points, the last on another branch, as its folder holds it."""
    content = {
        "version": 1,
        "settings": {"parameter": "effective_depth", "to": 8.0, "at": [], "eigenvalues": True, "weights": True},
        "start": {"run": None, "notes": [], "solved": {"residual_before": 30.0, "residual": 2e-6}},
        "config": {"seed": 3, "task": {"kind": "teacher", "dims": [10, 2, 10]}, "model": {"width": 24, "depth": 20}},
        "environment": {"threads": 1},
        "points": [point(0), point(1), point(2), point(3, branch=1)],
        "events": EVENTS,
        "status": "converged",
        "advice": "",
        "reading": {
            "verdict": "A bottleneck of rank 2.",
            "method": "counted",
            "doubts": ["one <b>doubt</b>"],
            "kind": "minimum",
            "kind_reason": "all is positive",
        },
        "seconds": 75.0,
    }
    (folder / "branch.json").write_text(json.dumps(content | changes))
    return load_branch(folder)


SPECTRA = tuple(
    PointSpectra(i, 5.0 + i, [0.0, 0.5, 1.0], [[9.0, 3.0, 1e-9], [8.0, 2.0 / (1 + i), 0.0], [7.0, 1.0, 0.0]])
    for i in range(4)
)


def figure(key: str, data: BranchData, spectra: tuple[PointSpectra, ...] = ()) -> Any:
    return {one.key: one for one in branch_figures(data, spectra)}[key]


def visible(page: str) -> str:
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


def test_the_curve_has_both_readings_whole_numbers_and_every_event(tmp_path: Path) -> None:
    data = made(tmp_path)
    panel = figure("curve", data).panels[0]
    lines = {series.label: series for series in panel.series if series.label}
    assert set(lines) == {"least stable {COI}", "{rank}"}
    assert lines["{rank}"].x == [5.0, 6.0, 7.0, None, 8.0]  # a gap where the branch changes
    assert lines["{rank}"].y[0] == pytest.approx(2 - 9 / 5)
    assert [line.value for line in panel.horizontals] == [1.0, 2.0, 3.0]
    assert [(line.value, line.label) for line in panel.verticals] == [(6.0, "rank"), (7.25, "fold"), (8.0, "jump")]
    assert panel.x_label == "effective depth {L}" and not panel.log_x
    for other in figure("objective", data).panels + figure("residual", data).panels:
        assert [(line.value, line.label) for line in other.verticals] == [(6.0, ""), (7.25, ""), (8.0, "")]


def test_points_are_hollow_where_they_are_no_certified_minima(tmp_path: Path) -> None:
    data = made(tmp_path, points=[point(0), point(1, residual=5e-4), point(2, stable=False), point(3)])
    panel = figure("curve", data).panels[0]
    hollow = [series for series in panel.series if series.marker == "open" and not series.label]
    filled = [series for series in panel.series if series.marker == "circle"]
    assert [series.x for series in hollow] == [[6.0, 7.0]] * 2 and [series.x for series in filled] == [[5.0, 8.0]] * 2
    assert "not certified, or no minimum" in [series.label for series in panel.series]
    assert hollow[0].hover == ["point 1, branch 0: minimum, not certified", "point 2, branch 0: saddle, certified"]
    said = summary(data)
    assert said.level == "near" and said.headline == "4 critical points: 1 not certified, 1 no minimum"
    assert summary(made(tmp_path)).headline == "4 critical points, certified"


def test_readings_far_below_zero_do_not_press_the_curve_flat(tmp_path: Path) -> None:
    data = made(tmp_path, points=[point(0, minus_2h_over_l=-19.5), point(1), point(2), point(3)])
    curve = figure("curve", data)
    assert curve.panels[0].view[0] == -3.0 and curve.notes == ("1 point of −2H/L̃ lies below the axis, down to −19.5.",)
    assert figure("curve", made(tmp_path)).panels[0].view is None


def test_labels_of_events_do_not_cover_each_other(tmp_path: Path) -> None:
    close = [{**EVENTS[2], "value": 6.0 + 0.01 * k} for k in range(5)]
    marks = figure("curve", made(tmp_path, events=close)).panels[0].verticals
    assert [mark.label for mark in marks] == ["jump", "", "", "", ""]


def test_weight_decay_has_a_logarithmic_axis_on_the_page_and_in_print(tmp_path: Path) -> None:
    settings = {"parameter": "mu", "to": 1e-6, "at": [], "eigenvalues": True, "weights": True}
    points = [point(i, value=10.0 ** -(2 * i)) for i in range(4)]
    data = made(tmp_path, settings=settings, points=points, events=[{**EVENTS[2], "value": 1e-3}])
    panel = figure("curve", data).panels[0]
    layout = specification(panel)["layout"]
    assert layout["xaxis"]["type"] == "log"
    (label,) = [a for a in layout["annotations"] if a["text"]]
    assert label["text"] == "jump" and label["x"] == pytest.approx(-3.0)
    plain = specification(replace(panel, verticals=()))["layout"]
    low, high = plain["xaxis"]["range"]
    assert low == pytest.approx(-6.12) and high == pytest.approx(0.12)
    BranchPage(data).write(tmp_path)
    assert "10" in (tmp_path / "figures/objective.svg").read_text()


def test_the_slider_puts_the_spectra_of_every_point_into_the_same_axes(tmp_path: Path) -> None:
    data = made(tmp_path)
    along, half_way = figure("spectra", data, SPECTRA).panels
    frames = along.frames
    assert frames.first == 3 and list(frames.labels) == ["5", "6", "7", "8"]
    assert [list(series.y) for series in along.series] == [list(y) for y in frames.ys[3]]
    assert all(len(series.x) == len(y) for ys in frames.ys for series, y in zip(along.series, ys, strict=True))
    slider = specification(along)["layout"]["sliders"][0]
    assert slider["active"] == 3 and slider["currentvalue"]["prefix"] == "L̃ = "
    step = slider["steps"][0]
    assert step["method"] == "restyle" and step["args"][1] == [0, 1]
    assert step["args"][0]["y"][0][:3] == [9.0, 8.0, 7.0] and step["args"][0]["y"][0][4:7] == [3.0, 2.0, 1.0]
    line = half_way.series[0]  # the largest, then the second, each broken where the branch changes
    assert line.y[:5] == [8.0, 8.0, 8.0, None, 8.0] and line.y[6:] == [2.0, 1.0, pytest.approx(2 / 3), None, 0.5]


def test_a_panel_without_frames_has_no_slider() -> None:
    panel = Panel("", "x", "y", (Series([1, 2], [3, 4], "it"),))
    assert "sliders" not in specification(panel)["layout"]
    slid = replace(panel, frames=Frames("t", ["a", "b"], [[[3, 4]], [[5, None]]], 0))
    layout = specification(slid)["layout"]
    assert layout["sliders"][0]["steps"][1]["args"] == [{"y": [[5.0, None]]}, [0]]
    assert layout["height"] > specification(panel)["layout"]["height"]


def test_page_and_files(tmp_path: Path) -> None:
    data = made(tmp_path)
    page = BranchPage(data, SPECTRA).write(tmp_path)
    assert page == tmp_path / "report.html"
    assert sorted(f.name for f in (tmp_path / "figures").iterdir()) == sorted(
        f"{key}.{suffix}" for key in KEYS for suffix in ("svg", "pdf")
    )
    text = visible(page.read_text())
    for words in (
        "4 critical points, certified",
        "L̃ from 5 to 8, in 1 min 15 s. The largest stationarity residual is 3e-6 (certified up to 1e-4)",
        "On the way: 1 change of rank, 1 fold, 1 jump to another branch.",
        "It reached L̃ = 8.",
        "The start was solved from its initial weights. It was solved first: the residual went from 30 to 2e-6.",
        "fold 7.25 ± 1e-7 the branch turns back",
        "one &lt;b&gt;doubt&lt;/b&gt;",
        "teacher 10→2→10",
        "At L̃ = 8. It is a minimum: all is positive.",
    ):
        assert words in text, words
    assert "not kept" not in text


def test_the_terminal_has_every_point_and_each_event_after_its_own(tmp_path: Path) -> None:
    lines = plain_branch(made(tmp_path)).splitlines()
    rows = [i for i, line in enumerate(lines) if "  minimum  " in line]
    assert len(rows) == 4
    assert lines[rows[1] + 1] == "    rank at L̃ = 6: the rank goes from 3 to 2"
    assert lines[rows[2] + 1] == "    fold at L̃ = 7.25 ± 1e-7: the branch turns back"
    assert lines[rows[2] + 2].startswith("    jump at L̃ = 8")
    assert "The last point: It is a minimum: all is positive." in lines
    assert "Verdict at L̃ = 8: A bottleneck of rank 2." in lines and "  doubt: one <b>doubt</b>" in lines
    assert max(map(len, plain_branch(made(tmp_path), 70).splitlines()[1:6])) <= 70


def test_a_branch_without_points_or_readings_is_shown_all_the_same(tmp_path: Path) -> None:
    data = made(tmp_path, points=[], events=[], reading={}, status="unknown")
    assert branch_figures(data, ()) == () and happened(data).startswith("Nothing happened")
    assert "No point yet" in plain_branch(data) and "goes on with it" in plain_branch(data)
    collapsed = [{k: v for k, v in point(i, collapsed=1.0).items() if k not in ("minus_2h_over_l", "coi_least", "rank")}
                 for i in range(2)]  # fmt: skip
    data = made(tmp_path, points=collapsed, events=[], status="collapsed to zero", advice="the zero network")
    assert [one.key for one in branch_figures(data, ())] == ["objective", "residual"]
    assert "status: collapsed to zero: the zero network." in plain_branch(data)


def test_readings_that_are_new_find_a_column(tmp_path: Path) -> None:
    data = made(tmp_path, points=[point(0, minus_2h_third=1.5), point(1, minus_2h_third=math.pi)])
    assert [c.head for c in point_columns(data) if c.key == "minus_2h_third"] == ["minus 2h third"]
