"""What a hostile reader found: nothing is walked over, nothing is called what it is not, nothing is lost."""

import math

import pytest
import torch
from test_follow import events, same, scalar, small
from toys import F64, Cusp

from isthmus import Identity, LeakyResNet, Problem, Status, bottleneck, solve
from isthmus.branches import EventKind, follow
from isthmus.certificate import kind_of


def diagonal(depth, effective_depth, targets, mu, scale):
    """A linear network of as many modes as targets, on whitened inputs, with weights that are multiples of 1."""
    width = len(targets)
    model = LeakyResNet(
        width, width, width=width, depth=depth, effective_depth=effective_depth, dtype=F64,
        activation=Identity(append_one=False),
    )  # fmt: skip
    model.in_map.data.copy_(torch.eye(width))
    model.out_map.data.copy_(torch.eye(width))
    model.weight.data.copy_(scale * torch.eye(width))
    x = math.sqrt(width) * torch.eye(width, dtype=F64)
    return Problem(model, x, x @ torch.diag(torch.tensor(targets, dtype=F64)), mu=mu)


def test_stability_is_lost_in_a_direction_that_was_not_looked_at_before():
    """L = L̃ = 2, modes 2 and 0.8, down from the zero network: it loses stability at μ = 2, the next mode at 0.8."""
    branch = follow(diagonal(2, 2.0, [2.0, 0.8], 5.0, 0.0), "mu", 0.05)
    first, *others = events(branch, EventKind.BIFURCATION)
    assert abs(first.value - 2.0) < 1e-5
    for event in others:  # others are 0 there, by a symmetry: it may be said between which points, and no more
        high = branch.points[event.after].value
        located = not math.isnan(event.error) and abs(event.value - 0.8) < max(1e-5, 3 * event.error)
        assert located or ("not located" in event.message and event.value < 0.8 < high)
    assert others
    for i, point in enumerate(branch.points):
        kind = kind_of(branch.restore(i)).kind
        assert not (point.stable and kind == "saddle"), point.value


def test_a_symmetry_is_no_bifurcation():
    """Without a skip linear layers can be turned against each other at no cost: eigenvalues are 0, and change signs."""
    problem = diagonal(2, 2.0, [2.0, 0.8], 0.01, 2.0)
    solve(problem, "geodesic", tolerance=1e-8)
    branch = follow(problem, "mu", 0.5, tolerance=1e-7)
    assert not events(branch, EventKind.BIFURCATION) and not events(branch, EventKind.SWITCH)
    assert branch.values == sorted(branch.values)


@pytest.mark.parametrize("at_fold", ["jump", "locate"])
def test_a_fold_with_a_near_branch_beyond_is_not_stepped_over(at_fold):
    """L = 6, L̃ = 3, s = 0.7: kept and dropped branch are near where the kept one folds, at μ = 0.1651878."""
    problem = scalar(6, 3.0, 0.7, 0.05, 1.0)
    solve(problem, "geodesic", tolerance=1e-8)
    branch = follow(problem, "mu", 0.6, at_fold=at_fold, tolerance=1e-7)
    (jump,) = events(branch, EventKind.JUMP)
    if at_fold == "locate":
        (fold,) = events(branch, EventKind.FOLD)
        assert abs(fold.value - 0.1651878) < 1e-6
    assert branch.points[jump.after].value < 0.16519 < branch.points[jump.after + 1].value


def test_a_fold_just_before_the_stop_is_named():
    fold = 2 / math.sqrt(27)
    branch = follow(Cusp(-1.0, a=1.0), start=0.0, stop=0.385, at_fold="stop", tolerance=1e-9)
    assert branch.status == Status.DONE and abs(events(branch, EventKind.FOLD)[0].value - fold) < 1e-6


def test_a_fold_is_no_bifurcation():
    a, b, x = 5.757188675513832, -15.061147767153939, -3.2283781188327345
    branch = follow(Cusp(x, a=a), start=b, stop=23.28538902713406, at_fold="locate", tolerance=1e-7)
    assert not events(branch, EventKind.BIFURCATION)
    (fold,) = events(branch, EventKind.FOLD)
    assert abs(fold.value - 2 * (a / 3) ** 1.5) < 1e-6


def test_a_start_that_was_cut_off_is_taken_up(tmp_path):
    x, file = -2.0, tmp_path / "b.pt"
    start = x**3 - x
    cut = follow(
        Cusp(x + 4e-4, a=1.0), None, 0.0, start=start, tolerance=1e-12, should_stop=lambda: True, checkpoint=file
    )
    assert cut.status == Status.INTERRUPTED and not file.exists()
    assert follow(Cusp(x, a=1.0), None, 0.0, start=start, tolerance=1e-12, checkpoint=file).points


