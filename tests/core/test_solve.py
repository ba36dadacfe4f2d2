"""`solve`, its certificate, kinks, depth refinement; theory at critical points that are really reached."""

import json
import math

import pytest
import scipy.optimize
import torch

from isthmus import Identity, LeakyResNet, Problem, ReLU, SmoothReLU, Trainer, make_task
from isthmus.certificate import certify
from isthmus.certificate.kinks import _Choice, kink_residual
from isthmus.optimise import LBFGS, SGD, Newton
from isthmus.solve import Solution, Stage, carry_path, coarse_start, recipe, refine_depth, solve
from isthmus.status import Status


def make(activation=None, depth=8, effective_depth=2.0, rho=None, mu=0.02, width=6, **options):
    task = make_task("teacher", dims=(3, 1, 3), train=30, seed=0)
    activation = activation or SmoothReLU(sharpness=2.0)
    model = LeakyResNet(
        3, 3, width=width, depth=depth, effective_depth=effective_depth, activation=activation, rho=rho,
        dtype=torch.float64, **options,
    )  # fmt: skip
    return Problem(model, task.x_train, task.y_train, mu=mu)


NEWTON = [Stage(LBFGS(), 400), Stage(Newton(), 80)]


# --- solve ----------------------------------------------------------------------------------------------------------


def test_a_smooth_network_converges():
    problem = make()
    solution = solve(problem, NEWTON, tolerance=1e-8)
    assert isinstance(solution, Solution)
    assert solution.status is Status.CONVERGED and solution.advice == ""
    assert solution.certificate.residual_max <= 1e-8 and solution.certificate.converged
    assert solution.objective == pytest.approx(problem.evaluate().objective, rel=1e-14)
    assert solution.statistics["steps"] <= 480 and solution.statistics["hessian_products"] >= 0
    assert solution.history[-1]["stage"] == "done"


def test_a_spent_budget_says_so():
    solution = solve(make(), "paper", steps=6)
    assert solution.status is Status.BUDGET_SPENT
    assert "read energies and H with the residual" in solution.advice
    assert not solution.certificate.converged
    assert solve(make(), "geodesic", seconds=1e-9).statistics["steps"] == 1


def test_an_interrupted_solve_goes_on_from_where_it_was():
    problem = make()
    solution = solve(problem, NEWTON, should_stop=lambda: True)
    assert solution.status is Status.INTERRUPTED and "call solve again" in solution.advice
    assert solve(problem, NEWTON).status is Status.CONVERGED


def test_a_collapsed_network_is_named():
    solution = solve(make(ReLU(), depth=12, effective_depth=10.0, initialisation="small"), "paper", steps=300)
    assert solution.status is Status.COLLAPSED and solution.certificate.collapsed
    assert "leak_factor" in solution.advice
    assert not solution.certificate.converged


def test_a_divergence_keeps_the_last_good_state():
    problem = make()
    solution = solve(problem, [Stage(SGD(), 50, rate=1e200)])
    assert solution.status is Status.DIVERGED and "smaller rate" in solution.advice
    assert math.isfinite(solution.objective)


def test_what_solve_refuses():
    with pytest.raises(ValueError, match="steps go with the name of a recipe"):
        solve(make(), NEWTON, steps=5)
    with pytest.raises(ValueError, match="seconds must be positive, got 0"):
        solve(make(), seconds=0.0)
    with pytest.raises(ValueError, match="unknown recipe 'nothing'"):
        solve(make(), "nothing")


@pytest.mark.parametrize("effective_depth", [1.0, 5.0, 10.0, 20.0])
def test_no_collapse_from_l_1_to_20(effective_depth):
    task = make_task("teacher", dims=(6, 2, 6), train=100, seed=1)
    model = LeakyResNet(6, 6, width=24, depth=25, effective_depth=effective_depth, dtype=torch.float64)
    solution = solve(Problem(model, task.x_train, task.y_train, mu=1e-3), "fast", steps=150)
    assert not solution.certificate.collapsed
    assert solution.data_cost < 3.0  # half of the zero network's


# --- the certificate --------------------------------------------------------------------------------------------------


def converged(depth, **options):
    problem = make(depth=depth, **options)
    Trainer(problem, NEWTON, log_every=1000, tolerance=1e-10).run()
    return certify(problem.geodesic())


def test_the_hamiltonian_is_constant_up_to_the_predicted_error_of_the_layers():
    """Spread of the staggered H at first order in ρ, what the prediction leaves at second (both slopes fitted)."""
    depths = [20, 40, 80]
    found = [converged(depth) for depth in depths]
    assert all(c.residual_max < 1e-9 for c in found)

    def slope(values):
        x, y = torch.tensor(depths).double().log(), torch.tensor(values).double().log()
        x, y = x - x.mean(), y - y.mean()
        return -float((x * y).sum() / x.square().sum())

    assert slope([c.h_spread for c in found]) == pytest.approx(1, abs=0.1)
    assert slope([c.h_unexplained for c in found]) == pytest.approx(2, abs=0.2)
    assert found[-1].h_predicted == pytest.approx(found[-1].h_spread, rel=0.01)
    assert all(c.duality_gap < 1e-9 for c in found)


