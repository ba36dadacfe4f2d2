"""Runs of blocks replaced by a linear map: the fit against ReplaceMe's closed form, and trained networks."""

import pytest
import torch
from torch import nn

from isthmus.activations import Identity
from isthmus.probe import PairMoments, linear_fit, replace_run
from isthmus.probe.replace import LinearStandIn

mse, cross_entropy = nn.functional.mse_loss, nn.functional.cross_entropy


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self, width=12, hidden=24, scale=1.0):
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.scale = scale

    def forward(self, x):
        return x + self.scale * self.b(torch.relu(self.a(self.norm(x))))


def stack(count=8, width=12, **options):
    return nn.Sequential(nn.Linear(6, width), *(Block(width, **options) for _ in range(count)), nn.Linear(width, 3))


def pair_of(before, after, **options):
    pair = PairMoments(before.shape[1], Identity(append_one=False), **options)
    for a, b in zip(before.split(37), after.split(37), strict=True):
        pair.update(a, b)
    return pair


def test_the_fit_is_least_squares_and_at_most_replacemes_closed_form():
    M, Y, L = (torch.randn(400, 10, dtype=torch.float64) for _ in range(3))
    L = Y + M @ torch.randn(10, 10, dtype=torch.float64) + 0.3 * L + 0.5
    fits = {c: linear_fit(pair_of(M, L - Y), constant=c) for c in (False, True)}
    T = torch.linalg.solve(M.T @ M, M.T @ (L - Y))  # arXiv:2505.02819, section 3
    closed = float((M @ T + Y - L).square().sum()) / len(M)
    torch.testing.assert_close(fits[False].matrix, T)
    assert fits[False].objective <= closed * (1 + 1e-12)
    assert fits[True].objective < 0.9 * closed  # the constant 0.5 is what the published map cannot do
    measured = float((M @ fits[True].matrix + fits[True].constant + Y - L).square().sum()) / len(M)
    assert fits[True].objective == pytest.approx(measured, rel=1e-10)
    assert fits[True].identity == pytest.approx(float((L - Y - M).square().sum()) / len(M))


def test_the_fit_leaves_alone_what_rows_do_not_determine():
    basis = torch.linalg.qr(torch.randn(10, 10, dtype=torch.float64))[0]
    M = torch.randn(300, 4, dtype=torch.float64) @ basis[:4]
    fit = linear_fit(pair_of(M, M @ torch.randn(10, 10, dtype=torch.float64)), constant=False)
    torch.testing.assert_close(basis[4:] @ fit.matrix, basis[4:])
    assert fit.objective < 1e-20 < fit.identity


def test_requests_that_the_fit_cannot_meet():
    M = torch.randn(30, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"expected method 'qr'"):
        linear_fit(pair_of(M, M, method="gram"))
    with pytest.raises(ValueError, match=r"ridge: expected at least 0, got -1"):
        linear_fit(pair_of(M, M), ridge=-1.0)
    small, large = (linear_fit(pair_of(M, 2 * M), ridge=r).change.norm() for r in (1e-3, 1e3))
    assert large < 0.1 * small


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_a_run_of_linear_blocks_merges_exactly(scale):
    """Blocks that are affine: the run is one affine map of the stream, and what the layer before adds is all of it."""

    class Affine(nn.Module):
        def __init__(self, first=False):
            super().__init__()
            self.b, self.first = nn.Linear(6, 6), first

        def forward(self, x):
            return x * (0.0 if self.first else 1.0) + scale * self.b(x)

    net = nn.Sequential(Affine(True), Affine(), Affine(), nn.Linear(6, 3)).double()
    x, y = torch.randn(200, 6, dtype=torch.float64), torch.randn(200, 3, dtype=torch.float64)
    before = net(x)
    found = replace_run(net, [(x, y)], mse, run=["1", "2"])
    assert found.merged and found.into == "0.b" and found.run == ("1", "2") and len(found.model) == 2
    torch.testing.assert_close(found.model(x), before, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(net(x), before, rtol=0, atol=0)
    mapped = replace_run(net, [(x, y)], mse, run=["1", "2"], into="map")
    assert not mapped.merged and mapped.into == "1" and isinstance(mapped.model[1], LinearStandIn)
    torch.testing.assert_close(mapped.model(x), before, rtol=1e-5, atol=1e-7)


def trained(net, x, y, loss, steps, rate=3e-3):
    optimiser = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(net(x), y).backward()
        optimiser.step()
    return net


def test_replacing_a_quarter_costs_at_most_half_of_dropping_it():
    teacher = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3))
    x = torch.randn(600, 6)
    y = (2 * teacher(x)).argmax(1)
    net = trained(stack(), x[:400], y[:400], cross_entropy, 300)
    found = replace_run(net, [(x[:400], y[:400])], cross_entropy, run=2)
    assert found.merged and len(found.run) == 2
    count = [sum(p.numel() for p in m.parameters()) for m in (net, found.model)]
    assert count[1] == count[0] - 2 * sum(p.numel() for p in net[1].parameters())
    assert found.loss_after - found.loss_before <= 0.5 * (found.loss_dropped - found.loss_before)
    with torch.no_grad():
        own = float(cross_entropy(found.model(x[:400]), y[:400]))
    assert found.loss_after == pytest.approx(own, rel=1e-5)
    assert "merged into" in str(found)


@pytest.mark.usefixtures("without_shape_checks")
def test_a_trained_gpt2_is_shortened_and_reloads(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=16, n_embd=24, n_head=2, n_layer=8, n_positions=32, bos_token_id=None, eos_token_id=None
    )
    model = transformers.GPT2LMHeadModel(config).train()
    steps = torch.randint(1, 4, (96, 1))
    ids = (torch.randint(0, 16, (96, 1)) + steps * torch.arange(12)) % 16  # to be continued by its own step

    def loss(output, labels):
        return cross_entropy(output.logits[:, 1:-1].flatten(0, 1), labels[:, 2:].flatten())

    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimiser.zero_grad()
        loss(model(input_ids=ids), ids).backward()
        optimiser.step()
    found = replace_run(model.eval(), [{"input_ids": ids, "labels": ids}], loss, run=2, reloadable=True)
    assert found.merged and found.into.endswith("mlp.c_proj") and found.notes == ()
    assert found.loss_after - found.loss_before <= 0.5 * (found.loss_dropped - found.loss_before)
    found.model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, found.model(input_ids=ids).logits)


def test_requests_that_cannot_be_met():
    net, data = stack(3), [(torch.randn(40, 6), torch.randint(0, 3, (40,)))]
    with pytest.raises(ValueError, match=r"run: expected 1 to 3 blocks in a row, got 4"):
        replace_run(net, data, cross_entropy, run=4)
    with pytest.raises(ValueError, match=r"run: expected blocks in a row of one stack, got 1, 3"):
        replace_run(net, data, cross_entropy, run=["1", "3"])
    with pytest.raises(ValueError, match=r"into: expected 'auto', 'neighbour', 'map', got 'x'"):
        replace_run(net, data, cross_entropy, run=1, into="x")
    with pytest.raises(ValueError, match=r"no run can be replaced: 1: the block before it has no linear layer"):
        replace_run(net, data, cross_entropy, run=["1"], into="neighbour")
