"""Idle blocks: predictions against finite differences and measurements; smaller networks that work."""

import copy

import pytest
import torch
from torch import nn

from isthmus import LeakyResNet
from isthmus.probe import merge_pair, rank_blocks, simplify
from isthmus.probe.gates import PassThrough

F64 = torch.float64
cross_entropy = nn.functional.cross_entropy


class Block(nn.Module):
    def __init__(self, width=8, scale=1.0, tuples=False):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, width))
        self.scale, self.tuples = scale, tuples

    def forward(self, x):
        y = x + self.scale * self.f(x)
        return (y, None) if self.tuples else y


class Net(nn.Module):
    """Its blocks are called one after the other, or (``numbered``) by number."""

    def __init__(self, scales=(0.5, 0.01, 0.3, 0.05), numbered=False, tuples=False):
        super().__init__()
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(Block(scale=s, tuples=tuples) for s in scales)
        self.numbered, self.tuples = numbered, tuples

    def forward(self, x):
        x = self.stem(x)
        for i, block in enumerate(self.blocks):
            y = self.blocks[i](x) if not self.numbered else (self.blocks[3](x) if i == 3 else block(x))
            x = y[0] if self.tuples else y
        if self.numbered:
            assert len(self.blocks) == 4, "four blocks are needed"
        return self.head(x)


def data(samples=60, dtype=torch.float32):
    return [(torch.randn(samples, 5, dtype=dtype), torch.randint(0, 3, (samples,))) for _ in range(2)]


def loss_of(model, batches, loss=cross_entropy):
    with torch.no_grad():
        return sum(float(loss(model(x), y)) * len(x) for x, y in batches) / sum(len(x) for x, _ in batches)


def test_predictions_are_the_derivatives_at_the_gates():
    net, batches = Net().double(), data(dtype=F64)
    found = {c.name: c for c in rank_blocks(net, batches, cross_entropy)}
    first = {c.name: c for c in rank_blocks(net, batches, cross_entropy, order=1)}
    for i, block in enumerate(net.blocks):
        scale, values, h = block.scale, [], 1e-3
        for t in (1 - h, 1.0, 1 + h):
            block.scale = t * scale
            values.append(loss_of(net, batches))
        block.scale = scale
        slope, curvature = (values[2] - values[0]) / (2 * h), (values[2] - 2 * values[1] + values[0]) / h**2
        name = f"blocks.{i}"
        assert abs(first[name].predicted + slope) < 1e-4 * abs(slope) + 1e-7
        assert abs(found[name].predicted - (-slope + curvature / 2)) < 1e-3 * abs(slope) + 1e-6


def test_the_ranking_has_steps_and_cosines_and_does_not_touch_the_model():
    net, batches = Net().double(), data(dtype=F64)
    net.train()
    found = rank_blocks(net, batches, cross_entropy)
    assert [c.predicted for c in found] == sorted(c.predicted for c in found)
    with torch.no_grad():
        x = torch.cat([net.stem(x) for x, _ in batches])
        y = net.blocks[0](x)
    first = next(c for c in found if c.name == "blocks.0")
    assert abs(first.step_change - float((y - x).norm() / y.norm())) < 1e-9
    assert abs(first.cosine - float(nn.functional.cosine_similarity(x, y).mean())) < 1e-9
    assert net.training and all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("kind", ["loop", "numbered", "tuples", "sequential", "frozen"])
def test_a_smaller_network_works_and_the_original_is_untouched(kind):
    net = Net(numbered=kind == "numbered", tuples=kind == "tuples").double()
    blocks = "blocks"
    if kind == "sequential":
        net, blocks = nn.Sequential(net.stem, *net.blocks, net.head), "(model)[1:5]"
    if kind == "frozen":
        net.requires_grad_(False)
    batches = data(dtype=F64)
    before = copy.deepcopy(net.state_dict())
    found = simplify(net, batches, cross_entropy, keep=2)
    assert len(found.rounds) == 2 and len(found.kept) == 2
    assert {c.stack for c in found.candidates} == {blocks}
    torch.testing.assert_close(net.state_dict(), before)
    assert abs(found.loss_before - loss_of(net, batches)) < 1e-12
    assert abs(found.loss_after - loss_of(found.model, batches)) < 1e-12
    assert abs(found.measured - sum(r.measured for r in found.rounds)) < 1e-12
    assert abs(found.predicted - found.measured) < 0.25 * abs(found.measured) + 1e-4
    left = sum(isinstance(m, Block) for m in found.model.modules())
    assert left == 2
    assert sum(isinstance(m, PassThrough) for m in found.model.modules()) == (2 if kind == "numbered" else 0)
    assert bool(found.notes) == (kind == "numbered")
    assert "in all" in str(found) and found.dropped[0] in str(found)


