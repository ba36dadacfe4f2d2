"""Losses that are no mean over samples, weights that cannot be read, adapters, and callbacks that leave no trace."""

import pytest
import torch
from torch import nn

from isthmus import LeakyResNet
from isthmus.probe import probe, rank_blocks, simplify
from isthmus.probe.integrations.watch import Watch

ce = nn.functional.cross_entropy


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(8, 8)

    def forward(self, x):
        return x + 0.3 * self.l(x.relu())


def net():
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(4)), nn.Linear(8, 3)).double()


def task():
    torch.manual_seed(1)
    y = torch.randint(0, 3, (64,))
    y[36:] = -100
    return torch.randn(64, 8, dtype=torch.float64), y


LOSSES = {
    "function": ce,
    "ignored": nn.CrossEntropyLoss(ignore_index=2),
    "weighted": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1]).double()),
    "likelihood": nn.NLLLoss(),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [64, 32, 16])
def test_labels_that_are_ignored_or_weighted_count_as_in_the_whole(name, size):
    model, (x, y), loss = net(), task(), LOSSES[name]
    y = y.clamp_min(0) if name == "ignored" else y
    whole, cut = [(x, y)], list(zip(x.split(size), y.split(size), strict=True))
    expected = float(loss(model(x), y).detach())
    found = simplify(model, cut, loss, drop=1)
    assert found.loss_before == pytest.approx(expected, rel=1e-9)
    for a, b in zip(rank_blocks(model, whole, loss), rank_blocks(model, cut, loss), strict=True):
        assert (a.name, a.predicted) == (b.name, pytest.approx(b.predicted, rel=1e-7))
    tables = [probe(model, d, kinds=("block",), loss=loss, weight_decay=0.1) for d in (whole, cut)]
    for column in ("momentum_norm", "momentum_state", "stationarity"):
        assert tables[0][column] == pytest.approx(tables[1][column], rel=1e-7)
    assert tables[0].doubts == ()


def test_labels_that_are_ignored_of_a_leaky_resnet():
    leaky, (x, y) = LeakyResNet(8, 3, width=8, depth=3, effective_depth=2.0, dtype=torch.float64), task()
    cut = list(zip(x.split(16), y.split(16), strict=True))
    norms = [probe(leaky, d, loss=ce, weight_decay=0.1)["momentum_norm"][1:] for d in ([(x, y)], cut)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-7)


def test_a_loss_of_ones_own_with_labels_of_minus_100_is_doubted():
    model, (x, y) = net(), task()
    profile = probe(model, [(x, y)], loss=lambda o, t: ce(o, t), weight_decay=0.1)
    assert "labels of -100: batches count by their samples" in profile.doubts[0]


def test_no_label_at_all_is_an_error():
    model, (x, y) = net(), task()
    with pytest.raises(ValueError, match="no samples came, or none with a label"):
        simplify(model, [(x, torch.full_like(y, -100))], ce, drop=1)


def test_weights_that_cannot_be_read_cost_the_momenta_alone():
    class Packed(nn.Linear):
        """Its weight is no plain tensor, as that of torchao's int8 layers."""

        @property
        def packed(self):
            raise NotImplementedError("aten::_to_copy of a packed tensor")

        def forward(self, x):
            return nn.functional.linear(x, self.plain)

    layers = [nn.Linear(8, 8), nn.ReLU(), Packed(8, 8)]
    layers[2].plain = layers[2].weight.detach()
    del layers[2]._parameters["weight"]
    Packed.weight = Packed.packed
    model, x = nn.Sequential(*layers), torch.randn(64, 8)
    profile = probe(model, [(x, x)], loss=nn.functional.mse_loss, weight_decay=0.1)
    assert profile.layers == ["0", "2"] and profile["step_change"][1] is not None
    assert "2: no momenta, its weights cannot be read as they are (aten::_to_copy of a packed tensor)" in profile.notes


class Adapter(nn.Module):
    """The shape of a LoRA layer of peft."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(8, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 8, bias=False)})

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def test_an_adapter_is_read_for_the_linear_layer_that_it_adapts():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), Adapter(nn.Linear(8, 8))), torch.randn(64, 8)
    profile = probe(model, x)
    assert profile.layers == ["0", "2"] and profile["kind"] == ["linear", "linear"]
    assert profile["compared_with"] == [None, "0"]
    expected = torch.linalg.svdvals(model(x).detach().double())
    torch.testing.assert_close(profile.spectrum("2"), expected, rtol=1e-6, atol=1e-9)
    reasons = {s.name: s.reason for s in profile.skipped}
    assert reasons["2.base_layer"] == "part of an adapter, whose own output is read; layers= can name it"
    assert probe(model, x, "2.base_layer").layers == ["2.base_layer"]
    with_loss = probe(model, [(x, x)], loss=nn.functional.mse_loss, weight_decay=0.1)
    assert any("2: no momenta" in note and "an adapter adds to them" in note for note in with_loss.notes)


def test_a_callback_brings_its_inputs_to_the_type_that_the_trainer_brought_the_weights_to():
    model, x = nn.Sequential(nn.Linear(8, 8)).to(torch.bfloat16), torch.randn(64, 8)
    watch = Watch(x)
    assert watch(model, 0) and watch.last is not None and watch.last["dtype"] == ["bfloat16"]
    assert watch.data is x


def test_what_a_module_logs_while_a_callback_probes_it_is_not_logged():
    from types import SimpleNamespace

    from isthmus.probe.integrations._lightning import LightningHooks

    logged = []

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(8, 3)

        def log(self, name, value, **_):
            logged.append(name)

        def forward(self, x):
            z = self.net(x)
            self.log("mean", z.mean())
            return z

    module, trainer = Module(), SimpleNamespace(global_step=0, loggers=[], current_epoch=0)
    hooks = LightningHooks(100 * torch.randn(64, 8))
    hooks.on_train_start(trainer, module)
    assert hooks.watch.last is not None and logged == []
    module(torch.randn(2, 8))
    assert logged == ["mean"] and "log" not in vars(module)
