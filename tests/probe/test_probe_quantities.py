"""Jackknife errors have the right size, and controls tell low dimension from noise."""

import math

import pytest
import torch

from isthmus.activations import Identity, ReLU
from isthmus.probe.moments import LayerMoments
from isthmus.probe.pairs import PairMoments
from isthmus.probe.quantities import distance_from_null, null_control, with_uncertainty

F64 = torch.float64
PLAIN = ReLU(append_one=False)


def rows_of(samples, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(0, -0.5, width, dtype=F64)
    return torch.randn(samples, width, dtype=F64, generator=generator) * scales + 0.3


def shards_of(A, sizes, activation=PLAIN, **options):
    made = []
    for part in A.split(sizes):
        moments = LayerMoments(A.shape[1], activation, **options)
        moments.update(part)
        made.append(moments)
    return made


# --- jackknife --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [pytest.param([25] * 16, marks=pytest.mark.slow), [5, 15, 20, 25, 25, 30, 35, 45, 20, 30, 10, 40, 25, 25, 20, 30]],
    ids=str,
)
def test_standard_errors_match_the_scatter_of_repetitions(sizes):
    values, errors = {}, {}
    for seed in range(60):
        for name, (value, error) in with_uncertainty(shards_of(rows_of(sum(sizes), seed=seed), sizes)).items():
            values.setdefault(name, []).append(value)
            errors.setdefault(name, []).append(error)
    for name in ("coi", "coi_stable", "stable_rank", "nuclear_rank", "participation_ratio_centred", "rms_norm"):
        scatter = float(torch.tensor(values[name]).std())
        estimate = float(torch.tensor(errors[name]).square().mean().sqrt())
        # 60 repetitions know their scatter to 9 %, 16 shards the error to 18 % each
        assert 0.7 < estimate / scatter < 1.4, (name, estimate, scatter)


def test_the_error_of_a_mean_is_the_textbook_one():
    A = rows_of(120)
    shards = shards_of(A, [12] * 10)
    value, error = with_uncertainty(shards, quantities=lambda m: {"mean": float(m.mean()[0])})["mean"]
    means = torch.stack([part[:, 0].mean() for part in A.split(12)])
    assert math.isclose(value, float(A[:, 0].mean()), rel_tol=1e-10)
    assert math.isclose(error, float(means.std()) / math.sqrt(10), rel_tol=1e-8)


def test_two_shards_are_a_split_half():
    A = rows_of(100)
    halves = shards_of(A, [50, 50])
    found = with_uncertainty(halves, quantities=lambda m: {"mean": float(m.mean()[0])})["mean"]
    a, b = (float(half.mean()[0]) for half in halves)
    assert math.isclose(found[1], abs(a - b) / 2, rel_tol=1e-8)


def test_the_value_is_that_of_all_rows_and_shards_are_left_alone():
    A = rows_of(90)
    shards = shards_of(A, [20, 30, 40])
    before = [shard.quantities() for shard in shards]
    whole = LayerMoments(6, PLAIN)
    whole.update(A)
    found = with_uncertainty(shards)
    for name, value in whole.quantities().items():
        assert math.isclose(found[name][0], value, rel_tol=1e-8, abs_tol=1e-9), name
    assert [shard.quantities() for shard in shards] == before
    assert found["count"] == (90.0, 0.0)


def test_pairs_have_uncertainty_too():
    shards = []
    for seed in range(4):
        A = rows_of(30, seed=seed)
        pair = PairMoments(6)
        pair.update(A, A + 0.1 * rows_of(30, seed=seed + 9))
        shards.append(pair)
    value, error = with_uncertainty(shards)["block_influence"]
    assert 0 < error < value


def test_an_estimate_that_one_outlier_overturns_has_an_error_that_says_so():
    A = rows_of(400)
    sizes = [50] * 8
    good = with_uncertainty(shards_of(A, sizes))
    A[170] *= 1e4
    bad = with_uncertainty(shards_of(A, sizes))
    for name in ("participation_ratio", "stable_rank"):
        value, error = bad[name]
        assert value < 1.1 < good[name][0] and error > 0.8 * abs(good[name][0] - value), name
        assert good[name][1] < 0.2 * good[name][0], name


def test_shards_that_cannot_be_jackknifed():
    with pytest.raises(ValueError, match="needs two shards or more, got 1"):
        with_uncertainty(shards_of(rows_of(10), [10]))
    with pytest.raises(ValueError, match="1 of 2 shards have no rows"):
        with_uncertainty([*shards_of(rows_of(10), [10]), LayerMoments(6, PLAIN)])


