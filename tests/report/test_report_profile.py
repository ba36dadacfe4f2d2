"""The page, figures, words and table of a profile."""

import io
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import polars
import pytest
import torch
from plotly.offline import get_plotlyjs
from rich.console import Console
from torch import nn

from isthmus.activations import Identity
from isthmus.probe import Profile, probe
from isthmus.report import ProfileData, null_controls, render_profile, write_profile_page
from isthmus.report.printed import draw
from isthmus.report.profile.figures import KEYS, profile_figures, shortened
from isthmus.report.profile.page import ProfilePage
from isthmus.report.profile.terminal import profile_rows, profile_text
from isthmus.report.profile.words import account, narrowest, profile_cards
from isthmus.report.spec import Figure, Panel, Series
from isthmus.report.web import specification

WIDTH, RANK = 10, 3


class Block(nn.Module):
    """A step of a given size in a given subspace."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        with torch.no_grad():
            self.out.weight.copy_(size * torch.eye(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(torch.relu(x))


def subspace(samples: int = 400) -> torch.Tensor:
    """Non-negative data of a rank: its cost of identity is the rank."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(samples, RANK, generator=generator) @ torch.rand(RANK, WIDTH, generator=generator)


def network() -> nn.Module:
    return nn.Sequential(*(Block(size) for size in (1.0, 0.02, 0.5)))


def profile_of(samples: int = 400, **options: object) -> Profile:
    return probe(network(), subspace(samples), **{"kinds": ("stream", "block"), **options})


def data_of(profile: Profile, kind: str = "shuffled", **fields: object) -> ProfileData:
    nulls = null_controls(profile, kind)
    return ProfileData(profile, "nets:make", "data.npz", nulls, kind, **fields)


@pytest.fixture(scope="module")
def data() -> ProfileData:
    return data_of(profile_of(kinds=("stream", "block", "linear")), notes=("labels left out",))


