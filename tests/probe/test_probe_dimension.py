"""The dimension one may quote: the participation ratio without the bias of finite rows and neurons."""

import itertools
import math

import numpy
import pytest
import torch

from isthmus.activations import Identity, ReLU
from isthmus.probe import LayerMoments, PairMoments, probe, with_uncertainty
from isthmus.probe.decompose import eigenvalues, eigenvectors, shared
from isthmus.probe.records import _numbers

F64 = torch.float64
ROWS, BOTH, PLAIN = "participation_ratio_rows", "participation_ratio_both", "participation_ratio_centred"


def made(rows, cuts=(), method="qr", activation=None):
    parts = []
    for piece in torch.tensor_split(rows, sorted(cuts)):
        parts.append(LayerMoments(rows.shape[1], activation or ReLU(), method=method))
        parts[-1].update(piece)
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.merge(part)
    return whole


def by_definition(X):
    """Sums over four different rows, and over all, or all different, pairs of columns (arXiv:2509.26560)."""
    n = len(X)
    parts = numpy.zeros((2, 2))
    for i, j, r, q in itertools.permutations(range(n), 4):
        one, two = (X[i] - X[j]) ** 1, (X[r] - X[q]) ** 1
        # two independent, unbiased estimates of the covariance
        C, D = numpy.outer(one, one) / 2, numpy.outer(two, two) / 2
        up, down = numpy.outer(numpy.diag(C), numpy.diag(D)), C * D
        off = 1 - numpy.eye(len(C))
        parts += [[up.sum(), (up * off).sum()], [down.sum(), (down * off).sum()]]
    return parts[0] / parts[1]


@pytest.mark.parametrize("method", ["qr", "gram"])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_equal_to_the_definition_by_brute_force(method, mean):
    X = numpy.random.default_rng(3).normal(size=(9, 4)) * [3, 2, 1, 0.5] + mean
    rows, both = by_definition(X)
    q = made(torch.tensor(X), (4,), method).quantities()
    assert q[ROWS] == pytest.approx(rows, rel=1e-9)
    if both > 0:
        assert q[BOTH] == pytest.approx(both, rel=1e-9)
    else:
        assert math.isnan(q[BOTH])


# dimensionality 0.1.4 (badooki/dimensionality, the authors' own) on the data of `reference`:
# python -c "from dimensionality import participation_ratio as p; print(p(reference(n, w), return_all=True))"
REFERENCE = {(30, 8): (4.293569144176816, 12.948848300098005), (60, 20): (5.91601607687857, 8.673662407886981)}


def reference(sizes=((30, 8, 0.0), (60, 20, 3.0))):
    draw = numpy.random.default_rng(0)
    for n, w, mean in sizes:
        X = draw.normal(size=(n, 5)) @ draw.normal(size=(5, w)) + 0.3 * draw.normal(size=(n, w)) ** 3 + mean
        yield (n, w), torch.tensor(X)


@pytest.mark.parametrize("method", ["qr", "gram"])
def test_equal_to_the_authors_implementation(method):
    for key, X in reference():
        q = made(X, (7, 20), method).quantities()
        assert (q[ROWS], q[BOTH]) == pytest.approx(REFERENCE[key], rel=1e-9)


def test_it_does_not_move_with_the_number_of_rows():
    draw = torch.Generator().manual_seed(5)
    w = 100
    scale = torch.arange(1, w + 1, dtype=F64) ** -0.5
    truth = float(scale.square().sum() ** 2 / scale.pow(4).sum())
    X = torch.randn(20000, w, dtype=F64, generator=draw) * scale + 5
    whole = made(X, method="gram").quantities()
    assert abs(whole[ROWS] / truth - 1) < 0.03
    # of 200 rows one draw scatters by 12 %: the median of a hundred draws is what has no bias
    parts = [made(part, method="gram").quantities() for part in X.split(200)]
    few, plain = (float(torch.tensor([q[name] for q in parts]).median()) for name in (ROWS, PLAIN))
    assert abs(few / whole[ROWS] - 1) < 0.05 < 1 - plain / whole[ROWS]