# --- null controls ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["qr", "gram"])
@pytest.mark.parametrize("samples", [60, 2000], ids=str)
def test_low_dimension_is_told_from_noise(samples, method):
    """With fewer samples than twice the neurons the ranks of pure noise are low as well: the control knows."""
    generator = torch.Generator().manual_seed(1)

    def randn(*size):
        return torch.randn(*size, dtype=F64, generator=generator)

    names = ("nuclear_rank", "participation_ratio", "effective_rank", "stable_rank", "coi_stable")
    low = randn(samples, 4) @ randn(4, 40) + 0.05 * randn(samples, 40)
    shards = shards_of(low, [samples // 10] * 10, Identity(append_one=False), method=method)
    whole = shards_of(low, [samples], Identity(append_one=False), method=method)[0]
    null = null_control(whole, "shuffled")
    distances = distance_from_null(with_uncertainty(shards), null)
    assert all(distances[name] < -5 for name in names)

    noise = randn(samples, 40)
    shards = shards_of(noise, [samples // 10] * 10, Identity(append_one=False), method=method)
    whole = shards_of(noise, [samples], Identity(append_one=False), method=method)[0]
    null = null_control(whole, "shuffled", draws=8)
    found = whole.quantities()
    for name in names:
        assert abs(found[name] / null[name][0] - 1) < 0.08, name


@pytest.mark.parametrize("activation", [ReLU(), PLAIN], ids=str)
def test_shuffling_for_real_gives_what_the_control_says(activation):
    generator = torch.Generator().manual_seed(2)
    A = torch.randn(3000, 3, dtype=F64, generator=generator) @ torch.randn(3, 12, dtype=F64, generator=generator)
    A = A + 0.3 * torch.rand(3000, 12, dtype=F64, generator=generator)
    shuffled = torch.stack([column[torch.randperm(3000, generator=generator)] for column in A.T], 1)
    data, real = shards_of(A, [3000], activation)[0], shards_of(shuffled, [3000], activation)[0]
    null, expected = null_control(data, "shuffled"), real.quantities()
    for name in ("coi", "coi_stable", "nuclear_rank", "participation_ratio", "coi_stable_centred", "rms_norm"):
        assert math.isclose(null[name][0], expected[name], rel_tol=0.03), name
    assert expected["participation_ratio"] > 2 * data.quantities()["participation_ratio"]


@pytest.mark.parametrize("method", ["qr", "gram"])
def test_a_gaussian_control_keeps_second_moments(method):
    A = rows_of(4000) @ torch.randn(6, 6, dtype=F64)
    moments = shards_of(A, [4000], PLAIN, method=method)[0]
    null, found = null_control(moments, "gaussian"), moments.quantities()
    assert null["count"] == (4000.0, 0.0)
    for name in ("nuclear_rank", "participation_ratio_centred", "rms_norm", "mean_norm"):
        assert abs(null[name][0] / found[name] - 1) < 0.05, name
    # Gaussian data are their own control
    assert abs(null["coi_stable"][0] / found["coi_stable"] - 1) < 0.05


def test_a_gaussian_control_sees_what_is_not_second_order():
    """Non-negative data of rank 3 have cost of identity 3; Gaussian data of the same moments leave the orthant."""
    generator = torch.Generator().manual_seed(0)
    A = torch.rand(2000, 3, dtype=F64, generator=generator) @ torch.rand(3, 10, dtype=F64, generator=generator)
    A[:, 5:] = A[:, 5:] ** 4
    moments = shards_of(A, [2000])[0]
    null, found = null_control(moments, "gaussian"), moments.quantities()
    assert abs(found["coi"] - 8) < 3 and null["coi"][0] > found["coi"] + 1
    assert abs(null["nuclear_rank"][0] / found["nuclear_rank"] - 1) < 0.1


def test_controls_are_repeatable_and_capped():
    moments = shards_of(rows_of(9000), [9000])[0]
    assert null_control(moments, seed=3) == null_control(moments, seed=3)
    assert null_control(moments, seed=3) != null_control(moments, seed=4)
    assert null_control(moments)["count"][0] == 8192
    assert null_control(moments, "shuffled")["count"][0] == 9000
    assert null_control(moments, samples=50)["count"][0] == 50


def test_constant_and_dead_neurons_under_control():
    A = rows_of(50)
    A[:, 0], A[:, 1] = -1.0, 2.0
    for kind in ("gaussian", "shuffled"):
        assert all(math.isfinite(value) for value, _ in null_control(shards_of(A, [50])[0], kind).values())


def test_distance_from_null():
    measured = {"a": (1.0, 0.3), "b": (2.0, 0.0), "c": (2.0, 0.0), "d": (0.0, 0.0)}
    found = distance_from_null(measured, {"a": (3.0, 0.4), "b": (2.0, 0.0), "c": (3.0, 0.0)})
    assert found == {"a": pytest.approx(-4.0), "b": 0.0, "c": -math.inf}


def test_controls_that_cannot_be_made():
    moments = shards_of(rows_of(10), [10])[0]
    with pytest.raises(ValueError, match="kind must be 'gaussian' or 'shuffled', got 'poisson'"):
        null_control(moments, "poisson")
    with pytest.raises(ValueError, match="2 rows, samples and draws or more, got 10, 10 and 1"):
        null_control(moments, draws=1)
    with pytest.raises(ValueError, match="got 1, 1 and 4"):
        null_control(shards_of(rows_of(1), [1])[0])
    lean = shards_of(rows_of(10), [10], method="gram", spectra=False)[0]
    with pytest.raises(ValueError, match="made with spectra=False"):
        null_control(lean, "gaussian")
