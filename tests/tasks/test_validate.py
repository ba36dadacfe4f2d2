import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.tasks import constant_columns, validate


def good(rows=12, columns=3, outputs=2):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=random, dtype=torch.float64)
    return x, torch.randn(rows, outputs, generator=random, dtype=torch.float64)


def changed(values, row, column, value):
    values = values.clone()
    values[row, column] = value
    return values


X, Y = good()
LABELS = torch.arange(12) % 3


def test_good_data_pass():
    validate(X, Y)
    validate(X, LABELS, classes=3)
    validate(torch.cat([X, torch.ones(12, 1).double()], 1), Y, constant="allow")


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            X.reshape(12, 3, 1, 1),
            Y,
            r"x of the data must be 2-D .*\(12, 3, 1, 1\): flatten .* x.reshape\(12, -1\)",
        ),
        (X[:, 0], Y, r"must be 2-D .* for one column use x.reshape\(-1, 1\)"),
        (X.long(), Y, r"must be floating point, got torch.int64: use x.double\(\)"),
        (
            X,
            Y[:, :, None],
            r"y of the data must have shape \(rows,\) or \(rows, outputs\), got shape \(12, 2, 1\)",
        ),
        (X, Y[:5], r"x of the data has 12 rows and y has 5: they must be the same samples"),
        (X.T.clone(), Y, r"x has|x of the data has 3 rows and y has 12.*x looks transposed.*x\.T"),
        (X[:0], Y[:0], r"the data is empty: x has shape \(0, 3\)"),
        (X[:, :0], Y, "at least one row and one column are needed"),
        (
            changed(X, 4, 1, float("nan")),
            Y,
            r"x of the data holds NaN .*: row 4 column 1 .*1 in all.*: remove those",
        ),
        (X, changed(Y, 2, 0, float("nan")), r"y of the data holds NaN \(missing values\): row 2 column 0"),
        (changed(X, 3, 2, float("-inf")), Y, "x of the data holds infinite values: row 3 column 2"),
        (X, changed(Y, 3, 1, float("inf")), "y of the data holds infinite values: row 3 column 1"),
        (changed(X, 0, 0, -1e200), Y, r"holds values beyond 1e\+100: row 0 column 0 .*use other units"),
        (X[:9], Y[:9], r"too few rows: 9, at least 10 are needed \(10\): add rows"),
        (
            X,
            torch.ones_like(Y),
            r"the target column 0 of the data is constant \(always 1\): there is nothing to learn",
        ),
        (X, torch.cat([Y, Y[:1, :1].expand(12, 1)], 1), "the target column 2 of the data is constant"),
        (torch.ones_like(X), Y, "all 3 input columns of the data are constant"),
        (torch.cat([X, torch.full((12, 1), 2.0).double()], 1), Y, r"column 3 \(always 2\).*constant='drop'"),
    ],
)
def test_regression_data(x, y, message):
    with pytest.raises(ValueError, match=message):
        validate(x, y)


@pytest.mark.parametrize(
    ("y", "classes", "message"),
    [
        (LABELS * 0, 1, r"the target of the data has 1 class \('a'\): classification needs at least 2"),
        (LABELS, 7, r"too few rows: 12, at least 14 are needed \(10, and 2 for each of the 7 classes\)"),
        (
            torch.tensor([0] * 6 + [1] * 5 + [2]),
            3,
            "at least 2 rows in the data: class 'c' has 1: add rows, remove",
        ),
        (torch.arange(12) % 2, 3, "class 'c' has 0"),
        (LABELS.double(), 3, r"must be \(rows,\) whole class indices .* torch.float64"),
        (LABELS + 1, 3, r"class indices outside 0\.\.2: from 1 to 3"),
    ],
)
def test_classification_data(y, classes, message):
    with pytest.raises(ValueError, match=message):
        validate(X, y, classes=classes, class_names=["a", "b", "c", "d", "e", "f", "g"][:classes])


def test_names_and_parts_are_used():
    with pytest.raises(ValueError, match=r"x of my table holds NaN .* row 0 column 'b', row 1 column 'b'"):
        validate(changed(X, slice(0, 2), 1, float("nan")), Y, columns=["a", "b", "c"], part="my table")
    with pytest.raises(ValueError, match=r"row 4 column 0, and 7 more \(rows counted from 0; 12 in all\)"):
        validate(changed(X, slice(None), 0, float("nan")), Y)
    with pytest.raises(ValueError, match="the target column 'p' of the data is constant"):
        validate(X, torch.ones_like(Y), targets=["p", "q"])
    with pytest.raises(ValueError, match="constant must be one of error, allow, got 'drop'"):
        validate(X, Y, constant="drop")


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 11), st.integers(0, 2), st.sampled_from([float("nan"), float("inf"), 1e101]))
def test_one_bad_number_anywhere_is_found_and_placed(row, column, value):
    with pytest.raises(ValueError, match=rf": row {row} column {column} \("):
        validate(changed(X, row, column, value), Y)


@settings(deadline=None, max_examples=40)
@given(st.floats(-1e99, 1e99), st.integers(0, 2))
def test_a_constant_is_constant_at_any_value(value, column):
    x = changed(X, slice(None), column, value)
    assert constant_columns(x) == [column]
    with pytest.raises(ValueError, match=f"column {column} "):
        validate(x, Y)
