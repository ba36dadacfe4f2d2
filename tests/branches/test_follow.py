"""Branches: folds and bifurcations where they are known, the same points after a kill, and messages that help."""

import math

import pytest
import torch
from reference import make_problem
from toys import F64, Cusp

from isthmus import Identity, LeakyResNet, Problem, ReLU, SmoothReLU, Status, solve
from isthmus.branches import EventKind, follow
from isthmus.branches.correct import Local, minimise
from isthmus.branches.family import ProblemFamily
from isthmus.curvature import ScaledParameters, minres
from isthmus.theory import linear_minimum

FOLD = 2 / math.sqrt(27)  # of the cusp at a = 1


def events(branch, kind):
    return [e for e in branch.events if e.kind == kind]


def scalar(depth, effective_depth, s, mu, w=0.0):
    """One neuron a layer, linear, two samples of mean 0 and variance 1: (E3) is the closed form's."""
    model = LeakyResNet(
        1, 1, width=1, depth=depth, effective_depth=effective_depth, activation=Identity(append_one=False), dtype=F64
    )
    x = torch.tensor([[1.0], [-1.0]], dtype=F64)
    model.weight.data.fill_(w)
    return Problem(model, x, s * float((model.out_map @ model.in_map).detach()) * x, mu=mu)


def small(seed=0, mu=0.1, effective_depth=2.0, width=6, depth=6, samples=16):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, dtype=F64, generator=generator)
    y = torch.tanh(x @ torch.randn(3, 2, dtype=F64, generator=generator))
    model = LeakyResNet(
        3, 2, width=width, depth=depth, effective_depth=effective_depth, seed=seed,
        activation=SmoothReLU(sharpness=5.0), dtype=F64,
    )  # fmt: skip
    problem = Problem(model, x, y, mu=mu)
    assert solve(problem, tolerance=1e-7).status == Status.CONVERGED
    return problem


# --- linear systems -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negative", [0, 3])
def test_minimum_residuals_solve_systems_of_either_sign(negative):
    generator = torch.Generator().manual_seed(1)
    Q = torch.linalg.qr(torch.randn(30, 30, dtype=F64, generator=generator))[0]
    values = torch.linspace(1, 50, 30, dtype=F64)
    values[:negative] *= -1
    A, P = Q @ torch.diag(values) @ Q.T, Q @ torch.diag(values.abs() + 0.5) @ Q.T
    b = torch.randn(30, dtype=F64, generator=generator)
    found = minres(lambda v: A @ v, b, lambda v: torch.linalg.solve(P, v), 1e-12, 100)
    assert torch.allclose(A @ found.x, b, atol=1e-9)
    assert (found.least < 0) == (negative > 0)  # Sylvester: the metric does not change the signs
    assert found.products < 30


def test_minimum_residuals_of_nothing_are_nothing():
    found = minres(lambda v: v, torch.zeros(3, dtype=F64), lambda v: v, 1e-6, 10)
    assert found.products == 0 and float(found.x.norm()) == 0


# --- the cusp -------------------------------------------------------------------------------------------------------


def test_both_folds_of_the_cusp_are_passed_and_located():
    branch = follow(Cusp(-1.0, a=1.0), start=0.0, stop=1.0, at_fold="turn", tolerance=1e-9)
    assert branch.status == Status.CONVERGED and branch.values[-1] == 1.0
    first, second = events(branch, EventKind.FOLD)
    assert abs(first.value - FOLD) < 1e-7 and abs(second.value + FOLD) < 1e-7
    assert first.error < 1e-6 and second.error < 1e-6
    x = torch.stack([p.parameters[0][0] for p in branch.points])
    b = torch.tensor(branch.values, dtype=F64)
    assert torch.allclose(x**3 - x, b, atol=1e-8)  # every point lies on the branch
    stable = torch.tensor([p.stable for p in branch.points])
    assert torch.equal(stable, 3 * x**2 - 1 > 0)  # and its kind is right
    assert not stable.all()


