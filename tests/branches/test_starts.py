"""Several starts: which minima there are, and how often each is found."""

import pytest
import torch
from test_follow import F64, scalar, small

from isthmus import LeakyResNet, SmoothReLU, Status, branches
from isthmus.branches.starts import Found, Minima
from isthmus.theory import linear_gains, linear_minimum


def test_starts_differ_in_their_weights_alone_and_repeat():
    options = {"width": 5, "depth": 3, "effective_depth": 1.0, "activation": SmoothReLU(sharpness=5.0), "dtype": F64}
    model = LeakyResNet(3, 2, seed=4, **options)
    first, ends = model.weight.detach().clone(), model.in_map.clone()
    model.reset_weights(7)
    assert not torch.equal(model.weight, first) and torch.equal(model.in_map, ends)
    assert torch.equal(model.weight, LeakyResNet(3, 2, seed=7, **options).weight)
    model.reset_weights(4)
    assert torch.equal(model.weight, first)


def test_both_minima_of_a_linear_network_are_found_and_the_lower_is_kept():
    """One mode of size 0.35 at L = 8, L̃ = 6, μ = 0.01: it may be kept or dropped, and both are minima."""
    s, depth, effective_depth, mu = 0.35, 8, 6.0, 0.01
    assert len(linear_gains(s, depth, effective_depth, mu)) == 2
    problem = scalar(depth, effective_depth, s, mu)
    seen = []
    found = branches(problem, 12, on_found=seen.append)
    assert len(found.found) == len(seen) == 12
    assert found.lowest.objective == pytest.approx(linear_minimum([s], depth, effective_depth, mu).objective, rel=1e-6)
    assert problem.evaluate().objective == pytest.approx(found.lowest.objective, rel=1e-12)
    assert sum(count for _, count in found.distinct) == len(found.certified)
    assert [f.objective for f, _ in found.distinct] == sorted(f.objective for f, _ in found.distinct)
    again = branches(problem, [3])
    assert again.found[0].objective == found.found[3].objective  # the seed decides alone


def test_ends_are_grouped_by_objective_and_rank():
    problem = small()

    def end(seed, objective, k, residual=1e-6, kind="minimum"):
        return Found(seed, Status.CONVERGED, objective, 0.0, residual, kind, k, True, 0.0, ())

    found = Minima(
        problem,
        (
            end(0, 2.0, 2), end(1, 1.0, 1), end(2, 1.0 + 1e-9, 1), end(3, 1.0, 2), end(4, 0.5, 1, residual=0.1),
            end(5, 0.4, 1, kind="saddle"),
        ),
    )  # fmt: skip
    assert found.lowest.seed == 1
    assert sorted((f.objective, f.k_star, n) for f, n in found.distinct) == [(1.0, 1, 2), (1.0, 2, 1), (2.0, 2, 1)]
    assert found.by_rank == {1: (2, 1.0), 2: (2, 1.0)}
    assert "2 of 6 starts ended at no certified point" in str(found)


def test_a_stop_returns_what_was_found(without_shape_checks):
    problem = small()
    asked = iter([False] * 1000)
    found = branches(problem, 3, tolerance=1e-4, should_stop=lambda: next(asked, True))
    assert len(found.found) <= 3
    assert branches(problem, 3, should_stop=lambda: True).found == ()
    for starts, words in ((0, "at least 1"), ([1, 1], "differ")):
        with pytest.raises(ValueError, match=words):
            branches(problem, starts)
