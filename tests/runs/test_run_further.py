"""A finished run is trained further, and a new one started from its network."""

import json
import shutil

import pytest
import torch

from isthmus.mesh import interpolate_weights
from isthmus.runs import ConfigError, FolderError, RunConfig, StateError, execute, load_state
from isthmus.runs.build import build
from isthmus.runs.reader import load_run

RECIPES = {
    "default": {},
    "paper": {"train.recipe": "paper"},
    "fast": {"train.recipe": "fast"},
    "geodesic": {"train.recipe": "geodesic", "model.activation": "smooth_relu"},
    "kinks": {"train.recipe": "kinks"},
    "minibatches": {"train.batch_size": 16},
    "adaptive": {"mesh.kind": "adaptive", "mesh.every": 2},
}


@pytest.fixture
def steps(tiny):
    return tiny.merge({"train.steps": 12, "train.checkpoint_every": 3})


def extended(config, *steps):
    return config.merge({"train.extend": steps})


# --- further ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_an_extended_run_has_the_bits_of_one_begun_with_the_extension(steps, tmp_path, same_bits, name):
    config = steps.merge(RECIPES[name])
    whole = execute(extended(config, 5), tmp_path / "whole")
    first = execute(config, tmp_path / "run")
    assert not same_bits(first.model, whole.model)
    again = execute(extended(config, 5), tmp_path / "run", resume=True)
    assert (again.status, again.step) == ("done", whole.step)
    assert again.step > first.step
    assert same_bits(again.model, whole.model)
    assert RunConfig.from_yaml(tmp_path / "run" / "config.yaml").train.extend == (5,)
    assert load_run(tmp_path / "run").summary["steps"] == whole.step


def test_the_last_stage_is_run_once_more(tiny):
    stages = build(extended(tiny, 7, 3)).trainer.stages
    assert [stage.steps for stage in stages[-2:]] == [7, 3]
    assert {stage.optimiser.name for stage in stages[-3:]} == {"settle"}
    assert stages[:-2] == build(tiny).trainer.stages


def test_an_extension_that_is_interrupted_goes_on_without_naming_it_again(steps, tmp_path, same_bits, stop_after):
    whole = execute(extended(steps, 8), tmp_path / "whole")
    folder = tmp_path / "run"
    execute(steps, folder)
    assert execute(extended(steps, 8), folder, resume=True, should_stop=stop_after(4)).status == "interrupted"
    stored = RunConfig.from_yaml(folder / "config.yaml")
    assert same_bits(execute(stored, folder, resume=True).model, whole.model)


def test_a_run_that_met_its_tolerance_is_not_extended_in_vain(steps, tmp_path):
    config = steps.merge({"train.tolerance": 1e9})
    assert execute(config, tmp_path / "run").step < 12
    with pytest.raises(StateError, match=r"its tolerance, 1e\+09: an extension would stop at once: .*--init-from"):
        execute(extended(config, 5), tmp_path / "run", resume=True)


def test_a_kill_just_after_the_extension_was_written_loses_nothing(steps, tmp_path, same_bits):
    whole = execute(extended(steps, 8), tmp_path / "whole")
    folder = tmp_path / "run"
    execute(steps, folder)
    (folder / "config.yaml").write_text(extended(steps, 8).to_yaml())
    assert same_bits(execute(extended(steps, 8), folder, resume=True).model, whole.model)


def test_extending_twice(steps, tmp_path, same_bits):
    whole = execute(extended(steps, 4, 3), tmp_path / "whole")
    folder = tmp_path / "run"
    for config in (steps, extended(steps, 4), extended(steps, 4, 3)):
        last = execute(config, folder, resume=True)
    assert same_bits(last.model, whole.model)


def test_an_extension_is_not_taken_back(steps, folder):
    execute(extended(steps, 4), folder)
    with pytest.raises(
        ConfigError, match=r"has a problem:\n  train\.extend: the run in .* has \(4,\), got \(\)\n  a run"
    ):
        execute(steps, folder, resume=True)


def test_other_values_are_refused_with_an_extension_too(steps, folder):
    execute(steps, folder)
    with pytest.raises(
        ConfigError, match=r"has a problem:\n  train\.mu: the run in .* has 0\.001, got 0\.5\n  a run is"
    ):
        execute(extended(steps, 4).merge({"train.mu": 0.5}), folder, resume=True)


def test_a_run_that_diverged_is_not_extended(tiny, folder):
    config = tiny.merge({"train.recipe": "paper", "train.rate": 1e200})
    assert execute(config, folder).status == "diverged"
    message = r"diverged, so that it cannot be extended: `isthmus train --init-from .*run --out .*run-2` starts a run"
    with pytest.raises(StateError, match=message):
        execute(extended(config, 5), folder, resume=True)


@pytest.mark.parametrize("value", ["0", "5,-1", "many", [2.5]])
def test_extensions_are_whole_numbers(value):
    with pytest.raises(ConfigError, match=r"train\.extend: expected whole numbers >= 1"):
        RunConfig.from_mapping({"train": {"extend": value}})
    assert RunConfig.from_mapping({"train": {"extend": "none"}}).train.extend == ()


# --- from another run -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """A finished run, not to be changed."""
    config = RunConfig.from_mapping(
        {
            "task": {"dims": [6, 2, 6], "hidden": 8, "train": 60, "test": 30},
            "model": {"width": 12, "depth": 6, "effective_depth": 3.0},
            "mesh": {"kind": "adaptive", "every": 2},
            "train": {"steps": 12, "threads": 1, "dtype": "float64"},
        }
    )
    return execute(config, tmp_path_factory.mktemp("origin") / "run")


