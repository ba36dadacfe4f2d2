import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from isthmus.tasks import from_file

N = 40
RANDOM = np.random.default_rng(0)
XS = RANDOM.normal(size=(N, 3)) * [1, 10, 100] + 5
YS = XS[:, :2] ** 2
CLASSES = np.arange(N) % 4


def frame(**extra):
    return pl.DataFrame({"a": XS[:, 0], "b": XS[:, 1], "c": XS[:, 2], **extra})


def rows(header, count=N, last=lambda i: i * i):
    return header + "\n" + "".join(f"{i % 7},{(i * 5) % 11},{last(i)}\n" for i in range(count))


# What is read


def test_the_three_formats_agree(npz, csv, tmp_path):
    table = frame(y=YS[:, 0])
    table.write_parquet(tmp_path / "data.parquet")
    tasks = [from_file(npz(x=XS, y=YS[:, 0])), from_file(csv(table)), from_file(tmp_path / "data.parquet")]
    for task in tasks:
        assert (len(task.x_train), len(task.x_test), task.inputs, task.outputs, task.loss) == (
            32,
            8,
            3,
            1,
            "mse",
        )
        assert torch.equal(task.x_train, tasks[0].x_train)
        assert torch.equal(task.y_test, tasks[0].y_test)
        assert task.notes["source"].startswith("data.") and len(task.notes["sha256"]) == 64
    assert tasks[1].notes["columns"] == ["a", "b", "c"] and tasks[1].notes["targets"] == ["y"]


@pytest.mark.parametrize("normalise", ["coordinate", "global", "none"])
def test_scaling_is_the_training_parts_and_can_be_undone(npz, normalise):
    task = from_file(npz(x=XS, y=YS), normalise=normalise, seed=4)
    for letter, original in (("x", XS), ("y", YS)):
        parts = [getattr(task, f"{letter}_{part}") for part in ("train", "test")]
        torch.testing.assert_close(parts[0].mean(0), torch.zeros(original.shape[1]).double(), atol=1e-9, rtol=0)
        if normalise == "coordinate":
            torch.testing.assert_close(parts[0].std(0, correction=0), torch.ones(original.shape[1]).double())
        if normalise == "global":
            assert float(parts[0].square().sum(1).mean()) == pytest.approx(original.shape[1])
        mean, scale = (torch.tensor(task.notes[f"{letter}_{what}"], dtype=torch.float64) for what in ("mean", "scale"))
        back = torch.cat([part * scale + mean for part in parts])
        np.testing.assert_allclose(np.sort(back.numpy(), axis=0), np.sort(original, axis=0), rtol=1e-9)


def test_uncentred_and_unscaled_data_are_left_as_they_are(npz):
    task = from_file(npz(x=XS, y=YS), normalise="none", centre=False, test_fraction=0)
    assert len(task.x_test) == 0 and task.y_test.shape == (0, 2)
    np.testing.assert_array_equal(np.sort(task.x_train.numpy(), axis=0), np.sort(XS, axis=0))
    assert "not centred" in task.notes["normalise"]


@pytest.mark.parametrize("names", [("X", "Y"), ("x_train", "y_train"), ("X_train", "Y_train"), ("x", "Y")])
def test_spellings_of_the_arrays(npz, names):
    assert from_file(npz(**{names[0]: XS, names[1]: YS})).outputs == 2


def test_a_given_test_part_is_kept_in_order(npz):
    path = npz(X=XS, labels=CLASSES, X_test=XS[:6], y_test=CLASSES[:6], extra=np.arange(3))
    task = from_file(path, target="labels", normalise="none", centre=False)
    np.testing.assert_array_equal(task.x_test.numpy(), XS[:6])
    assert task.y_test.tolist() == [0, 1, 2, 3, 0, 1] and len(task.x_train) == N
    assert task.notes["unused_arrays"] == ["extra"] and "as given" in task.notes["test_part"]
    fewer = from_file(path, target="labels", train=20, test=2)
    assert (len(fewer.x_train), len(fewer.x_test)) == (20, 2)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_csv_separators_byte_order_mark_and_blank_lines(csv, separator):
    text = "\ufeff" + rows("a,b, Target ", last=lambda i: f" {i * i}").replace("\n", "\n\n", 2).replace(",", separator)
    task = from_file(csv(text, "DATA.CSV"), task_type="regression")
    assert len(task.x_train) + len(task.x_test) == N
    assert task.notes["blank_rows_skipped"] == 2
    assert task.notes.get("separator", ",") == separator


def test_number_types_of_tables(tmp_path):
    table = frame(y=YS[:, 0]).with_columns(
        flag=pl.Series(CLASSES > 1),
        small=pl.Series(CLASSES, dtype=pl.Int8),
        money=pl.col("a").cast(pl.Decimal(12, 4)),
    )
    table.write_parquet(tmp_path / "t.parquet")
    assert from_file(tmp_path / "t.parquet").inputs == 6


