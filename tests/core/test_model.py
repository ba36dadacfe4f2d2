import warnings

import pytest
import torch
from torch.func import functional_call, grad

from isthmus.activations import Identity, SmoothReLU
from isthmus.flow import path
from isthmus.initialise import INITIALISATIONS, Shape, initialise
from isthmus.model import LeakyResNet
from isthmus.problem import Problem


def test_trajectory_is_the_fused_path_and_ends_in_forward():
    net = LeakyResNet(4, 3, width=8, depth=6, effective_depth=2.0, dtype=torch.float64)
    x = torch.randn(9, 4, dtype=torch.float64)
    A = net.trajectory(x)
    assert A.shape == (7, 9, 8)
    fused = path(x @ net.in_map.T, net.weight.detach(), net.rho, 2.0, net.activation)
    torch.testing.assert_close(A.detach(), fused, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(A[-1] @ net.out_map.T, net(x), rtol=1e-13, atol=1e-13)
    assert torch.allclose(net.positions, torch.linspace(0, 1, 7, dtype=torch.float64))


@pytest.mark.parametrize("ends", ["fixed", "learned"])
def test_end_maps_are_orthonormal_and_shared_by_initialisations(ends):
    nets = [
        LeakyResNet(
            5, 7, width=9, depth=3, ends=ends, initialisation=name, effective_depth=1.0, seed=3, dtype=torch.float64
        )
        for name in INITIALISATIONS
    ]
    net = nets[0]
    torch.testing.assert_close(net.in_map.T @ net.in_map, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(net.out_map @ net.out_map.T, torch.eye(7, dtype=torch.float64))
    assert all(torch.equal(net.in_map, other.in_map) for other in nets)
    assert len(list(net.parameters())) == (3 if ends == "learned" else 1)


def test_works_under_autograd_func_double_backward_and_double():
    net = LeakyResNet(4, 3, width=6, depth=3, effective_depth=1.0, activation=SmoothReLU())
    x = torch.randn(5, 4)
    parameters = dict(net.named_parameters())
    gradient = grad(lambda p: functional_call(net, p, (x,)).square().sum())(parameters)
    net(x).square().sum().backward()
    torch.testing.assert_close(gradient["weight"], net.weight.grad)
    (first,) = torch.autograd.grad(net(x).square().sum(), net.weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), net.weight)
    assert float(second.norm()) > 0
    assert net.double()(x.double()).dtype == torch.float64


def test_rho_is_saved_with_the_model_and_the_seed_decides():
    rho = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    net = LeakyResNet(4, 3, width=6, depth=3, effective_depth=1.0, rho=rho, dtype=torch.float64)
    other = LeakyResNet(4, 3, width=6, depth=3, effective_depth=1.0, seed=1, dtype=torch.float64)
    assert not torch.equal(net.weight, other.weight)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.rho, rho)
    x = torch.randn(2, 4, dtype=torch.float64)
    assert torch.equal(net(x), other(x))
    same = LeakyResNet(4, 3, width=6, depth=3, effective_depth=1.0, rho=rho, dtype=torch.float64)
    assert torch.equal(same.weight, net.weight)


def test_the_global_generator_is_left_alone():
    before = torch.random.get_rng_state()
    LeakyResNet(4, 3, width=6, depth=3, effective_depth=1.0)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 3}, "width must be at least the larger end"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"effective_depth": -1.0}, "effective_depth must be finite and not negative"),
        ({"effective_depth": float("nan")}, "effective_depth must be finite and not negative"),
        ({"dtype": torch.float16}, "dtype must be torch.float32 or torch.float64"),
        ({"initialisation": "xavier"}, "unknown initialisation 'xavier': expected one of small, kaiming, carrier"),
        ({"rho": torch.full((4,), 0.2)}, "must sum to 1, got a sum of 0.8"),
        ({"rho": torch.full((3,), 1 / 3)}, r"one step-size a layer: expected \(4,\)"),
        ({"rho": torch.tensor([1.5, -0.5, 0.0, 0.0])}, "every step-size must be positive"),
    ],
)
def test_misuse_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        LeakyResNet(4, 5, **({"width": 6, "depth": 4, "effective_depth": 1.0} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "relu"}, r"activation must be one of isthmus.s own, such as isthmus\.ReLU\(\)"),
        ({"activation": Identity}, r"activation must be one of isthmus.s own, such as isthmus\.ReLU\(\)"),
        ({"rho": [0.5, 0.5]}, "rho must be a torch.Tensor"),
        ({"depth": 4.0}, "depth must be a whole number"),
        ({"width": "a"}, "width must be a whole number"),
    ],
)
def test_wrong_types_are_named(change, message, without_shape_checks):
    with pytest.raises(TypeError, match=message):
        LeakyResNet(4, 5, **({"width": 6, "depth": 4, "effective_depth": 1.0} | change))


