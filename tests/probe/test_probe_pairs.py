"""Two consecutive states against everything at once, and pairs that do not fit."""

import math

import pytest
import torch

from isthmus.activations import ReLU
from isthmus.mechanics import FeatureMetric
from isthmus.probe.moments import LayerMoments
from isthmus.probe.pairs import PairMoments

F64 = torch.float64
PLAIN = ReLU(append_one=False)
METHODS = [{"method": "qr"}, {"method": "gram"}]


def rand(*size):
    return torch.randn(*size, dtype=F64)


def moments_of(A, activation=PLAIN, cuts=(), **options):
    made = LayerMoments(A.shape[1], activation, **options)
    for part in torch.tensor_split(A, sorted(cuts)):
        made.update(part)
    return made


def close(found, expected, rtol=1e-8, atol=1e-12):
    assert math.isclose(found, expected, rel_tol=rtol, abs_tol=atol), (found, expected)


def same(one, other, rtol, skip=()):
    assert one.keys() == other.keys()
    for name in one.keys() - set(skip):
        close(one[name], other[name], rtol, 1e-9)


@pytest.mark.parametrize("options", METHODS, ids=str)
@pytest.mark.parametrize("activation", [ReLU(), PLAIN], ids=str)
def test_pairs_against_everything_at_once(activation, options):
    A, D = rand(200, 7), 0.1 * rand(200, 7)
    B = A + D
    A[3] = 0
    one, two = (PairMoments(7, activation, **options) for _ in range(2))
    one.update(A[:50], B[:50])
    one.update(A[50:51], B[50:51])
    two.update(A[51:], B[51:])
    q = one.merge(two).quantities()
    metric = FeatureMetric.from_features(activation.features(A))
    gamma, D = metric.gamma(1e-3), B - A
    close(q["kinetic_k"], metric.norm_squared(D))
    close(q["kinetic_k_stable"], metric.norm_squared(D, gamma))
    close(q["cross_k"], metric.inner(D, A))
    close(q["cross_k_stable"], metric.inner(D, A, gamma), 1e-7)
    close(q["step_off_image"], metric.outside(D))
    close(q["coi_stable"], metric.norm_squared(A, gamma))
    close(q["speed_ratio"], math.sqrt(metric.norm_squared(D, gamma) / metric.norm_squared(A, gamma)))
    close(q["step_change"], float(D.norm() / B.norm()))
    close(q["step_change_before"], float(D.norm() / A.norm()))
    cosines = torch.nn.functional.cosine_similarity(A, B)[A.norm(dim=1) > 0]
    close(q["cosine_mean"], float(cosines.mean()))
    close(q["cosine_std"], float(cosines.std(correction=0)), 1e-7)
    close(q["block_influence"], 1 - float(cosines.mean()))
    assert q["cosine_rows"] == 199 and q["count"] == 200
    layer = moments_of(A, activation, **options)
    before, expected = one.merge(two).before().quantities(), layer.quantities()
    for name in ("participation_ratio_rows", "participation_ratio_both"):  # they need fourth powers, which pairs lack
        del expected[name]
    same(before, expected, 1e-6, {"coi_error", "coi_off_image"})


def test_a_pair_that_stands_still_and_one_that_doubles():
    A = rand(30, 4)
    pair = PairMoments(4)
    pair.update(A, A)
    q = pair.quantities()
    assert q["step_change"] == q["kinetic_k"] == q["kinetic_k_stable"] == q["step_off_image"] == 0.0
    close(q["cosine_mean"], 1.0)
    pair = PairMoments(4)
    pair.update(A, 2 * A)
    close(pair.quantities()["speed_ratio"], 1.0)
    pair = PairMoments(4)
    pair.update(0 * A, 0 * A)
    assert pair.quantities()["cosine_rows"] == 0 and pair.quantities()["step_change"] == 0.0


def test_a_small_step_loses_nothing():
    A, D = rand(100, 5), rand(100, 5)
    B = A + 2.0**-30 * D
    pair = PairMoments(5)
    pair.update(A, B)
    close(pair.quantities()["norm_step"], float((B - A).norm()), 1e-12, 0)


def test_pairs_that_do_not_match():
    pair = PairMoments(3)
    with pytest.raises(ValueError, match="same rows, got 4 and 5"):
        pair.update(rand(4, 3), rand(5, 3))
    with pytest.raises(ValueError, match=r"after must be \(n, 3\)"):
        pair.update(rand(4, 3), rand(4, 2))
    with pytest.raises(ValueError, match="1 of 4 after have NaN"):
        pair.update(rand(4, 3), torch.cat((rand(3, 3), rand(1, 3) * math.nan)))
    assert pair.count == 0