def test_several_targets_by_name_and_number(csv):
    path = csv(frame(p=YS[:, 0], q=YS[:, 1]))
    assert from_file(path, target=["p", "q"]).notes["targets"] == ["p", "q"]
    task = from_file(path, target=[-1, 0])
    assert task.notes["targets"] == ["q", "a"] and task.notes["columns"] == ["b", "c", "p"]
    assert from_file(path, target="p", drop="q").inputs == 3


def test_targets_given_as_text_are_first_names_and_then_numbers(csv):
    table = frame(p=YS[:, 0])
    path = csv(table)
    assert from_file(path, target="-1").notes["targets"] == ["p"]
    assert from_file(path, target=["p", "0"]).notes["targets"] == ["p", "a"]
    counted = csv(table.rename({"a": "1", "b": "2", "c": "3", "p": "4"}))
    assert from_file(counted, target="2").notes["targets"] == ["2"]
    assert from_file(counted, target=2).notes["targets"] == ["3"]
    assert from_file(counted, target="0").notes["targets"] == ["1"]
    years = csv(table.rename({"a": "2001", "b": "2002", "c": "2003", "p": "2004"}))
    assert from_file(years, target="2003").notes["targets"] == ["2003"]


def test_index_columns_are_left_out_and_counters_noted(csv):
    table = frame(target=YS[:, 0])
    with_index = pl.DataFrame({"": np.arange(N)[::-1].copy(), "t": np.arange(N) + 1}).hstack(table)
    task = from_file(csv(with_index))
    assert task.notes["dropped_index_columns"] == [""]
    assert task.notes["columns_that_count_rows"] == ["t"] and task.inputs == 4


# What a target means


@pytest.mark.parametrize(
    ("target", "names"),
    [
        (CLASSES, [0, 1, 2, 3]),
        (CLASSES.astype("uint8") * 10 + 5, [5, 15, 25, 35]),
        (np.array(["b", "a", "é", "C"])[CLASSES], ["C", "a", "b", "é"]),
        (np.array([b"b", b"a", b"d", b"c"])[CLASSES], ["a", "b", "c", "d"]),
        (CLASSES > 1, [False, True]),
        (np.eye(4)[CLASSES], [0, 1, 2, 3]),
        (CLASSES[:, None], [0, 1, 2, 3]),
        (2**62 + CLASSES, [2**62 + k for k in range(4)]),
    ],
)
def test_classes_are_numbered_in_sorted_order(npz, target, names):
    task = from_file(npz(x=XS, y=target), test_fraction=0.25, normalise="none", centre=False)
    assert task.loss == "cross_entropy" and task.classes == len(names) and task.notes["classes"] == names
    assert task.notes["task_type"].startswith("classification: ")
    flat = target.argmax(1) if target.ndim == 2 and target.shape[1] > 1 else target.reshape(-1)
    for row, label in zip(task.x_train.numpy(), task.y_train.tolist(), strict=True):
        found = flat[np.flatnonzero((row == XS).all(1))[0]]
        assert (found.decode() if isinstance(found, bytes) else found) == names[label]


def test_text_classes_of_tables(csv, tmp_path):
    table = frame(label=np.array(["no", " yes"])[CLASSES % 2])
    assert from_file(csv(table)).notes["classes"] == ["no", "yes"]
    table.with_columns(pl.col("label").cast(pl.Categorical)).write_parquet(tmp_path / "c.parquet")
    assert from_file(tmp_path / "c.parquet").notes["classes"] == ["no", "yes"]


@pytest.mark.parametrize(
    ("target", "task_type", "loss"),
    [
        (np.arange(N), "auto", "mse"),
        (np.arange(N) // 2, "auto", "cross_entropy"),
        (np.arange(N) // 2, "regression", "mse"),
        (CLASSES * 1.0, "auto", "mse"),
        (CLASSES * 1.0, "classification", "cross_entropy"),
        (np.eye(4)[CLASSES], "regression", "mse"),
    ],
)
def test_task_type(npz, target, task_type, loss):
    task = from_file(npz(x=XS, y=target), task_type=task_type, test_fraction=0)
    assert task.loss == loss
    assert isinstance(task.notes["task_type"], str)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.text("abcXYZ é", min_size=1, max_size=4).map(str.strip).filter(bool),
        min_size=2,
        max_size=6,
        unique=True,
    )
)
def test_any_text_labels_come_back(npz, names):
    task = from_file(npz(x=XS, y=np.array(names)[np.arange(N) % len(names)]), test_fraction=0)
    assert task.notes["classes"] == sorted(names)
    counts = [sum(name == names[i % len(names)] for i in range(N)) for name in sorted(names)]
    assert torch.bincount(task.y_train).tolist() == counts