def test_a_fold_is_located_and_the_next_minimum_begins_a_new_branch():
    branch = follow(Cusp(-1.0, a=1.0), start=0.0, stop=1.0, at_fold="locate", tolerance=1e-9)
    (fold,) = events(branch, EventKind.FOLD)
    (jump,) = events(branch, EventKind.JUMP)
    assert abs(fold.value - FOLD) < 1e-7
    assert FOLD < jump.value < FOLD + 0.01
    assert {p.branch for p in branch.points if p.value < FOLD} == {0}
    assert {p.branch for p in branch.points if p.value > FOLD} == {1}


def test_a_jump_is_named_with_the_points_it_lies_between():
    branch = follow(Cusp(-1.0, a=1.0), start=0.0, stop=1.0, tolerance=1e-9)
    (jump,) = events(branch, EventKind.JUMP)
    before, after = branch.points[jump.after], branch.points[jump.after + 1]
    assert before.value < FOLD < after.value == jump.value
    assert (before.branch, after.branch) == (0, 1)
    assert f"{before.value:.6g}" in jump.message
    assert after.value - before.value <= 0.15 * 1.5 / 4  # not beyond the resolution


def test_a_branch_stops_at_its_fold_where_it_is_told_to():
    branch = follow(Cusp(-1.0, a=1.0), start=0.0, stop=1.0, at_fold="stop", tolerance=1e-9)
    assert branch.status == Status.DONE and "fold" in branch.advice
    assert branch.values[-1] < FOLD


@pytest.mark.parametrize("b", [0.0, 1e-3])
def test_a_pitchfork_is_located_and_left_for_the_stable_branch(b):
    """With b = 0 the trivial branch loses its stability at a = 0; with b > 0 the branch bends, and nothing happens."""
    x = 0.0 if b == 0 else -1e-3
    family = Cusp(x, b=b) if b == 0 else Cusp(float(_root(-1.0, b)), b=b)
    branch = follow(family, start=-1.0, stop=1.0, tolerance=1e-10)
    found = events(branch, EventKind.BIFURCATION)
    last = float(branch.points[-1].parameters[0])
    if b == 0:
        assert abs(found[0].value) < 1e-6 and found[0].error < 1e-6
        assert len(events(branch, EventKind.SWITCH)) == 1 and abs(abs(last) - 1) < 1e-6
    else:
        assert not found and not events(branch, EventKind.JUMP) and abs(last - _root(1.0, b)) < 1e-6


def _root(a, b):
    """The root of x³ − ax = b on the side of b."""
    x = 2.0
    for _ in range(200):
        x -= (x**3 - a * x - b) / (3 * x * x - a)
    return x


# --- width 1, linear ------------------------------------------------------------------------------------------------


def test_the_zero_network_loses_its_stability_where_the_closed_form_says():
    """L = L̃ = 2: ``(s − b₁b₂)² + μ(b₁² + b₂²)``, whose Hessian at 0 has the least eigenvalue ``2(μ − s)``."""
    s = 0.7
    branch = follow(scalar(2, 2.0, s, 1.0), "mu", 0.3, tolerance=1e-9)
    (found,) = events(branch, EventKind.BIFURCATION)
    assert abs(found.value - s) < 1e-6 and found.error < 1e-6
    assert branch.points[-1].objective == pytest.approx(linear_minimum([s], 2, 2.0, 0.3).objective, abs=1e-10)
    assert branch.points[0].readings["collapsed"] == 1 and branch.points[-1].readings["collapsed"] == 0


def test_the_kept_branch_folds_where_the_closed_form_says():
    """L = L̃ = 4, s = 1: ``F'(R) = 0`` is ``μ = (1 − R)√R/2``, which is largest at R = 1/3."""
    R = 0.9
    problem = scalar(4, 4.0, 1.0, (1 - R) * math.sqrt(R) / 2, 4 * R**0.25)
    branch = follow(problem, "mu", 0.5, at_fold="locate", tolerance=1e-8)
    (fold,) = events(branch, EventKind.FOLD)
    assert abs(fold.value - math.sqrt(1 / 3) / 3) < 1e-7
    assert len(events(branch, EventKind.COLLAPSE)) == 1 and branch.status == Status.CONVERGED


