"""Statements of docs/theory.md that no test of the code needs: the appended 1, and both bounds of (E12) as theorems."""

import pytest
import torch

from isthmus.activations import ReLU, SmoothReLU
from isthmus.mechanics import FeatureMetric, cost_of_identity, flow_velocity, hamiltonian, theorem4

F64 = torch.float64
SMOOTH = SmoothReLU(sharpness=3.0)


def normal(*shape, seed):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("gamma0", [1e-1, 1e-3])
def test_the_appended_one_never_raises_the_stable_cost(seed, gamma0):
    A = normal(50, 5, seed=seed) + normal(5, seed=seed + 100)
    with_one, without = (cost_of_identity(A, ReLU(append_one=one), gamma0) for one in (True, False))
    assert with_one <= without * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_the_appended_one_raises_the_part_in_the_image_where_states_leave_it(seed):
    A = normal(50, 5, seed=seed)
    assert cost_of_identity(A, ReLU()) > 1.05 * cost_of_identity(A, ReLU(append_one=False))


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 3.0])
@pytest.mark.parametrize("seed", range(20))
def test_the_bounds_of_theorem_4_hold_at_every_pair(seed, gamma):
    """(E12), second line, and the upper half of the first at one p: by (E13) they need no critical point."""
    leak, scale = 4.0, 10.0 ** (seed % 3 - 1)
    A, B = normal(9, 5, seed=seed), scale * normal(9, 5, seed=seed + 100)
    metric = FeatureMetric.from_features(SMOOTH.features(A))
    cost, H = metric.norm_squared(A, gamma), hamiltonian(A, B, leak, SMOOTH)
    spill = gamma * float(B.square().sum())
    assert -2 * H / leak - cost <= spill * (1 + 1e-9)
    assert cost + 2 * H / leak > 0  # the root is there
    speed = metric.norm_squared(flow_velocity(A, B, leak, SMOOTH), gamma) ** 0.5
    off = speed - leak * (cost + 2 * H / leak) ** 0.5
    assert -leak * spill**0.5 * (1 + 1e-9) <= off <= 2 * leak * spill**0.5 * (1 + 1e-9)


def velocities(A, B, leak):
    """Hamilton's equations by autograd of (E10), so that nothing is taken from the code that the bound is about."""
    A, B = A.requires_grad_(True), B.requires_grad_(True)
    H = leak / 2 * (B.T @ SMOOTH.features(A)).square().sum() - leak * (A * B).sum()
    dA, dB = torch.autograd.grad(H, (A, B))
    return dB, -dA


def flow(A, B, leak, steps):
    """States and momenta of a solution of Hamilton's equations from p = 0 to 1, by the classical Runge–Kutta scheme."""
    h, path = 1 / steps, [(A, B)]
    for _ in range(steps):
        ks = []
        for c in (0.0, 0.5, 0.5, 1.0):
            dA, dB = ks[-1] if ks else (0.0, 0.0)
            ks.append(velocities((A + c * h * dA).detach(), (B + c * h * dB).detach(), leak))
        weights = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
        A = A.detach() + h * sum(w * dA for w, (dA, _) in zip(weights, ks, strict=True))
        B = B.detach() + h * sum(w * dB for w, (_, dB) in zip(weights, ks, strict=True))
        path.append((A, B))
    return path


@pytest.mark.parametrize("gamma", [1e-3, 1e-2, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_theorem_4_holds_along_a_solution(seed, gamma):
    """(E12), first line, on solutions of (E9) that no network was trained to."""
    leak, steps = 2.0, 100
    path = flow(normal(8, 4, seed=seed), 0.3 * normal(8, 4, seed=seed + 100), leak, steps)
    H = torch.tensor([hamiltonian(A, B, leak, SMOOTH) for A, B in path])
    assert float(H.max() - H.min()) < 1e-5 * float(H.abs().max())
    metrics = [FeatureMetric.from_features(SMOOTH.features(A)) for A, _ in path]
    costs = [metric.norm_squared(A, gamma) for metric, (A, _) in zip(metrics, path, strict=True)]
    speeds = torch.tensor(
        [
            m.norm_squared(flow_velocity(A, B, leak, SMOOTH), gamma) ** 0.5
            for m, (A, B) in zip(metrics, path, strict=True)
        ]
    )
    length = float(torch.trapezoid(speeds, dx=1 / steps))
    largest = max(float(B.square().sum()) for _, B in path)
    bound = theorem4(float(H[0]), min(costs), length, largest, gamma, leak)
    assert bound.holds, bound
