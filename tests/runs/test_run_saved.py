"""The file that people share is the one that is read, checked against the checkpoint; files of version 1 still load."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from isthmus.runs import (
    RunConfig,
    StateError,
    execute,
    load_run_model,
    load_run_problem,
    load_state,
    read_saved,
    save_state,
)
from isthmus.runs import state as format_
from isthmus.runs.build import build_task, fingerprint

MODEL, CHECKPOINT = "model.safetensors", "checkpoint.safetensors"


@pytest.fixture(scope="module")
def short():
    return RunConfig.from_mapping(
        {
            "task": {"dims": [4, 2, 3], "hidden": 4, "train": 20, "test": 5},
            "model": {"width": 5, "depth": 3, "effective_depth": 2.0},
            "train": {"steps": 6, "threads": 1, "dtype": "float64", "checkpoint_every": 2},
        }
    )


@pytest.fixture(scope="module")
def original(short, tmp_path_factory):
    """A finished run, not to be changed."""
    return execute(short, tmp_path_factory.mktemp("original") / "run")


@pytest.fixture
def run(original, tmp_path):
    """A copy of it."""
    return shutil.copytree(original.folder, tmp_path / "run")


def rewritten(run, change):
    """Let a sound model.safetensors hold something else."""
    state = load_state(run / MODEL, "model")
    change(state)
    (run / MODEL).write_bytes(save_state(state, "model"))


def version_1(state, kind):
    """The bytes that the first version of the format had for a state: its digest left out types and shapes."""
    tensors = {}
    tree = format_._encode(state, "", tensors)
    digest = format_.digest(format_._dump(tree), tensors, 1)
    about = {"version": 1, "kind": kind, "tree": tree, "digest": digest}
    return save(tensors, {format_.FORMAT: format_._dump(about)})


def made_version_1(run):
    """Let both files of a run be of version 1, with what it wrote."""
    for name, kind in ((MODEL, "model"), (CHECKPOINT, "checkpoint")):
        state = load_state(run / name, kind)
        if kind == "model":
            del state["rebuild"]["fingerprint"]
        for config in [state["config"]] if kind == "checkpoint" else [state["rebuild"]["config"]]:
            del config["train"]["extend"], config["model"]["init_from"]
        (run / name).write_bytes(version_1(state, kind))


# --- the file that is shared ------------------------------------------------------------------------------------


def test_the_model_file_is_read_and_says_its_step(run, original, same_bits):
    saved = read_saved(run)
    assert (saved.file, saved.step, saved.alone, saved.place) == (run / MODEL, 6, False, run)
    assert saved.fingerprint == fingerprint(build_task(saved.config))
    assert same_bits(load_run_model(run), original.model)


def test_other_weights_in_a_sound_file_are_refused_and_the_command_writes_it_anew(run, short, original, same_bits):
    rewritten(run, lambda state: state["weight"].mul_(2))
    message = (
        r"model\.safetensors and checkpoint\.safetensors beside it are not of one network: both are of step 6, and "
        r"weight are not the same; `isthmus train --resume --out .*run` writes it anew from the checkpoint$"
    )
    for read in (load_run_model, load_run_problem):
        with pytest.raises(StateError, match=message):
            read(run)
    execute(short, run, resume=True)
    assert same_bits(load_run_model(run), original.model)


def test_a_file_rewritten_by_other_tools_is_refused(run):
    weights = load_file(run / MODEL)
    save_file({**weights, "weight": 2 * weights["weight"]}, run / MODEL)
    with pytest.raises(StateError, match="is a safetensors file, but isthmus did not write it"):
        load_run_model(run)


def test_garbage_is_refused(run):
    (run / MODEL).write_text("garbage")
    with pytest.raises(StateError, match=r"model\.safetensors is damaged or cut short"):
        load_run_problem(run)


def test_every_flipped_byte_is_noticed(run):
    sound = (run / MODEL).read_bytes()
    for place in range(len(sound)):
        damaged = bytearray(sound)
        damaged[place] ^= 1
        (run / MODEL).write_bytes(damaged)
        with pytest.raises(StateError):
            read_saved(run / MODEL)


def test_another_configuration_in_the_model_file_is_refused(run):
    rewritten(run, lambda state: state["rebuild"]["config"]["train"].update(mu=0.5))
    with pytest.raises(StateError, match=r"their configurations differ in train\.mu"):
        read_saved(run)


def test_a_model_file_of_a_later_step_is_refused(run):
    rewritten(run, lambda state: state["rebuild"].update(step=9))
    with pytest.raises(StateError, match="the former is of step 9, the latter of step 6"):
        read_saved(run)


def test_a_run_killed_after_it_was_resumed_names_both_steps(short, folder, stop_after):
    execute(short, folder, should_stop=stop_after(1))
    early = (folder / MODEL).read_bytes()
    execute(short, folder, resume=True, should_stop=stop_after(3))
    (folder / MODEL).write_bytes(early)  # as a kill before the products leaves it
    message = (
        r"model\.safetensors is of step 1, the checkpoint beside it of step 4: the former is read; `isthmus train "
        r"--resume --out .*run` writes it anew from the checkpoint$"
    )
    with pytest.warns(UserWarning, match=message):
        saved = read_saved(folder)
    assert saved.step == 1
    with pytest.warns(UserWarning, match="is of step 1"):
        assert torch.equal(load_run_model(folder).weight, saved.weights["weight"])


def test_a_run_without_a_model_file_is_read_from_its_checkpoint(run, original, same_bits):
    (run / MODEL).unlink()
    with pytest.warns(UserWarning, match=r"run has no model\.safetensors yet: its checkpoint of step 6 is read"):
        assert same_bits(load_run_model(run), original.model)


def test_a_damaged_checkpoint_beside_a_sound_model(run, original, same_bits):
    (run / CHECKPOINT).write_bytes((run / CHECKPOINT).read_bytes()[:-9])
    with pytest.raises(StateError, match=r"damaged or cut short.*; delete it, and model\.safetensors is read without"):
        load_run_model(run)
    (run / CHECKPOINT).unlink()
    assert same_bits(load_run_model(run), original.model)


def test_a_file_alone_is_a_network_and_its_problem(run, original, tmp_path, same_bits):
    shared = tmp_path / "shared.safetensors"
    shutil.copy(run / MODEL, shared)
    shutil.rmtree(run)
    saved = read_saved(shared)
    assert (saved.alone, saved.place) == (True, shared)
    assert same_bits(load_run_model(shared), original.model)
    assert load_run_problem(shared).evaluate(gradient=False).objective == pytest.approx(
        original.summary["objective"], rel=1e-12
    )


def test_data_of_a_file_alone_that_round_otherwise_are_a_doubt_and_those_of_a_folder_an_error(run, tmp_path):
    rewritten(run, lambda state: state["rebuild"].update(fingerprint="0" * 64))
    with pytest.raises(StateError, match=r"are not those that .*run was trained on; put them back"):
        load_run_problem(run)
    with pytest.warns(UserWarning, match="to the last bit: changed, or rounded otherwise on another machine"):
        load_run_problem(run / MODEL)


def test_a_checkpoint_is_no_file_to_share(run):
    with pytest.raises(StateError, match="holds a checkpoint, expected a model"):
        read_saved(run / CHECKPOINT)


# --- version 1 --------------------------------------------------------------------------------------------------


def test_weights_of_version_1_are_read(run, original, same_bits):
    made_version_1(run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_bits(load_run_model(run), original.model)
        assert load_run_problem(run).mu == 1e-3
        assert same_bits(load_run_model(run / MODEL), original.model)
    (run / MODEL).unlink()
    with pytest.warns(UserWarning, match="its checkpoint of step 6 is read"):
        assert same_bits(load_run_model(run), original.model)


def test_a_training_of_version_1_is_not_resumed_and_the_advice_works(run, short, tmp_path):
    made_version_1(run)
    message = (
        r"checkpoint\.safetensors has version 1 of the format, this isthmus reads version 2; use the isthmus that "
        r"wrote it\. What optimisers save has changed, its weights can still be read: `isthmus train --init-from "
        r".*run --out .*run-2` starts a run from its network"
    )
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.name != ".lock"}
    with pytest.raises(StateError, match=message):
        execute(short.merge({"train.extend": (2,)}), run, resume=True)
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.name != ".lock"} == before
    outcome = execute(short.merge({"model.init_from": str(run)}), tmp_path / "run-2")
    assert outcome.status == "done"


def test_a_finished_run_of_version_1_gets_its_products_anew(run, short, original, same_bits):
    made_version_1(run)
    for name in ("states.parquet", "states.csv"):
        (run / name).unlink()
    checkpoint = (run / CHECKPOINT).read_bytes()
    outcome = execute(short, run, resume=True)
    assert outcome.step == 6 and same_bits(load_run_model(run), original.model)
    assert (run / CHECKPOINT).read_bytes() == checkpoint
    for name in ("states.csv", "layers.csv", "history.csv"):
        assert (run / name).read_bytes() == (original.folder / name).read_bytes()


def test_files_of_version_1_that_differ_advise_what_works(run, original, same_bits):
    rewritten(run, lambda state: state["weight"].mul_(2))
    made_version_1(run)
    with pytest.raises(StateError, match=r"are not the same; delete it, and the checkpoint is read$"):
        read_saved(run)


def test_a_damaged_file_of_version_1_is_noticed(run):
    made_version_1(run)
    damaged = bytearray((run / MODEL).read_bytes())
    damaged[-3] ^= 1
    (run / MODEL).write_bytes(damaged)
    with pytest.raises(StateError, match="do not match its digest"):
        read_saved(run)


def test_the_digest_knows_types_and_shapes(tmp_path):
    path = tmp_path / "a.safetensors"
    sound = save_state({"a": torch.ones(2, 3, dtype=torch.float64)}, "model")
    header = json.loads(sound[8 : 8 + int.from_bytes(sound[:8], "little")])
    for old, new in ((b'"F64"', b'"I64"'), (b"[2,3]", b"[3,2]")):
        assert sound.count(old) == 1, header
        path.write_bytes(sound.replace(old, new))
        with pytest.raises(StateError, match="do not match its digest"):
            load_state(path, "model")


def test_another_runs_network_of_an_earlier_step_is_no_stale_one(short, run, tmp_path):
    """Its step is no excuse: configuration and data say whose it is."""
    other = execute(short.merge({"train.steps": 3, "model.effective_depth": 1.0}), tmp_path / "other")
    shutil.copy(other.folder / MODEL, run / MODEL)
    with pytest.raises(StateError, match=r"not of one network: their configurations differ in .*effective_depth"):
        read_saved(run)
    (run / CHECKPOINT).unlink()
    with pytest.raises(StateError, match=r"is not of the run in .*: their configurations differ in"):
        read_saved(run)


def test_step_sizes_of_a_float32_run_add_up_to_one_in_float64(short, tmp_path):
    config = short.merge({"train.dtype": "float32", "model.depth": 7})
    narrow = execute(config, tmp_path / "narrow")
    assert abs(float(load_run_problem(narrow.folder).model.rho.sum()) - 1) < 1e-15
    wide = config.merge({"train.dtype": "float64", "model.init_from": str(narrow.folder)})
    assert torch.equal(execute(wide, tmp_path / "wide").model.rho, torch.full((7,), 1 / 7, dtype=torch.float64))