@pytest.mark.parametrize("depth", [8, pytest.param(32, marks=pytest.mark.slow)])
@pytest.mark.parametrize("effective_depth", [0.0, 1.0, 5.0])
def test_small_weight_decay_is_reached_by_the_branch(depth, effective_depth):
    """Three modes of a linear network: solving at such a μ at once fails, following does not."""
    target = torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=F64))
    x = math.sqrt(3) * torch.eye(3, dtype=F64)
    model = LeakyResNet(
        3, 3, width=3, depth=depth, effective_depth=effective_depth, activation=Identity(append_one=False), dtype=F64
    )
    model.in_map.data.copy_(torch.eye(3))
    model.out_map.data.copy_(torch.eye(3))
    problem = Problem(model, x, x @ target, mu=1e-3)
    assert solve(problem, tolerance=1e-8).status == Status.CONVERGED
    branch = follow(problem, "mu", 1e-8, at=[1e-6], step=2.0, tolerance=1e-6)
    assert branch.status == Status.CONVERGED and not branch.events
    for mu in (1e-6, 1e-8):
        point = branch.points[branch.nearest(mu)]
        expected = linear_minimum([4.0, 2.0, 1.0], depth, effective_depth, mu).objective
        assert point.value == pytest.approx(mu, rel=1e-9)
        assert point.objective == pytest.approx(expected, rel=1e-6)


# --- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "stop"), [("mu", 0.05), ("effective_depth", 3.0), ("effective_depth", 0.0), ("sharpness", 8.0)]
)
def test_every_point_is_a_critical_point_of_its_own_problem(parameter, stop):
    branch = follow(small(), parameter, stop, tolerance=1e-6)
    assert branch.status == Status.CONVERGED and branch.values[-1] == pytest.approx(stop, rel=1e-12)
    for i, point in enumerate(branch.points):
        problem = branch.restore(i)
        value = problem.evaluate()
        assert float(problem.residual().max()) == pytest.approx(point.residual, rel=1e-6, abs=1e-12)
        assert point.residual <= 1e-6
        assert value.objective == pytest.approx(point.objective, rel=1e-12)
    names = {"mu": "mu", "effective_depth": "effective_depth"}
    if parameter in names:
        assert getattr(branch.restore(0), parameter) == branch.values[0]


def test_two_data_sets_are_joined_by_a_function():
    problem = small()
    other = problem.y.flip(0)

    def between(t):
        return Problem(problem.model, problem.x, (1 - t) * problem.y + t * other, mu=problem.mu)

    branch = follow(problem, between, 1.0, start=0.0, tolerance=1e-6)
    assert branch.status == Status.CONVERGED
    assert branch.points[-1].objective == pytest.approx(branch.restore(-1).evaluate().objective)


def test_two_meshes_are_joined_by_a_function():
    problem = small()
    even, graded = problem.model.rho.clone(), torch.tensor([0.05, 0.1, 0.15, 0.2, 0.25, 0.25], dtype=F64)

    def between(t):
        problem.model.set_step_sizes((1 - t) * even + t * graded)
        return Problem(problem.model, problem.x, problem.y, mu=problem.mu)

    branch = follow(problem, between, 1.0, start=0.0, tolerance=1e-7)
    assert branch.status == Status.CONVERGED
    end = branch.restore(-1)
    end.evaluate()
    assert torch.allclose(problem.model.rho, graded) and float(end.residual().max()) <= 1e-7


@pytest.mark.parametrize(("loss", "ends"), [("cross_entropy", "fixed"), ("mse", "learned")])
def test_every_loss_and_learned_ends_are_followed(loss, ends):
    problem = make_problem(SmoothReLU(sharpness=3.0), loss, ends=ends, mu=0.02)
    assert solve(problem, tolerance=1e-7).status == Status.CONVERGED
    branch = follow(problem, "mu", 0.01, tolerance=1e-6)
    assert branch.status == Status.CONVERGED and not branch.points[-1].readings["collapsed"]
    assert branch.points[-1].objective < branch.points[0].objective
    end = branch.restore(-1)
    end.evaluate()
    assert float(end.residual().max()) <= 1e-6


