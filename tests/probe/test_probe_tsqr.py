"""The streaming factor against LAPACK on everything at once, however the rows come."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.probe.tsqr import StreamingQR, pieces

F64 = torch.float64


def graded(rows, columns, span=8.0, seed=0):
    """Columns with scales over ``span`` decades, so that squares lose twice as many."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(rows, columns, dtype=F64, generator=generator)
    return X * torch.logspace(0, -span, columns, dtype=F64)


def streamed(X, cuts, **options):
    stream = StreamingQR(X.shape[1], **options)
    for part in torch.tensor_split(X, sorted(cuts)):
        stream.update((part,))
    return stream


def same_gram(R, X, tolerance=1e-12):
    """R and X have the same column norms and angles: scale-free, so that small columns count as well."""
    norms = X.norm(dim=0).clamp_min(1e-300)
    assert torch.allclose(R.norm(dim=0), norms, rtol=tolerance, atol=0)
    torch.testing.assert_close((R / norms).T @ (R / norms), (X / norms).T @ (X / norms), rtol=0, atol=tolerance)


@given(
    rows=st.integers(1, 90),
    cuts=st.lists(st.integers(0, 90), max_size=6),
    block=st.integers(1, 40),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_any_split_gives_the_same_factor(rows, cuts, block, seed):
    X = graded(rows, 7, seed=seed)
    whole = streamed(X, [], block_rows=block)
    parts = streamed(X, [min(cut, rows) for cut in cuts], block_rows=block)
    assert parts.count == rows
    assert torch.equal(whole.factor(), parts.factor())  # the same bits: blocks do not see the cuts
    same_gram(parts.factor(), X)
    assert parts.factor().shape == (min(rows, 7), 7)


@given(order=st.permutations(range(6)), seed=st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_merges_in_any_order_agree(order, seed):
    X = graded(120, 6, seed=seed)
    shards = [streamed(part, [], block_rows=9) for part in X.split([1, 2, 50, 7, 40, 20])]
    merged = shards[order[0]]
    for i in order[1:]:
        merged = merged.merge(shards[i])
    assert merged.count == 120
    same_gram(merged.factor(), X)


def test_merging_is_associative_and_leaves_the_parts_alone():
    a, b, c = (streamed(graded(30, 5, seed=i), []) for i in range(3))
    before = a.factor()
    left, right = a.merge(b).merge(c).factor(), a.merge(b.merge(c)).factor()
    same_gram(left, right)
    assert torch.equal(a.factor(), before)


def test_small_singular_values_survive_where_squares_lose_them():
    Q = torch.linalg.qr(torch.randn(400, 6, dtype=F64)).Q
    V = torch.linalg.qr(torch.randn(6, 6, dtype=F64)).Q
    exact = torch.logspace(0, -12, 6, dtype=F64)
    X = Q * exact @ V.T
    found = torch.linalg.svdvals(streamed(X, [13, 200, 330], block_rows=17).factor())
    assert float(((found - exact).abs() / exact).max()) < 1e-3  # 1e-16 of the largest, 1e-4 of the smallest
    by_squares = torch.linalg.eigvalsh(X.T @ X).flip(0).clamp_min(0).sqrt()
    assert float(((by_squares - exact).abs() / exact).max()) > 1


def test_reading_the_factor_does_not_disturb_the_stream():
    X = graded(50, 4)
    read, unread = StreamingQR(4, block_rows=8), StreamingQR(4, block_rows=8)
    for row in X:
        read.update((row[None],))
        read.factor()
        unread.update((row[None],))
    assert torch.equal(read.factor(), unread.factor())


def test_memory_does_not_grow_with_the_rows():
    stream = StreamingQR(6, block_rows=10)
    for _ in range(50):
        stream.update((torch.randn(37, 6),))
        assert stream._buffer.shape[0] <= 6 + 10
    few = StreamingQR(6)
    few.update((torch.randn(3, 6),))
    assert few._buffer.shape[0] <= 6  # nor is a full block taken for a few rows


def test_blocks_of_columns_of_any_dtype_and_zero_rows():
    A, B = torch.randn(20, 2, dtype=torch.float16), torch.randn(20, 3, dtype=torch.float32)
    stream = StreamingQR(5)
    stream.update((A, B))
    stream.update((A[:0], B[:0]))
    assert stream.count == 20
    same_gram(stream.factor(), torch.cat((A.double(), B.double()), 1))
    assert StreamingQR(5).factor().shape == (0, 5)


def test_rank_deficient_columns():
    X = torch.randn(40, 2, dtype=F64) @ torch.randn(2, 6, dtype=F64)
    s = torch.linalg.svdvals(streamed(X, [3], block_rows=8).factor())
    assert float(s[2]) < 1e-13 * float(s[0])
    assert not streamed(torch.zeros(9, 3, dtype=F64), []).factor().any()


def test_pieces_cover_everything_once():
    assert list(pieces(0, 3, 5)) == []
    assert list(pieces(12, 3, 5)) == [(0, 3), (3, 8), (8, 12)]


def test_refusals():
    with pytest.raises(ValueError, match="must be positive, got 0"):
        StreamingQR(0)
    with pytest.raises(ValueError, match="must be positive, got 3 and 0"):
        StreamingQR(3, block_rows=0)
    with pytest.raises(ValueError, match=r"3 columns in all, got \(2, 2\)"):
        StreamingQR(3).update((torch.ones(2, 2),))
    with pytest.raises(ValueError, match="same rows"):
        StreamingQR(3).update((torch.ones(2, 2), torch.ones(1, 1)))
    with pytest.raises(ValueError, match="only streams of the same columns merge: 3 here, 4 there"):
        StreamingQR(3).merge(StreamingQR(4))
