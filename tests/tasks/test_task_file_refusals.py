import datetime
import zipfile

import numpy as np
import polars as pl
import pytest
import torch

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


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"x": XS.reshape(N, 3, 1, 1), "y": YS}, {}, r"x of data.npz must be 2-D .*x.reshape\(40, -1\)"),
        ({"x": XS, "y": YS[:7]}, {}, "x of data.npz has 40 rows and y has 7"),
        ({"x": XS[:0], "y": YS[:0]}, {}, "data.npz is empty"),
        ({"x": XS, "y": np.array(3.0)}, {}, r"y of data.npz must have shape \(rows,\)"),
        (
            {"x": np.where(XS == XS[3, 1], np.nan, XS), "y": YS},
            {},
            "x of data.npz holds NaN .*row 3 column 1",
        ),
        (
            {"x": XS, "y": np.where(YS == YS[3, 1], np.inf, YS)},
            {},
            "y of data.npz holds infinite .*row 3 column 1",
        ),
        ({"x": XS.astype(str), "y": YS}, {}, "x holds text, not numbers"),
        ({"x": XS * 1j, "y": YS}, {}, "x holds complex numbers"),
        ({"x": XS, "y": YS[:, 0] * 1j}, {}, "the target holds complex numbers"),
        ({"x": XS, "y": CLASSES.astype("M8[D]")}, {"task_type": "classification"}, "the target holds dates"),
        ({"x": np.full((N, 2), 2**60), "y": YS}, {}, r"x holds integers beyond 2\*\*53"),
        ({"x": XS, "y": np.arange(N) + 2**60}, {}, r"the target holds integers beyond 2\*\*53"),
        ({"x": XS.astype(object), "y": YS}, {}, "the array 'x' of data.npz is pickled .* never loaded"),
        ({"x": XS, "y": np.array([None] * N)}, {}, "the array 'y' of data.npz is pickled"),
        (
            {"y": YS},
            {},
            r"holds no array 'x' or 'X' or 'x_train' or 'X_train', only 'y': write it with numpy.savez",
        ),
        ({"x": XS, "labels": YS}, {}, "holds no array 'y'"),
        ({"x": XS, "X": XS, "y": YS}, {}, "holds both 'x' and 'X': keep one"),
        ({"x": XS, "y": YS, "x_test": XS}, {}, "holds x_test but not y_test"),
        ({"x": XS, "y": YS}, {"target": "yy"}, "holds no array 'yy'; did you mean 'y'"),
        ({"x": XS, "y": YS}, {"target": 0}, "target=0: in an .npz file the target is a whole array"),
        ({"x": XS, "y": YS}, {"target": "x"}, "target='x' names an array of data.npz that is taken .* for the inputs"),
        (
            {"x": XS, "y": YS, "x_test": XS, "y_test": YS},
            {"target": "y_test"},
            "target='y_test' names an array of data.npz that is taken already, for the test part: name another, or",
        ),
        ({"x": XS, "y": YS}, {"drop": ["a"]}, "drop names columns of a table"),
        (
            {"x": XS, "y": YS, "x_test": XS[:, :2], "y_test": YS},
            {},
            "x_test of data.npz has 2 columns and x 3",
        ),
        (
            {"x": XS, "y": YS, "x_test": XS, "y_test": YS[:, 0]},
            {},
            "y_test of data.npz has 1 columns and y 2",
        ),
        (
            {"x": XS, "y": CLASSES, "x_test": XS[:2], "y_test": [1, 9]},
            {},
            "y_test holds classes that .* not have: 9",
        ),
        (
            {"x": XS, "y": CLASSES, "x_test": XS, "y_test": YS},
            {},
            r"y_test has shape \(40, 2\): give labels in the",
        ),
        (
            {"x": XS, "y": YS, "x_test": XS * np.nan, "y_test": YS},
            {},
            "x of the test part of data.npz holds NaN",
        ),
        (
            {"x": XS, "y": YS},
            {"task_type": "classification"},
            "the target has 2 columns: for classification give one",
        ),
        (
            {"x": XS, "y": YS[:, 0]},
            {"task_type": "classification"},
            r"class labels are whole numbers .*'regression'",
        ),
        (
            {"x": XS, "y": CLASSES.astype(str)},
            {"task_type": "regression"},
            "is text, for example '0': regression needs",
        ),
        (
            {"x": XS, "y": np.where(CLASSES == 0, np.nan, CLASSES)},
            {"task_type": "classification"},
            "10 missing or infinite labels, the first in row 0",
        ),
        ({"x": XS, "y": CLASSES * 0}, {}, r"has 1 class \(0\): classification needs at least 2"),
        (
            {"x": XS, "y": CLASSES * 0.0 + 3},
            {},
            r"the target column 0 of the training part is constant \(always 3\)",
        ),
        (
            {"x": XS, "y": np.append(CLASSES[1:] % 2, 7)},
            {},
            "every class needs at least 2 rows .*: class 7 has 1",
        ),
        (
            {"x": XS[:12], "y": YS[:12]},
            {"test_fraction": 0.5},
            "the training part has too few rows: 6, at least 10",
        ),
        (
            {"x": XS * [1, 1, 0], "y": YS},
            {},
            r"constant input columns in the training part: column 2 \(always 0\)",
        ),
    ],
)
def test_npz_refusals(npz, arrays, options, message):
    with pytest.raises(ValueError, match=message):
        from_file(npz(**arrays), **options)