def test_another_precision_is_named():
    with pytest.raises(ValueError, match=r"inputs are torch.float64 and the network is torch.float32"):
        LeakyResNet(4, 3, width=6, depth=3, effective_depth=1.0)(torch.zeros(2, 4, dtype=torch.float64))


def test_wrong_inputs_are_named():
    net = LeakyResNet(4, 3, width=6, depth=3, effective_depth=1.0)
    with pytest.raises(ValueError, match=r"inputs must be \(samples, 4\), got \(2, 5\)"):
        net(torch.zeros(2, 5))


def test_a_skip_that_changes_sign_is_warned_about_and_allowed():
    with pytest.warns(UserWarning, match=r"rho \* effective_depth is 2.5 > 1 at layer 1"):
        LeakyResNet(4, 3, width=6, depth=4, effective_depth=10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LeakyResNet(4, 3, width=6, depth=4, effective_depth=4.0)  # exactly 1 is a fully connected layer


def test_carrier_brings_a_signal_through_any_leak_and_small_does_not():
    x = torch.randn(200, 30, dtype=torch.float64)
    for L_tilde, depth in ((7.0, 20), (20.0, 40)):
        spread = {}
        for name in ("carrier", "small"):
            net = LeakyResNet(30, 30, depth=depth, effective_depth=L_tilde, initialisation=name, dtype=torch.float64)
            A = net.trajectory(x).detach()[-1]
            spread[name] = float((A - A.mean(0)).norm() / x.norm())
        assert spread["carrier"] > 0.1
        assert spread["small"] < 0.05


def test_carrier_is_low_rank_and_undoes_the_leak_on_its_cone():
    W = initialise("carrier", Shape(3, 40, 1, 5.0, 6), 0) - initialise("carrier", Shape(3, 40, 1, 0.0, 6), 0)
    Q_part = W[0, :, :40] / 5
    assert int(torch.linalg.matrix_rank(Q_part)) == 6
    z = torch.rand(40, dtype=torch.float64)
    A = Q_part @ z  # on the cone
    torch.testing.assert_close(5.0 * Q_part @ torch.relu(A) - 5.0 * A, torch.zeros(40, dtype=torch.float64))


def test_repr_says_what_it_is():
    net = LeakyResNet(4, 3, width=6, depth=3, effective_depth=1.5, activation=Identity())
    assert "4 -> 6 -> 3, depth=3, effective_depth=1.5, activation=Identity" in repr(net)


def test_a_problem_scores_with_its_own_sigma_and_leak_not_the_models():
    """Points of a branch have another L̃ than the model that holds their weights (it gave costs 100 times too large)."""
    model = LeakyResNet(3, 3, width=6, depth=5, effective_depth=2.0, seed=0, dtype=torch.float64)
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    other = Problem(model, x, x, activation=SmoothReLU(sharpness=3.0), effective_depth=4.0)
    assert other.score(x, x)[0] == pytest.approx(other.evaluate().data_cost, rel=1e-12)
    assert other.score(x, x)[0] != pytest.approx(Problem(model, x, x).score(x, x)[0], rel=1e-3)
    assert other.network.weight is model.weight and model.effective_depth == 2.0
    torch.testing.assert_close(other.network.trajectory(x), other.geodesic().A)
    assert Problem(model, x, x).network is model
