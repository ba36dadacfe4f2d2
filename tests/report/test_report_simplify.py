"""The page of a simplified network: its words, figures and tables say what `simplify` found."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from isthmus.probe import simplify
from isthmus.report import write_simplify_page
from isthmus.report.simplify.figures import simplify_figures
from isthmus.report.simplify.page import SimplifyPage
from isthmus.report.simplify.words import account, simplify_cards


class Block(nn.Module):
    """``x + size·relu(W x)``."""

    def __init__(self, size):
        super().__init__()
        self.l, self.size = nn.Linear(6, 6), size

    def forward(self, x):
        return x + self.size * torch.relu(self.l(x))


def make(sizes=(0.01, 1.0, 0.02, 1.0)):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), *(Block(size) for size in sizes), nn.Linear(6, 1))
    x = torch.randn(80, 4)
    return net, [(x, net(x).detach())]


def found(**options):
    net, data = make()
    return simplify(net, data, nn.functional.mse_loss, **options)


def test_words_and_cards_are_the_numbers():
    made = found(drop=2)
    said = account(made)
    assert said.headline.startswith("2 of 4 blocks went: 1, 3. The loss went from 0 to ")
    assert "report accuracy on other data" in said.doubts[-1]
    cards = {card.label: card.value for card in simplify_cards(made)}
    assert cards["Blocks"] == "2" and cards["Measured change"].startswith("+")


def test_nothing_dropped_is_said():
    made = found(max_increase=-1.0)
    assert made.dropped == ()
    assert account(made).headline.startswith("Nothing was dropped")
    assert [f.key for f in simplify_figures(made)] == ["simplify-ranking"]


def test_a_prediction_far_off_is_a_doubt():
    made = found(drop=2)
    assert not any("far off" in doubt for doubt in account(made).doubts)
    worse = replace(made, loss_after=made.loss_before + 3 * made.predicted)
    assert any("far off" in doubt for doubt in account(worse).doubts)


def test_the_curve_adds_rounds_up_and_ends_at_the_loss():
    made = found(drop=3)
    (loss, ranking) = simplify_figures(made)
    measured, predicted = loss.panels[0].series
    assert measured.y[0] == predicted.y[0] == made.loss_before
    assert measured.y[-1] == pytest.approx(made.loss_after, rel=1e-6)
    assert predicted.y[-1] == pytest.approx(made.loss_before + made.predicted)
    went, stayed = ranking.panels[0].series
    assert len(went.x) == 3 and len(stayed.x) == 1


def test_the_page_is_one_file_with_every_block(tmp_path):
    made = found(budget={"parameters": 130}, max_increase=10.0)
    page = write_simplify_page(made, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert page.name == "simplify.html" and not re.search(r'<(script|img|link)[^>]+(src|href)="https?:', text)
    for name in ("1", "2", "3", "4"):
        assert f">{name}</" in text
    assert "parameters" in text
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        f"{key}.{form}" for key in ("simplify-loss", "simplify-ranking") for form in ("svg", "pdf")
    }
    assert SimplifyPage(made).title == "Sequential, simplified"
