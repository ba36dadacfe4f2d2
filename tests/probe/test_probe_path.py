"""The way along depth: length, straightness, turning, with the shuffled order as control."""

import itertools
import math

import pytest
import torch
from torch import nn

from isthmus.model import LeakyResNet
from isthmus.probe import Profile, probe
from isthmus.probe.trajectory import PathMoments

F64 = torch.float64


class Shift(nn.Module):
    """``x + v``, by a vector of its own."""

    def __init__(self, v):
        super().__init__()
        self.v = nn.Parameter(torch.tensor(v))

    def forward(self, x):
        return x + self.v


def stack(*shifts):
    return nn.ModuleDict({"blocks": nn.Sequential(*(Shift(v) for v in shifts))})["blocks"]


def of(net, x, **options):
    (found,) = probe(net, x, kinds=("stream", "block"), **options).paths.values()
    return found


def test_a_straight_line():
    found = of(stack([1.0, 0.0], [2.0, 0.0], [0.5, 0.0]), torch.randn(40, 2))
    assert found["length"][0] == pytest.approx(3.5, rel=1e-5) and found["chord"][0] == pytest.approx(3.5, rel=1e-5)
    assert found["straightness"][0] == pytest.approx(1, rel=1e-5)
    assert found["turning"][0] == pytest.approx(0, abs=0.1) and found["turning_excess"][0] == pytest.approx(0, abs=0.1)
    assert found["straightness"][1] == pytest.approx(0, abs=1e-5)  # every row the same


def test_a_square_ends_where_it_began():
    found = of(stack([1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]).double(), torch.randn(40, 2, dtype=F64))
    assert found["chord"][0] == pytest.approx(0, abs=1e-6) and found["straightness"][0] == pytest.approx(0, abs=1e-6)
    assert found["turning"][0] == pytest.approx(90)
    # of six pairs of steps four are at right angles and two opposite: (4·90 + 2·180)/6
    assert found["turning_shuffled"][0] == pytest.approx(120)
    assert found["turning_excess"][0] == pytest.approx(90 - (180 + 180 + 90) / 3)
    assert found.joints == pytest.approx((90, 90, 90))


def test_against_a_plain_loop_and_however_the_data_are_cut():
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(6, 6)

        def forward(self, x):
            return x + self.l(torch.relu(x))

    net = nn.Sequential(Block(), Block(), Block()).double()
    x = torch.randn(90, 6, dtype=F64)
    states = [x]
    with torch.no_grad():
        for block in net:
            states.append(block(states[-1]))
    steps = [b - a for a, b in itertools.pairwise(states)]
    cos = [nn.functional.cosine_similarity(a, b) for a, b in itertools.pairwise(steps)]
    length = sum(s.norm(dim=1) for s in steps)
    for size in (90, 7):
        found = of(net, x, batch_size=size)
        assert found["length"][0] == pytest.approx(float(length.mean()))
        assert found["straightness"][0] == pytest.approx(float(((states[-1] - x).norm(dim=1) / length).mean()))
        assert found["turning"][0] == pytest.approx(math.degrees(float(torch.stack(cos).acos().mean())))
        turns = [nn.functional.cosine_similarity(a, b).acos() for a, b in itertools.pairwise(states)]
        assert found["angular_length"][0] == pytest.approx(math.degrees(float(torch.stack(turns).sum(0).mean())))
        assert found.rows == 90 and found["turning"][1] > 0


def test_shards_travel_and_merge():
    net, x = stack([1.0, 0.0, 0.5], [0.0, 1.0, 0.0]), torch.randn(64, 3)
    whole, one, two = (probe(net, part, kinds=("stream", "block")) for part in (x, x[:32], x[32:]))
    both = Profile.from_state_dict(one.state_dict()).merge(two)
    (a,), (b,) = whole.paths.values(), both.paths.values()
    assert a.values["length"][0] == pytest.approx(b.values["length"][0]) and a.rows == b.rows == 64
    assert "path along" in str(both) and "straightness" in str(both)


def test_padding_is_left_out_and_positions_are_thinned():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = stack([1.0, 0.0], [0.0, 1.0])

        def forward(self, x, mask):
            for block in self.blocks:
                x = block(x)
            return x

    x, mask = torch.randn(16, 40, 2), torch.arange(40)[None] < torch.randint(1, 41, (16, 1))
    profile = probe(Tokens(), {"x": x, "mask": mask}, mask="mask", kinds=("stream", "block"))
    (found,) = profile.paths.values()
    assert found.rows == int(mask.sum())  # 640 positions: all of them
    large = {"x": torch.randn(64, 400, 2), "mask": torch.ones(64, 400, dtype=torch.bool)}
    (found,) = probe(Tokens(), large, mask="mask", kinds=("stream", "block")).paths.values()
    assert 1000 <= found.rows <= 2100


def test_a_standing_stack_is_undefined_and_one_step_has_no_way():
    found = of(stack([0.0, 0.0], [0.0, 0.0]), torch.randn(10, 2))
    assert math.isnan(found["straightness"][0]) and math.isnan(found["turning"][0]) and found["length"][0] == 0
    assert "nan" in str(found)
    assert probe(nn.Sequential(nn.Linear(2, 2), Shift([1.0, 0.0])), torch.randn(10, 2)).paths == {}


def test_of_a_leaky_resnet_it_is_that_of_its_states():
    torch.manual_seed(0)
    model = LeakyResNet(3, 2, width=8, depth=5, effective_depth=2.0)
    x = torch.randn(30, 3)
    profile = probe(model, x)
    path = model.trajectory(x).detach().double()
    path = path if path.shape[1] == 30 else path.transpose(1, 2)
    length = (path[1:] - path[:-1]).norm(dim=2).sum(0).mean()
    assert profile.paths["trajectory"]["length"][0] == pytest.approx(float(length), rel=1e-5)


def test_ways_of_other_steps_do_not_merge():
    with pytest.raises(ValueError, match="only ways of the same steps merge: 2 here, 3 there"):
        PathMoments(2).merge(PathMoments(3))
