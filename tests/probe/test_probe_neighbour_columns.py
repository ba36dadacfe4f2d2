"""Dimensions by neighbours in a profile: which rows are kept, what is refused, and neighbourhoods of two layers."""

import math

import pytest
import torch
from torch import nn

from isthmus.probe import Profile, probe
from isthmus.probe.dimensions import two_nn
from isthmus.probe.kept import KeptRows


class Block(nn.Module):
    """``x + W relu(x)``."""

    def __init__(self, width):
        super().__init__()
        self.l = nn.Linear(width, width)

    def forward(self, x):
        return x + 0.3 * self.l(torch.relu(x))


def net(d=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(d, 12), Block(12), Block(12), nn.Linear(12, 2))


def test_the_dimension_of_the_inputs_is_found_where_the_linear_one_is_greater():
    x = torch.rand(1200, 1)
    curve = torch.cat((x.mul(9).sin(), x.mul(9).cos(), x), 1)  # a helix: one dimension, three directions
    profile = probe(net(), curve, neighbours=800)
    row = profile.layers.index("1")
    assert profile["participation_ratio_rows"][row] > 1.5
    assert profile["two_nn"][row] == pytest.approx(1, abs=0.15) and 0 < profile["two_nn_se"][row] < 0.1
    assert profile.neighbour_dimension("1").rows == 800
    assert profile["two_nn"][row] == two_nn(profile.kept("1"), max_rows=800).value
    assert "TwoNN" in str(profile)
    by_scale = profile.dimension_by_scale("1")
    assert [one.rank for one in by_scale][:3] == [2, 4, 8]


def test_the_same_rows_of_all_layers_and_of_any_cut_that_keeps_the_batches():
    x = torch.randn(300, 3)
    profile = probe(net(), x, neighbours=50, batch_size=100)
    kept = {name: profile.kept(name) for name in profile.layers}
    with torch.no_grad():
        torch.testing.assert_close(kept["3"], net()[3](kept["2"]))
    assert profile.overlap("0", "2", 5).value > 5 * profile.overlap("0", "2", 5).control
    again = probe(net(), x, neighbours=50, batch_size=100)
    assert torch.equal(again.kept("0"), kept["0"])


def test_padding_is_never_kept():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(Block(4), Block(4))

        def forward(self, x, mask):
            return self.blocks(x)

    x, mask = torch.randn(30, 20, 4), torch.arange(20)[None] < torch.randint(1, 21, (30, 1))
    x[~mask] = 1e6
    profile = probe(Tokens(), {"x": x, "mask": mask}, mask="mask", neighbours=100)
    assert float(profile.kept(profile.layers[0]).abs().max()) < 100


def test_what_is_refused_is_none_and_said():
    profile = probe(net(), torch.randn(60, 3), neighbours=60)
    assert profile["two_nn"] == [None] * len(profile.layers)
    assert "no TwoNN of 0, 1:input" in str(profile)
    assert not profile.neighbour_dimension("0").trusted
    plain = probe(net(), torch.randn(60, 3))
    assert "two_nn" not in plain.columns
    with pytest.raises(ValueError, match=r"no rows were kept: probe\(…, neighbours=2000\) keeps some"):
        plain.overlap("0", "1")
    with pytest.raises(ValueError, match="neighbours: expected 3 rows or more, 2000 is good, got 2"):
        probe(net(), torch.randn(60, 3), neighbours=2)


def test_layers_of_other_positions_have_no_overlap():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2)

        def forward(self, x):
            return self.b(self.a(x))

    profile = probe(Pooled(), torch.randn(20, 1, 8, 8), neighbours=40)
    with pytest.raises(ValueError, match="a and b keep different rows"):
        profile.overlap("a", "b", 3)


def test_kept_rows_travel_and_merge_to_a_draw_of_all():
    x = torch.randn(400, 3)
    one, two = probe(net(), x[:200], neighbours=150), probe(net(), x[200:], neighbours=150)
    both = Profile.from_state_dict(one.state_dict()).merge(two)
    kept = both.record("0").kept
    assert kept.seen == 400 and len(kept.rows) == 150
    parts = torch.cat((one.kept("0"), two.kept("0")))
    assert all(bool((parts == row).all(1).any()) for row in kept.rows)
    with pytest.raises(ValueError, match="only draws of as many rows merge: 3 here, 4 there"):
        KeptRows(3).merge(KeptRows(4))


def test_the_draw_is_uniform():
    hits = torch.zeros(40)
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        kept = KeptRows(10)
        for start in range(0, 40, 8):
            rows = torch.arange(start, start + 8.0)[:, None]
            kept.update(rows, torch.rand(8, dtype=torch.float64, generator=generator))
        hits[kept.rows[:, 0].long()] += 1
    # 300 draws of a quarter: mean 75, deviation 7.5; the greatest of 40 deviations is below four of them
    assert float((hits - 75).abs().max()) < 4 * math.sqrt(300 * 0.25 * 0.75)


def test_parts_of_the_data_draw_rows_of_their_own():
    x = torch.randn(400, 3)
    one, two = (probe(net(), part, neighbours=50, batch_size=100) for part in (x[:200], x[200:]))
    same = torch.isin(one.record("0").kept.priorities, two.record("0").kept.priorities)
    assert not bool(same.any())
    again = probe(net(), x[:200], neighbours=50, batch_size=100)
    assert torch.equal(again.record("0").kept.priorities, one.record("0").kept.priorities)
