import doctest
import subprocess
import sys

import pytest
import torch

from isthmus.tasks import KINDS, Task, make, make_task
from isthmus.tasks._checks import require


def regression(**changes):
    parts = {
        "x_train": torch.zeros(4, 3, dtype=torch.float64),
        "y_train": torch.zeros(4, 2, dtype=torch.float64),
        "x_test": torch.zeros(5, 3, dtype=torch.float64),
        "y_test": torch.zeros(5, 2, dtype=torch.float64),
        "loss": "mse",
    }
    return Task(name="t", **{**parts, **changes})


def classification(**changes):
    parts = {"y_train": torch.tensor([0, 1, 2, 0]), "y_test": torch.tensor([0, 1, 2, 0, 1])}
    return regression(**{**parts, "loss": "cross_entropy", "classes": 3, **changes})


def test_sizes_and_repr():
    task = regression()
    assert (task.inputs, task.outputs) == (3, 2)
    assert classification().outputs == 3
    assert repr(task) == "Task('t', inputs=3, outputs=2, train=4, test=5, loss='mse')"


def test_to_moves_numbers_and_keeps_labels():
    assert regression().to(torch.float32).y_test.dtype == torch.float32
    task = classification().to(dtype=torch.float32, device="cpu")
    assert task.x_train.dtype == task.x_test.dtype == torch.float32
    assert task.y_train.dtype == task.y_test.dtype == torch.int64
    assert task.notes == {}
    with pytest.raises(ValueError, match=r"dtype must be a floating-point type such as torch.float32, got"):
        task.to(torch.int64)


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (regression, {"loss": "l1"}, "loss must be one of mse, cross_entropy, got 'l1'"),
        (regression, {"classes": 3}, "loss 'mse' came with classes=3"),
        (classification, {"classes": None}, "loss 'cross_entropy' came with classes=None"),
        (classification, {"classes": 1}, "needs at least 2 classes, got classes=1"),
        (regression, {"x_train": torch.zeros(4)}, r"x_train must be a floating-point \(N, in\) tensor"),
        (regression, {"x_test": torch.zeros(5, 3).long()}, "x_test must be a floating-point"),
        (regression, {"x_test": torch.zeros(5, 3)}, "x_test is torch.float32 and x_train torch.float64"),
        (regression, {"y_test": torch.zeros(5, 2)}, r"y_test must be an \(N, out\) tensor of the inputs'"),
        (classification, {"y_train": torch.zeros(4)}, r"y_train must be an \(N,\) tensor of int64 class"),
        (classification, {"y_train": torch.tensor([0, 3, 1, 1])}, r"from 0 to 3: with classes=3 .* 0\.\.2"),
        (regression, {"y_train": torch.zeros(3, 2).double()}, "x_train has 4 rows and y_train 3"),
        (regression, {"x_test": torch.zeros(5, 2).double()}, "x_train has 3 columns and x_test 2"),
        (regression, {"y_test": torch.zeros(5, 1).double()}, "y_train has 2 columns and y_test 1"),
        (
            regression,
            {"x_train": torch.zeros(0, 3).double(), "y_train": torch.zeros(0, 2).double()},
            "x_train has no rows",
        ),
    ],
)
def test_parts_must_fit(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_make_task_by_name():
    assert sorted(KINDS) == ["digits", "file", "mnist", "mnist1d", "teacher"]
    one = make_task("teacher", dims=[6, 2, 6], kind="resnet", train=20, test=5)
    two = make_task("teacher", dims=[6, 2, 6], network="resnet", train=20, test=5)
    assert one.notes["kind"] == "resnet"
    assert torch.equal(one.y_train, two.y_train)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "teachr",
            {},
            "the task's kind must be one of teacher, digits.*got 'teachr'; did you mean 'teacher'?",
        ),
        ("zzz", {}, "got 'zzz'$"),
        ("digits", {"sed": 1}, "has no option 'sed'; did you mean 'seed'.*Its options: train, test"),
        ("file", {}, "the task 'file' needs the option 'path'"),
        ("teacher", {"kind": "fcnn", "network": "fcnn"}, "got both 'kind' and 'network'"),
    ],
)
def test_make_task_names_what_is_wrong(kind, options, message):
    with pytest.raises(ValueError, match=message):
        make_task(kind, **options)


def test_a_missing_package_names_its_command():
    with pytest.raises(
        ImportError, match=r"needs nosuchpackage, which cannot be imported .*: pip install 'isthmus\[data\]'"
    ):
        require("nosuchpackage.data", install="'isthmus[data]'")


def test_importing_the_room_needs_torch_alone():
    code = (
        "import sys, isthmus.tasks\n"
        "heavy = {'sklearn', 'mlxtend', 'mnist1d', 'polars', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_example_in_the_docstring():
    result = doctest.testmod(make)
    assert (result.attempted, result.failed) == (1, 0)
