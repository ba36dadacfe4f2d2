"""What becomes of a step: tried, corrected, shortened, taken or refused, and the radius after it."""

import math

import pytest
import torch

from isthmus.optimise.truncated_cg import TruncatedStep
from isthmus.optimise.trust_region import choose

HERE = torch.zeros(1, dtype=torch.float64)


def step(length, limited=True, shorter=()):
    """Along a line on which the model promises a decrease of 1 a unit of length."""
    inner = tuple(step(s) for s in shorter)
    return TruncatedStep(torch.full_like(HERE, length), length, length, limited, 3, inner)


def along(function):
    return lambda x: function(float(x))


@pytest.mark.parametrize(
    ("share", "limited", "radius"),
    [(1.0, True, 2.0), (0.8, True, 2.0), (1.0, False, None), (0.5, True, None), (0.2, True, 0.5)],
)
def test_the_radius_follows_the_share_of_the_predicted_decrease(share, limited, radius):
    taken, new = choose(step(1.0, limited), HERE, 0.0, 0.0, along(lambda t: -share * t))
    assert taken.item() == 1.0 and new == radius


def test_a_shorter_step_is_taken_where_longer_ones_go_up():
    tried = []

    def value(t):
        tried.append(t)
        return -t if t < 0.3 else 1.0

    taken, radius = choose(step(1.0, shorter=(0.5, 0.25, 0.125)), HERE, 0.0, 0.0, along(value))
    assert (taken.item(), radius, tried) == (0.25, 0.25, [1.0, 0.5, 0.25])


def test_of_poor_trials_the_one_that_gains_most_is_taken():
    value = along({1.0: -0.01, 0.5: -0.1, 0.25: -0.05}.__getitem__)
    taken, radius = choose(step(1.0, shorter=(0.5, 0.25)), HERE, 0.0, 0.0, value)
    assert (taken.item(), radius) == (0.5, 0.25)


@pytest.mark.parametrize("worse", [0.0, 1.0, math.inf])
def test_where_nothing_goes_down_every_trial_is_refused(worse):
    taken, radius = choose(step(1.0, shorter=(0.5, 0.25)), HERE, 0.0, 0.0, along(lambda t: worse))
    assert taken is None and radius == 0.125


def test_steps_within_the_rounding_are_not_tried():
    tried = []
    value = along(lambda t: tried.append(t) or 1.0)
    taken, _ = choose(step(1.0, shorter=(0.5, 0.25)), HERE, 0.0, 0.04, value)
    assert taken is None and tried == [1.0, 0.5]


def test_a_step_is_corrected_while_that_helps_and_at_most_so_often():
    """The objective is −1 where the step aimed, at 1; corrections close 60 % of the gap that a trial of 1 leaves."""
    for corrections, where in ((0, 1.0), (1, 1.6), (2, 1.84), (9, 1.936)):
        at = [0.0]

        def value(t, at=at):
            at[0] = t
            return -1 + abs(2 - t) if t < 2 else 5.0

        def restorer(aim, at=at):
            assert aim.item() == 1.0
            return lambda: torch.full_like(HERE, 0.6 * (2 - at[0]))

        taken, _ = choose(step(1.0), HERE, 0.01, 0.0, along(value), restorer, corrections)
        assert taken.item() == pytest.approx(where)


def test_a_correction_that_makes_it_worse_is_dropped():
    value = along(lambda t: -0.5 if t == 1.0 else 7.0)
    taken, _ = choose(step(1.0), HERE, 0.0, 0.0, value, lambda aim: lambda: torch.ones_like(HERE), 4)
    assert taken.item() == 1.0
