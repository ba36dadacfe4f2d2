"""Hessian products, Newton's method, and the conditions of a stage."""

import itertools
import math

import pytest
import torch

from isthmus import Identity, LeakyResNet, Problem, ReLU, SmoothReLU, Trainer, make_task, recipe
from isthmus.curvature import Hessian, KroneckerPreconditioner
from isthmus.curvature.kronecker import robust_eigh
from isthmus.curvature.scaled import ScaledParameters
from isthmus.optimise import LBFGS, Adam, Newton, Settle
from isthmus.optimise.truncated_cg import truncated_cg
from isthmus.solve import Stage
from isthmus.status import Status

ACTIVATIONS = [ReLU(), SmoothReLU(sharpness=5.0), Identity(), SmoothReLU(append_one=False, sharpness=3.0)]


def make(activation=None, ends="fixed", loss="mse", depth=5, rho=None, seed=0, **options):
    model = LeakyResNet(
        4, 3, width=8, depth=depth, effective_depth=3.0, ends=ends, activation=activation or SmoothReLU(sharpness=5.0),
        rho=rho, dtype=torch.float64, initialisation="kaiming", seed=seed,
    )  # fmt: skip
    x = torch.randn(20, 4, dtype=torch.float64)
    y = torch.randn(20, 3, dtype=torch.float64) if loss == "mse" else torch.randint(0, 3, (20,))
    return Problem(model, x, y, mu=0.01, loss=loss, **options)


def names_of(problem):
    """Of the parameters, in the problem's own order."""
    return [{id(p): n for n, p in problem.model.named_parameters()}[id(p)] for p in problem.parameters]


def objective(problem, *parameters):
    model, names = problem.model, names_of(problem)
    outputs = torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (problem.x,))
    if not problem.loss.classes:
        cost = (outputs - problem.y).square().sum() / len(problem.x)
    else:
        cost = torch.nn.functional.cross_entropy(outputs, problem.y)
    penalty = (model.rho[:, None, None] * parameters[0] ** 2).sum() + sum((p**2).sum() for p in parameters[1:])
    return cost + 0.5 * problem.mu * penalty


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("ends", ["fixed", "learned"])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_products_equal_autograd(activation, ends, loss):
    problem = make(activation, ends, loss, rho=torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15]))
    hessian = Hessian(problem)
    hessian.linearise()
    v = [torch.randn_like(p) for p in problem.parameters]
    at = tuple(p.detach() for p in problem.parameters)
    _, expected = torch.autograd.functional.hvp(lambda *p: objective(problem, *p), at, tuple(v))
    for mine, theirs in zip(hessian.product(v), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("ends", ["fixed", "learned"])
def test_products_are_those_of_the_point_also_when_the_parameters_have_moved_on(ends):
    problem = make(ends=ends)
    hessian = Hessian(problem)
    hessian.linearise()
    v = [torch.randn_like(p) for p in problem.parameters]
    there, outputs = hessian.product(v), hessian.tangent(v)
    for p in problem.parameters:
        p.data.mul_(1.3)
    problem.evaluate()
    assert all(torch.equal(a, b) for a, b in zip(hessian.product(v), there, strict=True))
    assert torch.equal(hessian.tangent(v), outputs)


@pytest.mark.parametrize("ends", ["fixed", "learned"])
def test_the_gauss_newton_product_is_that_of_the_linearised_network(ends):
    problem = make(ends=ends)
    hessian = Hessian(problem, gauss_newton=True)
    hessian.linearise()
    v = [torch.randn_like(p) for p in problem.parameters]
    names = names_of(problem)
    at = tuple(p.detach() for p in problem.parameters)

    def outputs(*parameters):
        return torch.func.functional_call(problem.model, dict(zip(names, parameters, strict=True)), (problem.x,))

    _, tangent = torch.autograd.functional.jvp(outputs, at, tuple(v))
    _, pull = torch.func.vjp(outputs, *at)
    pulled = pull(2 / len(problem.x) * tangent)
    scales = [problem.model.rho[:, None, None], 1.0, 1.0]
    for mine, theirs, direction, scale in zip(hessian.product(v), pulled, v, scales, strict=False):
        torch.testing.assert_close(mine, theirs + problem.mu * scale * direction, rtol=1e-11, atol=1e-13)


def test_scaled_parameters_there_and_back():
    problem = make(ends="learned", rho=torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15]))
    problem.evaluate()
    scaled, before = ScaledParameters(problem), [p.detach().clone() for p in problem.parameters]
    v = scaled.values()
    assert float(v.square().sum()) == pytest.approx(2 / problem.mu * problem.evaluate().penalty, rel=1e-12)
    # a gradient pairs with a change of values as it does unscaled
    d = torch.randn_like(v)
    slope = sum(float((p.grad * q).sum()) for p, q in zip(problem.parameters, scaled.unflatten(d), strict=True))
    assert float(scaled.gradient() @ d) == pytest.approx(slope, rel=1e-12)
    scaled.write(v)
    for p, q in zip(problem.parameters, before, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=1e-14, atol=0)


