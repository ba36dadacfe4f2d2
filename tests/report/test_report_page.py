"""The page: self-contained, honest, safe against what a user writes."""

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from isthmus.report import load_run, write_report
from isthmus.report.run.figures.build import KEYS
from isthmus.report.run.page import RunReport

Make = Callable[..., Path]


def page_of(folder: Path) -> str:
    """The page without plotly's script, and without drawing the printed figures."""
    document = RunReport(load_run(folder))
    return document.render(document.figures(), {}).replace(get_plotlyjs(), "")


def visible(page: str) -> str:
    """The text of the page with single spaces."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", body))


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_figures_are_written_and_valid(reported: Path) -> None:
    for key in KEYS:
        svg = (reported / "figures" / f"{key}.svg").read_bytes()
        root = ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and len(list(root.iter())) > 30
        assert b"<dc:date>" not in svg
        pdf = (reported / "figures" / f"{key}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF-") and len(pdf) > 5000 and b"CreationDate" not in pdf
    assert {path.suffix for path in (reported / "figures").iterdir()} == {".svg", ".pdf"}
    assert not list(reported.glob(".*"))


def test_page_needs_nothing_from_outside(reported: Path) -> None:
    page = (reported / "report.html").read_text(encoding="utf-8")
    assert page.count(get_plotlyjs()) == 1
    elements = Elements(page.replace(get_plotlyjs(), "")).found
    for tag, attributes in elements:
        for name in ("src", "href", "srcset", "data", "poster"):
            target = attributes.get(name) or ""
            if tag != "a":
                assert target == "" or target.startswith("data:"), (tag, target)
            elif name == "href":
                assert target.startswith(("figures/", "https://arxiv.org/")), target
    rest = page.replace(get_plotlyjs(), "")
    assert "@import" not in rest and not re.search(r"url\(\s*['\"]?(https?:)?//", rest)
    assert "default-src 'none'" in rest  # a browser refuses to fetch even what slipped through
    linked = {a["href"] for tag, a in elements if tag == "a" and str(a["href"]).startswith("figures/")}
    assert linked == {f"figures/{key}.{suffix}" for key in KEYS for suffix in ("svg", "pdf")}
    assert all((reported / str(path)).is_file() for path in linked)


def test_page_shows_its_parts(reported: Path) -> None:
    page = (reported / "report.html").read_text(encoding="utf-8").replace(get_plotlyjs(), "")
    text = visible(page)
    for sentence in (
        "A bottleneck of dimension 3 between p = 0.15 and p = 0.85.",
        "No doubts were recorded.",
        "A critical point, for practical purposes",
        "arXiv:2405.17573",
        "effective_depth: 7.0",
        "versions.torch 2.13.0+cpu",
        "seed of the run 3",
        "show all 32 columns",
        "show all 11 columns",
    ):
        assert sentence.replace(" ", "") in text.replace(" ", ""), sentence
    places = re.findall(r'class="plot" id="plot-([a-z]+-\d)"', page)
    assert len(places) == 15 and all(f'"{place}":{{' in page for place in places)
    assert page.count('<tr class="slow">') == 12 and page.count("<tr>") + 12 > 20


def test_writing_again_overwrites_and_clears(make_run: Make) -> None:
    folder = make_run()
    stale = folder / "figures" / "path.svg"
    stale.parent.mkdir()
    stale.write_text("old")
    own = folder / "figures" / "mine.svg"
    own.write_text("kept")
    (folder / "report.html").write_text("old")
    (folder / "projection.parquet").unlink()
    (folder / "spectra.parquet").unlink()
    assert write_report(str(folder)) == folder / "report.html"
    assert not stale.exists() and own.read_text() == "kept"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "projection.parquet is missing or empty: its figure is left out." in page
    assert "plot-path" not in page.replace(get_plotlyjs(), "")


def test_doubts_and_caveats_appear(make_run: Make) -> None:
    doubts = ["the largest residual is 0.9", "no plateau between p = 0.2 and p = 0.8"]
    text = visible(page_of(make_run(residual=0.9, summary={"doubts": doubts})))
    for sentence in (
        *doubts,
        "not to be trusted as it stands",
        "Not a critical point",
        "Columns made from H or B",
    ):
        assert sentence in text
    assert text.count("Optimisation error, not physics: the largest residual is 0.9 (above 0.1)") == 3
    assert "These energies show optimisation error, not physics" in text
    assert "optimisation error: see the certificate" in text


def test_a_verdict_trusted_against_the_residual_is_doubted(make_run: Make) -> None:
    text = visible(page_of(make_run(residual=0.9, summary={"doubts": [], "trusted": True})))
    assert "not to be trusted as it stands" in text
    assert "The stationarity residual does not support an estimate made from H." in text


def test_no_residual_no_certificate(make_run: Make) -> None:
    text = visible(page_of(make_run(summary={"residual_max": None, "verdict": None})))
    assert "No certificate" in text and "Rank estimate: 3." in text


@pytest.mark.parametrize(
    ("summary", "sentence"),
    [
        (
            {"kind": "saddle", "kind_reason": "in one direction the objective bends down", "least_eigenvalue": -0.25},
            "It is a saddle: in one direction the objective bends down; the least is −0.25 μ.",
        ),
        (
            {"kind": "undecided", "kind_reason": "a ReLU has kinks", "least_eigenvalue": None},
            "Minimum or saddle is undecided: a ReLU has kinks.",
        ),
        ({}, "finitely many layers."),  # of a run from before it was looked for nothing is said
    ],
)
def test_the_kind_of_a_critical_point_is_said(make_run: Make, summary: dict[str, object], sentence: str) -> None:
    text = visible(page_of(make_run(residual=5e-5, summary=summary)))
    assert sentence in text and ("saddle" in text) == ("kind" in summary)
    assert "saddle" not in visible(page_of(make_run(residual=5e-4, summary=summary)))


def test_markup_of_a_user_is_escaped(make_run: Make) -> None:
    evil = "</script><script>alert(1)</script>{{ 7 * 7 }}"
    summary = {
        "verdict": evil,
        "method": evil,
        "doubts": [evil],
        "message": evil,
        "task": evil,
        "activation": evil,
    }
    folder = make_run(name=evil, summary=summary)
    (folder / "environment.json").write_text('{"command": "<script>alert(1)</script>"}')
    import polars as pl

    table = pl.read_parquet(folder / "history.parquet")
    table.with_columns((pl.col("stage") + evil).alias("stage")).write_parquet(folder / "history.parquet")
    page = page_of(folder)
    assert "<script>alert" not in page and "</script><script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 8
    assert "{{ 7 * 7 }}" in page and page.count("<script") == 3
    assert '"stage"' not in page and "‹script›alert(1)‹/script›" in page


def test_missing_numbers_are_dashes(make_run: Make) -> None:
    page = page_of(make_run(effective_depth=0.0))
    assert 'data-sort="">–</td>' in page and "Not defined at L̃ = 0." in page
    for word in ("nan", "NaN", "None", "null"):
        assert word not in visible(page)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classes": 10, "rank": 8}, "Test accuracy96.72 %"),
        ({"collapsed": True}, "the network has collapsed to zero"),
        (
            {"status": "diverged", "rows": 2},
            "diverged: 10 steps in 3 min 7 s – loss became NaN at layer 4. lower the rate.",
        ),
        ({"depth": 1}, "Layers L1"),
        (
            {"rows": 0, "status": "interrupted"},
            "interrupted at step 0: everything below describes an unfinished run",
        ),
    ],
)
def test_unusual_runs_have_a_page(make_run: Make, changes: dict[str, Any], sentence: str) -> None:
    assert sentence.replace(" ", "") in visible(page_of(make_run(**changes))).replace(" ", "")


@pytest.mark.parametrize("package", ["plotly", "matplotlib", "jinja2"])
def test_missing_package_says_how_to_install(make_run: Make, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    folder = make_run()
    with pytest.raises(ImportError, match=rf"the report needs {package}.*pip install 'isthmus\[report\]'"):
        write_report(folder)
    assert not (folder / "report.html").exists() and not (folder / "figures").exists()


def test_a_failed_write_keeps_the_old_page(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from isthmus import _support

    target = make_run() / "report.html"
    target.write_text("old")

    def broken(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(_support.os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        _support.write_bytes(target, b"new")
    assert target.read_text() == "old" and not list(target.parent.glob("*.tmp")) and not list(target.parent.glob(".*"))


def test_importing_the_room_is_light() -> None:
    import subprocess

    code = (
        "import sys, isthmus.report as r; heavy = set('polars plotly matplotlib jinja2 rich torch'.split());"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); assert 'write_report' in dir(r)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_names_of_the_room() -> None:
    import isthmus.report as room

    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        room.nothing  # noqa: B018
