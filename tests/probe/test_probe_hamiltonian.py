"""Momenta and −2H/L̃: equal to `mechanics` on our own networks, to autograd on others, and honest where they fail."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from isthmus import LeakyResNet, Problem
from isthmus.activations import Identity, ReLU, SmoothReLU
from isthmus.mechanics import mechanics
from isthmus.probe import Profile, probe
from isthmus.probe.momenta import MomentumMoments, perturbed

F64 = torch.float64


def sum_mse(output, target):
    """The paper's: summed over outputs, mean over samples."""
    return (output - target).square().sum(-1).mean()


def close(a, b, tolerance=1e-8):
    assert abs(a - b) <= tolerance * max(1e-6, abs(a), abs(b)), (a, b)


class Plain(nn.Module):
    def __init__(self, width, skip=1.0, kind="tensor", bias=True):
        super().__init__()
        self.fc, self.skip, self.kind = nn.Linear(width, width, bias=bias), skip, kind

    def forward(self, x):
        y = self.skip * x + self.fc(x.relu())
        return {"tensor": y, "tuple": (None, y), "list": [y], "dict": {"hidden": y}, "data": Output(3, y)}[self.kind]


@dataclass
class Output:
    index: int
    hidden: torch.Tensor


def first(output):
    if isinstance(output, torch.Tensor):
        return output
    return output.hidden if isinstance(output, Output) else [*getattr(output, "values", lambda: output)()][-1]


class Stack(nn.Module):
    def __init__(self, skips=(1.0, 0.5, 0.7), kind="tensor", ends=nn.Identity):
        super().__init__()
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(Plain(8, skip, kind) for skip in skips)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = first(block(x))
            x.mul_(1.0)  # in place, after what was read
        return self.head(x)


def task(samples=90, dtype=F64):
    return torch.randn(samples, 5, dtype=dtype), torch.randn(samples, 3, dtype=dtype)


# --- our own networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [ReLU(), ReLU(append_one=False), SmoothReLU(sharpness=4.0)], ids=str)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_a_leaky_resnet_has_the_hamiltonian_of_mechanics(activation, loss):
    rho = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=F64)
    net = LeakyResNet(5, 3, width=10, depth=5, effective_depth=3.0, activation=activation, rho=rho, dtype=F64)
    x, y = task()
    y = y if loss == "mse" else y.argmax(1)
    table = mechanics(Problem(net, x, y, mu=0.02, loss=loss).geodesic())
    function = sum_mse if loss == "mse" else nn.functional.cross_entropy
    data = [(x[:40], y[:40]), (x[40:], y[40:])]
    profile = probe(net, data, loss=function, weight_decay=0.02)
    found = profile.hamiltonian()["trajectory"]
    assert found.layers == tuple(f"A_{i}" for i in range(1, 6)) and abs(found.effective_depth - 3) < 1e-12
    for i in range(5):
        close(found.minus_2h_over_l[i], table["minus_2h_over_l"][i])
        close(found.scaled[i], 3 * table["hamiltonian"][i])
        close(found.stationarity[i], table["residual"][i])
        # B = M/L̃, and the profile's momenta are M·ρ
        close(profile["momentum_norm"][i + 1] / float(rho[i]) / 3, table["norm_b"][i + 1])
        close(profile["momentum_features"][i + 1] / float(rho[i]) / 3, table["norm_b_features"][i])
    assert len(found.standard_errors) == 5 and min(found.standard_errors) > 0


def test_a_resnet_has_a_scaled_hamiltonian_alone():
    net, (x, y) = LeakyResNet(5, 3, width=8, depth=4, effective_depth=0.0, dtype=F64), task()
    with pytest.raises(ValueError, match="needs an effective depth > 0"):
        from isthmus.mechanics import hamiltonian

        hamiltonian(x, x, 0.0, ReLU())
    profile = probe(net, [(x, y)], loss=sum_mse, weight_decay=0.1)
    (found,) = profile.hamiltonian().values()
    assert found.minus_2h_over_l is found.standard_errors is found.median is None
    assert all(value > 0 for value in found.scaled)  # ½‖Mσ(A)ᵀ‖², kinetic energy alone
    assert "no leak, so no -2H/L" in str(profile)