# --- truncated conjugate gradients ----------------------------------------------------------------------------------


def quadratic(eigenvalues):
    q, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64))
    return q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T


@pytest.mark.parametrize("preconditioned", [False, True])
def test_cg_solves_a_positive_system(preconditioned):
    H, g = quadratic([1.0, 2.0, 5.0, 100.0]), torch.randn(4, dtype=torch.float64)
    P = torch.diag(H.diagonal()) if preconditioned else torch.eye(4, dtype=torch.float64)
    step = truncated_cg(lambda v: H @ v, g, lambda v: torch.linalg.solve(P, v), 1e6, 1e-12, 50)
    torch.testing.assert_close(step.x, -torch.linalg.solve(H, g), rtol=1e-9, atol=1e-12)
    assert step.decrease == pytest.approx(float(0.5 * g @ torch.linalg.solve(H, g)), rel=1e-9)
    assert step.length == pytest.approx(math.sqrt(float(step.x @ P @ step.x)), rel=1e-9)
    assert not step.limited


@pytest.mark.parametrize("eigenvalues", [[1.0, 2.0, 5.0], [-1.0, 2.0, 5.0], [0.0, 0.0, 0.0]])
def test_cg_ends_on_the_boundary_where_the_step_is_long_or_curvature_negative(eigenvalues):
    H, g = quadratic(eigenvalues), torch.randn(3, dtype=torch.float64)
    step = truncated_cg(lambda v: H @ v, g, lambda v: v, 0.01, 1e-12, 50)
    assert step.limited
    assert float(step.x.norm()) == pytest.approx(0.01, rel=1e-12)
    model = float(g @ step.x + 0.5 * step.x @ H @ step.x)
    assert step.decrease == pytest.approx(-model, rel=1e-9) and step.decrease > 0


@pytest.mark.parametrize("ends", ["fixed", "learned"])
def test_products_in_float32_are_close_and_keep_the_dtype_of_the_parameters(ends):
    problem = make(ends=ends)
    v = [torch.randn_like(p) for p in problem.parameters]
    rough, fine = Hessian(problem, dtype=torch.float32), Hessian(problem)
    rough.linearise()
    fine.linearise()
    assert rough.dtype == rough.tangent(v).dtype == torch.float32
    for mine, theirs in zip(rough.product(v), fine.product(v), strict=True):
        assert mine.dtype == torch.float64
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


# --- Newton ---------------------------------------------------------------------------------------------------------


def small(activation=None, depth=8, width=6):
    task = make_task("teacher", dims=(3, 1, 3), train=30, seed=0)
    activation = activation or SmoothReLU(sharpness=2.0)
    model = LeakyResNet(3, 3, width=width, depth=depth, effective_depth=2.0, activation=activation, dtype=torch.float64)
    return Problem(model, task.x_train, task.y_train, mu=0.02)


def test_newton_converges_superlinearly():
    problem = small()
    Trainer(problem, [Stage(LBFGS(), 60)], log_every=1000).run()
    newton = Newton().start(problem, tolerance=1e-10)
    residuals = []
    while not newton.finished and len(residuals) < 60:
        newton.step(problem.evaluate, 1.0)
        residuals.append(float(problem.residual().max()))
    assert newton.finished and residuals[-1] <= 1e-10
    # the forcing term is the root of the residual: order 1.5 at the end, or better where a step overshoots its aim
    assert residuals[-2] < residuals[-3] ** 1.3 and residuals[-1] < residuals[-2] ** 1.3


def test_newton_ends_where_l_bfgs_would():
    problem = small(Identity())
    Trainer(problem, [Stage(LBFGS(), 30), Stage(Newton(), 60)], tolerance=1e-9).run()
    by_newton = problem.evaluate().objective
    again = small(Identity())
    Trainer(again, [Stage(LBFGS(), 2000)], tolerance=1e-8).run()
    assert by_newton == pytest.approx(again.evaluate().objective, rel=1e-9)
    assert problem.residual().max() < 1e-9


def test_newton_never_raises_the_objective_and_gives_up_at_kinks():
    problem = small(ReLU())
    Trainer(problem, [Stage(LBFGS(), 100)], log_every=1000).run()
    newton, last = Newton(limit=50).start(problem), problem.evaluate().objective
    for _ in range(80):
        now = newton.step(problem.evaluate, 1.0).objective
        assert now <= last + 1e-12
        last = now
        if newton.finished:
            break
    assert problem.evaluate().objective == last


