"""The two-ended problem: slow references, orders of convergence, error estimates, meshes, gaps, misuse."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from reference import equal, make_problem, slow_derivatives

from isthmus.activations import Identity, ReLU, SmoothReLU
from isthmus.curvature import DualPreconditioner
from isthmus.model import LeakyResNet
from isthmus.optimise import LBFGS
from isthmus.problem import Problem
from isthmus.status import Status
from isthmus.two_ended import SCHEMES, scheme_of_order, solve_on_mesh, solve_two_ended
from isthmus.two_ended.interpolate import defects, equidistribute, velocities
from isthmus.two_ended.linearise import StageHessian, StageLinearisation
from isthmus.two_ended.sweeps import Sweeps

F64 = torch.float64


def problem(activation=None, classes=False, **options):
    return make_problem(activation, "cross_entropy" if classes else "mse", **options)


def sweeps_of(p, order, steps):
    return Sweeps(p, scheme_of_order(order), steps)


def at(sweeps, W):
    """Value, gradient and Hessian at these weights."""
    sweeps.W.copy_(W)
    value, hessian = sweeps.evaluate().objective, StageHessian(sweeps)
    hessian.linearise()
    return value, sweeps.W.grad, hessian


def random_weights(sweeps):
    generator = torch.Generator().manual_seed(3)
    count, w, _ = sweeps.X.shape
    return torch.randn(count, w, w + sweeps.activation.extra, dtype=F64, generator=generator)


# --- schemes and sweeps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", SCHEMES)
def test_tableaux_satisfy_their_order_conditions_and_hagers(order):
    """Order conditions, and for three orders and more Hager's (2000, table 1): d = bᵀa, Σ d²/b = 1/3 at order 3."""
    s = scheme_of_order(order)
    b, c = torch.tensor(s.b, dtype=F64), torch.tensor(s.c, dtype=F64)
    a = torch.tensor([[*row, *[0.0] * (s.stages - len(row))] for row in s.a], dtype=F64).reshape(s.stages, s.stages)
    torch.testing.assert_close(a.sum(1), c)
    assert bool((b > 0).all()) and float(b.sum()) == pytest.approx(1)
    d = b @ a
    wanted = {2: [(b @ c, 1 / 2)], 3: [(b @ c**2, 1 / 3), (b @ a @ c, 1 / 6), ((d**2 / b).sum(), 1 / 3)]}
    wanted[4] = [
        (b @ c**3, 1 / 4),
        ((b * c) @ a @ c, 1 / 8),
        (b @ a @ c**2, 1 / 12),
        (b @ a @ a @ c, 1 / 24),
        ((c * d**2 / b).sum(), 1 / 12),
        ((d**3 / b**2).sum(), 1 / 4),
        ((b * c) @ a @ (d / b), 5 / 24),
        (d @ a @ (d / b), 1 / 8),
    ]
    for q in range(2, order + 1):
        for got, expected in wanted[q]:
            assert float(got) == pytest.approx(expected, abs=1e-14), q


