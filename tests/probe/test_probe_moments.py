"""Accumulators against `isthmus.mechanics` on everything at once, and against answers known in advance."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus import LeakyResNet, Problem
from isthmus.activations import Identity, ReLU, SmoothReLU
from isthmus.mechanics import FeatureMetric, cost_of_identity, mechanics, nuclear_rank, rank, stable_rank
from isthmus.probe.moments import LayerMoments
from isthmus.probe.pairs import PairMoments

F64 = torch.float64
PLAIN = ReLU(append_one=False)
ALL = [ReLU(), PLAIN, SmoothReLU(sharpness=5.0), Identity(), Identity(append_one=False)]
METHODS = [{"method": "qr"}, {"method": "gram"}]


def rand(*size):
    return torch.randn(*size, dtype=F64)


def moments_of(A, activation=PLAIN, cuts=(), **options):
    made = LayerMoments(A.shape[1], activation, **options)
    for part in torch.tensor_split(A, sorted(cuts)):
        made.update(part)
    return made


def close(found, expected, rtol=1e-8, atol=1e-12):
    both = math.isnan(found) and math.isnan(expected)
    assert both or math.isclose(found, expected, rel_tol=rtol, abs_tol=atol), (found, expected)


def same(one, other, rtol, skip=()):
    assert one.keys() == other.keys()
    for name in one.keys() - set(skip):
        close(one[name], other[name], rtol, 1e-9)


# --- equal to mechanics -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ALL, ids=str)
@pytest.mark.parametrize("shape", [(5, 8), (8, 8), (9, 8), (300, 12)], ids=str)
@pytest.mark.parametrize("gamma0", [1e-1, 1e-3, 1e-6])
def test_the_factor_gives_what_the_feature_metric_gives(activation, shape, gamma0):
    A = rand(*shape)
    A[:, 0] = -A[:, 0].abs() - 0.1  # dead under a ReLU
    A[:, 2] = A[:, 1]
    metric = FeatureMetric.from_features(activation.features(A))
    moments = moments_of(A, activation, cuts=(1, 4), block_rows=7)
    q = moments.quantities(gamma0)
    close(q["coi"], metric.norm_squared(A))
    close(q["coi_stable"], metric.norm_squared(A, metric.gamma(gamma0)))
    close(q["coi_off_image"], metric.outside(A))
    s = torch.linalg.svdvals(A)
    torch.testing.assert_close(moments.spectrum(), s, rtol=0, atol=1e-12 * float(s[0]))
    close(q["stable_rank"], float(stable_rank(s)))
    close(q["nuclear_rank"], float(nuclear_rank(s)))
    close(q["rank_1e-2"], float(rank(s, 1e-2)))
    close(q["participation_ratio"], float(s.square().sum() ** 2 / s.pow(4).sum()))
    p = s / s.sum()
    close(q["effective_rank"], float(torch.exp(-torch.special.xlogy(p, p).sum())), 1e-7)
    close(q["norm"], float(A.norm()))
    close(q["rms_norm"], float(A.norm()) / math.sqrt(len(A)))
    close(q["mean_norm"], float(A.mean(0).norm()))
    assert q["count"] == len(A)


@pytest.mark.parametrize("activation", ALL, ids=str)
@pytest.mark.parametrize("shape", [(5, 8), (300, 12)], ids=str)
def test_centred_quantities_are_those_of_centred_data(activation, shape):
    A = rand(*shape) + 3
    S = activation.value(A)
    centred, features = A - A.mean(0), S - S.mean(0)
    moments = moments_of(A, activation, cuts=(2,))
    q = moments.quantities()
    metric = FeatureMetric.from_features(features)
    close(q["coi_stable_centred"], metric.norm_squared(centred, metric.gamma(1e-3)))
    close(q["coi_off_image_centred"], metric.outside(centred), atol=1e-10)
    s = torch.linalg.svdvals(centred)
    close(q["nuclear_rank_centred"], float(nuclear_rank(s)))
    torch.testing.assert_close(moments.spectrum(centred=True), s[: len(A) - 1], rtol=0, atol=1e-11)
    torch.testing.assert_close(moments.mean(), A.mean(0))


def test_the_centred_part_survives_a_huge_mean():
    A = 1e-5 * rand(200, 6) + 1e3
    s = torch.linalg.svdvals(A - A.mean(0))
    found = moments_of(A, Identity(), cuts=(50, 51)).spectrum(centred=True)
    torch.testing.assert_close(found, s, rtol=1e-6, atol=0)


@pytest.mark.parametrize("activation", [ReLU(), SmoothReLU(sharpness=5.0)], ids=str)
def test_the_profile_of_a_leaky_resnet_equals_mechanics(activation):
    x = rand(60, 4)
    model = LeakyResNet(4, 3, width=10, depth=5, effective_depth=3.0, activation=activation, seed=1, dtype=F64)
    geodesic = Problem(model, x, rand(60, 3), mu=1e-3).geodesic()
    table, L_tilde = mechanics(geodesic), 3.0
    for layer in range(5):
        pair = PairMoments(10, activation)
        for part in (slice(0, 7), slice(7, 60)):
            pair.update(geodesic.A[layer][part], geodesic.A[layer + 1][part])
        q, step, rho = pair.before().quantities(), pair.quantities(), float(geodesic.rho[layer])
        for ours, theirs in (("coi", "coi"), ("coi_stable", "coi_stable"), ("coi_off_image", "coi_off_image")):
            close(q[ours], table[theirs][layer], atol=1e-10)
        for ours, theirs in (("stable_rank", "stable_rank_a"), ("nuclear_rank", "nuclear_rank_a"), ("norm", "norm_a")):
            close(q[ours], table[theirs][layer])
        close(q["rank_1e-2"], table["rank_a"][layer])
        spectrum = pair.before().spectrum()
        torch.testing.assert_close(spectrum, table.spectra_a[layer], rtol=1e-8, atol=1e-8 * float(spectrum[0]))
        close(step["step_change"], table["step_change"][layer])
        close(step["kinetic_k"] / (2 * L_tilde * rho**2), table["kinetic"][layer])
        close(step["kinetic_k_stable"] / (2 * L_tilde * rho**2), table["kinetic_stable"][layer])
        close(step["cross_k"] / rho, table["cross"][layer])
        close(step["cross_k_stable"] / rho, table["cross_stable"][layer])


# --- one pass, any split, any order -----------------------------------------------------------------------------


@given(
    cuts=st.lists(st.integers(0, 70), max_size=5),
    activation=st.sampled_from(ALL),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_any_batch_split_gives_the_same_numbers(cuts, activation, method, seed):
    A = torch.randn(70, 6, dtype=F64, generator=torch.Generator().manual_seed(seed))
    whole = moments_of(A, activation, block_rows=16, **method).quantities()
    parts = moments_of(A, activation, cuts, block_rows=16, **method).quantities()
    if method["method"] == "qr" and not isinstance(activation, SmoothReLU):
        assert parts == whole  # the same bits
    else:  # vectorised softplus and BLAS may round the same row differently at another address
        same(parts, whole, 1e-9, {"coi_error", "coi_error_centred", "coi_off_image", "coi_off_image_centred"})


@given(order=st.permutations(range(40)), cut=st.integers(1, 39), seed=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_order_and_sharding_change_rounding_alone(order, cut, seed):
    A = torch.randn(40, 6, dtype=F64, generator=torch.Generator().manual_seed(seed))
    A[:, 0] = A[:, 1]
    B = A[list(order)]
    for method, rtol in (("qr", 1e-10), ("gram", 1e-7)):
        whole = moments_of(A, method=method).quantities()
        merged = moments_of(B[:cut], method=method).merge(moments_of(B[cut:], method=method)).quantities()
        # the estimate carries the condition, and what lies outside the image is here rounding itself
        loose = {"coi_error", "coi_off_image", "coi_off_image_centred", "coi_error_centred"}
        loose = loose if method == "gram" else set()
        ranks = {"effective_rank", "effective_rank_centred"} if method == "gram" else set()
        same(merged, whole, rtol, loose | ranks)
        # of squares, a singular value of zero is p = √(10ε) of their sum, and −p ln p = 8e-7 of the entropy
        for name in ranks:
            close(merged[name], whole[name], 2e-6)


@pytest.mark.parametrize("method", ["qr", "gram"])
def test_merging_is_associative_and_leaves_the_parts_alone(method):
    a, b, c = (moments_of(rand(30, 5), ReLU(), method=method) for _ in range(3))
    before = a.quantities()
    same(a.merge(b).merge(c).quantities(), a.merge(b.merge(c)).quantities(), 1e-10)
    assert a.quantities() == before
    same(a.merge(LayerMoments(5, ReLU(), method=method)).quantities(), before, 1e-10)


@pytest.mark.parametrize("options", [*METHODS, {"method": "gram", "spectra": False}], ids=str)
@pytest.mark.parametrize("kind", [LayerMoments, PairMoments])
def test_state_travels(kind, options):
    rows = [rand(30, 5) for _ in range(2 if kind is PairMoments else 1)]
    one = kind(5, ReLU(), **options)
    one.update(*rows)
    state = one.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert sum(value.numel() for value in state.values()) < 3 * 16 * 16 + 200
    other = kind(5, ReLU(), **options)
    other.load_state_dict(state)
    same(other.quantities(), one.quantities(), 1e-12)
    other.update(*rows)  # it goes on, and the first does not notice
    assert (one.count, other.count) == (30, 60)
    close(other.quantities()["coi"], one.quantities()["coi"], 1e-10)
    with pytest.raises(ValueError, match="the state was made as"):
        kind(5, PLAIN, **options).load_state_dict(state)


def test_memory_does_not_grow_with_the_rows():
    for options in METHODS:
        moments = LayerMoments(4, **options)
        sizes = []
        for _ in range(3):
            moments.update(rand(9000, 4))
            sizes.append(sum(value.numel() for value in moments.state_dict().values()))
        assert sizes[0] == sizes[-1]


# --- known answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("options", METHODS, ids=str)
def test_nonnegative_data_of_known_rank(k, options):
    A = torch.rand(500, k, dtype=F64) @ torch.rand(k, 16, dtype=F64)
    q = moments_of(A, cuts=(100,), **options).quantities()
    close(q["coi"], k, 1e-6)
    assert q["feature_rank"] == k
    assert q["stable_rank"] <= q["nuclear_rank"] + 1e-9 <= q["coi"] + 1e-5
    assert q["coi_stable"] <= q["coi"] + 1e-6
    assert q["participation_ratio"] <= k + 1e-9


@pytest.mark.parametrize("k", [2, 5])
def test_subspaces_of_known_dimension_with_noise_and_an_offset(k):
    basis = torch.linalg.qr(rand(20, 20)).Q
    A = rand(4000, k) @ basis[:, :k].T + 5 * basis[:, -1] + 1e-4 * rand(4000, 20)
    q = moments_of(A, Identity()).quantities()
    assert q["rank_1e-2_centred"] == k and q["rank_1e-2"] == k + 1
    close(q["participation_ratio_centred"], k, 0.01)
    close(q["nuclear_rank_centred"], k, 0.02)
    close(q["coi_stable_centred"], k, 0.02)  # exact ones see the noise as well:
    close(q["coi_centred"], 20, 1e-6)
    close(q["mean_norm"], 5, 0.01)


def test_a_circle_spans_two_dimensions_and_a_curve_more():
    t = torch.linspace(0, 2 * math.pi, 1001, dtype=F64)[:-1]
    basis = torch.linalg.qr(rand(9, 9)).Q
    circle = torch.stack((t.cos(), t.sin()), 1) @ basis[:2]
    q = moments_of(circle, Identity(append_one=False)).quantities()
    close(q["coi"], 2, 1e-9)
    close(q["participation_ratio"], 2, 1e-9)
    curve = torch.stack([f(j * t) for j in (1, 2, 3) for f in (torch.cos, torch.sin)], 1) @ basis[:6]
    close(moments_of(curve, Identity(append_one=False)).quantities()["nuclear_rank"], 6, 1e-9)


def test_one_outlier_moves_the_exact_cost_by_one_at_most_and_takes_over_the_ranks():
    A = torch.rand(500, 3, dtype=F64) @ torch.rand(3, 12, dtype=F64)
    with_outlier = torch.cat((A, 1e4 * torch.rand(1, 12, dtype=F64)))
    before, after = moments_of(A).quantities(), moments_of(with_outlier).quantities()
    close(after["coi"] - before["coi"], 1, 1e-6)
    assert after["stable_rank"] < 1.01 and after["participation_ratio"] < 1.01 < before["participation_ratio"]


def test_duplicates_permutations_rotation_of_samples_and_rescaling():
    A = rand(100, 6)
    base = moments_of(A).quantities()
    per_row = {"count", "norm", "coi_error", "coi_stable_error", "coi_error_centred", "coi_stable_error_centred"}
    independent = {"participation_ratio_rows", "participation_ratio_both"}  # of rows that are draws of their own
    same(moments_of(torch.cat((A, A))).quantities(), base, 1e-9, per_row | independent)
    same(moments_of(A[torch.randperm(100)][:, torch.randperm(6)]).quantities(), base, 1e-9)
    scaled = moments_of(1e-6 * A).quantities()
    same(scaled, base, 1e-9, per_row | {"rms_norm", "mean_norm"})
    close(scaled["norm"], 1e-6 * base["norm"])
    with_dead = torch.cat((A, torch.zeros(100, 1, dtype=F64)), 1)
    same(moments_of(with_dead).quantities(), base, 1e-9, per_row)
    # and what must differ: an appended 1 lowers the cost
    assert moments_of(A, ReLU()).quantities()["coi_stable"] < base["coi_stable"]


def test_features_that_all_vanish_and_states_that_are_zero():
    q = moments_of(-torch.rand(10, 4, dtype=F64) - 0.1).quantities()
    assert (q["coi"], q["coi_stable"], q["coi_off_image"], q["feature_rank"]) == (0.0, 0.0, 1.0, 0.0)
    q = moments_of(torch.zeros(10, 4, dtype=F64)).quantities()
    assert q["coi"] == q["stable_rank"] == q["effective_rank"] == q["participation_ratio"] == q["coi_off_image"] == 0.0
    one = moments_of(rand(1, 4), ReLU()).quantities()
    undefined = {name for name, value in one.items() if not math.isfinite(value)}
    assert undefined == {"participation_ratio_rows", "participation_ratio_both"}  # four rows at least
    assert one["nuclear_rank_centred"] == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("options", METHODS, ids=str)
def test_low_precision_rows_are_summed_as_float64(dtype, options):
    A = rand(300, 8).to(dtype)
    assert moments_of(A, **options).quantities() == moments_of(A.double(), **options).quantities()
    close(moments_of(A, **options).quantities()["coi_stable"], cost_of_identity(A.double(), PLAIN, 1e-3), 1e-8)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_rounded_inputs_keep_the_stable_cost_and_not_the_exact_one(dtype, tolerance):
    """Rank 3 and not negative, before rounding: the exact cost sees the noise of half precision as full rank."""
    A = torch.rand(2000, 3, dtype=F64) @ torch.rand(3, 12, dtype=F64)
    exact, rounded = moments_of(A).quantities(), moments_of(A.to(dtype)).quantities()
    for name in ("coi_stable", "stable_rank", "nuclear_rank", "participation_ratio", "rms_norm"):
        close(rounded[name], exact[name], 10 * tolerance if name == "nuclear_rank" else tolerance)
    close(exact["coi"], 3, 1e-9)
    close(rounded["coi"], 12, 1e-9)


def test_gradients_are_left_alone():
    A = rand(20, 4).requires_grad_()
    assert not moments_of(A).spectrum().requires_grad


# --- squares: bounded and reported ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("span", [0, 1, 2, 4])
@pytest.mark.parametrize("rows", [300, 9000])
def test_what_squares_lose_is_within_the_estimate(dtype, span, rows):
    A = (rand(rows, 10) + 0.5) * torch.logspace(0, -span, 10, dtype=F64)
    A = A.float().double()  # so that the rows themselves are the same
    exact = moments_of(A, ReLU()).quantities()
    found = moments_of(A, ReLU(), method="gram", dtype=dtype).quantities()
    for name in ("coi", "coi_stable"):
        error = abs(found[name] - exact[name]) / exact[name]
        assert error <= found[f"{name}_error"] or error < 1e-14
    assert found["coi_stable_error"] < (1e-2 if dtype == torch.float32 else 1e-10)
    assert exact["coi_error"] < 1e-9
    if dtype == torch.float32 and span == 4:
        assert found["coi_error"] == 1.0  # modes that squares in float32 cannot tell from none: said, not hidden


def test_gram_without_spectra():
    A = rand(200, 6)
    full = moments_of(A, ReLU(), method="gram")
    lean = moments_of(A, ReLU(), method="gram", spectra=False)
    for name in ("coi", "coi_stable", "norm", "coi_stable_centred"):
        close(lean.quantities()[name], full.quantities()[name], 1e-9)
    assert "nuclear_rank" not in lean.quantities()
    with pytest.raises(ValueError, match="made with spectra=False"):
        lean.spectrum()


# --- refusals ---------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_summed():
    moments = moments_of(rand(5, 3))
    before = moments.quantities()
    bad = rand(6, 3)
    bad[1, 2], bad[4, 0] = math.nan, math.inf
    with pytest.raises(ValueError, match=r"2 of 6 rows have NaN or infinite entries \(the first is row 1\)"):
        moments.update(bad)
    with pytest.raises(ValueError, match=r"rows must be \(n, 3\), one row per sample, got \(2, 4\)"):
        moments.update(rand(2, 4))
    with pytest.raises(ValueError, match=r"got \(3,\)"):
        moments.update(rand(3))
    with pytest.raises(TypeError, match=r"rows must be floating point, got torch\.int64"):
        moments.update(torch.ones(2, 3, dtype=torch.int64))
    moments.update(rand(0, 3))
    assert moments.quantities() == before
    moments.update(torch.full((2, 3), 3e38))  # a sum that overflows is no infinite row
    assert moments.count == 7


def test_arguments_and_empty_accumulators():
    with pytest.raises(ValueError, match="width must be positive, got 0"):
        LayerMoments(0)
    with pytest.raises(ValueError, match="method must be one of qr, gram, got 'svd'"):
        LayerMoments(3, method="svd")
    with pytest.raises(ValueError, match=r"'qr' works in float64, got torch.float32; method 'gram'"):
        LayerMoments(3, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"dtype must be torch.float64 or torch.float32, got torch.float16"):
        LayerMoments(3, method="gram", dtype=torch.float16)
    for what in (LayerMoments(3).quantities, LayerMoments(3).spectrum, PairMoments(3).quantities):
        with pytest.raises(ValueError, match="no rows were added yet"):
            what()
    with pytest.raises(ValueError, match="gamma0 must be positive, got 0"):
        moments_of(rand(3, 3)).quantities(0.0)
    pair = PairMoments(3)
    pair.update(rand(3, 3), rand(3, 3))
    with pytest.raises(ValueError, match="gamma0 must be positive"):
        pair.quantities(-1.0)


def test_accumulators_made_otherwise_do_not_merge():
    for other in (LayerMoments(3, PLAIN), LayerMoments(3, ReLU(), method="gram"), LayerMoments(4, ReLU())):
        with pytest.raises(ValueError, match="only accumulators made alike merge"):
            LayerMoments(3, ReLU()).merge(other)
