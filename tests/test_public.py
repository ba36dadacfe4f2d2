"""The public surface: what `from isthmus import …` gives, in whatever order rooms were imported."""

import copy
import importlib
import inspect
import pickle
import subprocess
import sys

import pytest
import torch

import isthmus
from isthmus import LeakyResNet, Problem

VERBS = ("bottleneck", "mechanics", "probe", "solve")


@pytest.mark.parametrize("name", isthmus.__all__)
def test_every_public_name_is_there(name):
    assert getattr(isthmus, name) is not None
    assert name in dir(isthmus)


@pytest.mark.parametrize("name", VERBS)
def test_the_verbs_are_callable_before_and_after_their_room_is_imported(name):
    code = (
        f"from isthmus import {name}; assert callable({name}); import isthmus.{name}; assert callable(isthmus.{name}); "
        f"from isthmus.{name} import {name} as verb; assert verb is not {name} and callable(verb)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", VERBS)
def test_a_room_that_is_called_has_the_signature_of_its_verb(name):
    room = importlib.import_module(f"isthmus.{name}")
    assert inspect.signature(room) == inspect.signature(getattr(room, name))


def test_the_two_line_import_works():
    from isthmus import bottleneck, mechanics, probe, solve

    model = LeakyResNet(3, 3, width=5, depth=4, effective_depth=1.0).double()
    x = torch.randn(12, 3, dtype=torch.float64)
    solution = solve(Problem(model, x, x, mu=0.01), steps=60)
    table = mechanics(solution)
    assert bottleneck(solution, table).ranks_W and probe(model, x)["layer"]


def test_import_isthmus_loads_no_torch():
    subprocess.run([sys.executable, "-c", "import isthmus, sys; assert 'torch' not in sys.modules"], check=True)


@pytest.mark.parametrize("name", VERBS)
def test_a_room_is_pickled_by_name(name):
    room = importlib.import_module(f"isthmus.{name}")
    assert pickle.loads(pickle.dumps(room)) is room and copy.deepcopy(room) is room


def test_python_m_isthmus_is_the_command_line():
    ran = subprocess.run([sys.executable, "-m", "isthmus", "--help"], check=True, capture_output=True, text=True)
    assert "train" in ran.stdout
