"""σ is what takes a state in, as seen while the network runs."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from isthmus.activations import Identity, ReLU
from isthmus.probe import Profile, probe
from isthmus.probe.consumers import ENTRYWISE, Entrywise

NONE = "Identity(append_one=False)"


class Block(nn.Module):
    """``x + W f(x)``, f a function and no module."""

    def __init__(self, width, f, norm=False):
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.l, self.f = nn.Linear(width, width), f

    def forward(self, x):
        return x + self.l(self.f(self.norm(x)))


def sigmas(net, x, **options):
    return dict(zip((p := probe(net, x, **options)).layers, p["activation"], strict=True))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("f", "name"),
    [
        (torch.relu, "ReLU(append_one=True)"),
        (lambda x: x.relu(), "ReLU(append_one=True)"),
        (lambda x: x.clone().relu_(), "ReLU(append_one=True)"),  # a copy has the state's values
        (lambda x: x.clamp(min=0), "ReLU(append_one=True)"),
        (F.gelu, "gelu(append_one=True)"),
        (lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh(append_one=True)"),
        (F.silu, "silu(append_one=True)"),
        (nn.LeakyReLU(), "leaky_relu(append_one=True)"),
        (nn.LeakyReLU(0.3), NONE),  # not the usual slope: not one of those known
        (torch.sin, NONE),
    ],
)
def test_functions_and_modules_alike(f, name):
    found = sigmas(nn.Sequential(nn.Linear(3, 6), Block(6, f), Block(6, f)), torch.randn(40, 3))
    assert found["0"] == found["1"] == name
    assert found["2"] == NONE  # nothing follows


def test_a_norm_before_the_nonlinearity_makes_the_state_its_own_feature():
    net = nn.Sequential(nn.Linear(3, 6), Block(6, torch.relu, norm=True), Block(6, torch.relu, norm=True))
    assert set(sigmas(net, torch.randn(40, 3)).values()) == {NONE}
    profile = probe(net, torch.randn(400, 3))
    # and its cost of identity is then its rank, no number above the width
    assert all(coi <= width + 1e-6 for coi, width in zip(profile["coi"], profile["width"], strict=True))


def test_in_place_activations_are_seen_before_they_write():
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 2))
    assert sigmas(net, torch.randn(40, 3))["0"] == "ReLU(append_one=True)"


def test_channels_first_and_many_batches():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return self.b(torch.relu(self.a(x)))

    found = sigmas(Net(), torch.randn(30, 1, 5, 5), batch_size=8)
    assert found == {"a": "ReLU(append_one=True)", "b": NONE}


def test_the_step_is_measured_with_what_takes_the_state_before():
    net = nn.Sequential(nn.Linear(3, 6), Block(6, torch.relu), Block(6, torch.relu))
    profile = probe(net, torch.randn(200, 3))
    last = profile.records[profile.layers.index("2")]
    assert last.activation == Identity(append_one=False) and last.sigma_before == ReLU()
    assert profile.effective_depth["(model)[1:3]"].value == pytest.approx(0, abs=1e-5)


def test_two_takers_that_differ_are_doubted():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            h = self.a(x)
            return self.b(torch.relu(h)) + self.c(torch.tanh(h))

    profile = probe(Two(), torch.randn(50, 3))
    assert any("a: what takes it is no nonlinearity" in doubt and "or several" in doubt for doubt in profile.doubts)
    assert profile["activation"][0] == NONE


def test_states_that_agree_in_a_whole_column_are_told_apart():
    class Half(nn.Module):
        def forward(self, x):
            return x + 0.5 * torch.relu(x)

    states = -torch.rand(200, 6)
    states[:, 1] = torch.rand(200)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.bend = nn.Identity(), nn.Identity(), Half()

        def forward(self, x):
            return self.b(self.bend(self.a(x)))

    assert sigmas(Net(), states, layers=["a", "b"]) == {"a": "ReLU(append_one=True)", "b": NONE}


def test_the_callers_choice_rules_and_a_pattern_leaves_the_rest_to_reading():
    net = nn.Sequential(nn.Linear(3, 6), Block(6, torch.relu), Block(6, torch.relu))
    assert set(sigmas(net, torch.randn(40, 3), activation="identity").values()) == {"Identity(append_one=True)"}
    found = sigmas(net, torch.randn(40, 3), activation={"0": "identity"})
    assert found["0"] == "Identity(append_one=True)" and found["1"] == "ReLU(append_one=True)"


def test_what_was_read_travels_and_merges():
    net = nn.Sequential(nn.Linear(3, 6), Block(6, F.gelu), Block(6, F.gelu)).double()
    x = torch.randn(300, 3, dtype=torch.float64)
    whole, one, two = probe(net, x), probe(net, x[:160]), probe(net, x[160:])
    merged = Profile.from_state_dict(one.state_dict()).merge(two)
    assert merged["activation"] == whole["activation"]
    for name in ("coi_stable", "kinetic_k_stable", "participation_ratio_rows"):
        found = [v for v in merged[name] if v is not None]
        assert found == pytest.approx([v for v in whole[name] if v is not None], rel=1e-8)


def test_watching_changes_no_bit_and_raises_no_doubt():
    net = nn.Sequential(nn.Linear(3, 6), Block(6, F.gelu), nn.TransformerEncoderLayer(6, 2, 12, batch_first=True))
    profile = probe(net, torch.randn(20, 4, 3))
    assert not any("bit for bit" in doubt for doubt in profile.doubts)


@pytest.mark.parametrize("name", sorted(ENTRYWISE))
def test_derivatives_are_those_of_the_function(name):
    sigma, z = Entrywise(function=name), torch.randn(50, dtype=torch.float64) * 3
    h = 1e-6
    found = (sigma.value(z + h) - sigma.value(z - h)) / (2 * h)
    torch.testing.assert_close(sigma.derivative(z), found, rtol=1e-6, atol=1e-7)
    v = torch.randn(50, dtype=torch.float64)
    torch.testing.assert_close(sigma.pullback_(v.clone(), z, sigma.value(z)), v * sigma.derivative(z))


def test_an_unknown_function_is_named():
    with pytest.raises(ValueError, match=r"function: expected one of gelu, .* got 'sine'"):
        Entrywise(function="sine")


# --- what a stranger broke ------------------------------------------------------------------------------------------


class By(nn.Module):
    """A function as a module."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: x * torch.sigmoid(x),
        lambda x: x * torch.tanh(F.softplus(x)),
        nn.LeakyReLU(0.2),
        nn.PReLU(),
        nn.SELU(),
        nn.ELU(2.0),
        nn.Hardtanh(),
        lambda x: x.clamp(0, 6),
        lambda x: torch.maximum(x, torch.zeros(())),
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: torch.clamp(x, min=torch.zeros(())),
        torch.sin,
    ],
)
def test_what_is_not_known_is_doubted_and_never_taken_for_another(f):
    net = nn.Sequential(nn.Linear(5, 8), By(f), nn.Linear(8, 3))
    profile = probe(net, torch.randn(100, 5))
    assert profile["activation"][0] == NONE
    assert any("0: what takes it is no nonlinearity that is known" in doubt for doubt in profile.doubts)


