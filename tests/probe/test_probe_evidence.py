"""Which argument is the state, and which blocks follow each other: by what was passed on, not by shape or order."""

import copy

import pytest
import torch
from torch import nn

from isthmus.probe import probe, rank_blocks, simplify

mse = nn.functional.mse_loss
PR = "participation_ratio_centred"


def pr(rows):
    s = torch.linalg.svdvals((rows - rows.mean(0)).double()) ** 2
    return float(s.sum() ** 2 / (s**2).sum())


def change(a, b):
    return float((b - a).norm() / b.norm())


class Conditioned(nn.Module):
    """Its condition comes first, in the state's shape."""

    def __init__(self, width=6, last=False):
        super().__init__()
        self.l, self.last = nn.Linear(width, width), last

    def forward(self, cond, x):
        y = x + 0.1 * torch.tanh(self.l(x + cond))
        return (cond, y) if self.last else y


class Stack(nn.Module):
    def __init__(self, last=False):
        super().__init__()
        self.blocks = nn.ModuleList(Conditioned(last=last) for _ in range(3))
        self.c, self.last = nn.Linear(6, 6), last

    def forward(self, x):
        c = self.c(x)
        for b in self.blocks:
            x = b(c, x)[1] if self.last else b(c, x)
        return x

    def states(self, x):
        c, out = self.c(x), [x]
        for b in self.blocks:
            y = b(c, out[-1])
            out.append(y[1] if self.last else y)
        return [s.detach() for s in out]


@pytest.fixture
def seeded():
    torch.manual_seed(0)


@pytest.mark.usefixtures("seeded")
def test_a_condition_that_comes_first_is_not_the_state():
    net, x = Stack(), torch.randn(50, 6)
    profile, states = probe(net, x, ["blocks.0:input", "blocks.*"], batch_size=20, activation="relu"), net.states(x)
    for i, found in enumerate(profile["step_change"][1:]):
        assert found == pytest.approx(change(states[i], states[i + 1]), rel=1e-5)
    assert profile[PR][0] == pytest.approx(pr(states[0]), rel=1e-6) and profile["step_change"][0] is None
    assert profile.effective_depth["blocks"].value < 0.2


@pytest.mark.usefixtures("seeded")
def test_a_condition_that_comes_first_is_not_what_dropping_leaves():
    net, x, y = Stack(), torch.randn(50, 6), torch.randn(50, 6)
    found = simplify(net, [(x, y)], mse, drop=1)
    one = copy.deepcopy(net)
    del one.blocks[int(found.dropped[0][-1])]
    measured = float((mse(one(x), y) - mse(net(x), y)).detach())
    assert found.measured == pytest.approx(measured, abs=1e-6)
    assert found.predicted == pytest.approx(measured, rel=0.1)
    other = rank_blocks(net, [(x, y)], mse, state={"blocks.*": "cond"})
    by_name = rank_blocks(net, [(x, y)], mse, state={"blocks.*": "x"})
    assert by_name == list(found.candidates) and other[0].step_change > 0.5 > by_name[0].step_change


@pytest.mark.usefixtures("seeded")
def test_a_state_that_comes_second_in_the_output_is_the_one_that_goes_on():
    net, x = Stack(last=True), torch.randn(50, 6)
    profile, states = probe(net, x, "blocks.*"), net.states(x)
    assert profile[PR] == pytest.approx([pr(state) for state in states[1:]], rel=1e-6)
    assert profile["step_change"][2] == pytest.approx(change(*states[2:]), rel=1e-5)


@pytest.mark.usefixtures("seeded")
def test_where_another_output_goes_on_than_the_one_read_that_is_said():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(6, 6)

        def forward(self, x):
            return torch.relu(x), x + self.l(x)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Two() for _ in range(3))

        def forward(self, x):
            for b in self.blocks:
                _, x = b(x)
            return x

    net, x = Net(), torch.randn(50, 6)
    profile = probe(net, x, kinds=("block",))
    reasons = {s.name: s.reason for s in profile.skipped}
    assert "its output[1] is what blocks.1 takes, and not output[0]" in reasons["blocks.0"]
    assert "its output[1] is what blocks.2 takes" in reasons["blocks.1"]
    right = probe(net, x, kinds=("block",), output={"blocks.*": 1})
    a = net.blocks[0](x)[1].detach()
    assert right[PR][0] == pytest.approx(pr(a), rel=1e-6) and right.effective_depth["blocks"].layers == 3