def started(origin, **overrides):
    """The origin's configuration with other values, to start from it."""
    stored = RunConfig.from_yaml(origin.folder / "config.yaml")
    return stored.merge({"model.init_from": str(origin.folder), **overrides})


def first_row(config, folder):
    return load_run(execute(config, folder).folder).history.row(0, named=True)


def test_it_starts_where_the_origin_ended(origin, folder):
    row = first_row(started(origin), folder)
    assert row["objective"] == pytest.approx(origin.summary["objective"], rel=1e-12)
    assert row["residual_max"] == pytest.approx(origin.summary["residual_max"], rel=1e-9)


def test_a_model_file_will_do(origin, folder, tmp_path):
    shared = shutil.copy(origin.folder / "model.safetensors", tmp_path / "shared.safetensors")
    row = first_row(started(origin, **{"model.init_from": str(shared)}), folder)
    assert row["objective"] == pytest.approx(origin.summary["objective"], rel=1e-12)


def test_other_values_are_allowed_where_the_shape_is_the_same(origin, folder):
    other = {
        **{"model.effective_depth": 2.0, "train.mu": 0.01, "train.recipe": "paper", "train.dtype": "float32"},
        **{"model.activation": "smooth_relu", "model.ends": "learned", "seed": 3},
    }
    outcome = execute(started(origin, **other), folder)
    assert outcome.status == "done"
    assert outcome.model.effective_depth == 2.0
    assert outcome.model.weight.dtype == torch.float32


def test_step_sizes_stay_and_another_mesh_moves_the_weights_with_p(origin):
    from isthmus.runs import read_saved

    saved = read_saved(origin.folder)
    weight, rho = saved.weights["weight"], saved.weights["rho"]
    assert float(rho.max() / rho.min()) > 1.01
    same = build(started(origin), saved)
    assert torch.equal(same.model.rho, rho) and torch.equal(same.model.weight, weight)
    assert torch.equal(same.trainer.scheduler.state.rho, rho)
    equal = build(started(origin, **{"mesh.kind": "equidistant"}), saved).model
    assert torch.allclose(equal.rho, torch.full((6,), 1 / 6, dtype=torch.float64))
    assert torch.equal(equal.weight, interpolate_weights(weight, rho, equal.rho))


def test_the_folder_says_where_it_came_from(origin, folder):
    execute(started(origin), folder)
    assert RunConfig.from_yaml(folder / "config.yaml").model.init_from == str(origin.folder)
    about = json.loads((folder / "environment.json").read_text())["started_from"]
    assert (about["path"], about["step"]) == (str(origin.folder / "model.safetensors"), origin.step)
    assert len(about["digest"]) == 64


def test_it_resumes_to_the_same_bits_without_the_origin(origin, tmp_path, same_bits, stop_after):
    copy = shutil.copytree(origin.folder, tmp_path / "origin")
    config = started(origin, **{"model.init_from": str(copy), "train.steps": 24})
    whole = execute(config, tmp_path / "whole")
    execute(config, tmp_path / "run", should_stop=stop_after(9))
    shutil.rmtree(copy)
    assert same_bits(execute(config, tmp_path / "run", resume=True).model, whole.model)
    assert "started_from" in json.loads((tmp_path / "run" / "environment.json").read_text())


def test_without_a_checkpoint_the_origin_is_needed_again(origin, tmp_path, same_bits):
    copy = shutil.copytree(origin.folder, tmp_path / "origin")
    config = started(origin, **{"model.init_from": str(copy)})
    whole = execute(config, tmp_path / "run")
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    assert same_bits(execute(config, tmp_path / "run", resume=True).model, whole.model)
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    shutil.rmtree(copy)
    with pytest.raises(FolderError, match="origin is not a run folder; give the folder that `isthmus train` wrote"):
        execute(config, tmp_path / "run", resume=True)


def test_another_shape_is_refused_with_every_reason(origin, folder):
    config = started(origin, **{"model.width": 14, "model.depth": 8, "model.append_one": False, "task.dims": "5,2,6"})
    message = (
        r"the configuration to start with has 4 problems:\n"
        r"  model\.width: .*model\.safetensors has 12, got 14\n"
        r"  model\.depth: .*model\.safetensors has 6, got 8\n"
        r"  model\.append_one: .*model\.safetensors has True, got False\n"
        r"  task: .*model\.safetensors was trained on 6 inputs, these are 5\n"
        r"  weights can start a network of the same shape only$"
    )
    with pytest.raises(ConfigError, match=message):
        execute(config, folder)
    assert not folder.exists()


def test_a_run_does_not_start_from_the_folder_that_it_replaces(origin, tmp_path):
    copy = shutil.copytree(origin.folder, tmp_path / "origin")
    before = (copy / "model.safetensors").read_bytes()
    with pytest.raises(FolderError, match="which the new run would replace; give another --out"):
        execute(started(origin, **{"model.init_from": str(copy)}), copy, overwrite=True)
    assert (copy / "model.safetensors").read_bytes() == before


def test_the_checkpoint_of_an_extended_run_holds_its_configuration(steps, folder):
    execute(steps, folder)
    execute(extended(steps, 4), folder, resume=True)
    assert load_state(folder / "checkpoint.safetensors", "checkpoint")["config"]["train"]["extend"] == [4]