def test_a_huge_mean_costs_no_digits_and_a_merge_of_parts_far_apart_neither():
    draw = torch.Generator().manual_seed(2)
    X = torch.randn(400, 6, dtype=F64, generator=draw) * torch.tensor([3.0, 1, 1, 1, 1, 1], dtype=F64)
    base = made(X).quantities()
    far = made(X + 1e5, (150,)).quantities()
    assert (far[ROWS], far[BOTH]) == pytest.approx((base[ROWS], base[BOTH]), rel=1e-7)
    # parts whose own means differ: shifts are far from the whole's mean
    apart = X.clone()
    apart[200:] += 50
    assert made(apart, (200,)).quantities()[ROWS] == pytest.approx(made(apart).quantities()[ROWS], rel=1e-9)


def test_it_is_undefined_rather_than_wrong():
    assert math.isnan(made(torch.randn(3, 5, dtype=F64)).quantities()[ROWS])
    assert math.isnan(made(torch.ones(50, 5, dtype=F64)).quantities()[ROWS])
    # independent neurons of one variance: of infinitely many neurons the dimension is infinite
    q = made(torch.randn(5000, 4, dtype=F64, generator=torch.Generator().manual_seed(0))).quantities()
    assert math.isnan(q[BOTH]) or q[BOTH] > 100
    far = torch.randn(50, 5, dtype=F64) + 1e9
    assert math.isnan(made(far, method="gram").quantities()[ROWS])  # squares have lost it
    assert made(far).quantities()[ROWS] == pytest.approx(made(far - 1e9).quantities()[ROWS], rel=1e-5)


def test_the_profile_has_it_first_with_an_error_and_a_control():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 30), torch.nn.ReLU(), torch.nn.Linear(30, 3))
    profile = probe(net, torch.randn(800, 4))
    assert str(profile).split()[:4] == ["layer", "rows", "width", "dimension"]
    value, error = profile[ROWS][0], profile[f"{ROWS}_se"][0]
    assert 1 < value < 4.2 and 0 < error < 0.2 * value
    null = profile.null("0", "shuffled")[ROWS]
    assert null[0] > 3 * value  # independent neurons of the same variances


# --- one decomposition in place of one a shard --------------------------------------------------------------------

SIGMAS = (ReLU(), ReLU(append_one=False), Identity(), Identity(append_one=False))


def shards_of(kind, sigma, *states):
    found = []
    for k in range(8):
        found.append(kind(states[0].shape[1], sigma, method="gram", spectra=kind is LayerMoments))
        found[-1].update(*(x[k::8] for x in states))
    return found


@pytest.mark.parametrize("sigma", SIGMAS, ids=str)
@pytest.mark.parametrize("kind", [LayerMoments, PairMoments])
def test_first_order_errors_are_those_of_the_jackknife(kind, sigma):
    draw = torch.Generator().manual_seed(0)

    def rand(*size):
        return torch.randn(*size, dtype=F64, generator=draw)

    A = rand(16000, 6) @ rand(6, 40) / 6**0.5 + 0.05 * rand(16000, 40) + 0.3
    B = A + 0.3 * torch.relu(A @ rand(40, 40) / 40**0.5)
    shards = shards_of(kind, sigma, *((B,) if kind is LayerMoments else (A, B)))
    exact = with_uncertainty(shards)
    fast = _numbers(shards, lambda m: m.quantities(), 1e-3)
    assert exact.keys() == fast.keys()
    compared = 0
    for name, (value, error) in exact.items():
        if math.isnan(value):
            assert math.isnan(fast[name][0])
            continue
        assert fast[name][0] == value
        if name.endswith("_error") or name in ("condition", "feature_rank") or error < 1e-6 * abs(value):
            continue
        if "off_image" in name and value < 1e-6:  # rounding alone
            continue
        assert fast[name][1] == pytest.approx(error, rel=0.15), name
        compared += 1
    assert compared >= 14


