"""Inputs alone, as they stand in a file."""

import numpy
import polars
import pytest
import torch

from isthmus.tasks import inputs_from_file


def test_arrays_of_any_rank_keep_shape_and_values(tmp_path):
    x = numpy.arange(48, dtype="float32").reshape(4, 3, 2, 2) / 7
    numpy.savez(tmp_path / "a.npz", X_train=x, y=numpy.zeros(4), ids=numpy.arange(4))
    found = inputs_from_file(tmp_path / "a.npz")
    assert found.x.dtype == torch.float64 and torch.equal(found.x, torch.from_numpy(x).double())
    assert found.dropped == ("y", "ids") and found.notes == ("arrays left out: 'y', 'ids'",)


def test_integers_of_arrays_stay_integers(tmp_path):
    numpy.savez(tmp_path / "a.npz", x=numpy.arange(6, dtype="int32").reshape(3, 2))
    assert inputs_from_file(tmp_path / "a.npz").x.dtype == torch.int64


def test_tables_leave_out_labels_named_columns_and_row_numbers(tmp_path):
    frame = polars.DataFrame(
        {"": [0, 1, 2], "a": [0.5, 1.5, 9.0], "b": [3, 1, 2], "y": ["u", None, "v"], "t": ["x"] * 3}
    )
    frame.write_csv(tmp_path / "a.csv")
    found = inputs_from_file(tmp_path / "a.csv", drop=["t"])
    assert found.x.tolist() == [[0.5, 3.0], [1.5, 1.0], [9.0, 2.0]]
    assert found.dropped == ("y", "t", "")
    assert found.notes == ("label columns left out: 'y'", "columns left out: 't'", "row numbers left out: ''")


def test_tables_without_labels_are_inputs_throughout(tmp_path):
    polars.DataFrame({"a": [0.5, 1.5], "b": [3.0, 1.0]}).write_parquet(tmp_path / "a.parquet")
    found = inputs_from_file(tmp_path / "a.parquet")
    assert found.x.shape == (2, 2) and found.dropped == () and found.notes == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "c"}, "has no target column 'c'"),
        ({"drop": ["c"]}, "drop names 'c', which is no column of a.csv"),
        ({"target": ["a", "b"]}, "has no input columns left beside the target"),
    ],
)
def test_options_that_do_not_fit_a_table(tmp_path, options, message):
    polars.DataFrame({"a": [0.5, 1.5], "b": [3.0, 1.0]}).write_csv(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=message):
        inputs_from_file(tmp_path / "a.csv", **options)


def test_inputs_that_are_no_inputs(tmp_path):
    numpy.savez(tmp_path / "empty.npz", x=numpy.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"x of empty.npz has shape \(0, 3\): expected samples along the first"):
        inputs_from_file(tmp_path / "empty.npz")
    numpy.savez(tmp_path / "b.npz", x=numpy.zeros((2, 3)))
    with pytest.raises(
        ValueError, match=r"target and drop name columns of a table; of b\.npz only the array 'x' is read"
    ):
        inputs_from_file(tmp_path / "b.npz", target="y")
    (tmp_path / "bare.csv").write_text("0.5,1.5\n2.5,3.5\n")
    with pytest.raises(ValueError, match=r"bare\.csv seems to have no header"):
        inputs_from_file(tmp_path / "bare.csv")