@pytest.fixture(scope="module")
def written(data: ProfileData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profile") / "deep" / "er"
    assert write_profile_page(data, folder) == folder / "profile.html"
    return folder


def page_of(data: ProfileData) -> str:
    return ProfilePage(data).render(profile_figures(data), {}).replace(get_plotlyjs(), "")


def visible(page: str) -> str:
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", body))


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_is_self_contained(written: Path) -> None:
    page = (written / "profile.html").read_text(encoding="utf-8")
    assert page.count(get_plotlyjs()) == 1
    rest = page.replace(get_plotlyjs(), "")
    assert "default-src 'none'" in rest and "@import" not in rest
    for target in re.findall(r'\b(?:src|href)="([^"]*)"', rest):
        assert target.startswith(("data:", "figures/profile-", "https://arxiv.org/")), target
    for key in KEYS:
        root = ElementTree.fromstring((written / "figures" / f"{key}.svg").read_bytes())
        assert len(list(root.iter())) > 30
        assert (written / "figures" / f"{key}.pdf").read_bytes().startswith(b"%PDF-")
    assert {p.name for p in (written / "figures").iterdir()} == {f"{k}.{s}" for k in KEYS for s in ("svg", "pdf")}


def test_the_page_shows_its_parts(data: ProfileData) -> None:
    page = page_of(data)
    text = visible(page)
    for part in (
        "data data.npz samples 400",
        "labels left out",
        "null control shuffled",
        "Narrowest at ",
        "Neither knows the loss",
        "Everything was read.",
    ):
        assert part in text, part
    assert re.findall(r'id="plot-(profile-[a-z]+-\d)"', page) == [f"{key}-{i}" for key in KEYS for i in (0, 1)]
    assert page.count('<tr class="slow">') == 1  # the block that moves the state by 2 %
    for word in ("nan", "None", "null<"):
        assert word not in text


def test_a_users_markup_is_escaped() -> None:
    evil = "</script><script>alert(1)</script>{{ 7 * 7 }}$x$"
    net = nn.Sequential()
    net.add_module("a<script>{p}$", nn.Sequential(nn.Linear(WIDTH, WIDTH)))
    net.add_module("b<script>{p}$", nn.Sequential(nn.Linear(WIDTH, WIDTH)))
    profile = probe(net, subspace(60))
    shown = ProfileData(profile, evil, evil, notes=(evil,))
    page = page_of(shown)
    assert "<script>alert" not in page and page.count("<script") == 3
    assert "‹script›" in page
    assert all(draw(figure) for figure in profile_figures(shown))


def test_writing_again_clears_figures_without_data(tmp_path: Path) -> None:
    write_profile_page(profile_of(), tmp_path)
    own = tmp_path / "figures" / "mine.svg"
    own.write_text("kept")
    write_profile_page(probe(network(), subspace(), ["0"], method="gram"), tmp_path)
    assert (tmp_path / "figures" / "profile-steps.svg").exists()  # a block has its own input to be compared with
    write_profile_page(probe(nn.Linear(WIDTH, 4), subspace(), ["(model)"]), tmp_path)
    assert not (tmp_path / "figures" / "profile-steps.svg").exists() and own.read_text() == "kept"
    assert "plot-profile-steps" not in (tmp_path / "profile.html").read_text()


@pytest.mark.parametrize("package", ["plotly", "matplotlib", "jinja2"])
def test_a_missing_package_says_how_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"the report needs {package}.*pip install 'isthmus\[report\]'"):
        write_profile_page(profile_of(), tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- figures --------------------------------------------------------------------------------------------------------


def labelled(figures: tuple[Figure, ...], key: str, panel: int = 0) -> dict[str, Series]:
    (figure,) = [f for f in figures if f.key == key]
    return {series.label: series for series in figure.panels[panel].series}


def test_the_dimension_is_followed_along_the_stream_with_its_errors_and_control(data: ProfileData) -> None:
    ratio = labelled(profile_figures(data), "profile-dimension")
    assert ratio["corrected for finite rows"].y == [layer.value("participation_ratio_rows") for layer in data.main]
    shown = labelled(profile_figures(data), "profile-dimension", 1)
    cost = shown["stable cost of identity {COI}"]
    names = [layer.name for layer in data.main]
    assert names == ["0:input", "0", "1", "2"]
    assert cost.x == [layer.place for layer in data.main] and cost.y == [
        layer.value("coi_stable") for layer in data.main
    ]
    assert cost.y == pytest.approx([RANK] * 4, abs=0.3)  # the exact cost is 3, γ takes a little
    assert cost.error == [layer.row["coi_stable_se"] for layer in data.main] and all(e > 0 for e in cost.error)
    assert [h.partition(": ")[2] for h in cost.hover] == names
    assert all(null > 1.5 * RANK for null in shown["null control (shuffled)"].y)
    assert shown["width"].y == [WIDTH] * 4
    assert shown["other layers"].y == [layer.value("coi_stable") for layer in data.others]


def test_lines_break_between_stacks() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = network(), network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    shown = ProfileData(probe(Two(), subspace(), kinds=("stream", "block")))
    cost = labelled(profile_figures(shown), "profile-dimension", 1)["stable cost of identity {COI}"]
    assert cost.x == [1, 2, 3, 4, None, 5, 6, 7, 8] and cost.y[4] is None and cost.error[4] is None


def test_spectra_are_relative_and_centred(data: ProfileData) -> None:
    figures = profile_figures(data)
    (figure,) = [f for f in figures if f.key == "profile-spectra"]
    along, each = figure.panels
    layer = data.main[0]
    s = data.profile.moments(layer.name).spectrum(centred=True)
    assert [series.y[0] for series in along.series[:RANK]] == pytest.approx((s[:RANK] / s[0]).tolist())
    assert each.series[0].y[:RANK] == pytest.approx((s[:RANK] / s[0]).tolist())
    assert all(value is None for value in each.series[0].y[RANK:])  # rounding, below the axis
    assert f"{4 * (WIDTH - RANK)} singular values below 1e-6 of the largest are not drawn." in figure.notes
    assert [name for _, name in along.names] == ["0:input", "0", "1", "2"]


def test_idle_steps_are_shaded(data: ProfileData) -> None:
    (figure,) = [f for f in profile_figures(data) if f.key == "profile-steps"]
    change, influence = (panel.series[0] for panel in figure.panels)
    idle = next(layer for layer in data.layers if layer.name == "1")
    assert figure.panels[0].bands == ((idle.place - 0.5, idle.place + 0.5),)
    # non-negative states, scaled by 2, 1.02, 1.5: steps 1/2, 0.02/1.02, 1/3, and no turn
    assert [y for y in change.y if y is not None] == pytest.approx([1 / 2, 0.02 / 1.02, 1 / 3], rel=1e-6)
    assert [abs(y) < 1e-6 for y in influence.y] == [True] * 3


def test_many_layers_get_a_few_names_and_wide_states_a_few_lines() -> None:
    deep = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64)) for _ in range(60)))
    shown = ProfileData(probe(deep, torch.rand(200, 64), kinds=("block",), shards=1))
    figures = profile_figures(shown)
    for figure in figures:
        for panel in figure.panels:
            assert len(panel.names) <= 18 and len(panel.series) <= 41
            assert specification(panel)["data"]
    dimension, spectra = figures[:2]
    assert dimension.panels[0].names[:2] == ((1, "0"), (5, "4")) and dimension.panels[0].names[-1] == (57, "56")
    assert any("singular values, " in note for note in spectra.notes)
    assert shortened("encoder.layers.11.attention", 12) == "…1.attention"