@pytest.mark.parametrize("order", SCHEMES)
@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("activation", [SmoothReLU(append_one=False, sharpness=3.0), Identity()], ids=str)
def test_value_gradient_and_hessian_product_equal_autograd(order, classes, activation):
    p = problem(activation, classes=classes)
    steps = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    sweeps = sweeps_of(p, order, steps)
    W = random_weights(sweeps)
    direction = torch.randn(W.shape, dtype=F64)
    value, gradient, product = slow_derivatives(p, W, steps.tolist(), order, direction)
    found, fused, hessian = at(sweeps, W)
    assert found == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(fused, gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(hessian.product([direction])[0], product, rtol=1e-9, atol=1e-12)


def test_eulers_scheme_is_the_leaky_resnet():
    p = problem()
    sweeps, g = sweeps_of(p, 1, p.model.rho), p.geodesic()
    W = p.model.weight.detach()
    found, gradient, _ = at(sweeps, W)
    assert found == pytest.approx(p.evaluate().objective, rel=1e-13)
    torch.testing.assert_close(gradient, p.model.weight.grad, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(sweeps.A.mT, g.A, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sweeps.G.mT / -p.mu, g.M, rtol=1e-10, atol=1e-12)


# --- linearised -------------------------------------------------------------------------------------------------


def linearised(p, order, dtype=F64):
    sweeps = sweeps_of(p, order, torch.tensor([0.2, 0.5, 0.3], dtype=F64))
    W = 0.3 * random_weights(sweeps)
    at(sweeps, W)
    net = StageLinearisation(sweeps, dtype)
    net.at([W])
    return sweeps, W, net


@pytest.mark.parametrize("order", SCHEMES)
@pytest.mark.parametrize(
    "activation", [SmoothReLU(append_one=False, sharpness=3.0), SmoothReLU(sharpness=3.0)], ids=str
)
def test_stages_are_linearised_as_differences_say_and_the_transpose_is_one(order, activation):
    p = problem(activation)
    sweeps, W, net = linearised(p, order)
    v, u = torch.randn(W.shape, dtype=F64), torch.randn(2, 12, dtype=F64)
    found, eps = net.tangent([v]), 1e-6
    ahead, behind = (at(sweeps, W + sign * eps * v) and sweeps.last_outputs() for sign in (1, -1))
    torch.testing.assert_close(found, (ahead - behind) / (2 * eps), rtol=1e-6, atol=1e-7)
    assert float((found * u).sum()) == pytest.approx(float((net.transposed(u)[0] * v).sum()), rel=1e-12)


@pytest.mark.parametrize("order", SCHEMES)
@pytest.mark.parametrize("classes", [False, True])
def test_the_metric_is_the_inverse_gauss_newton_hessian_of_the_stages(order, classes):
    """As of a network (tests/core/test_dual.py), from the tangent and the curvature of the cost alone."""
    p = problem(classes=classes)
    sweeps, W, net = linearised(p, order)
    metric, scale = DualPreconditioner(sweeps, dtype=F64, net=net), sweeps.scales[0]
    metric.measure_at([W])
    v = torch.randn(W.numel(), dtype=F64)
    tangent = net.tangent([v.view_as(W) / scale])
    pulled = net.transposed(p.loss.curvature(net.outputs, tangent))[0] / scale
    torch.testing.assert_close(metric.apply(p.mu * v + pulled.flatten()), v, rtol=1e-8, atol=1e-9)


# --- the solution -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smooth():
    """A problem and its over-resolved solution; module-wide, as every order is measured against it."""
    torch.set_num_threads(1)
    p = problem()
    return p, solve_on_mesh(p, solve_on_mesh(p, None, equal(8), order=4), equal(80), order=4, residual_tol=1e-11)


def errors(solution, reference):
    A, M = reference.at(solution.positions.clamp(max=1))
    return [
        float((solution.A - A).norm(dim=(1, 2)).max()),
        float((solution.M - M).norm(dim=(1, 2)).max()),
        solution.hamiltonian_spread,
        float(solution.defect.max()),
        abs(solution.objective - reference.objective),
    ]


@pytest.mark.parametrize(("order", "counts"), [(1, (20, 40, 80)), (2, (10, 20, 40)), (4, (10, 20, 40))])
def test_every_scheme_converges_at_its_order(smooth, order, counts):
    """Least-squares slopes of the errors of A, M, the spread of H, the defect, and the objective, against the step."""
    p, reference = smooth
    rows = []
    for count in counts:
        solution = solve_on_mesh(p, reference, equal(count), order=order, residual_tol=1e-10)
        assert solution.status is Status.CONVERGED
        rows.append(errors(solution, reference))
    x = torch.tensor(counts, dtype=F64).log()
    y = torch.tensor(rows, dtype=F64).log()
    slopes = -((x - x.mean())[:, None] * (y - y.mean(0))).sum(0) / (x - x.mean()).square().sum()
    allowed = torch.tensor([0.12, 0.12, 0.12, 0.12, 0.25], dtype=F64) * (1 if order < 4 else 2.5)
    assert bool(((slopes - order).abs() < allowed).all()), slopes


def test_the_solution_solves_hamiltons_equations_with_both_ends(smooth):
    p, s = smooth
    torch.testing.assert_close(s.A[0], p.x @ p.model.in_map.T)
    out = s.A[-1] @ p.model.out_map.T
    torch.testing.assert_close(s.M[-1], (2 / len(p.x)) * (p.y - out) @ p.model.out_map / p.mu)
    A = s.A.detach()
    dA, dM = velocities(A, s.M, s.effective_depth, s.activation)
    h = 1 / 80  # five-point formula: the derivative of the nodal values, to O(h⁴)
    for u, du in ((A, dA), (s.M, dM)):
        rate = (u[:-4] - 8 * u[1:-3] + 8 * u[3:-1] - u[4:]) / (12 * h)
        assert float((rate - du[2:-2]).norm() / du.norm()) < 3e-6
    assert s.hamiltonian_spread < 2e-6 * float(s.scaled_hamiltonian.abs().max())


def test_an_untrained_geodesic_does_not_solve_them(smooth):
    """The check above can fail: the same equations on the start network are far from satisfied."""
    p, s = smooth
    g = p.geodesic()
    assert float(defects(g.A, g.M, g.rho, s.effective_depth, s.activation).max()) > 1e3 * float(s.defect.max())


def test_interpolation_is_of_fourth_order_between_nodes(smooth):
    _, s = smooth
    p = torch.linspace(0.01, 0.99, 37, dtype=F64)
    fine = s.at(p)[0]
    gaps = []
    for stride in (4, 8, 16):
        steps = equal(80 // stride)
        gaps.append(
            float(
                (
                    replace(s, A=s.A[::stride], M=s.M[::stride], steps=steps, defect=s.defect[::stride]).at(p)[0] - fine
                ).norm()
            )
        )
    assert all(3.6 < math.log2(b / a) < 4.4 for a, b in pairwise(gaps)), gaps
    torch.testing.assert_close(s.at(s.positions.clamp(max=1))[1], s.M)
    torch.testing.assert_close(s.weights_at(s.positions.clamp(max=1)), s.W)


def test_the_estimated_error_is_the_error(smooth):
    p, reference = smooth
    s = solve_two_ended(p, reference, order=2, steps=10, tol=1e-2, adapt=False)
    assert s.status is Status.CONVERGED and s.error <= 1e-2
    A, M = reference.at(s.positions.clamp(max=1))
    true = max(float((u - v).norm(dim=(1, 2)).max() / v.norm(dim=(1, 2)).max()) for u, v in ((s.A, A), (s.M, M)))
    assert 0.8 < s.error / true < 1.25, (s.error, true)


def test_a_trained_network_is_a_warm_start():
    """Fewer products than from the untrained network, to the same solution.

    Summed over seeds, and counted down to 1e-3: the trained network of 8 layers starts 6 steps of Heun's scheme at a
    residual of 0.1 to 1.4, and what it saves it saves before Newton's method converges fast. From there on the number
    of products is that of any start, and of where the last step happens to land.
    """
    warm, cold = 0, 0
    for seed in (1, 2, 3, 4):
        p, trained = problem(seed=seed), problem(seed=seed)
        optimiser = LBFGS(pairs=40, preconditioned=False).start(trained)
        for _ in range(200):
            optimiser.step(trained.evaluate, 0.0)
        g = trained.geodesic()
        cold += solve_on_mesh(p, None, equal(6), order=2, residual_tol=1e-3).products
        warm += solve_on_mesh(trained, g, equal(6), order=2, residual_tol=1e-3).products
        ends = [solve_on_mesh(p, start, equal(6), order=2, residual_tol=1e-9).objective for start in (None, g)]
        assert ends[0] == pytest.approx(ends[1], rel=1e-9)
    assert warm < 0.6 * cold, (warm, cold)


def test_a_solve_stops_at_its_tolerance():
    """The last step is solved as accurately as the tolerance needs, not to the rounding."""
    s = solve_on_mesh(problem(), None, equal(6), order=2, residual_tol=1e-9)
    assert s.status is Status.CONVERGED and 1e-12 < s.residual <= 1e-9


def test_learned_ends_are_held():
    p = problem(ends="learned")
    before = [q.detach().clone() for q in p.parameters]
    s = solve_on_mesh(p, None, equal(4), order=1, residual_tol=1e-4)
    assert s.status is Status.CONVERGED
    assert all(torch.equal(a, b) for a, b in zip(before, p.parameters, strict=True))


def test_cross_entropy_and_no_leak():
    p = problem(classes=True, L_tilde=0.0)
    s = solve_on_mesh(p, None, equal(8), order=4)
    assert s.status is Status.CONVERGED and s.hamiltonian_spread < 1e-3 * float(s.scaled_hamiltonian.abs().max())
    out = s.A[-1] @ p.model.out_map.T
    assert s.data_cost == pytest.approx(float(torch.nn.functional.cross_entropy(out, p.y)))


# --- meshes -----------------------------------------------------------------------------------------------------


def test_equidistribution_equalises_a_known_density():
    """A defect of h²·f(p), f = e^{6p}: the new steps must go as f^{-1/2}."""
    steps = equal(200)
    middle = steps.cumsum(0) - steps / 2
    new = equidistribute(steps, steps**2 * torch.exp(6 * middle), 2, 40, floor=0.0)
    at = new.cumsum(0) - new / 2
    product = (new * torch.exp(3 * at))[2:-2]
    assert float(product.max() / product.min()) < 1.05
    assert float(new.sum()) == pytest.approx(1, abs=1e-14) and bool((new > 0).all())


def test_equidistribution_has_safeguards():
    steps, spike = equal(10), torch.zeros(10, dtype=F64)
    torch.testing.assert_close(equidistribute(steps, spike, 2, 4), equal(4))
    torch.testing.assert_close(equidistribute(steps, torch.full((10,), math.nan, dtype=F64), 2, 4), equal(4))
    spike[3] = 1.0
    assert float(equidistribute(steps, spike, 2, 10).max()) <= 1.01  # no step beyond what the floor allows
    new = equidistribute(steps, spike, 2, 10)
    assert float(new.max() / new.min()) > 3  # and it does gather the nodes at the spike


def test_moving_the_mesh_helps_at_a_large_effective_depth():
    """L̃ = 7, a solution that leaks first and makes its outputs at the end: at equal steps the moved mesh is better.

    The modes are dropped here: a carried one at L̃ = 7 takes minutes.
    """
    p = problem(L_tilde=7.0, mu=0.002, depth=16)
    reference = solve_on_mesh(p, solve_on_mesh(p, None, equal(10), order=4), equal(48), order=4, residual_tol=1e-10)
    even = solve_on_mesh(p, reference, equal(24), order=2, residual_tol=1e-9)
    mesh = equidistribute(even.steps, even.defect, 2, 24)
    moved = solve_on_mesh(p, even, mesh, order=2, residual_tol=1e-9)
    mesh = equidistribute(moved.steps, moved.defect, 2, 24)
    moved = solve_on_mesh(p, moved, mesh, order=2, residual_tol=1e-9)
    assert even.status is moved.status is Status.CONVERGED
    assert max(errors(moved, reference)[:2]) < 0.7 * max(errors(even, reference)[:2])
    assert float(moved.defect.max() / moved.defect.median()) < float(even.defect.max() / even.defect.median())


def test_refinement_reaches_the_tolerance(smooth):
    p, reference = smooth
    s = solve_two_ended(p, order=2, steps=4, tol=3e-3, residual_tol=1e-7)
    assert s.status is Status.CONVERGED and s.error <= 3e-3 and len(s.steps) > 8
    assert s.objective == pytest.approx(reference.objective, rel=1e-3)
    assert f"estimated error {s.error:.2g}" in s.message


# --- the gap ----------------------------------------------------------------------------------------------------


def test_the_gap_of_a_network_falls_at_first_order(smooth):
    _, reference = smooth
    gaps = []
    for depth in (16, 32, 64):
        q = problem(depth=depth)
        euler = solve_on_mesh(q, reference, q.model.rho, order=1, residual_tol=1e-9)
        with torch.no_grad():
            q.model.weight.copy_(euler.stage_weights)
        gap = reference.gap(q.geodesic())
        assert gap.residual < 1e-8
        gaps.append(
            [float(gap.path.max()), float(gap.weights.max()), float(gap.hamiltonian.abs().max()), gap.objective]
        )
    slopes = (torch.tensor(gaps[0]) / torch.tensor(gaps[-1])).log2() / 2
    assert bool(((slopes - 1).abs() < torch.tensor([0.1, 0.1, 0.1, 0.3])).all()), slopes
    assert gap.path[0] == 0
    assert "path" in str(gap) and "network's residual" in str(gap)


def test_the_gap_tells_a_network_that_is_not_trained(smooth):
    p, reference = smooth
    gap = reference.gap(p.geodesic())
    assert gap.residual > 0.1 and float(gap.path.max()) > 0.1


# --- statuses and misuse ----------------------------------------------------------------------------------------


def test_statuses(smooth):
    p, reference = smooth
    spent = solve_on_mesh(p, None, equal(8), budget=3)
    assert spent.status is Status.BUDGET_SPENT and spent.products <= 3 and "more Hessian products" in spent.message
    assert solve_two_ended(p, steps=8, budget=3).status is Status.BUDGET_SPENT
    coarse = solve_two_ended(p, reference, steps=4, tol=1e-7, residual_tol=1e-9, max_steps=8)
    assert coarse.status is Status.BUDGET_SPENT and coarse.error > 1e-7
    assert "max_steps=8 allows no finer mesh" in coarse.message
    g = p.geodesic()
    bad = solve_on_mesh(p, replace(g, W=g.W * 1e200), equal(8))
    assert bad.status is Status.DIVERGED and "use more steps" in bad.message
    assert solve_two_ended(p, replace(g, W=g.W * 1e200)).status is Status.DIVERGED
    stalled = solve_on_mesh(p, reference, equal(8), residual_tol=1e-30)
    assert stalled.status is Status.STALLED and stalled.residual < 1e-8 and stalled.products < 5000
    assert "no step decreases the objective any more" in stalled.message


def test_the_message_names_relu():
    s = solve_on_mesh(problem(ReLU()), None, equal(4), budget=20)
    assert "ReLU has kinks" in s.message
    assert "ReLU has kinks" not in solve_on_mesh(problem(), None, equal(8), budget=5).message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": 3}, "order must be one of 1, 2, 4, got 3"),
        ({"steps": 0}, "at least one step, got steps=0"),
        ({"steps": torch.tensor([0.5, 0.4], dtype=F64)}, "steps must be positive and sum to 1"),
        ({"steps": torch.tensor([1.5, -0.5], dtype=F64)}, "steps must be positive and sum to 1"),
        ({"tol": 1e-9}, "0 < residual_tol < tol, got 1e-08 and 1e-09"),
        ({"residual_tol": 0.0}, "0 < residual_tol < tol"),
        ({"max_steps": 1}, "max_steps must be at least 2"),
        ({"budget": 0}, "budget at least 1"),
    ],
)
def test_misuse_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        solve_two_ended(problem(), **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"effective_depth": 1.0}, r"its effective depth is 1\.0, expected 2\.0"),
        ({"weight_decay": 1.0}, r"its weight decay is 1\.0, expected 0\.05"),
        ({"activation": ReLU()}, "its activation is ReLU"),
        ({"A": torch.zeros(9, 4, 5, dtype=F64)}, r"its states are \(samples, width\) = \(4, 5\), expected \(12, 5\)"),
        ({"A": torch.zeros(9, 12, 5, dtype=F64)}, "its path starts from other inputs"),
    ],
)
def test_a_geodesic_of_another_problem_is_refused(change, message, smooth, without_shape_checks):
    p, reference = smooth
    other = replace(p.geodesic(), **change)
    with pytest.raises(ValueError, match=message):
        solve_two_ended(p, other)
    with pytest.raises(ValueError, match=message):
        reference.gap(other)


