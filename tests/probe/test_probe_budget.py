"""How far `simplify` goes: the gate on the measured loss, budgets, and several rankings side by side."""

import pytest
import torch
from torch import nn

from isthmus.probe import rank_side_by_side, simplify

mse, cross_entropy = nn.functional.mse_loss, nn.functional.cross_entropy


class Block(nn.Module):
    def __init__(self, scale, hidden=16):
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(8, hidden), nn.Linear(hidden, 8), scale

    def forward(self, x):
        return x + self.scale * self.b(torch.relu(self.a(x)))


def network(scales=(0.5, 0.01, 0.3, 0.05), hidden=(16,) * 4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), *map(Block, scales, hidden), nn.Linear(8, 3))


def data():
    torch.manual_seed(1)
    return [(torch.randn(60, 5), torch.randint(0, 3, (60,)))]


class Kink(nn.Module):
    """Its gate's derivatives at t = 1 say that dropping it lowers the loss; dropping it raises the loss."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(1.0))

    def forward(self, x):
        return x + self.shift


def kinked(output, y):
    t = output.mean()  # 0 without the block, 1 with it: value 1 at 0, 0.5 at 1, slope +1 and no curvature at 1
    return torch.where(t > 0.75, 0.5 + (t - 1), 1 - t)


def test_the_gate_is_on_the_measured_loss():
    """Predicted −1, measured +0.5: a gate on the prediction would let it through."""
    net = nn.Sequential(Kink(), Block(0.0), nn.Identity())
    batch = [(torch.zeros(10, 8), torch.zeros(10))]
    free = simplify(net, batch, kinked, drop=1)
    assert free.dropped == ("0",) and free.predicted == pytest.approx(-1) and free.measured == pytest.approx(0.5)
    gated = simplify(net, batch, kinked, max_increase=0.1)
    assert gated.dropped == ("1",) and gated.kept == ("0",) and gated.measured == pytest.approx(0.0)
    assert isinstance(gated.model[0], Kink) and len(gated.model) == 2
    assert simplify(net, batch, kinked, max_increase=0.6).dropped == ("0", "1")


@pytest.mark.parametrize("room", [0.0, 1e-3, 1e-2, 1e-1])
def test_no_more_than_the_room_is_spent(room):
    net, batches = network(), data()
    found = simplify(net, batches, cross_entropy, max_increase=room)
    assert found.measured <= room
    more = simplify(net, batches, cross_entropy, max_increase=10 * room + 1)
    assert len(more.rounds) == 4 >= len(found.rounds)


def count(model):
    return sum(p.numel() for p in model.parameters())


def test_budgets_are_met_or_said_not_to_be():
    net, batches = network(), data()
    block = count(net[1])
    found = simplify(net, batches, cross_entropy, budget={"parameters": count(net) - 2 * block})
    assert len(found.rounds) == 2 and found.notes == ()
    assert found.size_before == {"parameters": count(net)} and found.size_after == {"parameters": count(found.model)}
    assert f"parameters {count(net)} -> {count(found.model)}" in str(found)
    assert simplify(net, batches, cross_entropy, budget={"parameters": 1e9}).rounds == ()
    far = simplify(net, batches, cross_entropy, budget={"parameters": 1})
    assert len(far.rounds) == 4 and "budget: parameters is 75, above 1: no further block can go" in far.notes
    gated = simplify(net, batches, cross_entropy, budget={"parameters": 1}, max_increase=1e-3)
    assert gated.measured <= 1e-3 and "no further block can go" in gated.notes[-1]


def test_operations_and_time_are_of_a_pass():
    net, batches = network(), data()
    flops = 2 * 60 * (5 * 8 + 4 * 2 * 8 * 16 + 8 * 3)  # a multiplication and an addition a weight and row
    one = 2 * 60 * 2 * 8 * 16
    found = simplify(net, batches, cross_entropy, budget={"flops": flops - 1, "ms": 1e9})
    assert found.size_before["flops"] == flops and found.size_after["flops"] == flops - one
    assert len(found.rounds) == 1 and found.size_after["ms"] > 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"budget": {"weights": 5}}, r"budget: expected parameters, flops, ms, got 'weights'"),
        ({"budget": {"ms": 0}}, r"budget: ms expected a positive limit, got 0"),
        ({"budget": {"ms": 1}, "drop": 1}, r"expected exactly one of keep=…, drop=… and max_increase=…"),
        ({"budget": {}}, r"expected exactly one of keep=…, drop=… and max_increase=…"),
    ],
)
def test_budgets_that_are_none(options, message):
    with pytest.raises(ValueError, match=message):
        simplify(network(), data(), cross_entropy, **options)


def test_rankings_side_by_side():
    net, batches = network(), data()
    x = batches[0][0]
    sets = {
        "labels": (batches, cross_entropy),
        "zeros": ([(x, torch.zeros(60, 3))], mse),
        "same": (batches, cross_entropy),
    }
    found = rank_side_by_side(net, sets)
    assert found.agreement("labels", "same") == pytest.approx(1.0)
    assert set(found.blocks) == {"1", "2", "3", "4"}
    assert found.predicted("labels") != found.predicted("zeros") and found.predicted("labels") == found.predicted(
        "same"
    )
    worst = {b: max([c.name for c in listed].index(b) for listed in found.by.values()) for b in found.blocks}
    assert [worst[b] for b in found.blocks] == sorted(worst.values())
    assert "rank correlation of labels and same: 1.00" in str(found) and len(str(found).splitlines()) == 7
    with pytest.raises(ValueError, match=r"sets: expected at least one name → \(data, loss\), got none"):
        rank_side_by_side(net, {})