# --- other people's -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tensor", "tuple", "list", "dict", "data"])
@pytest.mark.parametrize("frozen", [False, True])
def test_momenta_of_blocks_are_autograds_and_batches_do_not_matter(kind, frozen):
    torch.manual_seed(0)
    net, (x, y) = Stack(kind=kind).double(), task()
    net.requires_grad_(not frozen).train()
    state = net.stem(x).detach()
    states = [state]
    for block in net.blocks:
        states.append(first(block(states[-1])).detach())
    gradients = []
    for i in range(1, 4):
        leaf = states[i].clone().requires_grad_()
        out = leaf
        for block in net.blocks[i:]:
            out = first(block(out))
        gradients.append(torch.autograd.grad(sum_mse(net.head(out), y), leaf)[0])
    options = {"loss": sum_mse, "weight_decay": 0.3}
    split = [(x[:1], y[:1]), (x[1:60], y[1:60]), (x[60:], y[60:])]
    profile = probe(net, split, ["blocks.0:input", "blocks.*"], **options)
    for i, name in enumerate(f"blocks.{i}" for i in range(3)):
        row, A, M = profile.layers.index(name), states[i], -gradients[i] / 0.3
        features = M.T @ ReLU().features(A)
        close(profile["momentum_norm"][row], float(M.norm()))
        close(profile["momentum_features"][row], float(features.norm()))
        close(profile["momentum_state"][row], float((M * A).sum()))
        weight = torch.cat((net.blocks[i].fc.weight, net.blocks[i].fc.bias[:, None]), 1).detach()
        close(profile["stationarity"][row], float((weight - features).norm() / weight.norm()), 1e-6)
    assert net.training and all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.is_grad_enabled()
    found = profile.hamiltonian()["blocks"]
    close(found.effective_depth, 0.8, 1e-7)
    ratio = 3 / found.effective_depth
    row = profile.layers.index("blocks.1")
    expected = 2 * ratio * profile["momentum_state"][row] - (ratio * profile["momentum_features"][row]) ** 2
    close(found.minus_2h_over_l[1], expected, 1e-6)
    given = profile.hamiltonian(2.0)["blocks"]
    close(given.scaled[0], 4.5 * profile["momentum_features"][1] ** 2 - 6 * profile["momentum_state"][1])


def test_a_leaky_resnet_written_with_torch_modules_has_the_same_hamiltonian():
    net = LeakyResNet(8, 3, width=8, depth=4, effective_depth=2.0, dtype=F64)
    blocks = []
    for weight in net.weight.detach():
        block = Plain(8, skip=0.5).double()
        with torch.no_grad():
            block.fc.weight.copy_(weight[:, :-1] / 4), block.fc.bias.copy_(weight[:, -1] / 4)
        blocks.append(block)
    stem, head = nn.Linear(8, 8, bias=False).double(), nn.Linear(8, 3, bias=False).double()
    with torch.no_grad():
        stem.weight.copy_(net.in_map), head.weight.copy_(net.out_map)
    other = nn.Sequential(stem, *blocks, head)
    x, y = torch.randn(90, 8, dtype=F64), torch.randn(90, 3, dtype=F64)
    torch.testing.assert_close(other(x), net(x))
    mine = probe(net, [(x, y)], loss=sum_mse, weight_decay=0.02).hamiltonian()["trajectory"]
    # mu = rho * weight decay, and rho = 1/4
    (theirs,) = probe(other, [(x, y)], kinds=("block",), loss=sum_mse, weight_decay=0.08).hamiltonian().values()
    for a, b in zip(mine.minus_2h_over_l, theirs.minus_2h_over_l, strict=True):
        close(a, b, 1e-6)
    for a, b in zip(mine.stationarity, theirs.stationarity, strict=True):
        close(a, b, 1e-5)


def test_the_stationarity_of_a_chain_is_the_gradient_of_the_penalised_loss():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), *(m for _ in range(3) for m in (nn.ReLU(), nn.Linear(6, 6)))).double()
    x, y, decay = torch.randn(50, 5, dtype=F64), torch.randn(50, 6, dtype=F64), 0.05
    value = sum_mse(net(x), y) + decay / 2 * sum(p.square().sum() for p in net.parameters())
    value.backward()
    profile = probe(net, [(x, y)], loss=sum_mse, weight_decay=decay)
    found = profile.hamiltonian()["chain from 0"]
    assert found.layers == ("2", "4", "6") and abs(found.effective_depth - 3) < 1e-6
    for name, stationarity in zip(found.layers, found.stationarity, strict=True):
        layer = net[int(name)]
        off = (layer.weight.grad.square().sum() + layer.bias.grad.square().sum()).sqrt() / decay
        close(stationarity, float(off / (layer.weight.square().sum() + layer.bias.square().sum()).detach().sqrt()))
    assert "stationary" in str(profile).split("Hamiltonian of chain from 0: ")[1]
    # a bias column where the layer has none, or features without a 1, do not enter
    bare = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6, bias=False)).double()
    (sum_mse(bare(x), y) + decay / 2 * bare[2].weight.square().sum()).backward()
    for sigma in (ReLU(), ReLU(append_one=False)):
        (stationarity,) = (
            probe(bare, [(x, y)], activation=sigma, loss=sum_mse, weight_decay=decay)
            .hamiltonian()["chain from 0"]
            .stationarity
        )
        close(stationarity, float(bare[2].weight.grad.norm() / decay / bare[2].weight.norm().detach()))