def test_wrong_types_are_named(smooth, without_shape_checks):
    p, reference = smooth
    with pytest.raises(TypeError, match="problem must be a Problem, got LeakyResNet"):
        solve_two_ended(p.model)
    with pytest.raises(TypeError, match="start must be a Geodesic or a TwoEnded, got int"):
        solve_two_ended(p, 3)
    with pytest.raises(TypeError, match=r"expected a Geodesic, as problem\.geodesic\(\) returns it, got int"):
        reference.gap(3)
    with pytest.raises(ValueError, match=r"positions must lie in \[0, 1\]"):
        reference.at(torch.tensor([1.5]))


@pytest.mark.parametrize("order", SCHEMES)
def test_every_buffer_of_the_sweeps_lies_where_the_problem_does(order):
    """On the meta device, where a buffer that was made on the CPU would not mix with the others."""
    net = LeakyResNet(
        3, 2, width=5, depth=4, effective_depth=1.0, activation=SmoothReLU(sharpness=2.0), dtype=F64, device="meta"
    )
    p = Problem(net, torch.zeros(4, 3, dtype=F64), torch.zeros(4, 2, dtype=F64))
    sweeps = sweeps_of(p, order, equal(3))
    hessian = StageHessian(sweeps, torch.float32)
    sweeps.forward()
    hessian.linearise()
    V = torch.zeros_like(sweeps.W)
    found = [hessian.tangent([V]), *hessian.product([V]), sweeps.residual(), sweeps.last_outputs(), *sweeps.scales]
    assert all(t.device.type == "meta" for t in found)


