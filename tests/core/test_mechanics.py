"""Each quantity against an independent slow reference, closed forms, and what it must not do."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.activations import Identity, ReLU, SmoothReLU
from isthmus.flow import momenta, path
from isthmus.mechanics import (
    FeatureMetric,
    balancedness_defect,
    best_weights,
    cost_of_identity,
    energies,
    energy_identity_defect,
    flow_velocity,
    hamiltonian,
    hamiltonian_from_velocity,
    norm_defect,
    nuclear_rank,
    raise_effective_depth,
    rank,
    scaled_hamiltonian,
    spectra,
    stable_rank,
    stationarity_residual,
    stretch,
    theorem4,
)

F64 = torch.float64
ALL = [ReLU(), ReLU(append_one=False), SmoothReLU(sharpness=5.0), Identity()]


def rand(*size):
    return torch.randn(*size, dtype=F64)


def low_rank_nonnegative(samples=40, width=9, k=3):
    return torch.rand(samples, k, dtype=F64) @ torch.rand(k, width, dtype=F64)


def close(a, b, rtol=1e-9):
    assert abs(a - b) <= rtol * max(abs(a), abs(b), 1e-300), (a, b)


# --- the metric -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ALL, ids=str)
@pytest.mark.parametrize("gamma0", [1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize("samples", [5, 40])
def test_stable_norm_equals_the_dense_solve(activation, gamma0, samples):
    A, M1, M2 = rand(samples, 8), rand(samples, 8), rand(samples, 8)
    S = activation.features(A)
    metric = FeatureMetric.from_features(S)
    gamma = metric.gamma(gamma0)
    close(gamma, gamma0 * float(torch.linalg.matrix_norm(S @ S.T, 2)))
    dense = S @ S.T + gamma * torch.eye(samples, dtype=F64)
    close(metric.inner(M1, M2, gamma), float((M1 * torch.linalg.solve(dense, M2)).sum()), 1e-8)
    close(metric.norm_squared(M1, gamma), float((M1 * torch.linalg.solve(dense, M1)).sum()), 1e-8)


@pytest.mark.parametrize("activation", ALL, ids=str)
def test_exact_norm_equals_the_pseudo_inverse(activation):
    A, M = rand(40, 8), rand(40, 8)
    A[:, 0] = -A[:, 0].abs()  # a dead neuron: K is singular also among the features
    S = activation.features(A)
    close(FeatureMetric.from_features(S).norm_squared(M), float((torch.linalg.pinv(S) @ M).square().sum()))


def test_outside_says_what_the_exact_norm_drops():
    S = rand(20, 4)
    metric = FeatureMetric.from_features(S)
    inside = S @ rand(4, 3)
    assert metric.outside(inside) < 1e-13
    off = rand(20, 3)
    off -= S @ torch.linalg.lstsq(S, off).solution
    close(metric.outside(off), 1.0)
    assert metric.norm_squared(off) < 1e-20
    assert metric.outside(torch.zeros(20, 3, dtype=F64)) == 0


def test_the_stable_norm_does_not_cancel_at_small_gamma():
    """Where M = S C, the norm is known; the Cholesky form of (E7) loses all digits here, this one must not."""
    S, C = rand(50, 6), rand(6, 4)
    metric = FeatureMetric.from_features(S)
    close(metric.norm_squared(S @ C, 1e-14), float(C.square().sum()), 1e-10)


def test_negative_gamma_is_refused():
    with pytest.raises(ValueError, match="gamma must not be negative"):
        FeatureMetric.from_features(rand(5, 3)).norm_squared(rand(5, 2), -1.0)


# --- the cost of identity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 6])
def test_coi_is_the_rank_of_nonnegative_states(k):
    close(cost_of_identity(low_rank_nonnegative(k=k), ReLU(append_one=False)), k, 1e-7)


def test_the_appended_one_lowers_coi_where_constants_lie_in_the_span():
    A = low_rank_nonnegative()
    close(cost_of_identity(A, ReLU()), 3.0, 1e-9)  # constants are no combination of these columns: nothing is gained
    A = torch.cat((A, torch.full((40, 1), 0.5, dtype=F64)), dim=1)
    assert cost_of_identity(A, ReLU()) < cost_of_identity(A, ReLU(append_one=False)) - 0.1


@given(st.integers(2, 7), st.integers(2, 6), st.integers(0, 10_000))
@settings(deadline=None, max_examples=50)
def test_coi_bounds(width, samples, seed):
    """COI ≥ ‖A‖_*²/‖A‖_F² ≥ ‖A‖_F²/‖A‖_op², without appended 1 and strictly (infinite off the image)."""
    A = torch.randn(samples, width, dtype=F64, generator=torch.Generator().manual_seed(seed))
    s = spectra(A)
    coi = cost_of_identity(A, ReLU(append_one=False), outside="inf")
    assert coi >= float(nuclear_rank(s)) * (1 - 1e-9)
    assert float(nuclear_rank(s)) >= float(stable_rank(s)) * (1 - 1e-12)


def test_coi_leaves_the_image():
    A = rand(60, 5)  # more samples than features: a general A is no combination of its features
    assert cost_of_identity(A, ReLU(), outside="inf") == math.inf
    assert 0 < cost_of_identity(A, ReLU()) < math.inf
    values = [cost_of_identity(A, ReLU(), gamma0) for gamma0 in (1e-2, 1e-4, 1e-6)]
    assert values[0] < values[1] < values[2]
    close(values[2] / values[1], 100.0, 0.05)  # grows as 1/γ


@pytest.mark.parametrize("gamma0", [None, 1e-3])
@pytest.mark.parametrize("activation", [ReLU(), ReLU(append_one=False)], ids=str)
def test_coi_invariances(activation, gamma0):
    A = rand(30, 6).relu() + 0.1 * torch.rand(30, 6, dtype=F64)
    coi = cost_of_identity(A, activation, gamma0)
    close(cost_of_identity(A[torch.randperm(30)], activation, gamma0), coi)
    close(cost_of_identity(A[:, torch.randperm(6)], activation, gamma0), coi)
    close(cost_of_identity(torch.cat((A, A)), activation, gamma0), coi)  # every sample twice
    close(cost_of_identity(torch.cat((A, A.new_zeros(30, 1)), 1), activation, gamma0), coi)  # a dead neuron
    if not activation.append_one:
        close(cost_of_identity(7.0 * A, activation, gamma0), coi)
    rotated = A @ torch.linalg.qr(rand(6, 6)).Q
    assert abs(cost_of_identity(rotated, activation, gamma0) - coi) > 1e-3  # σ is not isotropic: this must change it


def test_stable_coi_tends_to_the_exact_one_on_the_image():
    A = low_rank_nonnegative()
    exact = cost_of_identity(A, ReLU(append_one=False))
    gaps = [abs(cost_of_identity(A, ReLU(append_one=False), g) - exact) for g in (1e-4, 1e-6, 1e-8)]
    assert gaps[0] > 10 * gaps[1] > 100 * gaps[2]


def test_coi_of_nothing_and_of_misuse():
    assert cost_of_identity(torch.zeros(4, 3, dtype=F64), ReLU(append_one=False)) == 0
    assert cost_of_identity(torch.zeros(4, 3, dtype=F64), ReLU(append_one=False), 1e-3) == 0
    with pytest.raises(ValueError, match="gamma0 must be positive"):
        cost_of_identity(rand(4, 3), ReLU(), 0.0)
    with pytest.raises(ValueError, match="outside must be 'drop' or 'inf'"):
        cost_of_identity(rand(4, 3), ReLU(), outside="zero")


# --- energies and the Hamiltonian -------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma0", [0.0, 1e-3])
def test_the_parts_make_the_lagrangian(gamma0):
    A, velocity, L_tilde = rand(30, 6), rand(30, 6), 4.0
    metric = FeatureMetric.from_features(ReLU().features(A))
    gamma = metric.gamma(gamma0) if gamma0 else 0.0
    parts = energies(A, velocity, L_tilde, metric, gamma)
    close(parts.lagrangian, metric.norm_squared(L_tilde * A + velocity, gamma) / (2 * L_tilde))
    assert parts.kinetic > 0 > parts.potential


def test_best_weights_are_the_least_that_give_the_velocity():
    A, activation, L_tilde = rand(20, 6), ReLU(), 3.0
    A[:, 2] = -A[:, 2].abs()
    W = rand(6, 7)
    velocity = activation.features(A) @ W.T - L_tilde * A
    best = best_weights(A, velocity, L_tilde, activation)
    torch.testing.assert_close(activation.features(A) @ best.T, activation.features(A) @ W.T)
    assert float(best.norm()) < float(W.norm())
    metric = FeatureMetric.from_features(activation.features(A))
    close(float(best.square().sum()), metric.norm_squared(L_tilde * A + velocity))
    assert float(best[:, 2].norm()) < 1e-12  # nothing is spent on the dead neuron


@pytest.mark.parametrize("activation", ALL, ids=str)
@pytest.mark.parametrize("gamma0", [1e-1, 1e-3, 1e-5])
def test_energy_identity_holds_for_random_states_and_momenta(activation, gamma0):
    """(E13): no critical point is asked for."""
    for samples in (4, 50):
        A, B = rand(samples, 7), rand(samples, 7)
        assert energy_identity_defect(A, B, 5.0, activation, gamma0) < 1e-9


def test_energy_identity_is_no_tautology():
    """With B in place of γB the identity must fail: the check can fail."""
    A, B, activation, L_tilde = rand(30, 6), rand(30, 6), ReLU(), 5.0
    metric = FeatureMetric.from_features(activation.features(A))
    gamma = metric.gamma(1e-3)
    wrong = flow_velocity(A, B, L_tilde, activation) / L_tilde + B
    right = metric.norm_squared(A, gamma) - metric.norm_squared(wrong, gamma) + gamma * float(B.square().sum())
    assert abs(right + 2 / L_tilde * hamiltonian(A, B, L_tilde, activation)) > 1e-2 * abs(right)


def test_both_hamiltonians_agree_on_the_image():
    """(E10) = (E11) where A and the velocity of (E9) lie in the image of K: fewer samples than features."""
    A, B, activation, L_tilde = rand(5, 8), rand(5, 8), ReLU(), 4.0
    metric = FeatureMetric.from_features(activation.features(A))
    assert metric.outside(A) < 1e-10
    velocity = flow_velocity(A, B, L_tilde, activation)
    close(hamiltonian(A, B, L_tilde, activation), hamiltonian_from_velocity(A, velocity, L_tilde, metric), 1e-8)


def test_hamiltons_equations_are_the_gradient_of_the_hamiltonian():
    """∂_pA = ∂H/∂B and −∂_pB = ∂H/∂A, against autograd and the backward flow."""
    activation, L_tilde = SmoothReLU(sharpness=3.0), 4.0
    A, B = rand(9, 5).requires_grad_(True), rand(9, 5).requires_grad_(True)
    S = activation.features(A)
    H = L_tilde / 2 * (B.T @ S).square().sum() - L_tilde * (B * A).sum()
    dA, dB = torch.autograd.grad(H, (A, B))
    A, B = A.detach(), B.detach()
    close(float(H.detach()), hamiltonian(A, B, L_tilde, activation))
    torch.testing.assert_close(flow_velocity(A, B, L_tilde, activation), dB)
    rho = torch.tensor([1e-6], dtype=F64)
    W = (L_tilde * B.T @ activation.features(A))[None]
    both = path(A, W, rho, L_tilde, activation)
    M = momenta(both, L_tilde * B, W, rho, L_tilde, activation)
    torch.testing.assert_close((M[0] - M[1]) / L_tilde / 1e-6, dA, rtol=1e-5, atol=1e-5)


def test_l_tilde_of_zero_has_a_scaled_hamiltonian_only():
    A, M = rand(9, 5), rand(9, 5)
    close(scaled_hamiltonian(A, M, 0.0, ReLU()), 0.5 * float((M.T @ ReLU().features(A)).square().sum()))
    metric = FeatureMetric.from_features(ReLU().features(A))
    for call in (
        lambda: hamiltonian(A, M, 0.0, ReLU()),
        lambda: hamiltonian_from_velocity(A, M, 0.0, metric),
        lambda: energies(A, M, 0.0, metric),
    ):
        with pytest.raises(ValueError, match="effective depth > 0"):
            call()


def test_cross_term_of_a_linear_network_integrates_to_the_log_determinant():
    """Without appended 1, ⟨∂_pA, A⟩_K = Tr[A⁺∂_pA] = d/dp of the sum of log singular values; first order in ρ."""
    activation = Identity(append_one=False)
    gaps = []
    W = rand(5, 5)
    for layers in (50, 100, 200, 400):
        rho = torch.full((layers,), 1 / layers, dtype=F64)
        A = path(rand_fixed(), W.expand(layers, 5, 5).contiguous(), rho, 2.0, activation)
        total = 0.0
        for layer in range(layers):
            metric = FeatureMetric.from_features(activation.features(A[layer]))
            velocity = (A[layer + 1] - A[layer]) / rho[layer]
            total += float(rho[layer]) * metric.inner(velocity, A[layer])
        gaps.append(abs(total - float(spectra(A[-1]).log().sum() - spectra(A[0]).log().sum())))
    slopes = [math.log2(a / b) for a, b in pairwise(gaps)]
    assert all(0.95 < slope < 1.05 for slope in slopes), slopes


def rand_fixed():
    return torch.randn(20, 5, dtype=F64, generator=torch.Generator().manual_seed(5))


# --- symmetries, residual, spectra ------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ALL, ids=str)
@pytest.mark.parametrize("c", [0.3, 2.5])
def test_stretching_leaves_the_path(activation, c):
    W, rho, A0 = rand(6, 5, 5 + activation.extra), torch.full((6,), 1 / 6, dtype=F64), rand(9, 5)
    new = stretch(W, rho, 3.0, c)
    assert float(new.rho.sum()) == pytest.approx(c)
    torch.testing.assert_close(
        path(A0, new.W, new.rho, new.effective_depth, activation),
        path(A0, W, rho, 3.0, activation),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("activation", [ReLU(append_one=False), Identity(append_one=False)], ids=str)
def test_raising_the_leak_multiplies_the_path(activation):
    W, rho, A0 = rand(12, 5, 5), torch.full((12,), 1 / 12, dtype=F64), rand(9, 5)
    new = raise_effective_depth(W, rho, 3.0, 2.0)
    A, raised = (path(A0, w, rho, d, activation) for w, d in ((W, 3.0), (new.W, new.effective_depth)))
    torch.testing.assert_close(raised, new.factors[:, None, None] * A, rtol=1e-11, atol=1e-11)


def test_raising_the_leak_tends_to_the_exponential_at_first_order():
    gaps = []
    for layers in (50, 100, 200):
        rho = torch.full((layers,), 1 / layers, dtype=F64)
        new = raise_effective_depth(torch.ones(layers, 2, 2, dtype=F64), rho, 3.0, 2.0)
        gaps.append(abs(float(new.factors[-1]) - math.exp(-2)) + float((new.W - 1).abs().max()))
    assert all(0.95 < math.log2(a / b) < 1.1 for a, b in pairwise(gaps)), gaps


def test_symmetries_refuse_what_they_cannot_do():
    W, rho = rand(4, 3, 3), torch.full((4,), 0.25, dtype=F64)
    with pytest.raises(ValueError, match="c must be positive"):
        stretch(W, rho, 1.0, 0.0)
    with pytest.raises(ValueError, match="has no skip connection"):
        raise_effective_depth(W, rho, 4.0, 1.0)
    with pytest.raises(ValueError, match="needs more layers"):
        raise_effective_depth(W, rho, 3.0, 2.0)


def test_residual_of_weights_made_stationary_and_of_zero():
    activation, L_tilde = ReLU(), 2.0
    A, M = rand(5, 11, 6), rand(5, 11, 6)
    W = M[1:].mT @ activation.features(A[:-1])
    assert float(stationarity_residual(A, M, W, activation).max()) < 1e-14
    close(float(stationarity_residual(A, M, 2 * W, activation)[0]), 0.5)
    zero = stationarity_residual(A, torch.zeros_like(M), torch.zeros_like(W), activation)
    assert zero.tolist() == [0.0] * 4
    assert stationarity_residual(A, M, torch.zeros_like(W), activation).tolist() == [math.inf] * 4
    assert L_tilde == 2.0


def test_ranks_from_spectra():
    X = torch.diag(torch.tensor([4.0, 2.0, 0.001, 0.0], dtype=F64))
    s = spectra(X)
    close(float(stable_rank(s)), (16 + 4 + 1e-6) / 16)
    close(float(nuclear_rank(s)), 6.001**2 / (20 + 1e-6))
    assert int(rank(s, 1e-2)) == 2 and int(rank(s, 1e-4)) == 3
    zero = torch.zeros(2, 4, dtype=F64)
    assert rank(zero, 0.1).tolist() == stable_rank(zero).tolist() == nuclear_rank(zero).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"threshold must lie in \(0, 1\)"):
        rank(s, 1.0)


def test_balance_defect_of_constructed_weights():
    """Weights that obey the law on a fine mesh have a small defect, and those that obey half of it do not."""
    layers, L_tilde = 400, 3.0
    rho = torch.full((layers,), 1 / layers, dtype=F64)
    p = rho.cumsum(0) - rho / 2
    W = torch.zeros(layers, 2, 3, dtype=F64)
    W[:, 0, 2] = 0.7
    W[:, 0, 0] = (1 + 2 * L_tilde * 0.49 * p).sqrt()
    assert float(balancedness_defect(W, rho, L_tilde).abs().max()) < 1e-12
    assert float(balancedness_defect(W, rho, L_tilde / 2).abs().max()) > 0.1
    assert float(norm_defect(W[:1].expand(4, 2, 3)).abs().max()) == 0


def test_theorem4_brackets():
    bound = theorem4(hamiltonian=-6.0, min_coi=3.2, path_length=2.0, max_b_squared=4.0, gamma=0.01, effective_depth=4.0)
    assert bound.value == pytest.approx(-0.2) and bound.upper == pytest.approx(0.04)
    assert bound.lower == pytest.approx(-((0.5 + 0.2) ** 2)) and bound.holds
    assert not theorem4(-7.0, 3.2, 2.0, 4.0, 0.01, 4.0).holds