def test_small_blocks_are_predicted_well():
    net, batches = Net((0.02, 0.05, 0.01, 0.03)).double(), data(dtype=F64)
    found = simplify(net, batches, cross_entropy, drop=4)
    assert found.kept == ()
    for r in found.rounds:
        assert abs(r.predicted - r.measured) < 0.02 * abs(r.measured) + 1e-7


def test_how_far_to_go():
    net, batches = Net().double(), data(dtype=F64)
    kept = simplify(net, batches, cross_entropy, keep=["blocks.0", "blocks.2"])
    assert kept.kept == ("blocks.0", "blocks.2")
    assert simplify(net, batches, cross_entropy, keep="blocks.*").rounds == ()
    assert simplify(net, batches, cross_entropy, blocks="blocks.[13]", keep=1).dropped[0] in ("blocks.1", "blocks.3")
    assert len(simplify(net, batches, cross_entropy, max_increase=1e9).rounds) == 4
    some = simplify(net, batches, cross_entropy, max_increase=1e-3)
    assert some.measured <= 1e-3
    assert simplify(net, batches, cross_entropy, max_increase=-1e9).model is not net


def test_a_named_sequential_keeps_its_names():
    from collections import OrderedDict

    parts = OrderedDict(stem=nn.Linear(5, 8), a=Block(scale=0.1), b=Block(scale=0.2), head=nn.Linear(8, 3))
    found = simplify(nn.Sequential(parts), data(), cross_entropy, drop=1)
    assert set(found.model._modules) in ({"stem", "a", "head"}, {"stem", "b", "head"})


def test_a_transformer_encoder():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    net = nn.TransformerEncoder(layer, 3)
    batches = [(torch.randn(20, 6, 8), torch.randn(20, 6, 8))]
    found = simplify(net, batches, nn.functional.mse_loss, keep=2)
    assert len(found.model.layers) == 2 and len(net.layers) == 3
    assert found.model(batches[0][0]).shape == (20, 6, 8)


def test_labels_from_dicts_and_functions():
    net, (x, y) = Net(), data()[0]
    by_rule = rank_blocks(net, [(x, y)], cross_entropy)
    by_key = rank_blocks(net, [{"x": x, "labels": y}], cross_entropy)
    by_function = rank_blocks(
        net, [[x, "?", y]], cross_entropy, target=lambda b: b[2], forward=lambda model, b: model(b[0])
    )
    assert by_rule == by_key == by_function


def test_blocks_that_cannot_go_say_why():
    class Grow(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 8)

        def forward(self, x):
            return self.fc(x)

    class Dict(Grow):
        def forward(self, x):
            return {"x": x}

    class Unpack(Grow):
        def forward(self, x):
            return x["x"]

    twice = Block()
    net = nn.Sequential(Grow(), Block(), twice, twice, Dict(), Unpack(), nn.Linear(8, 3))
    found = {c.name: c.reason for c in rank_blocks(net, data(), cross_entropy)}
    assert found["1"] is None
    assert found["0"] == "its input (60, 5) and output (60, 8) differ in shape"
    assert found["2"] == found["3"] == "it is called more than once in a pass"
    assert found["4"] == "its output is a dict, not a tensor"
    result = simplify(net, data(), cross_entropy, drop=1)
    assert result.dropped == ("1",)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({}, ValueError, r"expected exactly one of keep=…, drop=… and max_increase=…"),
        ({"keep": 1, "drop": 1}, ValueError, r"expected exactly one of"),
        ({"drop": 5}, ValueError, r"expected to keep 0 to 4 of the 4 blocks that could go .* asked to drop 5"),
        ({"keep": 5}, ValueError, r"asked to drop -1"),
        ({"keep": ["stem"]}, ValueError, r"keep: 'stem' fits no block that could go; those are blocks"),
        ({"drop": 1, "blocks": "x"}, ValueError, r"in a row .* whose names fit 'x'; stacks of Net: blocks: blocks.0"),
        ({"drop": 1, "order": 3}, ValueError, r"order: expected 1 \(gradient\) or 2"),
    ],
)
def test_requests_that_cannot_be_met(options, error, message):
    with pytest.raises(error, match=message):
        simplify(Net(), data(), cross_entropy, **options)