def test_free_text_is_no_class_unless_it_is_said_to_be(npz):
    names = np.array([f"name {i // 2}" for i in range(110)])
    path = npz(x=np.random.default_rng(1).normal(size=(110, 2)), y=np.where(np.arange(110) < 6, names[0], names))
    assert from_file(path, test_fraction=0).classes == 53
    path = npz(x=np.random.default_rng(1).normal(size=(100, 2)), y=np.arange(100).astype(str))
    with pytest.raises(ValueError, match="is text with 100 different values in 100 rows, which looks like names"):
        from_file(path)


def test_constant_columns_can_be_dropped(npz, csv):
    task = from_file(npz(x=XS * [1, 0, 1], y=YS), constant="drop")
    assert task.inputs == 2 and task.notes["dropped_constant_columns"] == [1]
    path = csv(frame(k=[1] * N, y=YS[:, 0]))
    with pytest.raises(ValueError, match=r"column 'k' \(always 1\).*constant='drop'"):
        from_file(path)
    assert from_file(path, constant="drop").notes["dropped_constant_columns"] == ["k"]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "data.csv is empty: it has no header line"),
        ("a,y\n", {}, r"data.csv is empty: it has a header \('a', 'y'\) but no rows"),
        ("y\n1\n2\n", {}, "no input columns left beside the target 'y'"),
        ("a,a,y\n1,2,3\n", {}, "several columns called 'a': give each column its own name"),
        (
            "0.5,0.5,2\n1,2,3\n",
            {},
            r"seems to have no header: its first line reads 0.5, 0.5, 2; add a first line",
        ),
        ("5.1,3.5,setosa\n4.9,3.0,setosa\n", {"target": -1}, "seems to have no header"),
        ("5.1,3.5,1\n4.9,3.0,2\n", {"target": "-1"}, "seems to have no header"),
        ("7,2,9\n1,2,3\n", {"target": "2"}, "seems to have no header"),
        ("7,8,9\n1,2,3\n", {}, "seems to have no header"),
        ("a,y\n1,2\n1,2,3\n", {}, r"cannot be read as .csv \(found more fields .*as many fields in each row"),
        (b"a,y\n\xff\xfe,2\n", {}, r"cannot be read as .csv \(.*UTF-8 text"),
        (b"\xff,y\n1,2\n", {}, r"cannot be read as .csv \(.*UTF-8 text"),
        (
            rows("a,b,c"),
            {},
            r"no column called 'target', 'label', 'y': pass target=NAME .*columns are 'a', 'b', 'c'",
        ),
        (rows("y,label,c"), {}, "several columns that may be the target, 'y', 'label': pass target=NAME"),
        (
            rows("age,size,price"),
            {"target": "prices"},
            "no target column 'prices'; did you mean 'price'.*'age', 'size'",
        ),
        (rows("a,b,y"), {"target": 3}, r"target=3: as a column number it must lie in -3\.\.2"),
        (rows("a,b,y"), {"target": "3"}, r"target='3': as a column number it must .*; no column has it as its name"),
        (rows("a,b,y"), {"target": []}, "target is an empty list"),
        (rows("a,b,y"), {"target": ["y", -1]}, "target names a column twice: 'y', 'y'"),
        (rows("a,b,y"), {"drop": ["z"]}, "drop names 'z', which is no column of data.csv"),
        (rows("a,b,y"), {"drop": ["y"]}, "'y' is both a target and in drop"),
        (
            rows("a,b,y") + "1,,2\n",
            {},
            r"has 1 missing values: column 'b' in 1 \(the first: row 40\).*drop=\[\.\.\.\]",
        ),
        (rows("a,b,y") + "1,2,\n", {}, "has 1 missing values: column 'y' in 1"),
        (rows("a,b,y") + "1\n", {}, "has 2 missing values: column 'b' in 1 .*column 'y' in 1"),
        (rows("a,b,y") + "1,NA,2\n", {}, r"not numbers: 'b' \('NA' in row 40\): turn .*drop=\['b'\]"),
        (rows("a,y,b", last=lambda i: f"u{i}"), {}, r"not numbers: 'b' \('u0' in row 0\)"),
        (rows("a,b,y") + "1,nan,2\n", {}, "x of data.csv holds NaN .*row 40 column 'b'"),
        (
            rows("a,y,b", last=lambda i: 2**60 + i),
            {},
            r"column 'b' of data.csv holds integers beyond 2\*\*53",
        ),
        (rows("a,b,y", 3), {"task_type": "regression"}, "the training part has too few rows: 2, at least 10"),
    ],
)
def test_csv_refusals(csv, content, options, message):
    with pytest.raises(ValueError, match=message):
        from_file(csv(content), **options)