def test_error_bars_and_names_reach_both_drawings() -> None:
    series = Series([1, 2], [3.0, 4.0], "a", error=[0.5, None])
    panel = Panel("t", "layer", "y", (series,), names=((1, "first"), (2, "second")))
    made = specification(panel)
    assert made["data"][0]["error_y"]["array"] == [0.5, None]
    assert made["layout"]["xaxis"]["ticktext"] == ["first", "second"]
    bare = draw(Figure("k", "t", (Panel("t", "layer", "y", (Series([1, 2], [3.0, 4.0], "a"),)),), "r"), ("svg",))
    full = draw(Figure("k", "t", (panel,), "r"), ("svg",))["svg"]
    assert full.count(b"LineCollection") > bare["svg"].count(b"LineCollection")


# --- words ----------------------------------------------------------------------------------------------------------


def test_a_bottleneck_is_named_and_told_from_chance(data: ProfileData) -> None:
    said = account(data)
    assert re.match(r"Narrowest at \S+: dimension 1\.\d+ ± \d\S* \(participation ratio\), of width 10\.", said.headline)
    assert any(s.startswith("That is lower than the shuffled null control") for s in said.sentences)
    assert any(s.startswith("1 (2 %) moves the state by less than 10%") for s in said.sentences)
    assert said.doubts == ()
    cards = {card.label: card for card in profile_cards(data)}
    least = min(layer.value("participation_ratio_rows") or 99.0 for layer in data.main)
    assert float(cards["Least dimension"].value) == pytest.approx(least, abs=0.01)
    assert cards["Idlest layer"].value == "1.96 %"
    assert cards["σ of the cost"].value == "2 kinds"
    assert cards["σ of the cost"].detail.startswith("ReLU, 1 appended; Identity without the 1; γ₀ = ")


def test_noise_is_not_called_a_bottleneck() -> None:
    noise = torch.rand(400, WIDTH, generator=torch.Generator().manual_seed(1))
    said = account(data_of(probe(network(), noise, kinds=("stream", "block"))))
    assert any("is not lower than the shuffled null control has it" in doubt for doubt in said.doubts)
    assert not any(s.startswith("That is lower") for s in said.sentences)


def test_states_that_relu_cannot_carry_are_read_by_their_participation_ratio() -> None:
    signed = torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(1))
    profile = probe(network(), signed, ["0:input", "0"])
    data = data_of(profile)
    said = account(data)
    found = narrowest(data)
    assert found is not None and found.key == "participation_ratio_rows"
    assert "(participation ratio), of width 10" in said.headline and "cost of identity" not in said.headline
    assert any(s.startswith("Implied effective depth of (model)[0:3]: ") for s in said.sentences)
    assert any(d.startswith("0:input, 0: the cost of identity (COI) is above the width") for d in said.doubts)
    identity = probe(network(), signed, ["0:input", "0"], activation=Identity(append_one=False))
    assert not any("above the width" in doubt for doubt in account(ProfileData(identity)).doubts)
    few = probe(network(), signed[:3], ["0:input", "0"], shards=1)  # three rows: no correction, and the words say so
    assert "(participation ratio, not corrected for finite rows)" in account(ProfileData(few)).headline


