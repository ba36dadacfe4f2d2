"""What a model keeps between calls is as it was, and does not go stale; models that cannot be read yet say so."""

import copy

import pytest
import torch
from torch import nn

from isthmus.probe import probe

PR = "participation_ratio_centred"


def test_buffers_that_forward_assigns_anew_or_registers_are_put_back():
    class Ema(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(4, 4)
            self.register_buffer("ema", torch.zeros(4))
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            z = self.l(x)
            self.ema = 0.9 * self.ema + 0.1 * z.detach().mean(0)
            self.seen = self.seen + len(x)
            self.register_buffer(f"late{int(self.seen)}", z)
            return z

    net = Ema()
    before, tensors = copy.deepcopy(net.state_dict()), dict(net.named_buffers())
    probe(net, torch.randn(32, 4), batch_size=8)
    assert list(net.state_dict()) == list(before)
    torch.testing.assert_close(net.state_dict(), before)
    assert all(tensors[name] is buffer for name, buffer in net.named_buffers())


def test_attributes_that_forward_changes_are_put_back():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.l, self.calls, self.log, self.cache, self.last = nn.Linear(4, 4), 0, [], {}, torch.zeros(4)

        def forward(self, x):
            self.calls += 1
            self.log.append(len(x))
            self.cache["x"] = x
            self.last += x.mean(0)
            self.new = x
            return self.l(x)

    net = Counts()
    log, cache = net.log, net.cache
    probe(net, torch.randn(32, 4), batch_size=8)
    assert net.calls == 0 and net.log == [] and net.cache == {} and not hasattr(net, "new")
    assert net.log is log and net.cache is cache and not net.last.any()


class Bias(nn.Module):
    """Keeps in eval mode what its parameters make; ``train`` drops it."""

    def __init__(self):
        super().__init__()
        self.q, self.o, self.b, self.cache = nn.Linear(6, 6), nn.Linear(6, 6), nn.Parameter(torch.randn(5)), None

    def train(self, mode=True):
        self.cache = None
        return super().train(mode)

    def forward(self, x):
        i = torch.arange(5)
        i = (i[:, None] - i).abs()
        if not self.training and self.cache is None:
            self.cache = self.b[i]
        return x + self.o((self.q(x) @ x.mT + (self.b[i] if self.training else self.cache)).softmax(-1) @ x)


@pytest.mark.parametrize("kept", [False, True])
def test_caches_of_the_evaluation_are_not_those_of_an_earlier_network(kept):
    torch.manual_seed(0)
    net, x = nn.Sequential(Bias(), Bias()).train(), torch.randn(40, 5, 6)
    if kept:  # somebody set flags alone, and evaluated
        for module in net.modules():
            module.training = False
        with torch.no_grad():
            net(x)
        for module in net.modules():
            module.training = True
    first = probe(net, x, ["*"])
    with torch.no_grad():
        for module in net:
            module.b += torch.linspace(-6, 6, 5)
    again, fresh = probe(net, x, ["*"]), probe(copy.deepcopy(net).train().eval(), x, ["*"])
    assert again[PR] == pytest.approx(fresh[PR], rel=1e-9) and again[PR] != pytest.approx(first[PR], rel=1e-3)
    assert net.training and all(module.training for module in net)


def test_weights_that_eval_puts_together_are_the_same_bits_afterwards():
    class Lora(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.a, self.b, self.merged = (
                nn.Parameter(torch.randn(6, 6)),
                torch.randn(6, 1),
                torch.randn(1, 6),
                0,
            )

        def train(self, mode=True):
            if mode and self.merged:
                self.w.data -= self.a @ self.b
            elif not mode and not self.merged:
                self.w.data += self.a @ self.b
            self.merged = int(not mode)
            return super().train(mode)

        def forward(self, x):
            return x @ (self.w if self.merged else self.w + self.a @ self.b).T

    net = nn.Sequential(Lora(), nn.Linear(6, 6)).train()
    before = net[0].w.detach().clone()
    probe(net, torch.randn(20, 6))
    assert torch.equal(net[0].w, before) and net[0].merged == 0


@pytest.mark.parametrize("parts", [[nn.LazyLinear, nn.LazyBatchNorm1d], [nn.LazyLinear]], ids=len)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_are_to_run_once_first(parts):
    net, x = nn.Sequential(*(part(6) if part is nn.LazyLinear else part() for part in parts)), torch.randn(20, 4)
    with pytest.raises(ValueError, match=r"model: lazy layers .*: 0.weight, .*; call model\(batch\) once"):
        probe(net, x)
    assert isinstance(net[0], nn.LazyLinear)
    net(x)
    assert probe(net, x).layers == ["0"]


def test_weights_without_values_are_refused():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(4, 4, bias=False))
    with pytest.raises(ValueError, match=r"weights without values, on the meta device: 0.weight; load them first"):
        probe(net, torch.randn(5, 4))


# --- the self-check ---------------------------------------------------------------------------------------------------


class Looks(nn.Module):
    """Takes another way where its layer has hooks, as fused paths do."""

    def __init__(self, how):
        super().__init__()
        self.l, self.how, self.drop = nn.Linear(4, 4), how, nn.Dropout(0.5)

    def forward(self, x):
        if self.how == "hooks" and self.l._forward_hooks:
            return 2 * self.l(x)
        return self.l(self.drop(x))


def test_a_network_that_is_another_with_hooks_is_doubted_also_in_words(tmp_path):
    from isthmus.report.profile.data import ProfileData
    from isthmus.report.profile.words import account

    profile = probe(Looks("hooks"), torch.randn(20, 4))
    assert "is not, bit for bit, the one without" in profile.doubts[0]
    assert profile.doubts[0] in account(ProfileData(profile, "net", "data")).doubts
    again = type(profile).load(profile.save(tmp_path / "p.pt"))
    assert again.doubts == again.merge(profile).doubts == profile.doubts


@pytest.mark.parametrize("mode", ["eval", "as_is"])
def test_the_check_changes_nothing_and_finds_nothing_where_there_is_nothing(mode):
    net, x = Looks("same").train(), torch.randn(20, 4)
    torch.manual_seed(3)
    profile = probe(net, x, mode=mode)
    torch.manual_seed(3)
    if mode == "eval":
        net.eval()
    expected = torch.linalg.svdvals(net(x).detach().double())
    assert profile.doubts == ()
    torch.testing.assert_close(profile.spectrum("l"), expected, rtol=1e-6, atol=1e-9)


def test_rows_that_are_no_multiple_of_the_samples_are_doubted():
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(4, 4)

        def forward(self, x):
            return self.l(x.reshape(-1, 4)[:-1])

    profile = probe(Drops(), torch.randn(20, 3, 4))
    assert any("its 59 rows are no multiple of the batch's 20 samples" in doubt for doubt in profile.doubts)