def test_the_prediction_holds_for_unequal_steps():
    depth = 60
    p = torch.linspace(0, 1, depth + 1, dtype=torch.float64)
    ends = p + 0.1 * torch.sin(2 * math.pi * p)
    c = converged(depth, rho=ends.diff())
    assert c.residual_max < 1e-9
    assert c.h_unexplained < 0.05 * c.h_spread


def test_the_certificate_of_an_unconverged_network():
    problem = make()
    problem.evaluate()
    c, weight = certify(problem.geodesic()), problem.model.weight.detach()
    torch.testing.assert_close(c.residual, problem.residual())
    assert c.gradient_norm == pytest.approx(
        float((problem.model.weight.grad / problem.model.rho.sqrt()[:, None, None]).norm()), rel=1e-12
    )
    squares = problem.mu * float((problem.model.rho * weight.square().sum(dim=(1, 2))).sum())
    # the derivative of the objective along the weights themselves
    slope = float((problem.model.weight.grad * weight).sum())
    assert c.duality_gap == pytest.approx(abs(slope) / squares, rel=1e-10)
    assert c.kink_residual is None and not c.converged
    json.dumps(c.to_dict(), allow_nan=False)


def test_at_l_0_there_is_no_hamiltonian():
    c = certify(make(effective_depth=0.0).geodesic())
    assert len(c.hamiltonian) == 0 and math.isnan(c.h_spread)
    assert c.to_dict()["h_spread"] is None


def test_what_is_not_finite_is_not_certified():
    problem = make()
    problem.model.weight.data[0, 0, 0] = math.inf
    with pytest.raises(ValueError, match="not finite: nothing can be certified"):
        certify(problem.geodesic())


# --- kinks ------------------------------------------------------------------------------------------------------------


def test_the_gradient_of_the_search_equals_autograd_and_the_tangent_is_its_transpose():
    g = make(ReLU()).geodesic()
    choice = _Choice(g.A, g.M[-1], g.W, g.rho, g.effective_depth, g.activation)
    D = torch.rand(g.depth - 1, 6, 30, dtype=torch.float64)
    at = choice.at(D)
    residual, mine = at.residual, choice.transposed(at, at.off)
    direction, other = torch.randn_like(D), torch.randn_like(at.off)
    ahead, behind = (choice.at(D + sign * 1e-6 * direction).off for sign in (1, -1))
    tangent = choice.tangent(at, direction)
    torch.testing.assert_close(tangent, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-8)
    product = float((choice.transposed(at, other) * direction).sum())
    assert float((tangent * other).sum()) == pytest.approx(product, rel=1e-10)
    D.requires_grad_()
    M, value = g.M[-1].T, 0.0
    for layer in range(g.depth - 1, -1, -1):
        value = value + 0.5 * ((g.W[layer] - M @ choice.S[layer].T).norm() / g.W[layer].norm()) ** 2
        if layer:
            M = choice.c[layer] * M + choice.rho[layer] * D[layer - 1] * (g.W[layer, :, :6].T @ M)
    torch.testing.assert_close(float(value.detach()), float(0.5 * residual.square().sum()), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(value, D)[0], mine, rtol=1e-10, atol=1e-12)


def test_a_relu_network_reaches_a_critical_point_up_to_its_kinks():
    """The limit of smooth networks: the plain residual stays large, with the right derivatives at kinks it vanishes."""
    problem = make(ReLU())
    solution = solve(problem, recipe("kinks", 1800))
    c = solution.certificate
    assert solution.status is Status.STALLED_AT_KINKS and "SmoothReLU" in solution.advice
    assert c.kinks > 10
    assert c.kink_residual <= 1e-3 and c.residual_max > 0.1
    assert c.converged
    without = certify(problem.geodesic(), kink_width=0.0)
    assert without.kink_residual is None and not without.converged