def test_few_rows_a_neuron_are_decomposed_anew():
    shards = shards_of(LayerMoments, ReLU(), torch.randn(60, 20, dtype=F64))
    whole = shards[0]
    for shard in shards[1:]:
        whole = whole.merge(shard)
    assert whole.without_each(shards, 1e-3) is None
    numbers = _numbers(shards, lambda m: m.quantities(), 1e-3)
    for name, (value, error) in with_uncertainty(shards).items():
        assert numbers[name] == (value, error) or math.isnan(value) or math.isnan(error)


def test_a_state_that_is_its_own_feature_is_held_once_and_says_the_same():
    A = torch.randn(500, 12, dtype=F64) @ torch.randn(12, 12, dtype=F64)
    sigma = Identity(append_one=False)
    once, twice = made(A, method="gram", activation=sigma), made(A, method="qr", activation=sigma)
    assert len(once._sums.state_dict()) < len(made(A, method="gram").state_dict())
    for name, value in twice.quantities().items():
        if name.endswith("_error") or "off_image" in name:
            continue
        assert once.quantities()[name] == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), name


def test_matrices_are_decomposed_once_within_shared(monkeypatch):
    calls = []
    real = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda G: calls.append(1) or real(G))
    G = torch.eye(5, dtype=F64)
    with shared():
        eigenvectors(G), eigenvectors(G.clone()), eigenvalues(G)
        assert len(calls) == 1
        eigenvectors(2 * G)
        assert len(calls) == 2
    eigenvectors(G), eigenvectors(G)
    assert len(calls) == 4


def test_squares_for_states_in_32_bits_and_the_factor_for_64():
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    x = torch.randn(300, 4)
    assert {r.moments[0].method for r in probe(net, x).records} == {"gram"}
    assert {r.moments[0].method for r in probe(net.double(), x.double()).records} == {"qr"}
    assert {r.moments[0].method for r in probe(net, x.double(), method="gram").records} == {"gram"}


# --- a few rows that carry a great part ---------------------------------------------------------------------------


def errors_of(draw, name, sigma=None, repetitions=16):
    """The scatter of a number over draws, and the standard errors that go with it."""
    values, errors = [], []
    for seed in range(repetitions):
        x = draw(torch.Generator().manual_seed(seed))
        value, error = _numbers(shards_of(LayerMoments, sigma or ReLU(), x), lambda m: m.quantities(), 1e-3)[name]
        values.append(value)
        errors.append(error)
    return float(torch.tensor(values).std()), errors


def test_the_error_of_the_dimension_holds_with_heavy_tails():
    def draw(g):
        size = (torch.randn(2000, 5, generator=g, dtype=F64).square().sum(1) / 5).rsqrt()  # Student's t, 5 degrees
        return torch.randn(2000, 32, generator=g, dtype=F64) * size[:, None]

    scatter, errors = errors_of(draw, ROWS)
    assert 0.6 * scatter < float(torch.tensor(errors).median()) < 2 * scatter


def test_the_error_of_the_dimension_is_that_of_exact_deletion_with_a_few_large_rows():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 40, generator=g, dtype=F64)
    x[::500] *= 30
    shards = shards_of(LayerMoments, ReLU(), x)
    fast, exact = _numbers(shards, lambda m: m.quantities(), 1e-3), with_uncertainty(shards)
    assert fast[ROWS][1] == pytest.approx(exact[ROWS][1], rel=1e-6)


def test_neurons_that_rarely_fire_have_an_error():
    def draw(g):
        return (torch.rand(2000, 32, generator=g) < 0.001) * torch.randn(2000, 32, generator=g, dtype=F64).abs()

    scatter, errors = errors_of(draw, "coi")
    assert 0.5 * scatter < float(torch.tensor(errors).mean()) < 3 * scatter


def test_a_constant_state_has_no_dimension():
    net = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).double()
    torch.nn.init.zeros_(net[0].weight)
    for dtype in (F64, torch.float32):
        profile = probe(net.to(dtype), torch.randn(200, 5, dtype=dtype))
        assert profile[ROWS] == [None, None]
        for name in (PLAIN, "rank_1e-2_centred", "effective_rank_centred"):
            assert profile[name][0] in (None, 0.0), name
