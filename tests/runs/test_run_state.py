import json
import math
import pickle
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from isthmus.runs import RunConfig, StateError, load_state, save_state
from isthmus.runs import state as module
from isthmus.runs.build import build


def round_trip(state, tmp_path):
    path = tmp_path / "state.safetensors"
    path.write_bytes(save_state(state, "test"))
    return load_state(path, "test")


def same(a, b):
    """Equal in kind as well: True is not 1, (1,) is not [1], NaN is NaN, 0.0 is not -0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(x, y) and same(a[x], b[y]) for x, y in zip(a, b, strict=True))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
TENSORS = st.sampled_from(
    [
        torch.tensor(3.5, dtype=torch.float64),
        torch.zeros(0, 3),
        torch.tensor([True, False]),
        torch.tensor([math.inf, -0.0], dtype=torch.bfloat16),
        torch.arange(6).reshape(2, 3).T,
    ]
)
KEYS = st.text(max_size=3) | st.integers(-5, 5) | st.tuples(st.integers(0, 3), st.text(max_size=2))
TREES = st.recursive(
    SCALARS | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(tree=TREES)
def test_any_state_comes_back_as_it_was(tmp_path_factory, tree):
    assert same(round_trip(tree, tmp_path_factory.mktemp("state")), tree)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(3, 4).T,
        torch.arange(12.0)[::2],
        torch.ones(1).expand(5, 3),
        torch.tensor(2.0),
        torch.zeros(0, 4),
        torch.ones(3, requires_grad=True),
        torch.nn.Parameter(torch.ones(2, 2)),
        torch.Generator().manual_seed(3).get_state(),
        torch.tensor([math.nan, math.inf]),
        torch.ones(2, dtype=torch.float16),
    ],
    ids=[
        "transposed",
        "strided",
        "expanded",
        "scalar",
        "empty",
        "graph",
        "parameter",
        "generator",
        "nan",
        "half",
    ],
)
def test_awkward_tensors(tmp_path, tensor):
    loaded = round_trip([tensor, tensor], tmp_path)
    for copy in loaded:
        assert copy.dtype == tensor.dtype
        assert torch.equal(torch.nan_to_num(copy), torch.nan_to_num(tensor.detach()))
    assert loaded[0].data_ptr() != loaded[1].data_ptr() or tensor.numel() == 0


def test_tensors_that_share_memory_are_each_saved(tmp_path):
    base = torch.arange(6.0)
    assert same(
        round_trip({"a": base, "b": base[2:], "c": base.view(2, 3)}, tmp_path),
        {"a": base, "b": base[2:], "c": base.view(2, 3)},
    )


def test_keys_that_look_alike_do_not_collide(tmp_path):
    state = {1: torch.ones(1), "1": torch.zeros(1), "a/b": torch.ones(2), "a": {"b": torch.zeros(2)}}
    assert same(round_trip(state, tmp_path), state)


def test_the_state_of_a_real_optimiser(tmp_path):
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimiser = torch.optim.Adam([weight])
    weight.sum().backward()
    optimiser.step()
    assert same(round_trip(optimiser.state_dict(), tmp_path), optimiser.state_dict())


def test_other_programs_see_tensors_under_their_path(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(save_state({"model": {"weight": torch.ones(2)}, "rho": torch.ones(1)}, "model"))
    from safetensors.torch import load_file

    assert set(load_file(path)) == {"model/weight", "rho"}


def test_saving_twice_gives_the_same_bytes():
    state = {"b": torch.ones(2), "a": [1.5, (2,)]}
    assert save_state(state, "test") == save_state(state, "test")


def test_a_long_tree_goes_into_a_tensor(tmp_path, monkeypatch):
    state = {"history": [{"step": i, "objective": i / 3} for i in range(50)], "w": torch.ones(2)}
    monkeypatch.setattr(module, "_LONGEST_HEADER", 100)
    data = save_state(state, "test")
    (tmp_path / "state").write_bytes(data)
    assert same(load_state(tmp_path / "state", "test"), state)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert "tree" not in json.loads(header["__metadata__"]["isthmus-state"])


# --- what cannot be saved ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [1, {2}]}, r"the state holds a set at a/1: expected dict, list, tuple, str, int"),
        (b"x", r"the state holds a bytes at its top"),
        ({"optimiser": {"dtype": torch.float32}}, r"the state holds a dtype at optimiser/dtype"),
        ({"a": {torch.ones(1): 2}}, r"the state has a Tensor as a key at a"),
        ({frozenset(): 2}, r"the state holds a frozenset at its top"),
        ([torch.eye(2).to_sparse()], r"the state holds a sparse tensor at 0: expected a dense one"),
    ],
)
def test_what_cannot_be_saved_is_named_with_its_place(state, message):
    with pytest.raises(TypeError, match=message):
        save_state(state, "test")


# --- files that are not sound -----------------------------------------------------------------------------------


@pytest.fixture
def sound():
    return save_state({"weight": torch.arange(50.0), "step": 3, "note": "x" * 50}, "checkpoint")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.safetensors"


def test_a_missing_file(path):
    with pytest.raises(FileNotFoundError):
        load_state(path, "checkpoint")


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, 400, -1, -100])
def test_a_file_cut_short(path, sound, length):
    path.write_bytes(sound[:length])
    with pytest.raises(StateError, match=r"a\.safetensors is damaged or cut short, or no safetensors file"):
        load_state(path, "checkpoint")


def test_a_file_with_something_after_it(path, sound):
    path.write_bytes(sound + b"x")
    with pytest.raises(StateError, match="damaged or cut short"):
        load_state(path, "checkpoint")


@pytest.mark.parametrize("place", range(0, 100, 9))
def test_a_flipped_bit_in_the_numbers(path, sound, place):
    path.write_bytes(sound[: -1 - place] + bytes([sound[-1 - place] ^ 4]) + sound[len(sound) - place :])
    with pytest.raises(StateError, match=r"is damaged: its contents do not match its digest"):
        load_state(path, "checkpoint")


def test_changed_text(path, sound):
    path.write_bytes(sound.replace(b"x" * 50, b"x" * 49 + b"y"))
    with pytest.raises(StateError, match="do not match its digest"):
        load_state(path, "checkpoint")


def test_random_bytes(path):
    path.write_bytes(bytes(range(3, 200)))
    with pytest.raises(StateError, match="no safetensors file"):
        load_state(path, "checkpoint")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


@pytest.mark.parametrize("make", ["pickle", "torch", "torch-old"])
def test_a_pickle_is_refused_unread(path, make):
    if make == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"a": Bomb()}, path, _use_new_zipfile_serialization=make == "torch")
    with pytest.raises(StateError, match=r"looks like a pickle \(torch\.save\); only safetensors files are read"):
        load_state(path, "checkpoint")


def test_somebody_elses_safetensors(path):
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(StateError, match="is a safetensors file, but isthmus did not write it"):
        load_state(path, "checkpoint")
    save_file({"weight": torch.ones(2)}, path, metadata={"format": "pt"})
    with pytest.raises(StateError, match="isthmus did not write it"):
        load_state(path, "checkpoint")


def test_another_kind(path, sound):
    path.write_bytes(sound)
    with pytest.raises(StateError, match="holds a checkpoint, expected a model"):
        load_state(path, "model")


def written(about):
    return save({"a": torch.ones(1)}, {"isthmus-state": json.dumps(about)})


def test_a_newer_version(path):
    path.write_bytes(written({"version": 99, "kind": "checkpoint"}))
    with pytest.raises(StateError, match="has version 99 of the format, this isthmus reads version 2; use the"):
        load_state(path, "checkpoint")


def test_a_file_without_its_tree(path):
    path.write_bytes(written({"version": module.VERSION, "kind": "checkpoint"}))
    with pytest.raises(StateError, match="do not match its digest"):
        load_state(path, "checkpoint")


def test_a_header_whose_length_begins_like_a_pickle_is_read(path):
    # The length comes first in the file, in multiples of 8: now and then its first byte is a pickle's.
    files = (save_state("x" * length, "test") for length in range(300))
    found = [data for data in files if data[:1] == b"\x80" or data[:2] == b"PK"]
    assert found
    for data in found:
        path.write_bytes(data)
        assert set(load_state(path, "test")) == {"x"}


def test_training_resumed_from_a_file_gives_the_same_bits_at_every_stage(tmp_path):
    # A file keeps no strides: a state in which they matter (eigenvectors come columns first) is another state.
    config = RunConfig().merge(
        {"task.dims": "6,2,6", "task.hidden": 8, "task.train": 60, "task.test": 30, "model.width": 12}
        | {
            "model.depth": 6,
            "model.effective_depth": 3.0,
            "train.dtype": "float64",
            "train.steps": 60,
            "train.log_every": 5,
        }
    )
    whole, part = build(config).trainer, build(config).trainer
    whole.run()
    for step in range(60):
        if step % 5 == 3:
            state = round_trip(part.state_dict(), tmp_path)
            part = build(config).trainer
            part.load_state_dict(state)
        part.step()
    assert {row["stage"] for row in whole.history} == {"muon", "lbfgs", "settle", "done"}
    assert torch.equal(part.problem.model.weight, whole.problem.model.weight)


@pytest.mark.parametrize("start", [b"\x80", b"PK"])
def test_a_file_cut_short_is_no_pickle_whatever_the_length_of_its_header(tmp_path, start):
    path = tmp_path / "a.safetensors"
    path.write_bytes(start.ljust(8, b"\0") + b'{"__metadata__":{}}')
    with pytest.raises(StateError, match="is damaged or cut short"):
        load_state(path, "checkpoint")