@pytest.mark.usefixtures("seeded")
def test_a_choice_that_leads_nowhere_costs_its_own_block_alone():
    profile = probe(Stack(), torch.randn(50, 6), "blocks.*", output={"blocks.1": "absent"})
    assert profile.layers == ["blocks.0", "blocks.2"]
    assert "output='absent' does not lead to a tensor" in {s.name: s.reason for s in profile.skipped}["blocks.1"]


@pytest.mark.usefixtures("seeded")
def test_arguments_that_cannot_be_told_apart_are_doubted_and_can_be_picked():
    class Mix(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(6, 6)

        def forward(self, a, b):
            return self.l(a + b)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.c = Mix(), nn.Linear(6, 6)

        def forward(self, x):
            return self.mix(self.c(x), x)

    net, x = Net(), torch.randn(50, 6)
    doubted = probe(net, x, ["mix:input", "mix"])
    assert any("mix: which of its arguments" in doubt and "state=" in doubt for doubt in doubted.doubts)
    for choice in (1, "b", lambda given: given[1]):
        picked = probe(net, x, ["mix:input", "mix"], state={"mix": choice})
        assert picked[PR][0] == pytest.approx(pr(x), rel=1e-6) and not picked.doubts


class MoE(nn.Module):
    def __init__(self, hard=False):
        super().__init__()
        self.gate, self.hard = nn.Linear(8, 4), hard
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(4))

    def forward(self, x):
        w = self.gate(x).softmax(-1)
        if not self.hard:
            return x + sum(w[:, i : i + 1] * e(x) for i, e in enumerate(self.experts))
        out = x.clone()
        for i, e in enumerate(self.experts):
            own = w.argmax(-1) == i
            out[own] = out[own] + e(x[own])
        return out


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("hard", [False, True])
def test_experts_side_by_side_are_no_stack(hard):
    net, x, y = MoE(hard), torch.randn(200, 8), torch.randn(200, 8)
    profile = probe(net, x)
    assert profile.effective_depth == {} and profile.idle() == []
    assert any(note.startswith("experts: no stack, experts.1 ") for note in profile.notes)
    found = rank_blocks(net, [(x, y)], mse)
    assert all(c.reason is not None and "experts" in c.reason for c in found)
    with pytest.raises(ValueError, match=r"0 blocks that could go .*The others cannot: .*experts.1 "):
        simplify(net, [(x, y)], mse, drop=1)


@pytest.mark.usefixtures("seeded")
def test_blocks_between_which_the_state_is_changed_have_steps_but_no_depth():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Residual() for _ in range(3))

        def forward(self, x):
            for b in self.blocks:
                x = b(x.mul_(2.0) if self.training else 2.0 * x)
            return x

    profile = probe(Scaled(), torch.randn(40, 6))
    assert profile.effective_depth == {} and len(profile.idle()) == 3
    assert "blocks: no stack, what blocks.1 takes is not what blocks.0 returned; steps" in "".join(profile.notes)
    again = probe(Scaled().train(), torch.randn(40, 6), mode="as_is")  # in place: the same storage, other bits
    assert again.effective_depth == {}


class Residual(nn.Module):
    def __init__(self, tuples=False, size=0.1):
        super().__init__()
        self.l, self.tuples, self.size = nn.Linear(6, 6), tuples, size

    def forward(self, hidden_states, position=None):
        y = hidden_states + self.size * torch.tanh(self.l(hidden_states))
        return (y, position, None) if self.tuples else y


class Numbered(nn.Module):
    """Calls its blocks by number and takes the first of what they return, or unpacks all of it."""

    def __init__(self, unpack=False):
        super().__init__()
        self.blocks, self.o = nn.ModuleList(Residual(True) for _ in range(4)), nn.Linear(6, 3)
        self.unpack = unpack

    def forward(self, x):
        position = torch.arange(x.shape[1])
        for i in range(4):
            if self.unpack:
                x, position, _ = self.blocks[i](x, position=position)
                assert position is not None
            else:
                x = self.blocks[i](x)[0]
        return self.o(x)


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("unpack", [False, True])
def test_what_stands_in_for_a_block_returns_what_that_returned(unpack):
    net, x, y = Numbered(unpack), torch.randn(50, 7, 6), torch.randn(50, 7, 3)
    found = simplify(net, [(x, y)], mse, drop=1)
    assert found.model(x).shape == (50, 7, 3)
    gone = copy.deepcopy(net)
    gone.blocks[int(found.dropped[0][-1])].size = 0.0  # the block as identity
    torch.testing.assert_close(found.model(x), gone(x))
    assert found.predicted == pytest.approx(found.measured, rel=0.05)
    assert "a PassThrough stands in its place" in found.notes[0]


