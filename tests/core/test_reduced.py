"""The reduced problems of first stages: tied layers, the last layer solved for, a weight decay with a ceiling."""

import copy

import pytest
import torch

from isthmus import Identity, LeakyResNet, Problem, Trainer, make_task, recipe
from isthmus.curvature import KroneckerPreconditioner, ScaledParameters
from isthmus.optimise import LBFGS, Adam
from isthmus.solve import Stage, solve
from isthmus.solve.reduced import ReducedProblem, can_project, doubling
from isthmus.status import Status

RHO = torch.tensor([0.3, 0.1, 0.15, 0.2, 0.25], dtype=torch.float64)


def make(depth=5, mu=0.02, rho=RHO, loss="mse", **options):
    task = make_task("teacher", dims=(3, 1, 3), train=30, seed=0)
    leak = min(2.0, 0.9 * depth)
    model = LeakyResNet(3, 3, width=6, depth=depth, effective_depth=leak, rho=rho, dtype=torch.float64, **options)
    y = task.y_train if loss == "mse" else task.y_train.argmax(1)
    return Problem(model, task.x_train, y, mu=mu, loss=loss)


def directional(problem, direction, h=1e-6):
    """Central difference of the objective along a direction of the scaled variables."""
    scaled = ScaledParameters(problem)
    v = scaled.values()
    values = []
    for sign in (1, -1):
        scaled.write(v + sign * h * direction)
        values.append(problem.evaluate().objective)
    scaled.write(v)
    return (values[0] - values[1]) / (2 * h)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5, 7, 10, 20, 33, 80])
def test_groups_double_from_both_ends(layers):
    sizes = doubling(layers)
    assert sum(sizes) == layers and sizes == sizes[::-1] and min(sizes) >= 1
    assert len(sizes) < 2 * layers.bit_length() + 1
    assert layers < 3 or sizes[0] == sizes[-1] == 1


@pytest.mark.parametrize("ends", ["fixed", "learned"])
@pytest.mark.parametrize(("tied", "projected"), [(True, False), (False, True), (True, True)])
def test_its_gradient_is_that_of_its_objective(ends, tied, projected):
    problem = ReducedProblem(make(ends=ends), tied, projected)
    problem.evaluate()
    scaled = ScaledParameters(problem)
    gradient = scaled.gradient().clone()
    direction = torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert float(gradient @ direction) == pytest.approx(directional(problem, direction), rel=1e-6)
    assert problem.projects == (projected and ends == "fixed")


def test_the_last_layer_is_at_its_minimum_given_the_others():
    problem = make()
    before = problem.evaluate().objective
    reduced = ReducedProblem(problem, tied=False, projected=True)
    value = reduced.evaluate().objective
    assert value == pytest.approx(problem.evaluate().objective, rel=1e-14) and value < before
    gradient = problem.model.weight.grad
    assert gradient[-1].norm() < 1e-12 * gradient[:-1].norm()
    last = problem.model.weight[-1].detach().clone()
    for _ in range(5):  # and no other last layer is better
        problem.model.weight.data[-1] = last + 0.1 * torch.randn_like(last)
        assert problem.evaluate().objective > value


def test_untied_layers_begin_at_exactly_the_tied_network():
    problem = make()
    tied = ReducedProblem(problem, tied=True, projected=True)
    tied.evaluate()
    weight = problem.model.weight.detach().clone()
    assert torch.equal(weight[1], weight[2]) and not torch.equal(weight[0], weight[1])  # groups 1, 3, 1
    assert torch.equal(ReducedProblem(problem, tied=True, projected=True).weights, tied.weights)
    assert torch.equal(problem.model.weight, weight)


def test_tied_layers_begin_at_their_mean_by_step_size():
    problem = make()
    W = problem.model.weight.detach().clone()
    ReducedProblem(problem, tied=True, projected=False)
    mean = (RHO[1:4, None, None] * W[1:4]).sum(0) / RHO[1:4].sum()
    assert torch.allclose(problem.model.weight[2], mean, rtol=0, atol=1e-14)


