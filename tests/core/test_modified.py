"""The modified Hamiltonian: its terms against autograd, its orders on paths that obey the layers' recursion exactly and
on networks that are critical points; the limit of many layers; what lies off the image of K."""

import functools
import math

import pytest
import torch
from reference import slow_objective
from test_solve import NEWTON, make

from isthmus import Identity, Problem, ReLU, SmoothReLU, Trainer
from isthmus.certificate import certify, hamiltonian_drift
from isthmus.geodesic import Geodesic
from isthmus.mechanics import (
    FeatureMetric,
    energies,
    mechanics,
    modified_hamiltonian,
    modified_series,
    off_image,
    richardson,
)
from isthmus.mechanics.modified import _derivatives
from isthmus.mesh import interpolate_weights
from isthmus.optimise import Newton
from isthmus.solve import Stage

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def waves(depth):
    p = torch.linspace(0, 1, depth + 1, dtype=F64)
    return (p + 0.1 * torch.sin(2 * math.pi * p)).diff()


def mesh(relative):
    steps = torch.tensor(relative, dtype=F64)
    return steps / steps.sum()


MESHES = {
    "equal": lambda depth: mesh([1.0] * depth),
    "smooth": waves,
    "abrupt": lambda depth: mesh([2.0] * (depth // 4) + [0.5] * (depth // 4) + [1.0] * (depth // 2)),
    "alternating": lambda depth: mesh([2.0, 1.0] * (depth // 2)),
}


def spreads(rows):
    return (rows.max(dim=1).values - rows.min(dim=1).values).tolist()


def orders(found, depths):
    """Fitted slopes of the columns of ``found`` (a row a depth) in 1/L."""
    x, y = -torch.tensor(depths, dtype=F64).log(), torch.tensor(found, dtype=F64).log()
    x = x - x.mean()
    return ((x[:, None] * (y - y.mean(dim=0))).sum(dim=0) / x.square().sum()).tolist()


# --- the terms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effective_depth", [0.0, 3.0])
@pytest.mark.parametrize(
    "activation", [SmoothReLU(sharpness=3.0), SmoothReLU(False, 3.0), Identity(), ReLU(), ReLU(False)], ids=str
)
def test_the_terms_equal_autograd(activation, effective_depth):
    """First and second derivatives of L̃H along its own flow; a ReLU's second derivative counts as 0."""
    A, M = normal(7, 4, seed=1).requires_grad_(True), normal(7, 4, seed=2).requires_grad_(True)

    def scaled(A, M):
        return 0.5 * (M.T @ activation.features(A)).square().sum() - effective_depth * (M * A).sum()

    v, u = (g.detach() for g in torch.autograd.grad(scaled(A, M), (A, M)))
    blocks = torch.autograd.functional.hessian(scaled, (A, M))

    def product(i, j, left, right):
        return float(torch.einsum("ab,abcd,cd->", left, blocks[i][j], right))

    found = _derivatives(A.detach(), M.detach(), effective_depth, activation)
    assert found.value == pytest.approx(float(scaled(A, M).detach()), rel=1e-12)
    assert found.first == pytest.approx(float((u * v).sum()), rel=1e-12)
    assert found.squares == pytest.approx(product(1, 1, v, v) + product(0, 0, u, u), rel=1e-11)
    assert found.mixed == pytest.approx(product(0, 1, u, v), rel=1e-11)


# --- paths that obey the layers' recursion, no network trained --------------------------------------------------------


def exact_path(rho, effective_depth, activation):
    """(E9) in layers from a state and a momentum at p = 0; the momentum after a layer solves an implicit equation."""
    A, M = 0.7 * normal(6, 3), 0.3 * normal(6, 3, seed=9)
    states, momenta = [A], [M]
    for step in rho.tolist():
        S, slope, start = activation.features(A), activation.derivative(A), M
        for _ in range(100):
            before, M = M, start - step * (slope * (M @ (M.T @ S)[:, :3]) - effective_depth * M)
            if float((M - before).abs().max()) < 1e-15:
                break
        A = A + step * (S @ (S.T @ M) - effective_depth * A)
        states.append(A)
        momenta.append(M)
    A, M = torch.stack(states), torch.stack(momenta)
    return Geodesic(M[1:].mT @ activation.features(A[:-1]), rho, A, M, effective_depth, 0.1, activation)


@pytest.mark.parametrize("effective_depth", [0.0, 2.0])
@pytest.mark.parametrize("kind", MESHES)
@pytest.mark.parametrize("activation", [SmoothReLU(sharpness=2.0), Identity()], ids=str)
def test_the_series_is_conserved_at_its_order(activation, kind, effective_depth):
    depths = [160, 320, 640]
    found = [spreads(modified_series(exact_path(MESHES[kind](L), effective_depth, activation))) for L in depths]
    assert orders(found, depths) == pytest.approx([1, 2, 3], abs=0.1), found


def test_any_mesh_will_do():
    """Steps drawn at random: no two neighbours alike, and no law between the meshes. Bounds fall like ρ² and ρ³."""
    found = []
    for depth in (100, 200, 400, 800):
        steps = 0.3 + 1.4 * torch.rand(depth, dtype=F64, generator=torch.Generator().manual_seed(depth))
        found.append(spreads(modified_series(exact_path(steps / steps.sum(), 2.0, SmoothReLU(sharpness=2.0)))))
    first, second, third = orders(found, (100, 200, 400, 800))
    assert second == pytest.approx(2, abs=0.3) and third == pytest.approx(3, abs=0.3) and first < 1.3


def test_without_the_jumps_unequal_steps_leave_the_first_order():
    """The series with each layer's own step alone is not conserved: the test above can fail."""
    depths, activation = [120, 240, 480], SmoothReLU(sharpness=2.0)
    found = []
    for depth in depths:
        g = exact_path(MESHES["alternating"](depth), 2.0, activation)
        alone = [
            _derivatives(g.A[i], g.M[i + 1], 2.0, activation).staggered(step) for i, step in enumerate(g.rho.tolist())
        ]
        found.append(spreads(torch.tensor(alone, dtype=F64).T))
    assert orders(found, depths) == pytest.approx([1, 1, 1], abs=0.1)


def test_jumps_read_before_the_node_leave_the_first_order_of_alternating_steps():
    """``−(Δρ/2)⟨H_A, H_B⟩`` of the layer before, instead of at the node: right on smooth meshes only."""
    depths, found = [120, 240, 480], []
    for depth in depths:
        g = exact_path(MESHES["alternating"](depth), 2.0, SmoothReLU(sharpness=2.0))
        product = -((g.A[1:] - g.A[:-1]) * (g.M[1:] - g.M[:-1])).sum(dim=(1, 2)) / g.rho**2
        jumps = torch.cat((g.rho.new_zeros(1), (g.rho.diff() * product[:-1] / 2).cumsum(0)))
        series = modified_series(g)
        found.append(spreads(torch.stack((series[0] + g.rho * product / 2 + jumps, series[1]))))
    assert orders(found, depths) == pytest.approx([1, 2], abs=0.15)


def test_on_equal_steps_the_drift_can_be_read_off_the_path():
    g = exact_path(MESHES["equal"](40), 2.0, SmoothReLU(sharpness=2.0))
    read = -((g.A[1:] - g.A[:-1]) * (g.M[1:] - g.M[:-1])).sum(dim=(1, 2)) / (g.rho * g.effective_depth**2)
    torch.testing.assert_close(hamiltonian_drift(g), read, rtol=1e-9, atol=1e-9)


def test_jumps_have_mean_0_over_p():
    g = exact_path(waves(30), 2.0, SmoothReLU(sharpness=2.0))
    alone = [
        _derivatives(g.A[i], g.M[i + 1], 2.0, g.activation).staggered(step) for i, step in enumerate(g.rho.tolist())
    ]
    series = modified_series(g)
    torch.testing.assert_close(series @ g.rho, torch.tensor(alone, dtype=F64).T @ g.rho, rtol=1e-12, atol=1e-12)
    assert float((series - torch.tensor(alone, dtype=F64).T).abs().max()) > 0.1
    values = torch.stack([modified_hamiltonian(g, order) for order in (1, 2, 3)])
    torch.testing.assert_close(values, -2 / 4 * series)


def test_linear_layers_without_a_bias_conserve_h_itself():
    """On equal steps, where the layers keep the singular values of W: no longer series is better, and none is taken."""
    c = certify(exact_path(MESHES["equal"](12), 2.0, Identity(append_one=False)))
    assert c.h_spread < 1e-12 < 1e-5 < c.h_modified_spread < c.h_unexplained < 1e-2
    assert c.modified_order == 1 and torch.equal(c.hamiltonian_modified, c.hamiltonian)


def test_what_the_modified_hamiltonian_refuses():
    g = exact_path(MESHES["equal"](5), 0.0, Identity())
    with pytest.raises(ValueError, match="order must be one of 1, 2, 3, got 4"):
        modified_hamiltonian(g, 4)
    for call in (modified_hamiltonian, hamiltonian_drift):
        with pytest.raises(ValueError, match=r"needs an effective depth > 0, got 0.0; modified_series"):
            call(g)


DEPTHS = [20, 40, 80, 160]


# --- critical points --------------------------------------------------------------------------------------------------


@functools.cache
def critical(kind):
    """Critical points of one problem at `DEPTHS`, each warm-started from the one before."""
    solved: list[Problem] = []
    for depth in DEPTHS:
        problem = make(depth=depth, rho=MESHES[kind](depth))
        if solved:
            coarse = solved[-1].model
            fine = interpolate_weights(coarse.weight.detach(), coarse.rho, problem.model.rho)
            problem.model.weight.data.copy_(fine)
        stages = [Stage(Newton(), 80)] if solved else NEWTON
        Trainer(problem, stages, log_every=1, tolerance=1e-10).run()
        assert float(problem.residual().max()) < 1e-9
        solved.append(problem)
    return [problem.geodesic() for problem in solved]


@functools.cache
def small():
    """A critical point of eight unequal layers."""
    problem = make(depth=8, rho=waves(8))
    Trainer(problem, NEWTON, log_every=1, tolerance=1e-10).run()
    return problem


@pytest.mark.parametrize("kind", MESHES)
def test_the_spread_falls_at_order_two_and_three_at_critical_points(kind):
    depths, solved = DEPTHS[1:], critical(kind)[1:]
    found = [spreads(torch.stack([modified_hamiltonian(g, order) for order in (1, 2, 3)])) for g in solved]
    assert orders(found, depths) == pytest.approx([1, 2, 3], abs=0.15), found
    c = certify(solved[-1])
    assert [c.h_spread, c.h_unexplained, c.h_modified_spread] == pytest.approx(found[-1], rel=1e-12)
    assert c.modified_order == 3
    torch.testing.assert_close(c.hamiltonian_modified, modified_hamiltonian(solved[-1], 3))
    summary = mechanics(solved[-1]).summary()
    assert summary["minus_2h_over_l_order3_median"] == pytest.approx(float(c.hamiltonian_modified.quantile(0.5)))


def test_where_steps_are_large_the_longer_series_may_be_the_worse_one():
    g = critical("smooth")[0]
    c = certify(g)
    assert c.h_unexplained < c.h_modified_spread < c.h_spread and c.modified_order == 2
    torch.testing.assert_close(c.hamiltonian_modified, modified_hamiltonian(g, 2))


def test_all_orders_and_meshes_have_one_limit():
    limits = []
    for kind in ("equal", "alternating"):
        solved = critical(kind)
        for order in (1, 2, 3):
            means = [float(modified_hamiltonian(g, order) @ g.rho) for g in solved]
            limits.append(richardson(means, DEPTHS))
            assert abs(means[-1] - limits[0].limit) > 0.03  # far from the limit at 160 layers still
    assert all(found.limit == pytest.approx(-4.2529, abs=1e-3) for found in limits), limits


def test_the_staggered_hamiltonian_is_the_derivative_of_the_objective_by_the_step_size():
    """(E14), per layer; and its mean over p by all step-sizes together."""
    problem = small()
    g, steps = problem.geodesic(), problem.model.rho.tolist()
    scale = 2 / (g.weight_decay * g.effective_depth**2)

    def slope(direction, by=1e-5):
        ahead, behind = (
            float(slow_objective(problem, g.W, [r + sign * by * d for r, d in zip(steps, direction, strict=True)]))
            for sign in (1, -1)
        )
        return scale * (ahead - behind) / (2 * by)

    found = modified_hamiltonian(g, 1)
    for layer in (0, 3, 7):
        assert slope([float(i == layer) for i in range(8)]) == pytest.approx(float(found[layer]), rel=1e-6)
    assert slope(steps) == pytest.approx(float(found @ g.rho), rel=1e-6)


def test_the_modified_hamiltonian_is_what_one_more_layer_is_worth():
    """(E14), second part: objectives of L − 1, L and L + 1 equal layers of one step, on paths as long as their number.

    A path of length c with L̃, W and μ is one of length 1 with cL̃, cW and μ/c.
    """
    gaps, depths = [], DEPTHS[:2]
    for depth, g in zip(depths, critical("equal"), strict=False):
        objective = []
        for layers in (depth - 1, depth + 1):
            c = layers / depth
            problem = make(depth=layers, effective_depth=2.0 * c, mu=0.02 / c)
            problem.model.weight.data.copy_(c * interpolate_weights(g.W, g.rho, problem.model.rho))
            Trainer(problem, [Stage(Newton(), 80)], log_every=1, tolerance=1e-10).run()
            objective.append(problem.evaluate().objective)
        worth = 2 / (g.weight_decay * g.effective_depth**2) * (objective[1] - objective[0]) * depth / 2
        gaps.append([abs(float(modified_hamiltonian(g, order) @ g.rho) - worth) for order in (1, 3)])
    raw, third = orders(gaps, depths)
    assert third == pytest.approx(2, abs=0.15) and raw < 0.9, gaps
    assert gaps[-1][1] < 0.005 < 0.05 < gaps[-1][0]


# --- the limit of many layers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("layers", [[10, 20], [10, 20, 40], [12, 18, 50, 33]])
def test_a_series_is_extrapolated_exactly(order, layers):
    values = [3.0 + sum((k + 2.0) * L ** -(order + k) for k in range(len(layers) - 1)) for L in layers]
    limit, error = richardson(values, layers, order)
    assert limit == pytest.approx(3.0, abs=1e-12)
    assert error > 0


def test_the_error_is_that_of_the_shorter_series():
    def value(L):
        return math.exp(1 / L) / (1 + 2 / L)

    for meshes in ([20, 40], [20, 40, 80], [20, 40, 80, 160]):
        limit, error = richardson([value(L) for L in meshes], meshes)
        finest = richardson([value(L) for L in meshes[1:]], meshes[1:]).limit if len(meshes) > 2 else value(40)
        assert error == pytest.approx(abs(limit - finest), rel=1e-6)
        assert abs(limit - 1) < error < 0.1


def test_what_richardson_refuses():
    with pytest.raises(ValueError, match="one value a mesh: got 2 values for 3"):
        richardson([1.0, 2.0], [1, 2, 3])
    with pytest.raises(ValueError, match=r"at least two different numbers of layers, 1 or more, are needed, got \[5\]"):
        richardson([1.0], [5])
    with pytest.raises(ValueError, match=r"needed, got \[5, 5\]"):
        richardson([1.0, 2.0], [5, 5])
    with pytest.raises(ValueError, match="order must be 1 or more, got 0"):
        richardson([1.0, 2.0], [5, 6], 0)
    with pytest.raises(ValueError, match="values must be finite"):
        richardson([1.0, math.nan], [5, 6])


# --- off the image ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [ReLU(), SmoothReLU(False, 3.0)], ids=str)
def test_the_parts_of_the_stable_norm_are_those_of_the_projections(activation):
    A, X, Y = normal(20, 5), normal(20, 5, seed=1), normal(20, 5, seed=2)
    A[:, 0] = -A[:, 0].abs()  # a dead neuron: not all singular values count
    S = activation.features(A)
    metric = FeatureMetric.from_features(S)
    gamma = metric.gamma(1e-3)
    dense, P = S @ S.T + gamma * torch.eye(20, dtype=F64), S @ torch.linalg.pinv(S)
    on, off = metric.parts(X, Y, gamma)
    assert on == pytest.approx(float(((P @ X) * torch.linalg.solve(dense, P @ Y)).sum()), rel=1e-9)
    assert off == pytest.approx(float(((X - P @ X) * (Y - P @ Y)).sum()) / gamma, rel=1e-9)
    assert on + off == pytest.approx(metric.inner(X, Y, gamma), rel=1e-12)
    torch.testing.assert_close(metric.off(X), X - P @ X)
    with pytest.raises(ValueError, match="gamma must be positive, got 0"):
        metric.parts(X, Y, 0.0)


def test_off_the_image_the_three_terms_of_the_lagrangian_cancel():
    """Whatever the weights: the layer's velocity is −L̃A there."""
    problem = make(depth=4)
    g = problem.geodesic()
    for layer in range(4):
        A, velocity = g.A[layer], (g.A[layer + 1] - g.A[layer]) / g.rho[layer]
        metric = FeatureMetric.from_features(g.activation.features(A))
        gamma = metric.gamma(1e-3)
        torch.testing.assert_close(metric.off(velocity), -g.effective_depth * metric.off(A), rtol=1e-9, atol=1e-9)
        off = [metric.parts(*pair, gamma)[1] for pair in ((velocity, velocity), (velocity, A), (A, A))]
        assert off[0] / 4 == pytest.approx(-off[1] / 2) == pytest.approx(off[2])
        on = [metric.parts(*pair, gamma)[0] for pair in ((velocity, velocity), (velocity, A), (A, A))]
        whole = energies(A, velocity, g.effective_depth, metric, gamma).lagrangian
        assert whole == pytest.approx(on[0] / 4 + on[1] + on[2], rel=1e-9)


def test_shares_off_the_image_go_from_0_to_1():
    A, velocity = normal(30, 5), normal(30, 5, seed=1)
    metric = FeatureMetric.from_features(ReLU().features(A))
    shares = [off_image(A, velocity, metric, metric.gamma(gamma0)) for gamma0 in (10.0, 1e-3, 1e-8)]
    for name in ("kinetic", "potential", "cross"):
        found = [getattr(at, name) for at in shares]
        assert 0 < found[0] < found[1] < found[2] < 1 and found[2] > 0.999
    few = FeatureMetric.from_features(ReLU().features(A[:4]))  # fewer samples than features: everything is in the image
    assert off_image(A[:4], velocity[:4], few, few.gamma(1e-3)).kinetic < 1e-20
    nothing = torch.zeros(30, 5, dtype=F64)
    assert off_image(nothing, velocity, metric, 1.0).potential == 0


def test_the_table_has_the_shares_and_the_part_of_h_off_the_image():
    """(E16), on a critical point; (E11) is what is left where nothing lies off the image."""
    g = small().geodesic()
    table = mechanics(g, gamma0=1e-2)
    for layer in range(8):
        A, velocity = g.A[layer], (g.A[layer + 1] - g.A[layer]) / g.rho[layer]
        metric = FeatureMetric.from_features(g.activation.features(A))
        found = off_image(A, velocity, metric, metric.gamma(1e-2))
        for name in ("kinetic", "potential", "cross"):
            assert table[f"{name}_stable_off_image"][layer] == pytest.approx(getattr(found, name))
        assert table["coi_stable_off_image"][layer] == pytest.approx(found.potential)
        on_image = table["coi"][layer] - 2 / g.effective_depth * table["kinetic"][layer]
        off = table["minus_2h_over_l_off_image"][layer]
        assert on_image + off == pytest.approx(table["minus_2h_over_l"][layer], abs=1e-7)
    assert max(map(abs, table["minus_2h_over_l_off_image"])) > 0.1
    assert table["minus_2h_over_l_order3"] == pytest.approx(modified_hamiltonian(g, 3).tolist())


def test_without_a_leak_the_table_has_no_modified_hamiltonian():
    table = mechanics(make(effective_depth=0.0).geodesic())
    names = ("minus_2h_over_l_order2", "minus_2h_over_l_order3", "kinetic_stable_off_image")
    assert all(math.isnan(value) for name in names for value in table[name])
    assert all(0 <= value <= 1 for value in table["coi_stable_off_image"])
    assert table.summary()["minus_2h_over_l_order2_median"] is None
    c = certify(make(effective_depth=0.0).geodesic())
    assert len(c.hamiltonian_modified) == 0 and math.isnan(c.h_modified_spread)
