import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.tasks._scale import fit_scaling
from isthmus.tasks._split import split_rows, stratified_order

quick = settings(deadline=None, max_examples=40)
class_sizes = st.lists(st.integers(2, 30), min_size=2, max_size=6)


def labels_of(sizes):
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


@quick
@given(class_sizes, st.integers(0, 2**63 - 1))
def test_order_is_a_permutation_with_every_class_at_both_ends(sizes, seed):
    labels = labels_of(sizes)
    order = stratified_order(labels, seed)
    assert torch.equal(order.sort().values, torch.arange(len(labels)))
    assert set(labels[order[: len(sizes)]].tolist()) == set(range(len(sizes)))
    assert set(labels[order[-len(sizes) :]].tolist()) == set(range(len(sizes)))


@quick
@given(class_sizes, st.floats(0.05, 0.6), st.integers(0, 1000))
def test_parts_are_disjoint_and_in_proportion(sizes, fraction, seed):
    labels = labels_of(sizes)
    train, test = split_rows(len(labels), labels, fraction, seed)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(labels)))
    assert len(test) == max(1, round(fraction * len(labels)))
    for index, size in enumerate(sizes):
        held_out = int((labels[test] == index).sum())
        assert abs(held_out - size * len(test) / len(labels)) < 2


@quick
@given(class_sizes, st.integers(1, 4), st.integers(0, 1000), st.booleans())
def test_limits_nest_and_leave_the_other_part_alone(sizes, small, seed, stratified):
    labels = labels_of(sizes * 3)
    given_labels = labels if stratified else None
    train, test = split_rows(len(labels), given_labels, 0.4, seed)
    fewer, same = split_rows(len(labels), given_labels, 0.4, seed, train=small)
    assert torch.equal(fewer, train[:small])
    assert torch.equal(same, test)
    same, fewer = split_rows(len(labels), given_labels, 0.4, seed, test=small)
    assert torch.equal(fewer, test[:small])
    assert torch.equal(same, train)


def test_split_depends_on_its_seed_alone():
    labels = labels_of([20, 30])
    torch.manual_seed(1)
    one = split_rows(50, labels, 0.3, 7)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = split_rows(50, labels, 0.3, 7)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[0], split_rows(50, labels, 0.3, 8)[0])


def test_split_refuses_what_is_not_there():
    with pytest.raises(ValueError, match=r"train=8 rows were asked for, but the train part has 7: give 1 to 7"):
        split_rows(10, None, 0.3, 0, train=8)
    with pytest.raises(ValueError, match=r"test=0 rows were asked for, but the test part has 3"):
        split_rows(10, None, 0.3, 0, test=0)
    with pytest.raises(ValueError, match=r"test_fraction=0.99 of 10 rows leaves none to train on"):
        split_rows(10, None, 0.99, 0)


scales = st.floats(-90, 90).map(lambda power: 10.0**power)


@quick
@given(st.lists(scales, min_size=2, max_size=5), st.integers(0, 1000))
def test_coordinate_scaling_gives_unit_variance_at_any_size(sizes, seed):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(30, len(sizes), generator=random, dtype=torch.float64) * torch.tensor(sizes, dtype=torch.float64)
    z = fit_scaling(x, "coordinate")(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(len(sizes)).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(len(sizes)).double(), atol=1e-12, rtol=0)


@quick
@given(scales, st.integers(0, 1000))
def test_global_scaling_keeps_shape_and_counts_varying_columns(size, seed):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 4, generator=random, dtype=torch.float64)
    x[:, 2] = 0.1
    z = fit_scaling(x * size, "global")(x * size)
    assert float(z.square().sum(1).mean()) == pytest.approx(3)
    assert bool((z[:, 2] == 0).all())
    centred = x - x.mean(0)
    torch.testing.assert_close(z[:, 0] / z[0, 1], centred[:, 0] / centred[0, 1])


def test_a_constant_training_column_is_zero_in_the_test_part_too():
    x = torch.tensor([[0.0, 1.0], [0.0, 3.0]], dtype=torch.float64)
    for normalise in ("coordinate", "global", "none"):
        scaled = fit_scaling(x, normalise)(torch.tensor([[5.0, 3.0]], dtype=torch.float64))
        assert scaled.tolist() == [[0.0, 1.0]]


def test_rounding_is_not_variation_but_a_small_spread_is():
    noise = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    x = torch.stack([0.1 * (1 + 4e-16 * noise), 1e9 + 1e-3 * noise], dim=1)
    scaling = fit_scaling(x, "coordinate")
    assert scaling.varying.tolist() == [False, True]
    assert float(scaling(x)[:, 1].mean()) == pytest.approx(0, abs=1e-3)
