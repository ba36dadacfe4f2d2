"""The metric by way of the outputs, and what Newton's method makes of it."""

import math

import pytest
import torch

from isthmus import LeakyResNet, Problem, ReLU, SmoothReLU, Trainer, make_task
from isthmus.curvature import DualPreconditioner, Hessian, KroneckerPreconditioner
from isthmus.curvature.scaled import ScaledParameters
from isthmus.optimise import LBFGS, Newton
from isthmus.optimise.truncated_cg import truncated_cg
from isthmus.solve import Stage

RHO = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15])


def make(ends="fixed", loss="mse", activation=None, samples=7, mu=0.03):
    model = LeakyResNet(
        4, 3, width=8, depth=5, effective_depth=3.0, ends=ends, activation=activation or SmoothReLU(sharpness=5.0),
        rho=RHO, dtype=torch.float64, initialisation="kaiming",
    )  # fmt: skip
    x = torch.randn(samples, 4, dtype=torch.float64)
    y = torch.randn(samples, 3, dtype=torch.float64) if loss == "mse" else torch.randint(0, 3, (samples,))
    return Problem(model, x, y, mu=mu, loss=loss)


def gauss_newton(problem):
    """As a dense matrix in scaled variables, and its products."""
    scaled, hessian = ScaledParameters(problem), Hessian(problem, gauss_newton=True)
    hessian.linearise()

    def product(v):
        return scaled.flatten(hessian.product(scaled.unflatten(v)), gradient=True)

    return torch.stack([product(e) for e in torch.eye(scaled.values().numel(), dtype=torch.float64)]), product


@pytest.mark.parametrize("activation", [None, ReLU(append_one=False)], ids=str)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("ends", ["fixed", "learned"])
def test_with_all_directions_it_inverts_the_gauss_newton_hessian(ends, loss, activation):
    problem = make(ends, loss, activation)
    metric = DualPreconditioner(problem, dtype=torch.float64)
    assert not metric.ready
    metric.refresh()
    assert metric.ready
    matrix, _ = gauss_newton(problem)
    v = torch.randn(len(matrix), dtype=torch.float64)
    torch.testing.assert_close(metric.apply(v), torch.linalg.solve(matrix, v), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("limit", "share"), [(None, 0.3), (9, 0.0), (12, 0.5)])