@pytest.mark.usefixtures("seeded")
def test_blocks_called_with_their_place_keep_it():
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.scale = nn.ModuleList(Residual(size=s) for s in (0.01, 0.5, 0.5)), (1.0, 0.5, 2.0)

        def forward(self, x):
            for i, b in enumerate(self.blocks):
                x = b(x * self.scale[i])
            return x

    net, x, y = Placed(), torch.randn(50, 6), torch.randn(50, 6)
    found = simplify(net, [(x, y)], mse, drop=1)
    gone = copy.deepcopy(net)
    gone.blocks[int(found.dropped[0][-1])].size = 0.0
    torch.testing.assert_close(found.model(x), gone(x))
    assert "the others compute something else" in found.notes[0]


@pytest.mark.usefixtures("seeded")
def test_a_block_that_makes_what_the_others_need_cannot_go():
    class Maker(nn.Module):
        """The first makes a bias that all others take, as T5's does."""

        def __init__(self, makes):
            super().__init__()
            self.l, self.b = nn.Linear(6, 6), nn.Parameter(torch.randn(6)) if makes else None

        def forward(self, x, bias=None):
            if bias is None:
                bias = torch.zeros(6) if self.b is None else 3 * self.b
            return x + 0.01 * torch.tanh(self.l(x) + bias), bias

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Maker(i == 0) for i in range(3))

        def forward(self, x):
            bias = None
            for b in self.blocks:
                x, bias = b(x, bias=bias)
            return x + 0.0 * bias

    net, x, y = Net(), torch.randn(50, 6), torch.randn(50, 6)
    found = simplify(net, [(x, y)], mse, keep=["blocks.1", "blocks.2"])
    assert found.dropped == () and "blocks.0: it cannot go" in found.notes[0]
    assert next(c for c in found.candidates if c.name == "blocks.0").reason is not None
    torch.testing.assert_close(found.model(x), net(x))


class Checkpointed(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.blocks = nn.ModuleList(Deep() for _ in range(3))
        self.head, self.how = nn.Linear(8, 3), how

    def forward(self, x):
        from torch.utils.checkpoint import checkpoint

        for b in self.blocks:
            x = b(x) if self.how is None else checkpoint(b, x, use_reentrant=self.how)
        return self.head(x)


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return x + 0.3 * self.b(torch.relu(self.a(x)))


@pytest.mark.parametrize("how", [True, False])
def test_checkpointed_blocks_are_ranked_as_the_others(how):
    x, y, ce = torch.randn(64, 8), torch.randint(0, 3, (64,)), nn.functional.cross_entropy
    ranks, tables = [], []
    for kind in (None, how):
        torch.manual_seed(1)
        net = Checkpointed(kind)
        ranks.append([(c.name, c.predicted) for c in rank_blocks(net, [(x, y)], ce)])
        tables.append(probe(net, [(x, y)], kinds=("block",), loss=ce, weight_decay=0.1)["momentum_norm"])
    assert [name for name, _ in ranks[0]] == [name for name, _ in ranks[1]]
    for (_, a), (_, b) in zip(*ranks, strict=True):
        assert a == pytest.approx(b, rel=1e-5) and a != 0.0
    assert tables[0] == pytest.approx(tables[1], rel=1e-5)


def test_blocks_that_no_gradient_reaches_are_not_free_to_drop():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Deep() for _ in range(2))

        def forward(self, x):
            return self.blocks[1](self.blocks[0](x).detach())

    found = rank_blocks(Cut(), [(torch.randn(20, 8), torch.randn(20, 8))], mse)
    assert [c.name for c in found] == ["blocks.1", "blocks.0"]
    assert "no gradient of the loss reaches its gate" in found[1].reason