def test_parquet_refusals(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match=r"t.parquet cannot be read as .parquet \(.*write it again as parquet"):
        from_file(path)
    day = [datetime.date(2020, 1, 1)] * N
    frame(day=day, y=YS[:, 0]).write_parquet(path)
    with pytest.raises(ValueError, match=r"not numbers: 'day' \(type Date\)"):
        from_file(path)
    with pytest.raises(ValueError, match=r"the target 'day' of t.parquet is of type Date: give numbers or labels"):
        from_file(path, target="day")
    pl.DataFrame().write_parquet(path)
    with pytest.raises(ValueError, match=r"t.parquet is empty: it has no columns"):
        from_file(path)


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk"])
def test_broken_npz(tmp_path, content):
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"d.npz is not a readable .npz file .*numpy.savez\(path, x=x, y=y\)"):
        from_file(tmp_path / "d.npz")


def test_foreign_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x", "text")
        archive.writestr("y", "text")
    with pytest.raises(ValueError, match=r"the entry 'x' of d.npz is no array"):
        from_file(tmp_path / "d.npz")


def test_bare_and_damaged_arrays(tmp_path, npz):
    np.save(tmp_path / "d.npy", XS)
    (tmp_path / "d.npy").rename(tmp_path / "d.npz")
    with pytest.raises(ValueError, match="it holds a single bare array"):
        from_file(tmp_path / "d.npz")
    path = npz(x=XS, y=YS)
    content = bytearray(path.read_bytes())
    content[300] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"the array 'x' of data.npz cannot be read"):
        from_file(path)


def test_paths(tmp_path, csv):
    csv(rows("a,b,y"), "wine.csv")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*wines.csv; did you mean 'wine.csv'"):
        from_file(tmp_path / "wines.csv")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        from_file(str(tmp_path / "nowhere" / "wine.csv"))
    with pytest.raises(ValueError, match=r"is a folder: give a file \(.npz, .csv, .parquet\)"):
        from_file(tmp_path)
    with pytest.raises(ValueError, match=r"has the extension '.xlsx'; readable are .npz, .csv, .parquet"):
        from_file(csv("x", "t.xlsx"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_type": "regresion"}, "task_type must be one of auto, regression.*did you mean 'regression'"),
        ({"normalise": "unit"}, "normalise must be one of coordinate, global, none, got 'unit'"),
        ({"constant": "keep"}, "constant must be one of error, drop, got 'keep'"),
        ({"test_fraction": 1.0}, r"test_fraction must lie in \[0, 1\), got 1.0"),
        ({"seed": 2**63}, "seed must be a whole number"),
    ],
)
def test_options_are_checked_before_the_file(options, message):
    with pytest.raises(ValueError, match=message):
        from_file("no-such-file.csv", **options)


def test_same_seed_same_task(npz):
    path = npz(x=XS, y=CLASSES)
    one, two, other = from_file(path, seed=1), from_file(path, seed=1), from_file(path, seed=2)
    assert torch.equal(one.x_train, two.x_train) and torch.equal(one.y_test, two.y_test)
    assert not torch.equal(one.x_train, other.x_train)
    assert set(one.y_test.tolist()) == {0, 1, 2, 3}
