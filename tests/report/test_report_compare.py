"""The page, maps, words and table of a comparison."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plotly.offline import get_plotlyjs
from rich.console import Console
from torch import nn

from isthmus.probe import Comparison, compare
from isthmus.probe.similarity import DepthTest
from isthmus.report import compare_text, render_compare, write_compare_page
from isthmus.report.compare.figures import KEYS, compare_figures, maps
from isthmus.report.compare.page import ComparePage, nearest_rows
from isthmus.report.compare.words import account, compare_cards


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.f(x)


def network(width: int = 8, depth: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, width), *(Block(width) for _ in range(depth)), nn.Linear(width, 3))


def rows(samples: int = 100) -> torch.Tensor:
    return torch.randn(samples, 5, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def found() -> Comparison:
    return compare(network(), network(11, 4, 1), rows(), names=("one <b>", "two"))


@pytest.fixture(scope="module")
def itself() -> Comparison:
    return compare(network(), None, rows(), names=("one", "one"))


@pytest.fixture(scope="module")
def written(found: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("compare") / "deep" / "seeds.html"
    assert found.save(file) == file
    return file


def visible(page: str) -> str:
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page.replace(get_plotlyjs(), ""), flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


def page_of(comparison: Comparison) -> str:
    return ComparePage(comparison).render(compare_figures(comparison), {})


def test_the_page_is_one_file_with_its_figures_beside_it(written, found):
    page = written.read_text()
    assert sorted(file.name for file in (written.parent / "figures").iterdir()) == [f"{KEYS[0]}.pdf", f"{KEYS[0]}.svg"]
    assert not re.search(r'(?:src|href)="https?://(?!arxiv\.org)', page.replace(get_plotlyjs(), ""))
    assert "one &lt;b&gt; against two" in page and "<b> against" not in page
    assert write_compare_page(found, written.parent / "folder").name == "compare.html"


def test_the_maps_hold_every_pair_and_frame_the_nearest(found):
    page = page_of(found)
    heat = re.search(r'id="heat-cka">(.*?)</table>', page, flags=re.S)
    assert heat is not None
    cells = re.findall(r"<td( class=\"nearest\")? style=[^>]*>([^<]*)</td>", heat[1])
    assert len(cells) == len(found.layers_a) * len(found.layers_b) == 20
    values = [float(text.replace("−", "-")) for _, text in cells]
    assert values == pytest.approx(found.cka.flatten().tolist(), abs=0.00501)
    framed = [place for place, (nearest, _) in enumerate(cells) if nearest]
    expected = [i * 5 + found.layers_b.index(one.to) for i, one in enumerate(found.nearest)]
    assert framed == expected
    assert [one.key for one in maps(found)] == ["cka", "procrustes"]
    without = compare(network(), None, rows(), procrustes=False)
    assert [one.key for one in maps(without)] == ["cka"]


def test_letters_on_dark_cells_are_white(itself):
    for layer, cells in maps(itself)[0].rows:
        own = next(cell for cell in cells if cell.title.startswith(f"{layer} ↔ {layer}: "))
        assert own.text == "1.00" and own.ink == "#1b1f24" and not own.nearest
    control = maps(compare(network(), network(seed=1), rows()))[1].rows
    assert {cell.ink for _, cells in control for cell in cells} <= {"#ffffff", "#1b1f24"}


def test_page_and_terminal_say_the_same(found):
    page, text, said = visible(page_of(found)), compare_text(found), account(found)
    for sentence in (said.headline, *said.sentences, *said.doubts):
        assert sentence.replace("<b>", "&lt;b&gt;") in page and sentence in text
    assert found.verdict == said.headline == text.splitlines()[0]
    for row, one in zip(nearest_rows(found), found.nearest, strict=True):
        assert row["cka"] == one.cka and row["to"] == one.to
        assert any(line.split()[:2] == [one.layer, one.to] for line in text.splitlines())


def test_the_figure_shows_intervals_controls_and_which_layer(found, itself):
    (figure,) = compare_figures(found)
    near, same, *controls = figure.panels[0].series
    assert list(near.y) == [one.cka for one in found.nearest] and len(near.error) == 4
    assert near.y[0] + near.error[0] == pytest.approx(found.nearest[0].high)
    assert list(same.y) == [v for *_, v in found.at_matched_depth]
    assert [one.label for one in controls] == ["control: shuffled rows", "control: random weights"]
    assert list(figure.panels[1].series[1].y) == [found.layers_b.index(one.to) + 1 for one in found.nearest]
    (alone,) = compare_figures(itself)
    assert len(alone.panels) == 1 and "nearest other layer" in alone.panels[0].series[0].label


def test_one_network_is_said_to_be_one(itself):
    page = visible(page_of(itself))
    assert "one: layer against layer" in page and "One network against itself" in page
    assert "Groups" in [card.label for card in compare_cards(itself)]
    assert all("matched" not in row for row in nearest_rows(itself))


def test_what_was_not_compared_is_listed_with_the_reason():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1))
    page = visible(page_of(compare(net, None, torch.randn(25, 3, 8, 8))))
    assert "2 (Conv2d)" in page and "do not match the other layers" in page and "1 other modules" in page


@pytest.mark.parametrize(
    "matched, p, said",
    [(0.8, 0.001, "Similarity follows depth"), (0.51, 0.001, "hardly depends on depth"), (0.8, 0.4, "is not shown")],
)
def test_whether_depth_matters_is_said_by_size_and_chance(found, matched, p, said):
    words = account(replace(found, depth=DepthTest(matched, 0.5, p)))
    assert said in words.sentences[0] and f"{p:g}" in words.sentences[0]


def test_too_few_rows_make_a_page_that_says_so():
    short = compare(network(), network(seed=1), rows(2))
    page = visible(page_of(short))
    assert "2 rows are too few" in page and compare_figures(short) == () and "no intervals" in page
    assert "2 rows are too few" in compare_text(short)


def test_a_terminal_and_a_pipe(found):
    for terminal in (True, False):
        stream = io.StringIO()
        render_compare(found, Console(file=stream, force_terminal=terminal, width=100, color_system=None))
        assert found.layers_a[0] in stream.getvalue() and "95 % interval" in stream.getvalue()
