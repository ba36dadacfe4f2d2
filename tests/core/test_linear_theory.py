"""Linear networks: minima found by the optimisers, by the two-ended solver, and the closed form.

The closed form, derived in full in `isthmus.theory`. σ(z) = z, whitened inputs ``XᵀX/N = 1`` of mean 0,
``Y = XZᵀ + noise`` with noise
orthogonal to X, end maps that carry each pair of singular directions of Z to one unit vector. Per mode of singular
value s:

1.  A layer that multiplies the mode by t costs ``(μ/2)ρ‖W‖² = (μ/2)(t − κ)²/ρ``, ``κ = 1 − ρL̃``; the end costs
``(s − Πt)²``.
2.  With ``t = e^y`` the layer's cost is convex in y wherever it counts (t ≥ κ), so by Jensen equal layers are best,
``t = R^{1/L}``:
    ``F(R) = (s − R)² + (μ/2)L²(R^{1/L} − κ)²``; as L → ∞, ``(s − R)² + (μ/2)(L̃ + log R)²``.
3.  Off-diagonal weights do no better: von Neumann's trace inequality for each layer, Horn's log-majorisation for
their product.
4.  F has a minimum near s (kept) and, for large L̃ or small s, another near the leak κ^L (dropped). The global one is
the lower: the
    mode is dropped where about ``(μ/2)(L̃ + log s)² > s²``.
"""

import math
from itertools import pairwise

import pytest
import torch

from isthmus.activations import Identity
from isthmus.mechanics import scaled_hamiltonian
from isthmus.model import LeakyResNet
from isthmus.optimise import LBFGS, Adam
from isthmus.problem import Problem
from isthmus.solve import Stage, Trainer
from isthmus.status import Status
from isthmus.theory import linear_gains, linear_minimum
from isthmus.two_ended import solve_on_mesh

F64 = torch.float64
MU = 0.01


def linear_problem(s, depth, effective_depth, *, bias=False, carried=None, noise=0.0, width=6, seed=0):
    """Whitened data whose least-squares map has singular values ``s``; ``carried`` modes start with gain about 1."""
    generator = torch.Generator().manual_seed(seed)
    d, N = len(s), 32

    def rotation(n):
        return torch.linalg.qr(torch.randn(n, n, dtype=F64, generator=generator)).Q

    x = torch.randn(N, 2 * d, dtype=F64, generator=generator)
    basis = torch.linalg.qr(x - x.mean(0)).Q * N**0.5
    x, off = basis[:, :d], basis[:, d:]
    R, P, Q = rotation(d), rotation(d), rotation(width)[:, :d]
    y = x @ torch.diag(torch.tensor(s, dtype=F64)) @ P.T + noise * off @ rotation(d)
    net = LeakyResNet(
        d,
        d,
        width=width,
        depth=depth,
        effective_depth=effective_depth,
        activation=Identity(append_one=bias),
        dtype=F64,
    )
    net.in_map.copy_(Q @ R.T)
    net.out_map.copy_(P @ Q.T)
    start = Q[:, [True] * d if carried is None else carried]
    with torch.no_grad():
        net.weight.copy_(0.02 * torch.randn(net.weight.shape, dtype=F64, generator=generator))
        net.weight[:, :, :width] += effective_depth * start @ start.T
    return Problem(net, x @ R.T, y, mu=MU)


def lbfgs(p, steps=1500):
    optimiser = LBFGS(pairs=40, preconditioned=False).start(p)
    for _ in range(steps):
        optimiser.step(p.evaluate, 0.0)
        if optimiser.finished:
            break
    return p.evaluate()


def gains(p):
    """Singular values of the network as a map, in float64."""
    eye = torch.eye(p.model.in_features, dtype=F64)
    zero = p.model(torch.zeros_like(eye))
    return torch.linalg.svdvals((p.model(eye) - zero).detach())