@pytest.mark.usefixtures("without_shape_checks")
def test_data_and_losses_that_do_not_serve():
    net, x = Net(), torch.randn(6, 5)
    with pytest.raises(ValueError, match=r"expected batches with labels, as \(inputs, labels\) .* got Tensor"):
        simplify(net, [x], cross_entropy, drop=1)
    with pytest.raises(TypeError, match=r"can be read more than once, got an iterator; list\(data\)"):
        simplify(net, iter(data()), cross_entropy, drop=1)
    with pytest.raises(TypeError, match=r"loss: expected a function \(output, target\) -> scalar tensor, got str"):
        simplify(net, data(), "mse", drop=1)
    with pytest.raises(TypeError, match=r"loss: expected a scalar tensor, the mean over the batch, got shape \(60,\)"):
        simplify(net, data(), lambda o, y: cross_entropy(o, y, reduction="none"), drop=1)
    with pytest.raises(ValueError, match=r"no samples came"):
        simplify(net, [], cross_entropy, drop=1)
    with pytest.raises(ValueError, match=r"expected blocks in a row .*stacks of Sequential: none"):
        simplify(nn.Sequential(nn.Linear(5, 3)), data(), cross_entropy, drop=1)


# --- Leaky ResNets --------------------------------------------------------------------------------------------------


def leaky(**options):
    options = {"width": 10, "depth": 6, "effective_depth": 2.0, "dtype": F64} | options
    return LeakyResNet(5, 3, **options)


@pytest.mark.parametrize("how", ["fit", "average"])
def test_layers_of_a_leaky_resnet_merge(how):
    net, batches = leaky(), data(dtype=F64)
    before = copy.deepcopy(net.state_dict())
    found = simplify(net, batches, cross_entropy, keep=4, merge=how)
    torch.testing.assert_close(net.state_dict(), before)
    assert isinstance(found.model, LeakyResNet) and found.model.depth == 4 and len(found.kept) == 4
    assert abs(float(found.model.rho.sum()) - 1) < 1e-12
    assert abs(found.loss_after - loss_of(found.model, batches)) < 1e-12
    assert "+" in found.dropped[0]
    if how == "fit":
        for r in found.rounds:
            assert abs(r.predicted - r.measured) < 0.2 * abs(r.measured) + 1e-3
    found.model.set_step_sizes(torch.full((4,), 0.25, dtype=F64))
    assert len(rank_blocks(net, batches, cross_entropy)) == 5


def test_merging_where_one_layer_does_nothing_loses_nothing():
    """At L̃ = 0 with ``W_4 = 0`` the fit is exact: ``A_4 = A_3``, and one step of both sizes carries A_2 there."""
    net = leaky(effective_depth=0.0)
    with torch.no_grad():
        net.weight[3].zero_()
    x = torch.randn(50, 5, dtype=F64)
    for how in ("fit", "average"):
        smaller = merge_pair(net, 3, x, how)
        torch.testing.assert_close(smaller(x), net(x))
        torch.testing.assert_close(smaller.rho[2], net.rho[2:4].sum())


def test_merges_that_cannot_be():
    x = torch.randn(20, 5, dtype=F64)
    with pytest.raises(ValueError, match=r"layer: expected 1 to 5 \(a pair of neighbours\), got 6"):
        merge_pair(leaky(), 6, x)
    with pytest.raises(ValueError, match=r"merge: expected 'fit' or 'average', got 'sum'"):
        merge_pair(leaky(), 1, x, "sum")
    full = leaky(effective_depth=6.0)
    with pytest.raises(ValueError, match=r"no pair of layers is left to merge after 0: merged, .* 2 > 1 and its skip"):
        simplify(full, data(dtype=F64), cross_entropy, drop=1)
    assert simplify(full, data(dtype=F64), cross_entropy, max_increase=1.0).rounds == ()
    with pytest.raises(ValueError, match=r"expected to keep 1 to 6 layers; asked to merge 6 of 6 away"):
        simplify(leaky(), data(dtype=F64), cross_entropy, keep=0)
    with pytest.raises(ValueError, match=r"expected how many layers are left, got names"):
        simplify(leaky(), data(dtype=F64), cross_entropy, keep=["1"])
    with pytest.raises(ValueError, match=r"expected blocks in a row|with labels"):
        simplify(leaky(), [x], cross_entropy, keep=3)