def test_newton_is_rough_far_from_the_end_and_exact_at_it():
    problem = small()
    Trainer(problem, [Stage(LBFGS(), 60)], log_every=1000).run()
    newton, used = Newton().start(problem, tolerance=1e-10), []
    while not newton.finished:
        residual = float(problem.residual().max()) if used else math.inf
        newton.step(problem.evaluate, 1.0)
        used.append((residual > 1e-3, sorted(str(d) for d in newton._hessians)))
    assert used[0][1] == ["torch.float32"] and used[-1] == (False, ["torch.float32", "torch.float64"])


def test_a_refused_step_leaves_the_bits_of_the_point_and_its_linearisation(monkeypatch):
    problem = small()
    Trainer(problem, [Stage(LBFGS(), 60)], log_every=1000).run()
    newton, metric = Newton().start(problem), []
    monkeypatch.setattr(
        newton.preconditioner, "refresh", lambda refresh=newton.preconditioner.refresh: metric.append(refresh())
    )
    newton.step(problem.evaluate, 1.0)
    before, gradient = problem.model.weight.detach().clone(), problem.model.weight.grad.clone()
    monkeypatch.setattr(newton, "_at", lambda scaled, x: math.inf)  # whatever is tried is refused
    newton.step(problem.evaluate, 1.0)
    linearised, measured, radius = newton._hessian, len(metric), newton._radius
    assert torch.equal(problem.model.weight, before) and torch.equal(problem.model.weight.grad, gradient)
    newton.step(problem.evaluate, 1.0)
    assert newton._hessian is linearised is not None and len(metric) == measured
    assert newton._radius < radius and torch.equal(problem.model.weight, before)


def test_newton_says_what_is_not_finite():
    problem = small()
    problem.model.weight.data[0, 0, 0] = math.inf
    assert not math.isfinite(Newton().start(problem).step(problem.evaluate, 1.0).objective)


@pytest.mark.parametrize("stop", [33, 41])
def test_newton_resumes_to_the_same_bits(stop):
    stages = [Stage(LBFGS(), 30, fraction=0.5), Stage(Newton(), 15, sharpness=4.0)]
    whole, part = small(), small()
    Trainer(whole, stages).run()
    trainer = Trainer(part, stages)
    trainer.run(should_stop=lambda: trainer.step_count >= stop)
    rest = small()
    resumed = Trainer(rest, stages)
    resumed.load_state_dict(trainer.state_dict())
    resumed.run()
    assert torch.equal(rest.model.weight, whole.model.weight)


def test_moved_parameters_make_newton_start_anew():
    problem = small()
    newton = Newton(preconditioner=KroneckerPreconditioner).start(problem)
    newton.step(problem.evaluate, 1.0)
    problem.model.weight.data.mul_(0.5)
    newton.parameters_moved()
    before = problem.evaluate().objective
    assert newton.step(problem.evaluate, 1.0).objective <= before


def test_eigenbases_come_also_where_lapack_gives_up(monkeypatch):
    real, calls = torch.linalg.eigh, []

    def once(matrix):
        calls.append(matrix.dtype)
        if len(calls) == 1:
            raise torch.linalg.LinAlgError("failed to converge")
        return real(matrix)

    matrix = torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.0]))
    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "eigh", once)
        values, vectors = robust_eigh(matrix)
    assert calls == [torch.float32, torch.float64] and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors @ torch.diag(values) @ vectors.T, matrix, rtol=0, atol=1e-6)


# --- conditions of stages ---------------------------------------------------------------------------------------------


def test_a_variant_is_the_problem_under_other_conditions():
    problem = make(ReLU())
    other = problem.variant(rows=7, mu=0.5, activation=SmoothReLU(sharpness=9.0), effective_depth=1.5)
    assert other.model is problem.model and other.x.shape == (7, 4) and other.mu == 0.5
    model = LeakyResNet(
        4, 3, width=8, depth=5, effective_depth=1.5, activation=SmoothReLU(sharpness=9.0), dtype=torch.float64
    )
    model.load_state_dict(problem.model.state_dict())
    chosen = torch.linspace(0, 19, 7, dtype=torch.float64).round().long()
    by_itself = Problem(model, problem.x[chosen], problem.y[chosen], mu=0.5)
    assert other.evaluate().objective == by_itself.evaluate().objective
    torch.testing.assert_close(problem.model.weight.grad, model.weight.grad, rtol=0, atol=0)
    assert other.geodesic().activation == SmoothReLU(sharpness=9.0)
    assert other.geodesic().effective_depth == 1.5