@pytest.mark.parametrize(("x", "begin"), [(0.0, 0.5), (0.0, -1.0)])
def test_stops_between_an_event_and_its_landing_leave_nothing_twice(tmp_path, x, begin):
    """From a saddle (a = 0.5), and through the pitchfork at 0: cut off at every place where it asks."""
    whole = follow(Cusp(x, b=0.0), start=begin, stop=1.0, tolerance=1e-9)
    for place in range(1, 40, 3):
        file, left = tmp_path / f"{place}.pt", place

        def stop():
            nonlocal left
            left -= 1
            return left < 0

        follow(Cusp(x, b=0.0), start=begin, stop=1.0, tolerance=1e-9, should_stop=stop, checkpoint=file)
        again = follow(Cusp(x, b=0.0), start=begin, stop=1.0, tolerance=1e-9, checkpoint=file)
        same(again, whole)
        assert again.products == whole.products


def test_a_network_that_reaches_zero_has_collapsed():
    problem = scalar(2, 2.0, 0.7, 0.01, 2.0)
    solve(problem, "geodesic", tolerance=1e-8)
    branch = follow(problem, "mu", 3.0)
    assert branch.status == Status.CONVERGED and len(events(branch, EventKind.COLLAPSE)) == 1


def test_a_checkpoint_is_not_taken_up_on_other_data(tmp_path):
    problem, file = small(), tmp_path / "b.pt"
    follow(problem, "mu", 0.05, most=2, tolerance=1e-6, checkpoint=file)
    other = Problem(problem.model, problem.x, 3 * problem.y, mu=0.1)
    with pytest.raises(ValueError, match=r"another problem|no critical point"):
        follow(other, "mu", 0.05, tolerance=1e-6, checkpoint=file)


def test_values_that_lie_behind_are_refused(tmp_path):
    problem, file = small(), tmp_path / "b.pt"
    follow(problem, "mu", 0.07, tolerance=1e-6, checkpoint=file)
    with pytest.raises(ValueError, match="lies behind"):
        follow(problem, "mu", 0.07, at=[0.0999], tolerance=1e-6, checkpoint=file)


def test_after_an_exception_the_model_is_at_the_last_point():
    problem, seen = small(), []
    calls = 0

    def raising(t):
        nonlocal calls
        calls += 1
        if calls > 60:
            raise ArithmeticError("no such problem")
        return Problem(problem.model, problem.x, (1 + t) * problem.y, mu=problem.mu)

    with pytest.raises(ArithmeticError):
        follow(problem, raising, 1.0, start=0.0, tolerance=1e-6, on_point=seen.append)
    assert seen and torch.equal(problem.model.weight, seen[-1].parameters[0])


def test_an_error_that_is_not_known_is_a_doubt():
    problem = small(mu=0.01, effective_depth=4.0)
    found = bottleneck(problem.geodesic(), errors={"minus_2h_over_l": math.inf, "coi_stable": math.inf})
    assert any("could not be computed" in doubt for doubt in found.doubts)


def test_saving_a_branch_leaves_the_step_sizes_of_its_last_point(tmp_path):
    """A function may set the model's step-sizes; asking it for the start once more, to save, must not undo the end."""
    problem = small()
    even, graded = problem.model.rho.clone(), torch.tensor([0.05, 0.1, 0.15, 0.2, 0.25, 0.25], dtype=F64)

    def between(t):
        problem.model.set_step_sizes((1 - t) * even + t * graded)
        return Problem(problem.model, problem.x, problem.y, mu=problem.mu)

    branch = follow(problem, between, 1.0, start=0.0, tolerance=1e-6, checkpoint=tmp_path / "b.pt")
    assert branch.status == Status.CONVERGED and torch.allclose(problem.model.rho, graded)


def test_a_stop_that_is_asked_for_once_stays():
    """Wherever it is asked for: the step that it cuts off is not taken for one that failed."""
    problem = small()
    W = problem.model.weight.detach().clone()
    for place in range(16):
        problem.model.weight.data.copy_(W)
        asked = iter([False] * place + [True])
        branch = follow(problem, "mu", 0.01, tolerance=1e-7, should_stop=lambda asked=asked: next(asked, False))
        assert branch.status == Status.INTERRUPTED, place
