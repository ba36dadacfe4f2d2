"""The fused flow against autograd and against networks written in plain torch."""

import pytest
import torch

from isthmus.activations import Identity, ReLU, SmoothReLU
from isthmus.flow import FlowWorkspace, momenta, path
from isthmus.model import LeakyResNet

ACTIVATIONS = [
    ReLU(),
    ReLU(append_one=False),
    SmoothReLU(sharpness=5.0),
    SmoothReLU(append_one=False),
    Identity(),
    Identity(append_one=False),
]


def slow_path(A0, W, rho, L_tilde, activation):
    """(E2) as it is written, differentiable."""
    states = [A0]
    for W_l, r in zip(W, rho, strict=True):
        A = states[-1]
        states.append((1 - r * L_tilde) * A + r * activation.features(A) @ W_l.T)
    return states


def network(activation, L_tilde=3.0, layers=7, width=6, samples=11):
    W = torch.randn(layers, width, width + activation.extra, dtype=torch.float64) * 1.5
    rho = torch.rand(layers, dtype=torch.float64) + 0.5
    return torch.randn(samples, width, dtype=torch.float64), W, rho / rho.sum(), L_tilde


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("L_tilde", [0.0, 3.0, 12.0])
def test_path_and_momenta_equal_autograd(activation, L_tilde):
    A0, W, rho, _ = network(activation)
    target = torch.randn_like(A0)
    mu = 0.01
    A0.requires_grad_(True)
    states = slow_path(A0, W, rho, L_tilde, activation)
    cost = (states[-1] - target).square().sum() / A0.shape[0]
    expected = torch.stack(torch.autograd.grad(cost, states)) / -mu
    A = path(A0.detach(), W, rho, L_tilde, activation)
    torch.testing.assert_close(A, torch.stack(states).detach(), rtol=1e-10, atol=1e-12)
    M_end = -(2 / A0.shape[0]) * (A[-1] - target) / mu
    M = momenta(A, M_end, W, rho, L_tilde, activation)
    torch.testing.assert_close(M, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_weight_gradient_equals_autograd(activation):
    A0, W, rho, L_tilde = network(activation)
    mu = 0.03
    W.requires_grad_(True)
    A_end = slow_path(A0, W, rho, L_tilde, activation)[-1]
    direction = torch.randn_like(A_end)
    objective = (A_end * direction).sum() + 0.5 * mu * (rho * W.square().sum(dim=(1, 2))).sum()
    (expected,) = torch.autograd.grad(objective, W)
    W = W.detach()
    flow = FlowWorkspace(activation, L_tilde, 7, 6, 11, dtype=torch.float64)
    for _ in range(2):  # the second sweep must not see the first one's buffers
        flow.A[0].copy_(A0.T)
        flow.forward(W, rho.tolist())
        flow.gradient(7).copy_(direction.T)
        out = torch.full_like(W, float("nan"))
        flow.backward(W, rho.tolist(), mu, out)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)


def test_rho_times_l_tilde_of_one_is_a_fully_connected_network():
    depth = 5
    net = LeakyResNet(
        4, 3, width=8, depth=depth, effective_depth=float(depth), initialisation="kaiming", dtype=torch.float64
    )
    x = torch.randn(9, 4, dtype=torch.float64)
    A = x @ net.in_map.T
    for W in net.weight:
        A = torch.nn.functional.linear(torch.relu(A), W[:, :8] / depth, W[:, 8] / depth)
    torch.testing.assert_close(net(x), A @ net.out_map.T, rtol=1e-12, atol=1e-12)


def test_l_tilde_of_zero_is_a_resnet():
    net = LeakyResNet(4, 3, width=8, depth=5, effective_depth=0.0, initialisation="kaiming", dtype=torch.float64)
    x = torch.randn(9, 4, dtype=torch.float64)
    A = x @ net.in_map.T
    for W in net.weight:
        A = A + torch.nn.functional.linear(torch.relu(A), W[:, :8] / 5, W[:, 8] / 5)
    torch.testing.assert_close(net(x), A @ net.out_map.T, rtol=1e-12, atol=1e-12)


def test_float32_path_is_that_of_float64_to_its_precision():
    A0, W, rho, L_tilde = network(ReLU())
    wide = path(A0, W, rho, L_tilde, ReLU())
    narrow = path(A0.float(), W.float(), rho.float(), L_tilde, ReLU())
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-4)


def test_inputs_are_left_alone():
    A0, W, rho, L_tilde = network(Identity())
    copies = A0.clone(), W.clone()
    A = path(A0, W, rho, L_tilde, Identity())
    momenta(A, torch.randn_like(A0), W, rho, L_tilde, Identity())
    assert torch.equal(A0, copies[0]) and torch.equal(W, copies[1])


def test_shapes_that_do_not_fit_are_named(without_shape_checks):
    A0, W, rho, L_tilde = network(ReLU())
    with pytest.raises(ValueError, match=r"weights must be \(layers, 6, 7\)"):
        path(A0, W[:, :, :6], rho, L_tilde, ReLU())
    with pytest.raises(ValueError, match="7 weight matrices, but 6 step-sizes"):
        path(A0, W, rho[:6], L_tilde, ReLU())
    A = path(A0, W, rho, L_tilde, ReLU())
    with pytest.raises(ValueError, match="a path of 6 states has 5 layers, but there are 7 weights"):
        momenta(A[:6], A0, W, rho, L_tilde, ReLU())