@pytest.mark.parametrize("order", SCHEMES)
def test_sweeps_in_float32_are_those_in_float64_rounded(order):
    p, steps = problem(), torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    wide, narrow = sweeps_of(p, order, steps), Sweeps(p, scheme_of_order(order), steps, dtype=torch.float32)
    W = 0.3 * random_weights(wide)
    value, gradient, hessian = at(wide, W)
    found, rounded, rough = at(narrow, W.float())
    assert found == pytest.approx(value, rel=1e-5) and rounded.dtype == torch.float32
    torch.testing.assert_close(rounded.double(), gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))
    rougher, V = StageHessian(wide, torch.float32), torch.randn(W.shape, dtype=F64)
    rougher.linearise()
    product = hessian.product([V])[0]
    for other in (rougher.product([V])[0], rough.product([V.float()])[0].double()):
        torch.testing.assert_close(other, product, rtol=1e-4, atol=1e-5 * float(product.abs().max()))


def test_eulers_scheme_on_the_networks_own_mesh_starts_at_the_network():
    p = problem()
    found = solve_on_mesh(p, None, p.model.rho, order=1, residual_tol=1e-9)
    p.model.weight.data.copy_(found.stage_weights)
    again = solve_on_mesh(p, p.geodesic(), p.model.rho, order=1, residual_tol=1e-8)
    assert again.products == 0 and again.objective == pytest.approx(found.objective, rel=1e-12)