def test_the_search_finds_the_best_derivatives_where_they_are_a_linear_problem(monkeypatch):
    """Of two layers the residual is linear in the one inner layer's derivatives: least squares in a box."""
    problem = make(ReLU(), depth=2)
    Trainer(problem, recipe("kinks", 300), log_every=1000).run()
    g, width = problem.geodesic(), 0.3
    M_end = 1.3 * g.M[-1]  # off the critical point, so that some derivatives press against an end
    found = kink_residual(g.A, M_end, g.W, g.rho, g.effective_depth, g.activation, width=width)
    monkeypatch.setattr("isthmus.certificate.kinks._WORTHWHILE", 0.9999)  # to the end
    best = kink_residual(g.A, M_end, g.W, g.rho, g.effective_depth, g.activation, width, 5000).residual
    choice, inner = _Choice(g.A, M_end, g.W, g.rho, g.effective_depth, g.activation), g.A[1:-1].mT
    free = (inner.abs() <= width * inner.square().mean().sqrt()).flatten().nonzero()[:, 0]
    start = choice.at(g.activation.derivative(inner))
    unit = torch.eye(inner.numel(), dtype=torch.float64)[free].view(-1, *inner.shape)
    J = torch.stack([choice.tangent(start, e).flatten() for e in unit], dim=1)
    aim = J @ start.D.flatten()[free] - start.off.flatten()
    least = scipy.optimize.lsq_linear(J.numpy(), aim.numpy(), (0, 1), tol=1e-12)
    assert len(free) == found.kinks > 10 and 2 * least.cost < 0.7 * start.value
    assert 0 < int((least.active_mask != 0).sum()) < len(free)
    assert float(best.square().sum()) == pytest.approx(2 * least.cost, rel=0.01)
    assert 2 * least.cost < float(found.residual.square().sum()) < 2.3 * least.cost


def test_a_relu_network_in_the_middle_of_training_is_not_excused_by_its_kinks():
    problem = make(ReLU())
    Trainer(problem, recipe("paper", 200)).run()
    c = certify(problem.geodesic(), kink_width=1e-2)
    assert c.kink_residual > 0.05 and not c.converged
    assert c.kink_residual <= c.residual_max


def test_no_kinks_no_choice(without_shape_checks):
    g = make(ReLU()).geodesic()
    found = kink_residual(g.A, g.M[-1], g.W, g.rho, g.effective_depth, g.activation, width=0.0)
    assert found.kinks == 0 and torch.equal(found.residual, found.plain)
    with pytest.raises(TypeError, match="kinks belong to ReLU, got SmoothReLU"):
        kink_residual(g.A, g.M[-1], g.W, g.rho, g.effective_depth, SmoothReLU())
    with pytest.raises(ValueError, match="width of a kink must not be negative, got -1"):
        kink_residual(g.A, g.M[-1], g.W, g.rho, g.effective_depth, g.activation, width=-1.0)


# --- depth refinement -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["fixed", "learned"])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_refinement_follows_the_path(ends, parts):
    problem = make(depth=10, ends=ends)
    coarse = solve(problem, NEWTON)
    fine = refine_depth(problem, 10 * parts, ridge=1e-8 if parts == 1 else 1e-3)
    assert fine.model.depth == 10 * parts and fine.model.ends == ends
    torch.testing.assert_close(fine.model.positions[::parts], problem.model.positions)
    gap = (fine.geodesic().A[::parts] - coarse.A).norm() / coarse.A.norm()
    assert gap < (1e-12 if parts == 1 else 0.15)
    assert fine.evaluate().objective < coarse.objective * (1 + 1e-9 if parts == 1 else 1.3)


def test_refinement_is_a_better_start_than_none():
    problem = make(depth=10)
    solve(problem, NEWTON)
    fine, fresh = refine_depth(problem, 20), make(depth=20)
    for p in (fine, fresh):
        Trainer(p, [Stage(LBFGS(), 15)]).run()
    assert fine.evaluate().objective < fresh.evaluate().objective


def test_what_refinement_refuses():
    with pytest.raises(ValueError, match="depth must be a multiple of the present 8, got 12"):
        refine_depth(make(), 12)
    with pytest.raises(ValueError, match="ridge must be positive, got 0"):
        refine_depth(make(), 16, ridge=0.0)


def test_a_coarse_start_is_better_than_the_initial_weights():
    problem, fresh = make(depth=12), make(depth=12)
    ends = problem.model.in_map.clone()
    coarse_start(problem, 6, [Stage(LBFGS(), 40, fraction=0.5), Stage(LBFGS(), 20)])
    assert torch.equal(problem.model.in_map, ends)
    assert problem.evaluate().objective < 0.5 * fresh.evaluate().objective


def test_a_path_is_carried_to_other_step_sizes():
    problem = make(depth=10)
    coarse = solve(problem, NEWTON)
    p = torch.linspace(0, 1, 16, dtype=torch.float64)
    fine = make(depth=15, rho=(p + 0.05 * torch.sin(2 * math.pi * p)).diff())
    carry_path(problem, fine)
    assert (fine.geodesic().A[-1] - coarse.A[-1]).norm() < 0.15 * coarse.A[-1].norm()
    assert fine.evaluate().objective < 1.5 * coarse.objective


def test_what_a_coarse_start_refuses():
    with pytest.raises(ValueError, match=r"the depth of a coarse start must lie in 1\.\.7, got 8"):
        coarse_start(make(), 8)
    with pytest.raises(ValueError, match=r"networks of one width on the same rows: got width 6 on .* and width 5"):
        carry_path(make(), make(width=5))


def test_linear_networks_need_no_kinks():
    solution = solve(make(Identity()), steps=500)
    assert solution.status is Status.CONVERGED