def test_at_a_critical_point_the_momenta_carry_the_weights():
    """One linear step after a fixed map: the minimum is a linear system, solved here."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6)).double()
    x, y, decay = torch.randn(50, 5, dtype=F64), torch.randn(50, 6, dtype=F64), 0.05
    S = ReLU().features(net[0](x).detach())
    V = torch.linalg.solve(S.T @ S * 2 / 50 + decay * torch.eye(7, dtype=F64), S.T @ y * 2 / 50).T
    with torch.no_grad():
        net[2].weight.copy_(V[:, :-1]), net[2].bias.copy_(V[:, -1])
    profile = probe(net, [(x, y)], loss=sum_mse, weight_decay=decay)
    found = profile.hamiltonian()["chain from 0"]
    assert found.stationarity[0] < 1e-12 and "not to be read" not in str(found)
    close(profile["momentum_features"][1], float(V.norm()))


def test_tokens_with_padding():
    torch.manual_seed(0)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(Plain(8, 0.5), Plain(8, 0.5))

        def forward(self, x, attention_mask):
            real = attention_mask[:, :, None]
            return (self.blocks(x) * real).sum(1)

    net, x, y = Tokens().double(), torch.randn(20, 6, 8, dtype=F64), torch.randn(20, 8, dtype=F64)
    mask = (torch.arange(6) < torch.randint(2, 7, (20, 1))).long()
    batch = {"x": x, "attention_mask": mask, "labels": y}
    profile = probe(net, [batch], kinds=("block",), loss=sum_mse, weight_decay=0.1)
    leaf = net.blocks[0](x).detach().requires_grad_()
    (g,) = torch.autograd.grad(sum_mse((net.blocks[1](leaf) * mask[:, :, None]).sum(1), y), leaf)
    kept = mask.bool()
    features = -10 * g[kept].T @ ReLU().features(x[kept])
    close(profile["momentum_features"][0], float(features.norm()))
    halves = [{k: v[part] for k, v in batch.items()} for part in (slice(0, 7), slice(7, 20))]
    again = probe(net, halves, kinds=("block",), loss=sum_mse, weight_decay=0.1)
    close(again["momentum_features"][0], profile["momentum_features"][0])


def test_parts_merge_travel_and_keep_their_settings(tmp_path):
    torch.manual_seed(0)
    net, (x, y) = Stack().double(), task()
    options = {"kinds": ("block",), "loss": sum_mse, "weight_decay": 0.3}
    whole = probe(net, [(x, y)], **options)
    one, two = probe(net, [(x[:30], y[:30])], **options), probe(net, [(x[30:], y[30:])], **options)
    merged = Profile.load(one.save(tmp_path / "one.pt")).merge(two)
    for name in ("momentum_norm", "momentum_features", "momentum_state", "stationarity"):
        for a, b in zip(whole[name], merged[name], strict=True):
            close(a, b, 1e-7)
    close(whole.hamiltonian()["blocks"].median, merged.hamiltonian()["blocks"].median, 1e-7)
    with pytest.raises(ValueError, match=r"only profiles of the same layers merge; blocks\.0: weight decay 0.3 here"):
        one.merge(probe(net, [(x, y)], kinds=("block",), loss=sum_mse, weight_decay=0.1))


def test_errors_are_those_of_new_data():
    torch.manual_seed(0)
    net = Stack().double()
    values, errors = [], []
    for _ in range(12):
        x, y = task(200)
        profile = probe(net, [(x, y)], "blocks.0", shards=8, loss=sum_mse, weight_decay=3.0)
        found = profile.hamiltonian(1.0)["blocks"]
        values.append(found.minus_2h_over_l[0])
        errors.append(found.standard_errors[0])
    assert 0.5 < float(torch.tensor(errors).mean() / torch.tensor(values).std()) < 2.0


# --- what cannot be had ---------------------------------------------------------------------------------------------


def test_layers_that_no_gradient_reaches_say_so():
    class Cut(Plain):
        def forward(self, x):
            return super().forward(x).detach()

    class NoGrad(Plain):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    x, y = torch.randn(20, 8), torch.randn(20, 8)
    net = nn.Sequential(Plain(8, 0.5), Cut(8), NoGrad(8), Plain(8, 0.5))
    profile = probe(net, [(x, y)], kinds=("block",), loss=sum_mse, weight_decay=0.1)
    assert [bool(r.momenta) for r in profile.records] == [False, False, True, True]
    assert "0: no momenta, no gradient of the loss reaches it" in profile.notes
    assert profile["momentum_norm"][0] is None


def test_an_output_that_is_made_anew_has_no_momenta():
    net, (x, y) = Stack(kind="dict").double(), task()
    picks = {"blocks.*": lambda output: output["hidden"] * 1.0}
    profile = probe(net, [(x, y)], "blocks.*", output=picks, loss=sum_mse, weight_decay=0.1)
    assert "blocks.0: no momenta, the tensor read is made of its output and no part of it" in profile.notes
    with pytest.raises(ValueError, match=r"no momenta: probe\(…, loss=…, weight_decay=…\) reads them, .*here: blocks"):
        profile.hamiltonian()


def test_a_gradient_that_is_infinite_is_noted():
    net, (x, y) = Stack().double(), task()
    profile = probe(net, [(x, y)], kinds=("block",), loss=lambda o, t: (o - o.detach()).norm(), weight_decay=0.1)
    assert any("blocks.2: no momenta, " in note and "gradients have NaN" in note for note in profile.notes) or all(
        value == 0 for value in profile["momentum_norm"]
    )


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"loss": sum_mse}, ValueError, r"momenta need loss= and weight_decay= both: got loss, but no weight_decay"),
        ({"weight_decay": 0.1}, ValueError, r"both: got weight_decay, but no loss"),
        ({"loss": sum_mse, "weight_decay": 0.0}, ValueError, r"weight_decay: expected a positive number, got 0.0"),
        ({"loss": 3, "weight_decay": 0.1}, TypeError, r"loss: expected a function \(output, target\).* got int"),
        (
            {"loss": lambda o, t: o, "weight_decay": 0.1},
            TypeError,
            r"loss: expected a scalar tensor, the mean over the batch, got shape \(90, 3\)",
        ),
        (
            {"loss": sum_mse, "weight_decay": 0.1, "positions": "mean"},
            ValueError,
            r"positions: momenta are of single positions; with a loss expected 'samples', got 'mean'",
        ),
    ],
)
def test_requests_that_cannot_be_met(options, error, message):
    net, (x, y) = Stack().double(), task()
    with pytest.raises(error, match=message):
        probe(net, [(x, y)], **options)


def test_batches_without_labels_are_refused():
    net, (x, _) = Stack().double(), task()
    with pytest.raises(ValueError, match=r"data: expected batches with labels"):
        probe(net, x, loss=sum_mse, weight_decay=0.1)


def test_effective_depths_that_are_none():
    net, (x, y) = Stack().double(), task()
    profile = probe(net, [(x, y)], kinds=("block",), loss=sum_mse, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"effective_depth: expected a number, 'implied' or 'normalised', got 'deep'"):
        profile.hamiltonian("deep")
    assert profile.hamiltonian("normalised")["blocks"].effective_depth != 0.8
    lossless = probe(net, [(x, y)], kinds=("block",), activation=Identity(), loss=sum_mse, weight_decay=0.1)
    with pytest.raises(ValueError, match=r"blocks: no effective depth is implied where σ loses nothing; pass"):
        lossless.hamiltonian()
    assert "Hamiltonian: blocks: no effective depth is implied" in str(lossless)
    assert lossless["stationarity"] == [None] * 3


def test_momenta_that_do_not_fit():
    one = MomentumMoments(3)
    with pytest.raises(ValueError, match=r"must have the same rows, got \[2, 2, 1\]"):
        one.update(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1, 3), 2, 2)
    with pytest.raises(ValueError, match=r"gradients must be \(n, 3\)"):
        one.update(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 4), 2, 2)
    with pytest.raises(ValueError, match=r"only momenta of the same layer merge: here 3 .* there 4"):
        one.merge(MomentumMoments(4))


def test_a_zero_is_added_where_the_tensor_lies():
    x, delta = torch.randn(2, 3), torch.zeros(2, 3, requires_grad=True)
    Pair = namedtuple("Pair", "a b")
    made = perturbed(Pair(1, {"x": [x]}), x, delta)
    assert isinstance(made, Pair) and made.a == 1 and made.b["x"][0].requires_grad
    assert perturbed({"y": x.clone()}, x, delta) is None and perturbed(3, x, delta) is None