def test_the_output_of_a_network_without_a_stream_is_not_its_bottleneck() -> None:
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2))
    with torch.no_grad():
        for layer in net:
            layer.weight.abs_()
            layer.bias.zero_()
    found = narrowest(ProfileData(probe(net, subspace())))
    assert found is not None and found.layer.name == "0" and found.key == "participation_ratio_rows"


@pytest.mark.parametrize(
    ("made", "doubt"),
    [
        (lambda: data_of(profile_of(samples=60)), r"fewer than 10 rows a neuron \(least: 60 for width 10 at 0:input\)"),
        (lambda: ProfileData(profile_of(shards=1)), "No standard error: one shard"),
        (lambda: ProfileData(profile_of()), "No null control was made"),
        (lambda: data_of(profile_of(), whole=False), r"Only the first batches were read \(--max-batches\)"),
        (
            lambda: ProfileData(probe(network().half(), subspace().half(), kinds=("block",))),
            "States came in float16: directions below 5e-4",
        ),
        (
            lambda: ProfileData(probe(network(), subspace(), ["0", "1"], output={"1": "absent"})),
            r"1 chosen but not read: 1 \(output='absent' does not lead",
        ),
    ],
)
def test_doubts(made: object, doubt: str) -> None:
    assert any(re.search(doubt, one) for one in account(made()).doubts), account(made()).doubts


def test_a_rough_dimension_is_called_so() -> None:
    x = subspace(400)
    x[0] = 0
    x[0, 0] = 1000.0  # one outlier makes a shard unlike the others
    said = account(data_of(probe(network(), x, ["0:input"])))
    assert any("is known to" in doubt and "% only" in doubt for doubt in said.doubts)


# --- tables ---------------------------------------------------------------------------------------------------------


def test_the_frame_has_the_control_beside_what_it_controls(data: ProfileData) -> None:
    frame = data.frame()
    assert frame["layer"].to_list() == data.profile.layers
    null = data.profile.null("0", "shuffled")["coi_stable"]
    row = frame.filter(polars.col("layer") == "0")
    assert row["null_coi_stable"].item() == pytest.approx(null[0])
    assert row["null_coi_stable_sd"].item() == pytest.approx(null[1])
    assert not any(name.startswith("null_") for name in ProfileData(data.profile).frame().columns)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_table_fits_the_screen(data: ProfileData, width: int) -> None:
    heads, body = profile_rows(data, width, gap=2)
    assert heads[0] == "layer" and {"width", "dimension", "step"} <= set(heads)
    text = profile_text(data, width).splitlines()
    table = text[1 : 2 + len(body)]
    assert all(len(line) <= max(width, 60) for line in table)
    console = Console(width=width, record=True, force_terminal=True, file=io.StringIO())
    render_profile(data, console)
    assert all(len(line) <= width for line in console.export_text().splitlines())


def test_what_was_not_read_is_listed_with_its_reason(data: ProfileData) -> None:
    text = profile_text(data_of(probe(network(), subspace(), ["0", "1"], output={"1": "absent"}), "none"))
    assert re.search(r"Not read \(\d\):\n  1 \(Block\): output='absent' does not lead to a tensor", text)
    assert "2 (Block)" in text and "not among the layers asked for" in text
    page = page_of(data_of(probe(network(), subspace(), ["0", "1"], output={"1": "absent"}), "none"))
    assert page.count('<tr class="chosen">') == 1


def test_a_narrow_output_gets_ascii(data: ProfileData, tmp_path: Path) -> None:
    with open(tmp_path / "out.txt", "w", encoding="ascii") as file:
        render_profile(data, Console(file=file, width=100))
    assert "+/-" in (tmp_path / "out.txt").read_text()