def test_values_that_must_have_a_point_have_one():
    branch = follow(small(), "mu", 0.05, at=[0.09, 0.06], tolerance=1e-6)
    for value in (0.1, 0.09, 0.06, 0.05):
        assert min(abs(v - value) for v in branch.values) < 1e-12


def test_the_way_back_ends_where_it_began():
    problem = small()
    W = problem.model.weight.detach().clone()
    there = follow(problem, "mu", 0.07, tolerance=1e-8)
    assert not there.events
    back = follow(there.restore(-1), "mu", 0.1, tolerance=1e-8)
    assert float((problem.model.weight.detach() - W).norm() / W.norm()) < 1e-5
    assert back.points[-1].objective == pytest.approx(there.points[0].objective, rel=1e-10)


@pytest.mark.parametrize("parameter", ["mu", "effective_depth", "sharpness"])
def test_tangents_are_derivatives(parameter):
    family = ProblemFamily(small(), parameter)
    tau = family.coordinate(family.present())
    middle = minimise(family, tau, 1e-10, 50).here
    tangent = Local(family, middle, rough=False).tangent(1e-8)
    h, ends = 1e-3, []
    for side in (-1, 1):
        ScaledParameters(family.at(family.value(tau + side * h))).write(middle.x)
        ends.append(minimise(family, tau + side * h, 1e-10, 50).here.x)
    slope = (ends[1] - ends[0]) / (2 * h)
    assert float((slope - tangent.x).norm() / slope.norm()) < 1e-4
    assert tangent.energy == pytest.approx(-float(slope @ Local(family, middle).g_tau), rel=1e-3)


# --- interruptions --------------------------------------------------------------------------------------------------


def same(a, b):
    assert len(a.points) == len(b.points) and len(a.events) == len(b.events)
    for p, q in zip(a.points, b.points, strict=True):
        assert (p.value, p.objective, p.branch, p.residual) == (q.value, q.objective, q.branch, q.residual)
        assert all(torch.equal(s, t) for s, t in zip(p.parameters, q.parameters, strict=True))
    for e, f in zip(a.events, b.events, strict=True):
        assert (e.kind, e.value, e.after, e.message) == (f.kind, f.value, f.after, f.message)


def test_a_branch_that_is_killed_again_and_again_has_the_same_points(tmp_path):
    """Twenty kills, each after another number of steps of Newton's method."""
    problem = small(mu=0.1)
    W = problem.model.weight.detach().clone()
    options = {"at": [0.05], "tolerance": 1e-7, "step": 0.1}
    whole = follow(problem, "mu", 0.01, **options)
    assert whole.status == Status.CONVERGED
    problem.model.weight.data.copy_(W)
    generator = torch.Generator().manual_seed(0)
    kills = 0
    while True:
        left = int(torch.randint(3, 14, (1,), generator=generator))

        def stop():
            nonlocal left
            left -= 1
            return left < 0

        part = follow(
            problem, "mu", 0.01, should_stop=stop if kills < 20 else None, checkpoint=tmp_path / "b.pt", **options
        )
        if part.status != Status.INTERRUPTED:
            break
        kills += 1
        problem.model.weight.data.normal_()  # another process: nothing but the file is left
    assert kills == 20 or len(part.points) == len(whole.points)
    assert kills >= 5
    same(part, whole)


def test_a_finished_branch_goes_on_to_another_stop(tmp_path):
    problem = small()
    file = tmp_path / "b.pt"
    first = follow(problem, "mu", 0.08, tolerance=1e-6, checkpoint=file, step=0.1)
    again = follow(problem, "mu", 0.08, tolerance=1e-6, checkpoint=file, step=0.1)
    same(first, again)  # nothing is computed twice
    further = follow(problem, "mu", 0.05, tolerance=1e-6, checkpoint=file, step=0.1)
    assert further.values[: len(first.points)] == first.values and further.values[-1] == pytest.approx(0.05)


def test_budgets_end_a_branch_with_a_status(tmp_path):
    problem = small()
    short = follow(problem, "mu", 0.01, budget=1, tolerance=1e-6)
    assert short.status == Status.BUDGET_SPENT and len(short.points) == 1 and short.advice
    short = follow(short.restore(0), "mu", 0.01, most=2, tolerance=1e-6)
    assert short.status == Status.BUDGET_SPENT and len(short.points) == 2 and "most" in short.advice