@pytest.mark.parametrize("ends", ["fixed", "learned"])
def test_a_jacobian_that_is_held_is_that_of_the_sweeps(ends, limit, share, monkeypatch):
    problem = make(ends)
    held = DualPreconditioner(problem, limit=limit, share=share, dtype=torch.float64)
    swept = DualPreconditioner(problem, limit=limit, share=share, dtype=torch.float64)
    held.refresh()
    monkeypatch.setattr("isthmus.curvature.dual._DENSE", 0)
    swept.refresh()
    assert held._dense is not None and swept._dense is None
    v, excess = torch.randn(held._dense.shape[1], dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    torch.testing.assert_close(held.apply(v), swept.apply(v), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(held.restoration(excess), swept.restoration(excess), rtol=1e-9, atol=1e-11)


def test_it_stays_what_it_was_when_the_weights_move():
    problem = make()
    metric = DualPreconditioner(problem, dtype=torch.float64)
    metric.refresh()
    v = torch.randn(problem.model.weight.numel(), dtype=torch.float64)
    before = metric.apply(v)
    problem.model.weight.data.mul_(1.5)
    assert torch.equal(metric.apply(v), before)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("chunk", [1, 2**23])
def test_some_directions_leave_the_rest_of_the_curvature_and_more_leave_less(loss, chunk, monkeypatch):
    monkeypatch.setattr("isthmus.curvature.dual._CHUNK", chunk)  # samples one by one, or all together
    problem = make(loss=loss, samples=12)
    matrix, _ = gauss_newton(problem)
    left = []
    for limit in (1, 6, 15, 36):
        metric = DualPreconditioner(problem, limit=limit, share=0.0, dtype=torch.float64)
        metric.refresh()
        inverse = torch.stack([metric.apply(e) for e in torch.eye(len(matrix), dtype=torch.float64)])
        eigenvalues = torch.linalg.eigvals(inverse @ matrix).real
        assert float(eigenvalues.min()) > 1 - 1e-8  # P lies below the Hessian
        left.append(float(eigenvalues.max()))
    assert left == sorted(left, reverse=True) and left[0] > 1.5 and left[-1] == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("ends", ["fixed", "learned"])
def test_what_the_directions_leave_is_seen_layer_by_layer(ends):
    problem = make(ends, samples=40, mu=1e-3)
    matrix, _ = gauss_newton(problem)
    largest = []
    for limit, share in ((30, 0.0), (60, 0.5)):  # the same directions, without and with the rest
        metric = DualPreconditioner(problem, limit=limit, share=share, dtype=torch.float64)
        metric.refresh()
        inverse = torch.stack([metric.apply(e) for e in torch.eye(len(matrix), dtype=torch.float64)])
        torch.testing.assert_close(inverse, inverse.T, rtol=1e-8, atol=1e-8)
        eigenvalues = torch.linalg.eigvals(inverse @ matrix).real
        assert float(eigenvalues.min()) > 0
        largest.append(float(eigenvalues.max()))
    assert largest[1] < (0.2 if ends == "fixed" else 1.0) * largest[0]  # learned ends: by directions only


def test_float32_is_close_enough_to_precondition():
    problem = make(samples=12)
    metric = DualPreconditioner(problem)
    metric.refresh()
    matrix, _ = gauss_newton(problem)
    v = torch.randn(len(matrix), dtype=torch.float64)
    found = metric.apply(v)
    assert found.dtype == torch.float64
    torch.testing.assert_close(matrix @ found, v, rtol=0, atol=1e-2 * float(v.abs().max()))


@pytest.mark.parametrize("ends", ["fixed", "learned"])
def test_a_restoration_takes_the_excess_away_at_least_cost(ends):
    problem = make(ends, mu=1e-9)
    metric = DualPreconditioner(problem, dtype=torch.float64)
    metric.refresh()
    scaled, hessian = ScaledParameters(problem), Hessian(problem)
    hessian.linearise()
    excess = torch.randn(3, 7, dtype=torch.float64)
    step = metric.restoration(excess)
    moved = hessian.tangent(scaled.unflatten(step))
    torch.testing.assert_close(moved, -excess, rtol=1e-4, atol=1e-4)
    # least: orthogonal to whatever leaves the outputs where they are
    away = torch.randn_like(step)
    away += metric.restoration(hessian.tangent(scaled.unflatten(away)))
    assert abs(float(step.dot(away))) < 1e-4 * float(step.norm() * away.norm())


def test_rounding_beside_large_curvature_is_shifted_away():
    problem = make(mu=1e-13)
    problem.model.weight.data.mul_(3)
    metric = DualPreconditioner(problem)
    metric.refresh()
    assert torch.isfinite(metric.apply(torch.randn(problem.model.weight.numel(), dtype=torch.float64))).all()


def test_weights_too_large_for_the_metric_are_named():
    problem = make()
    problem.model.weight.data.mul_(1e9)
    with pytest.raises(OverflowError, match=r"beyond torch\.float32"):
        DualPreconditioner(problem).refresh()


@pytest.mark.parametrize("options", [{"limit": 0}, {"share": 1.0}, {"share": -0.1}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        DualPreconditioner(make(), **options)


# --- smaller balls ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("definite", [True, False])
def test_steps_to_smaller_balls_are_those_that_a_smaller_radius_gives(definite):
    q, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    H = q @ torch.diag(torch.tensor([0.1, 1, 2, 5, 20, 50 if definite else -1.0], dtype=torch.float64)) @ q.T
    g, P = torch.randn(6, dtype=torch.float64), torch.diag(torch.rand(6, dtype=torch.float64) + 0.5)

    def solve(radius, smaller=()):
        return truncated_cg(lambda v: H @ v, g, lambda v: torch.linalg.solve(P, v), radius, 1e-10, 50, smaller)

    whole = solve(1.0, (0.01, 0.1, 0.5))
    assert [round(step.length, 12) for step in whole.shorter] == [0.5, 0.1, 0.01]
    for step in whole.shorter:
        alone = solve(step.length)
        torch.testing.assert_close(step.x, alone.x, rtol=1e-9, atol=1e-12)
        assert step.decrease == pytest.approx(alone.decrease, rel=1e-9)
        assert (step.products, step.limited) == (alone.products, True)
    torch.testing.assert_close(whole.x, solve(1.0).x, rtol=0, atol=0)


def test_balls_that_the_step_does_not_reach_are_left_out():
    g = torch.tensor([1.0, 0.0], dtype=torch.float64)
    step = truncated_cg(lambda v: v, g, lambda v: v, 100.0, 1e-10, 10, (0.5, 2.0))
    assert not step.limited and [inner.length for inner in step.shorter] == [0.5]


# --- Newton ----------------------------------------------------------------------------------------------------


def teacher(beta=20.0):
    """The middle case of docs/notes/log/solver.md, smaller: the metric of single layers does not get to the end."""
    task = make_task("teacher", dims=(6, 2, 6), train=60, seed=0)
    activation = SmoothReLU(sharpness=beta)
    model = LeakyResNet(6, 6, width=12, depth=10, effective_depth=4.0, activation=activation, dtype=torch.float64)
    return Problem(model, task.x_train, task.y_train, mu=0.01)


def certified(problem, metric, steps):
    settings = Newton() if metric is None else Newton(preconditioner=lambda _: metric)
    newton = settings.start(problem, tolerance=1e-9)
    for _ in range(steps):
        newton.step(problem.evaluate, 1.0)
        if newton.finished:
            break
    return newton


def test_layers_seen_together_newton_gets_to_the_end_where_the_block_metric_does_not():
    first = teacher()
    Trainer(first, [Stage(LBFGS(), 150)], log_every=1000).run()
    start = first.model.weight.detach().clone()
    newton = certified(first, None, 150)
    assert newton.finished and float(first.residual().max()) <= 1e-9
    spent = newton.products
    first.model.weight.data.copy_(start)
    blocks = certified(first, KroneckerPreconditioner(first, damping=1.0), 150)
    assert blocks.products > 2 * spent or float(first.residual().max()) > 1e-9


def test_a_correction_brings_a_step_back_to_the_surface_of_fitting_networks():
    problem = teacher(beta=2.0)
    problem.mu = 1e-4  # so that the surface is stiff beside what pulls along it
    Trainer(problem, [Stage(LBFGS(), 300)], log_every=1000).run()
    metric, scaled, hessian = DualPreconditioner(problem), ScaledParameters(problem), Hessian(problem)
    before = problem.evaluate().objective
    x, g = scaled.values(), scaled.gradient()
    metric.refresh()
    hessian.linearise()

    def product(v):
        return scaled.flatten(hessian.product(scaled.unflatten(v)), gradient=True)

    radius = 0.1 * float(x.norm()) * math.sqrt(problem.mu)
    step = truncated_cg(product, g, metric.apply, radius, 1e-2, 100)
    expected = hessian.outputs + hessian.tangent(scaled.unflatten(step.x))

    def gained(at):
        scaled.write(at)
        return before - problem.evaluate(gradient=False).objective

    assert gained(x + step.x) < 0
    excess = problem.model.out_map @ problem.workspace().end - expected
    assert gained(x + step.x + metric.restoration(excess)) > 0.9 * step.decrease
    # and Newton's step does that: as far as without corrections only by shorter ones
    lengths = []
    for corrections in (0, 4):
        scaled.write(x)
        problem.evaluate()
        newton = Newton(limit=100, corrections=corrections).start(problem)
        newton._radius = radius
        newton.step(problem.evaluate, 1.0)
        lengths.append(float((scaled.values() - x).norm()))
    assert lengths[1] > 1.5 * lengths[0]


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_newton_gets_to_the_end_with_learned_ends_and_either_loss(loss):
    problem = make("learned", loss, SmoothReLU(sharpness=2.0), samples=12, mu=3e-3)
    Trainer(problem, [Stage(LBFGS(), 100)], log_every=1000).run()
    newton = certified(problem, None, 150)
    assert newton.finished and float(problem.residual().max()) <= 1e-9


def test_newton_is_done_where_the_network_is_zero_in_all_but_name():
    problem = make("learned", "cross_entropy", SmoothReLU(sharpness=2.0), mu=10.0)
    for p in problem.parameters:
        p.data.mul_(1e-60)
    newton = Newton().start(problem)
    newton.step(problem.evaluate, 1.0)
    assert newton.finished