CASES = [
    ([2.0, 1.0, 0.5], 8, 3.0),
    ([1.5], 4, 4.0),  # κ = 0: a fully connected network
    ([3.0, 1.2], 5, 0.0),  # a ResNet
    ([1.0, 1.0, 1.0], 12, 5.0),  # one value three times
    ([0.4, 0.09], 6, 2.0),  # one mode hardly above the leak, 0.088
]


@pytest.mark.parametrize(("s", "depth", "effective_depth"), CASES)
@pytest.mark.parametrize("bias", [False, True])
def test_minima_of_linear_networks_agree_with_theory(s, depth, effective_depth, bias):
    theory = linear_minimum(s, depth, effective_depth, MU, unexplained=len(s) * 0.09)
    p = linear_problem(s, depth, effective_depth, bias=bias, noise=0.3)
    reached = lbfgs(p)
    assert reached.objective == pytest.approx(theory.objective, rel=1e-10)
    assert reached.data_cost == pytest.approx(theory.data_cost, rel=1e-6)
    torch.testing.assert_close(gains(p), theory.gains.sort(descending=True).values, rtol=1e-6, atol=1e-8)
    w = torch.linalg.svdvals(p.model.weight.detach())[:, : len(s)]
    torch.testing.assert_close(w, theory.weights.sort(descending=True).values.expand_as(w), rtol=1e-5, atol=1e-5)
    g = p.geodesic()
    for A, M in zip(g.A[:-1], g.M[1:], strict=True):
        assert scaled_hamiltonian(A, M, effective_depth, g.activation) == pytest.approx(
            theory.scaled_hamiltonian,
            rel=1e-3,  # linear, not quadratic, in the distance that L-BFGS leaves
        )


def test_a_trainer_in_float64_arrives_there_too():
    s, depth, effective_depth = [2.0, 1.0], 6, 2.0
    p = linear_problem(s, depth, effective_depth)
    Trainer(p, (Stage(Adam(), 200, 1e-2), Stage(LBFGS(), 600))).run()
    assert p.evaluate().objective == pytest.approx(linear_minimum(s, depth, effective_depth, MU).objective, rel=1e-6)


@pytest.mark.parametrize(("depth", "effective_depth"), [(12, 5.0), (20, 6.0)])
def test_a_mode_that_costs_more_than_it_is_worth_is_dropped(depth, effective_depth):
    s = [2.0, 0.25]
    theory = linear_minimum(s, depth, effective_depth, MU)
    assert theory.kept.tolist() == [True, False]
    dropped = linear_gains(s[1], depth, effective_depth, MU)[0]
    assert float(theory.gains[1]) == dropped < 0.1 * s[1]
    assert MU / 2 * (effective_depth + math.log(s[1])) ** 2 > s[1] ** 2  # the rule of thumb says so as well
    p = linear_problem(s, depth, effective_depth, carried=[True, False])
    assert lbfgs(p).objective == pytest.approx(theory.objective, rel=1e-6)
    assert float(gains(p)[1]) == pytest.approx(dropped, rel=1e-5)


def test_a_carried_mode_stays_in_its_own_minimum_though_theory_would_drop_it():
    """Two minima: an optimiser that starts from the kept side ends there, above the global one by what theory says."""
    s, depth, effective_depth = 0.35, 24, 6.5
    low, high = linear_gains(s, depth, effective_depth, MU)
    theory = linear_minimum([s], depth, effective_depth, MU)
    assert float(theory.gains[0]) == low
    kept, dropped = (
        lbfgs(linear_problem([s], depth, effective_depth, carried=[carried], width=2)) for carried in (True, False)
    )
    kappa = 1 - effective_depth / depth

    def F(R):
        return (s - R) ** 2 + MU / 2 * depth**2 * (R ** (1 / depth) - kappa) ** 2

    assert dropped.objective == pytest.approx(theory.objective, rel=1e-6)
    assert kept.objective == pytest.approx(F(high), rel=1e-6)
    assert kept.objective > dropped.objective * 1.01