# --- misuse ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("mo", 0.05), {}, "did you mean 'mu'"),
        (("mu", 0.1), {}, "must differ"),
        (("mu", -0.1), {}, "> 0"),
        (("mu", 0.0), {}, "> 0"),
        (("effective_depth", -1.0), {}, ">= 0"),
        (("mu", math.nan), {}, "nan"),
        (("mu", None), {}, "stop must be given"),
        (("mu", 0.05), {"at": [0.2]}, "between"),
        (("mu", 0.05), {"step": -0.1}, "step must be positive"),
        (("mu", 0.05), {"tolerance": 1.0}, "tolerance"),
        (("mu", 0.05), {"at_fold": "hop"}, "at_fold"),
        (("mu", 0.05), {"resolution": 5.0}, "resolution"),
        (("mu", 0.05), {"budget": 0}, "budget"),
        (("mu", 0.05), {"seconds": 0}, "seconds"),
        ((lambda t: None, 1.0), {}, "give start"),
    ],
)
def test_misuse_is_named_with_the_remedy(arguments, options, words, without_shape_checks):
    problem = scalar(2, 2.0, 0.7, 0.1)
    with pytest.raises(ValueError, match=words):
        follow(problem, *arguments, **options)


def test_a_start_that_is_no_critical_point_is_refused():
    problem = scalar(2, 2.0, 0.7, 0.1, w=1.0)
    with pytest.raises(ValueError, match=r"no critical point.*solve"):
        follow(problem, "mu", 0.05)


def test_a_start_with_kinks_or_in_float32_is_refused():
    x = torch.zeros(4, 2, dtype=F64)
    kinked = LeakyResNet(2, 2, width=3, depth=2, effective_depth=1.0, activation=ReLU(), dtype=F64)
    with pytest.raises(TypeError, match="SmoothReLU"):
        follow(Problem(kinked, x, x), "mu", 0.05)
    narrow = LeakyResNet(2, 2, width=3, depth=2, effective_depth=1.0, activation=SmoothReLU(sharpness=20.0))
    with pytest.raises(TypeError, match="float64"):
        follow(Problem(narrow, x.float(), x.float()), "mu", 0.05)


def test_a_problem_that_recomputes_its_features_is_refused():
    problem = make_problem(memory="recompute")
    with pytest.raises(ValueError, match="memory='store'"):
        follow(problem, "mu", 0.01)


def test_a_map_to_another_model_is_refused():
    problem, other = scalar(2, 2.0, 0.7, 1.0), scalar(2, 2.0, 0.7, 1.0)
    with pytest.raises(ValueError, match="one model"):
        follow(problem, lambda t: other, 1.0, start=0.0)


def test_a_branch_that_stays_collapsed_says_so():
    branch = follow(scalar(2, 2.0, 0.7, 2.0), "mu", 1.0, tolerance=1e-8)
    assert branch.status == Status.COLLAPSED and branch.advice


def test_a_checkpoint_of_another_branch_is_refused(tmp_path):
    problem, file = scalar(2, 2.0, 0.7, 2.0), tmp_path / "b.pt"
    follow(problem, "mu", 1.0, tolerance=1e-8, checkpoint=file)
    with pytest.raises(ValueError, match=r"tolerance is 1e-08"):
        follow(problem, "mu", 1.0, tolerance=1e-6, checkpoint=file)
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        follow(problem, "mu", 1.0, tolerance=1e-8, checkpoint=file)


def test_points_without_parameters_say_so():
    branch = follow(scalar(2, 2.0, 0.7, 2.0), "mu", 1.0, tolerance=1e-8, keep=False)
    with pytest.raises(RuntimeError, match="keep=True"):
        branch.restore(0)
    with pytest.raises(KeyError, match="no column"):
        branch.column("nothing")
    assert branch.column("objective")[0] == branch.points[0].objective
    assert len(branch.rows()) == len(branch.points) and "mu" in str(branch) and "points" in repr(branch)