def test_what_a_variant_cannot_be():
    problem = make(ReLU())
    with pytest.raises(ValueError, match=r"rows must lie in 1\.\.20 \(the training rows\), got 21"):
        problem.variant(rows=21)
    with pytest.raises(ValueError, match="must append as many ones"):
        problem.variant(activation=ReLU(append_one=False))
    with pytest.raises(ValueError, match="effective_depth must be finite and not negative, got -1"):
        problem.variant(effective_depth=-1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, r"fraction \(of the rows\) must lie in \(0, 1\], got 0.0"),
        ({"fraction": 1.5}, "fraction"),
        ({"sharpness": 0.0}, "sharpness must be positive and finite, got 0.0"),
        ({"mu_factor": math.inf}, "mu_factor must be positive and finite, got inf"),
        ({"leak_factor": -1.0}, "leak_factor must be positive"),
        ({"gain": 1.0}, r"gain \(a fraction of the objective\) must lie in \[0, 1\), got 1.0"),
        ({"gain": -0.1}, "gain"),
    ],
)
def test_bad_conditions_of_a_stage(options, message):
    with pytest.raises(ValueError, match=message):
        Stage(LBFGS(), 3, **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (lambda: LBFGS(damping=0.0), "LBFGS: damping must be positive, got 0.0"),
        (lambda: LBFGS(sweeps=0), "LBFGS: sweeps must be positive, got 0"),
        (lambda: LBFGS(refresh_every=0), "LBFGS: refresh_every must be positive, got 0"),
        (lambda: LBFGS(pairs=0), "LBFGS: pairs must be positive, got 0"),
        (lambda: Newton(limit=0), "Newton: limit must be positive, got 0"),
        (lambda: Newton(corrections=-1), "Newton: corrections must not be negative, got -1"),
        (lambda: Settle(fraction=-0.2), "Settle: fraction must be positive"),
    ],
)
def test_bad_settings_of_an_optimiser(settings, message):
    with pytest.raises(ValueError, match=message):
        settings()


def test_conditions_that_do_not_fit():
    with pytest.raises(ValueError, match="sharpness is for networks with a ReLU or a smooth one, not Identity"):
        Trainer(make(Identity()), [Stage(LBFGS(), 3, sharpness=5.0)])
    with pytest.raises(ValueError, match="a stage on a fraction of the rows takes no minibatches"):
        Trainer(make(), [Stage(Adam(), 3, fraction=0.5)], batch_size=5)
    with pytest.raises(ValueError, match="recipe 'fast' needs the full batch"):
        recipe("fast", full_batch=False)
    with pytest.raises(ValueError, match="tolerance must be finite and not negative, got -1"):
        Trainer(make(), [Stage(LBFGS(), 3)], tolerance=-1.0)


def test_history_is_of_the_problem_itself_whatever_a_stage_solves():
    problem = make(ReLU())
    trainer = Trainer(problem, [Stage(LBFGS(), 4, fraction=0.3, sharpness=3.0, mu_factor=10.0)], log_every=2)
    trainer.run()
    assert trainer.history[-1]["objective"] == problem.evaluate().objective


def test_training_stops_at_the_tolerance():
    problem = small(Identity())
    trainer = Trainer(problem, [Stage(LBFGS(), 5000)], tolerance=1e-3, log_every=5)
    assert trainer.run().status is Status.DONE
    assert trainer.step_count < 5000 and trainer.done
    assert trainer.history[-1]["residual_max"] <= 1e-3 < trainer.history[-2]["residual_max"]
    assert trainer.history[-1]["stage"] == "done"


def test_a_stage_ends_where_a_hundred_steps_gain_little():
    stages = [Stage(LBFGS(), 2000, gain=0.01), Stage(Newton(), 3)]
    trainer = Trainer(small(), stages, log_every=100)
    trainer.run()
    lbfgs = [row["objective"] for row in trainer.history if row["stage"] == "lbfgs"]
    ended = trainer.step_count - 3
    assert ended % 100 == 0 and 200 <= ended < 2000
    assert all(before - now >= 0.01 * now for before, now in itertools.pairwise(lbfgs[1:]))
    # and where it was interrupted between two looks
    part = Trainer(small(), stages, log_every=100)
    part.run(should_stop=lambda: part.step_count >= ended - 30)
    rest = Trainer(small(), stages, log_every=100)
    rest.load_state_dict(part.state_dict())
    rest.run()
    assert rest.step_count == trainer.step_count
    assert torch.equal(rest.problem.model.weight, trainer.problem.model.weight)
    # nothing asked for: nothing ended, also where the objective goes up and down
    noisy = Trainer(small(), [Stage(Adam(), 201, 0.5, cosine=False)], log_every=1000)
    noisy.run()
    assert noisy.step_count == 201


@pytest.mark.parametrize("name", ["fast", "geodesic", "kinks"])
@pytest.mark.parametrize("steps", [3, 40, 1000])
def test_recipes_have_about_the_steps_asked_for(name, steps):
    total = sum(stage.steps for stage in recipe(name, steps))
    assert abs(total - steps) <= 8