def test_nan_in_padding_does_not_hide_what_takes_the_state():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x, mask):
            return self.b(torch.relu(self.a(x)))

    x, mask = torch.randn(20, 6, 5), torch.ones(20, 6, dtype=torch.bool)
    x[:, 4:], mask[:, 4:] = float("nan"), False
    profile = probe(Masked(), {"x": x, "mask": mask}, mask="mask")
    assert profile["activation"][0] == "ReLU(append_one=True)"


class Experts(nn.Module):
    """Rows go to one of three by their first number."""

    def __init__(self):
        super().__init__()
        self.e = nn.ModuleList(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)) for _ in range(3))

    def forward(self, x):
        y = torch.zeros_like(x)
        for i, expert in enumerate(self.e):
            rows = (x[:, 0].long() == i).nonzero()[:, 0]
            y[rows] = expert(x[rows])
        return x + y


def test_an_expert_without_rows_in_the_first_batch_is_doubted():
    a, b = torch.randn(200, 6), torch.randn(200, 6)
    a[:, 0], b[:, 0] = torch.arange(200) % 2, torch.arange(200) % 3
    late = probe(Experts(), [a, b], layers="e.2.0")
    assert late["rows"] == [66] and any("e.2.0: ran after the first batch only" in doubt for doubt in late.doubts)
    first = probe(Experts(), [b, a], layers="e.2.0")
    assert first["activation"] == ["ReLU(append_one=True)"] and not any("ran after" in doubt for doubt in first.doubts)


def test_compiled_parts_are_watched_and_scripted_ones_said():
    def net():
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    compiled = net()
    compiled[2] = torch.compile(compiled[2], backend="eager")
    assert probe(compiled, torch.randn(50, 5))["activation"][0] == "ReLU(append_one=True)"


def test_operators_that_take_functions_run_and_are_said():
    class Cond(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = self.a(x)
            return self.b(torch.cond(h.sum() > 0, lambda h: h.relu(), lambda h: h.sin(), (h,)))

    net, x = Cond(), torch.randn(50, 5)
    try:
        net(x)
    except Exception as error:  # torch.cond compiles, and not everywhere
        pytest.skip(f"torch.cond does not run here: {type(error).__name__}")
    profile = probe(net, x)
    seen = profile["activation"][0] != NONE
    assert seen or any("what takes the states was not seen" in doubt for doubt in profile.doubts)


def test_a_network_that_writes_into_its_input_gets_it_as_it_was():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(4, 4)

        def forward(self, x):
            return self.l(x.mul_(0.5))

    net, x = Halves(), torch.randn(30, 4)
    given = x.clone()
    with torch.no_grad():
        expected = float(net(x.clone()).norm())
    profile = probe(net, x)
    assert profile["norm"][0] == pytest.approx(expected, rel=1e-5)
    assert torch.equal(x, 0.5 * given)  # once, as the network alone would


def test_calls_of_one_layer_have_a_sigma_each():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 6)

        def forward(self, x):
            return self.a(torch.relu(self.a(x)))

    assert probe(Twice(), torch.randn(40, 6))["activation"] == ["ReLU(append_one=True)", NONE]