@pytest.mark.parametrize("order", [2, 4])
@pytest.mark.parametrize(("s", "effective_depth"), [([2.0, 0.5], 3.0), ([2.0, 1.5], 0.0), ([2.0, 0.25], 5.0)])
def test_the_two_ended_solver_has_the_continuous_minimum_for_its_limit(order, s, effective_depth):
    theory = linear_minimum(s, None, effective_depth, MU)
    steps = torch.full((64 if order == 2 else 16,), 1 / (64 if order == 2 else 16), dtype=F64)
    p = linear_problem(s, 8, effective_depth, carried=theory.kept.tolist(), width=4)
    solution = solve_on_mesh(p, None, steps, order=order, residual_tol=1e-9)
    assert solution.status is Status.CONVERGED
    tolerance = 1e-6 if order == 4 else 3e-4
    assert solution.objective == pytest.approx(theory.objective, rel=tolerance)
    torch.testing.assert_close(
        torch.linalg.svdvals(solution.W)[:, :2],
        theory.weights.expand(len(steps) + 1, 2),
        rtol=10 * tolerance,
        atol=10 * tolerance,
    )
    H = solution.scaled_hamiltonian
    torch.testing.assert_close(
        H, torch.full_like(H, theory.scaled_hamiltonian), rtol=10 * tolerance, atol=10 * tolerance
    )


# --- the formula itself -----------------------------------------------------------------------------------------


def test_layers_tend_to_the_flow_at_first_order():
    limit = linear_minimum([2.0, 0.7], None, 3.0, MU)
    gaps = [linear_minimum([2.0, 0.7], L, 3.0, MU).objective - limit.objective for L in (80, 160, 320)]
    slopes = [math.log2(a / b) for a, b in pairwise(gaps)]
    assert all(0.97 < slope < 1.03 for slope in slopes), slopes


@pytest.mark.parametrize("depth", [1, 7, None])
@pytest.mark.parametrize("effective_depth", [0.0, 0.6])
def test_the_minimum_is_the_least_on_a_fine_grid(depth, effective_depth):
    s = 1.3
    R = torch.linspace(0.54, s, 200_001, dtype=F64)
    if depth is None:
        penalty = (effective_depth + R.log()) ** 2
    else:
        penalty = depth**2 * (R ** (1 / depth) - 1 + effective_depth / depth) ** 2
    F = (s - R) ** 2 + MU / 2 * penalty
    theory = linear_minimum([s], depth, effective_depth, MU)
    assert theory.objective == pytest.approx(float(F.min()), abs=1e-9)
    assert theory.objective <= float(F.min()) + 1e-15
    assert float(theory.gains[0]) == pytest.approx(float(R[F.argmin()]), abs=1e-5)


def test_a_network_without_skips_may_drop_to_nothing():
    assert linear_gains(2.0, 4, 4.0, MU)[0] == 0.0 and len(linear_gains(2.0, 4, 4.0, MU)) == 2
    assert len(linear_gains(2.0, 1, 1.0, MU)) == 1  # ridge regression is convex
    assert linear_gains(2.0, 1, 1.0, MU)[0] == pytest.approx(2.0 / (1 + MU / 2))
    theory = linear_minimum([0.01], 4, 4.0, MU)
    assert theory.gains.tolist() == [0.0] and theory.kept.tolist() == [False]
    assert theory.objective == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 4, 1.0, MU), "at least one mode"),
        (([1.0], 0, 0.0, MU), "depth must be at least 1, or None"),
        (([1.0], 4, -1.0, MU), "effective_depth must be finite and not negative"),
        (([1.0], 4, 5.0, MU), r"4 layers carry an effective depth of at most 4, got 5"),
        (([1.0], 4, 1.0, 0.0), r"mu \(weight decay\) must be positive and finite"),
        (([1.0, 0.1], 4, 1.0, MU), r"at least the bare leak, 0\.3164 here, got 0\.1"),
        (([0.0], None, 1.0, MU), r"at least the bare leak, 0\.3679 here, got 0"),
        (([math.inf], 4, 1.0, MU), "singular values must be finite"),
    ],
)
def test_misuse_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        linear_minimum(*arguments)