def test_the_metric_of_tied_layers_pools_their_factors():
    problem = make()
    layers = KroneckerPreconditioner(problem)
    layers.refresh()
    tied = ReducedProblem(problem, tied=True, projected=True)
    tied.evaluate()
    metric = KroneckerPreconditioner(tied)
    metric.refresh()
    v = ScaledParameters(tied).gradient()
    assert v.numel() == 2 * 6 * 7 and float(v @ metric.apply(v)) > 0
    per_layer = torch.arange(5, dtype=torch.float64)
    assert torch.allclose(tied.pooled(per_layer), torch.tensor([0.0, (0.1 + 0.3 + 0.6) / 0.45], dtype=torch.float64))


def test_the_minimum_is_that_of_the_whole_problem():
    problem = make(activation=Identity())
    start = copy.deepcopy(problem.model.state_dict())
    whole = solve(problem, [Stage(LBFGS(), 1500)], tolerance=1e-6)
    problem.model.load_state_dict(start)
    projected = solve(problem, [Stage(LBFGS(), 1500, projected=True)], tolerance=1e-6)
    assert whole.status is projected.status is Status.CONVERGED
    assert projected.objective == pytest.approx(whole.objective, rel=1e-9)
    assert projected.statistics["steps"] < whole.statistics["steps"]


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("depth", [1, 2, 3, 8])
def test_fast_takes_every_depth_and_loss(loss, depth):
    problem = make(depth=depth, rho=None, loss=loss)
    before = problem.evaluate().objective
    assert solve(problem, "fast", steps=12).objective < before
    assert can_project(problem) == (loss == "mse" and depth > 1)


@pytest.mark.parametrize("at", [3, 14, 25, 60])
def test_fast_resumes_to_the_same_bits(at):
    stages = recipe("fast", 200)
    whole = Trainer(make(), stages, log_every=7)
    while whole.step_count < 90:
        whole.step()
    first = Trainer(make(), stages, log_every=7)
    while first.step_count < at:
        first.step()
    state = copy.deepcopy(first.state_dict())
    second = Trainer(make(seed=5), stages, log_every=7)
    second.load_state_dict(state)
    while second.step_count < 90:
        second.step()
    assert torch.equal(second.problem.model.weight, whole.problem.model.weight)


def test_a_projected_stage_stops_at_the_tolerance():
    trainer = Trainer(make(activation=Identity()), [Stage(LBFGS(), 5000, projected=True)], tolerance=1e-3, log_every=5)
    trainer.run()
    last, before = trainer.history[-1], trainer.history[-2]
    assert trainer.done and trainer.step_count < 5000 and last["residual_max"] <= 1e-3 < before["residual_max"]


def test_a_raised_weight_decay_has_a_ceiling():
    problem = make(mu=0.02)
    zero = float(problem.y.square().sum() / len(problem.y))
    assert Stage(LBFGS(), 1, mu_factor=8.0).mu_of(problem) == pytest.approx(0.16)
    assert Stage(LBFGS(), 1, mu_factor=8.0, mu_share=0.1 / zero).mu_of(problem) == pytest.approx(0.1)
    assert Stage(LBFGS(), 1, mu_factor=8.0, mu_share=1e-6).mu_of(problem) == 0.02  # never below its own
    assert Stage(LBFGS(), 1, mu_factor=0.5, mu_share=1e-6).mu_of(problem) == 0.01  # a lowered one is as asked


def test_what_a_reduced_stage_refuses():
    with pytest.raises(ValueError, match="tied and projected are for LBFGS, got Adam"):
        Stage(Adam(), 3, tied=True)
    with pytest.raises(ValueError, match="tied and projected are for LBFGS"):
        Stage(Adam(), 3, projected=True)
    with pytest.raises(ValueError, match=r"mu_share \(of the zero network's cost\) must be positive, got 0"):
        Stage(LBFGS(), 3, mu_share=0.0)


def test_an_end_map_of_other_values_is_not_solved_for():
    problem = make()
    assert can_project(problem)
    problem.model.out_map.data.mul_(2)
    assert not can_project(problem)
    before = problem.evaluate().objective
    solve(problem, "fast", steps=40)  # without it, and none the worse
    assert problem.evaluate().objective < before
