"""`solve` on 54 linear networks of known minimum: it ends there, or says that it is at a saddle."""

import warnings

import pytest
import torch
from test_linear_theory import MU

from isthmus import Identity, LeakyResNet, Problem, solve
from isthmus.certificate import Kind
from isthmus.status import Status
from isthmus.theory import linear_minimum

F64 = torch.float64
SPECTRA = [[4.0, 2.0, 1.0], [3.0, 1.5, 1.2], [2.0, 2.0, 1.0]]
CASES = [(s, depth, leak, unequal) for s in SPECTRA for depth in (4, 8, 32) for leak in (0.0, 1.0, 5.0)
         for unequal in (False, True)]  # fmt: skip
FAST = [case for case in CASES if case[0] == SPECTRA[1] and case[1] == 8]


def steps(depth, leak, unequal):
    """Equal, or up to 1 : 2; within a tenth of each other where ρL̃ > 1, so that all skips change their sign."""
    if not unequal:
        return torch.full((depth,), 1 / depth, dtype=F64)
    rho = 1 + (0.1 if leak > depth else 1 / 3) * torch.sin(1.7 * torch.arange(depth, dtype=F64))
    return rho / rho.sum()


def least(s, rho, leak, mu=MU):
    """The least objective of diagonal weights of any steps, mode by mode.

    ``(s − Πt_ℓ)² + (μ/2) Σ (t_ℓ − κ_ℓ)²/ρ_ℓ`` is stationary where ``t_ℓ(t_ℓ − κ_ℓ)/ρ_ℓ = c`` is the same in all layers:
    one unknown, found on finer and finer grids. An even number of negative κ_ℓ count by their size.
    """
    kappa, total = (1 - rho * leak), 0.0
    assert int((kappa < 0).sum()) % 2 == 0
    kappa = kappa.abs()[:, None]
    for mode in s:
        low, high = -14.0, 14.0
        for _ in range(12):
            log_c = torch.linspace(low, high, 2001, dtype=F64)
            t = (kappa + (kappa**2 + 4 * rho[:, None] * log_c.exp()).sqrt()) / 2
            F = (mode - t.prod(0)) ** 2 + mu / 2 * ((t - kappa) ** 2 / rho[:, None]).sum(0)
            best = int(F.argmin())
            low, high = float(log_c[max(best - 2, 0)]), float(log_c[min(best + 2, 2000)])
        total += float(F.min())
    return total


def network(s, depth, leak, unequal, width=4, seed=0):
    """Inputs are a multiple of the identity, no 1 is appended; the ends carry every mode to one unit vector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at L = 4, L̃ = 5 the skips change their sign
        model = LeakyResNet(
            3, 3, width=width, depth=depth, effective_depth=leak, activation=Identity(append_one=False),
            rho=steps(depth, leak, unequal), seed=seed, dtype=F64,
        )  # fmt: skip
    model.out_map.data.copy_(model.in_map.T)
    x = 3**0.5 * torch.eye(3, dtype=F64)
    return Problem(model, x, x @ torch.diag(torch.tensor(s, dtype=F64)), mu=MU)


def test_the_reference_is_the_closed_form_where_steps_are_equal():
    for s, depth, leak in ((SPECTRA[0], 8, 5.0), (SPECTRA[1], 32, 1.0), (SPECTRA[2], 4, 0.0)):
        rho = steps(depth, leak, False)
        assert least(s, rho, leak) == pytest.approx(linear_minimum(s, depth, leak, MU).objective, rel=1e-6)


def check(s, depth, leak, unequal):
    problem = network(s, depth, leak, unequal)
    found = solve(problem, tolerance=1e-8)
    assert found.status is Status.CONVERGED
    wanted = least(s, problem.model.rho, leak)
    assert found.objective >= wanted * (1 - 1e-6)
    lowest, kind = found.objective <= wanted * (1 + 1e-6), found.certificate.kind.kind
    assert kind is (Kind.MINIMUM if lowest else Kind.SADDLE)


@pytest.mark.parametrize(("s", "depth", "leak", "unequal"), FAST, ids=str)
def test_the_lowest_minimum_is_found_or_the_point_named_a_saddle(s, depth, leak, unequal):
    check(s, depth, leak, unequal)


@pytest.mark.slow
@pytest.mark.parametrize(("s", "depth", "leak", "unequal"), [c for c in CASES if c not in FAST], ids=str)
def test_so_it_is_in_all_cases(s, depth, leak, unequal):
    check(s, depth, leak, unequal)


def test_a_minimum_need_not_be_the_lowest():
    """Dropping a mode and keeping it are both minima (see `isthmus.theory`): no eigenvalue tells which is lower."""
    s, depth, leak = [1.0, 0.5, 0.25], 8, 5.0
    found = solve(network(s, depth, leak, False, width=3), tolerance=1e-8)
    assert found.status is Status.CONVERGED and found.certificate.kind.kind is Kind.MINIMUM
    assert found.certificate.kind.exact
    assert found.objective == pytest.approx(1.5635 * linear_minimum(s, depth, leak, MU).objective, rel=1e-3)
