import json
import math

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from isthmus.runs import (
    ConfigError,
    FolderError,
    RunConfig,
    RunError,
    RunFolder,
    StateError,
    execute,
    load_run_model,
)
from isthmus.runs import execution as module
from isthmus.runs.build import build
from isthmus.runs.reader import load_run
from isthmus.runs.schema import PRODUCTS, TABLES
from isthmus.runs.state import load_state, save_state

SUMMARY_KEYS = {
    *("status", "objective", "data_cost", "penalty", "test_cost", "residual_max", "residual_median"),
    *("rank_estimate", "minus_2h_over_l_median", "minus_2h_over_l_min", "minus_2h_over_l_max", "min_coi"),
    *("min_coi_stable", "effective_depth", "depth", "width", "seed", "steps", "seconds", "message", "advice"),
    *(
        "task",
        "activation",
        "mesh",
        "recipe",
        "mu",
        "verdict",
        "doubts",
        "method",
        "trusted",
        "rank_threshold",
    ),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished run, not to be changed."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    tiny = {
        "task": {"dims": [6, 2, 6], "hidden": 8, "train": 60, "test": 30},
        "model": {"width": 12, "depth": 6, "effective_depth": 3.0},
        "train": {"steps": 24, "log_every": 4, "checkpoint_every": 7, "threads": 1, "dtype": "float64"},
    }
    config = RunConfig.from_mapping({"name": "tiny", **tiny})
    return execute(config, folder)


# --- what a run leaves ------------------------------------------------------------------------------------------


def test_a_run_leaves_every_file(finished):
    found = {entry.name for entry in finished.folder.iterdir()}
    assert found == {*PRODUCTS, "config.yaml", "checkpoint.safetensors", "environment.json", ".lock"}
    assert finished.status == "done"
    assert finished.step == 24


def test_the_summary_is_complete(finished):
    summary = json.loads((finished.folder / "summary.json").read_text(), parse_constant=pytest.fail)
    assert SUMMARY_KEYS <= set(summary)
    assert (summary["status"], summary["steps"], summary["depth"], summary["width"]) == ("done", 24, 6, 12)
    assert summary["objective"] == pytest.approx(summary["data_cost"] + summary["penalty"], rel=1e-12)
    history = pl.read_parquet(finished.folder / "history.parquet")
    assert summary["objective"] == pytest.approx(history["objective"][-1], rel=1e-9)
    assert summary["residual_max"] == pytest.approx(history["residual_max"][-1], rel=1e-6)
    assert "test_accuracy" not in summary
    assert dict(finished.summary) == summary


def test_the_tables_have_the_columns_that_the_report_reads(finished):
    run = load_run(finished.folder)
    assert run.notes == ()
    assert set(run.history.columns) == set(TABLES["history"].columns)
    assert set(TABLES["layers"].columns) <= set(run.layers.columns)
    assert run.trace("step") == [0, 4, 8, 12, 16, 20, 24]
    assert run.layers.height == 6
    assert set(run.projection.columns) == set(TABLES["projection"].columns)
    assert set(run.spectra["kind"]) == {"A", "W"}
    assert pl.read_csv(finished.folder / "layers.csv").height == 6


def test_the_projection_keeps_distances_up_to_two_dimensions(finished):
    table = pl.read_parquet(finished.folder / "projection.parquet")
    assert table.height == 7 * 60
    assert sorted(table["layer"].unique()) == list(range(7))
    assert abs(table["pc1"].mean()) < 1e-12
    assert table["pc1"].std() >= table["pc2"].std()
    assert abs((table["pc1"] * table["pc2"]).mean()) < 1e-10
    ends = table.filter(pl.col("layer") == 6)["p"].unique().to_list()
    assert ends == pytest.approx([1.0])


def test_the_stored_configuration_is_the_whole_one_with_names_resolved(finished):
    stored = RunConfig.from_yaml(finished.folder / "config.yaml")
    assert stored.model.initialisation != "default"
    assert stored.train.steps == 24


def test_the_model_comes_back(finished, same_bits):
    model = load_run_model(finished.folder)
    assert same_bits(model, finished.model)
    assert "weight" in load_file(finished.folder / "model.safetensors")


def test_the_model_comes_back_without_the_checkpoint(finished, tmp_path, same_bits):
    (tmp_path / "model.safetensors").write_bytes((finished.folder / "model.safetensors").read_bytes())
    assert same_bits(load_run_model(tmp_path), finished.model)


def test_loading_a_model_from_no_run(tmp_path):
    with pytest.raises(FolderError, match="is not a run folder; give the folder that `isthmus train` wrote"):
        load_run_model(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(FolderError, match=r"has no saved weights yet; `isthmus train --resume --out .*` trains it"):
        load_run_model(tmp_path)


def test_callbacks_are_told(tiny, folder):
    started, rows = [], []
    outcome = execute(tiny, folder, on_start=started.append, on_record=rows.append)
    assert (started[0].step, started[0].total, started[0].folder) == (0, 24, folder)
    assert [row["step"] for row in rows] == [0, 4, 8, 12, 16, 20, 24]
    assert outcome.folder == folder


def test_classification_has_accuracies(tiny, folder):
    overrides = {
        "task.kind": "digits",
        "task.dims": "30,3,30",
        "task.hidden": 20,
        "task.train": 60,
        "task.test": 40,
        "model.width": 64,
        "train.steps": 4,
    }
    outcome = execute(tiny.merge(overrides), folder)
    assert 0 <= outcome.summary["train_accuracy"] <= 1
    assert 0 <= outcome.summary["test_accuracy"] <= 1
    assert load_run(folder).classification


def test_a_task_without_a_test_part(tiny, folder, tmp_path):
    frame = pl.DataFrame({name: [((i * k) % 17) / 3 for i in range(40)] for k, name in ((3, "a"), (5, "b"), (7, "y"))})
    frame.write_csv(tmp_path / "a.csv")
    overrides = {
        "task.kind": "file",
        "task.path": str(tmp_path / "a.csv"),
        "task.test_fraction": 0,
        "task.dims": "30,3,30",
        "task.hidden": 20,
        "task.train": None,
        "task.test": None,
        "task.task_type": "regression",
    }
    outcome = execute(tiny.merge(overrides), folder)
    assert outcome.summary["test_cost"] is None
    assert load_run(folder).value("test_cost") is None


def test_no_leak_at_all(tiny, folder):
    outcome = execute(tiny.merge({"model.effective_depth": 0}), folder)
    assert outcome.status == "done"
    assert outcome.summary["minus_2h_over_l_median"] is None
    assert load_run(folder).value("objective") is not None


def test_threads_are_set_while_it_runs_and_put_back(tiny, folder):
    before = torch.get_num_threads()
    seen = []
    execute(tiny.merge({"train.threads": 2}), folder, on_record=lambda row: seen.append(torch.get_num_threads()))
    assert set(seen) == {2}
    assert torch.get_num_threads() == before
    assert json.loads((folder / "environment.json").read_text())["threads"] == 2


def test_doubts_of_the_configuration_are_warned_about_once(tiny, folder):
    config = tiny.merge({"model.effective_depth": 9, "train.steps": 3})
    with pytest.warns(UserWarning) as caught:
        execute(config, folder)
    assert [str(warning.message)[:30] for warning in caught] == ["rho * effective_depth reaches "]


# --- resuming ---------------------------------------------------------------------------------------------------

VARIANTS = {
    "default": {},
    "paper": {"train.recipe": "paper"},
    "minibatches": {"train.batch_size": 16},
    "minibatches, adaptive, paper": {
        "train.recipe": "paper",
        "train.batch_size": 16,
        "mesh.kind": "adaptive",
        "mesh.every": 3,
    },
    "adaptive": {"mesh.kind": "adaptive", "mesh.every": 2},
    "adaptive, float32": {"mesh.kind": "adaptive", "mesh.every": 2, "train.dtype": "float32"},
    "irregular, learned ends": {"mesh.kind": "irregular", "model.ends": "learned"},
    "smooth, no biases": {"model.activation": "smooth_relu", "model.append_one": False},
}
EVERYWHERE = ("default", "paper")
FILE = {
    **{"task.kind": "file", "task.dims": "30,3,30", "task.hidden": 20},
    **{"task.train": None, "task.test": None, "task.task_type": "regression"},
}


def rows_without_time(folder):
    return pl.read_parquet(folder / "history.parquet").drop("seconds")


def stops(config, everywhere):
    """Around the boundaries of the stages, or once within each stage."""
    stages = [stage.steps for stage in build(config).trainer.stages]
    ends = [sum(stages[: index + 1]) for index in range(len(stages))]
    if everywhere:
        return sorted({end + shift for end in ends[:-1] for shift in (-1, 0, 1)} | {ends[-1] - 1})
    return [end - (steps + 1) // 2 for end, steps in zip(ends, stages, strict=True)]


@pytest.mark.parametrize("name", VARIANTS)
def test_an_interrupted_run_ends_in_the_same_bits(tiny, tmp_path, stop_after, same_bits, name):
    config = tiny.merge(VARIANTS[name])
    whole = execute(config, tmp_path / "whole")
    for step in stops(config, name in EVERYWHERE):
        folder = tmp_path / str(step)
        first = execute(config, folder, should_stop=stop_after(step))
        assert (first.status, first.step) == ("interrupted", step)
        assert not same_bits(first.model, whole.model)
        second = execute(config, folder, resume=True)
        assert second.status == "done"
        assert same_bits(second.model, whole.model), step
        assert rows_without_time(folder).equals(rows_without_time(whole.folder)), step


def test_an_interrupted_run_has_its_products_and_later_those_of_the_whole(tiny, folder, stop_after):
    execute(tiny, folder, should_stop=stop_after(10))
    half = load_run(folder)
    assert half.status == "interrupted"
    assert half.summary["steps"] == 10
    execute(tiny, folder, resume=True)
    assert load_run(folder).summary["steps"] == 24


def test_many_interruptions(tiny, finished, folder, stop_after, same_bits):
    for _ in range(8):
        outcome = execute(tiny, folder, resume=True, should_stop=stop_after(3))
    assert outcome.status == "done"
    assert same_bits(outcome.model, finished.model)
    assert len(json.loads((folder / "environment.json").read_text())["resumed"]) == 7


@pytest.mark.parametrize("step", [0, 4, 8, 16, 24])
def test_a_crash_between_checkpoints(tiny, finished, folder, same_bits, step):
    def crash(row):
        if row["step"] == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(tiny, folder, on_record=crash)
    assert (folder / "checkpoint.safetensors").exists() == (step > 7)
    started = []
    outcome = execute(tiny, folder, resume=True, on_start=started.append)
    assert started[0].step == step // 7 * 7 if step < 24 else 21
    assert same_bits(outcome.model, finished.model)
    assert rows_without_time(folder).equals(rows_without_time(finished.folder))


def test_a_finished_run_trains_nothing_and_mends_its_products(tiny, finished, folder, monkeypatch):
    execute(tiny, folder)
    checkpoint = (folder / "checkpoint.safetensors").read_bytes()
    before = json.loads((folder / "summary.json").read_text())
    (folder / "layers.parquet").unlink()
    (folder / "history.parquet").write_bytes(b"half")
    monkeypatch.setattr("isthmus.solve.Trainer.step", lambda self: pytest.fail("trained"))
    started = []
    outcome = execute(tiny, folder, resume=True, on_start=started.append)
    assert started[0].step == 24
    assert (folder / "checkpoint.safetensors").read_bytes() == checkpoint
    assert json.loads((folder / "summary.json").read_text()) == before == outcome.summary
    assert load_run(folder).layers.height == 6


def test_a_crash_while_reading_the_network_is_repaired_by_resuming(tiny, finished, folder, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("no")

    with monkeypatch.context() as patch:
        patch.setattr("isthmus.bottleneck.bottleneck", fail)
        with pytest.raises(
            RunError, match="the run failed while reading the trained network: ValueError: no"
        ) as caught:
            execute(tiny, folder)
    assert isinstance(caught.value.__cause__, ValueError)
    assert not (folder / "summary.json").exists()
    assert execute(tiny, folder, resume=True).summary["objective"] == finished.summary["objective"]


@pytest.mark.parametrize("what", ["absent", "empty", "left over", "configuration only"])
def test_resuming_what_saved_nothing_starts_from_the_beginning(tiny, finished, folder, same_bits, what):
    if what != "absent":
        folder.mkdir()
    if what == "left over":
        (folder / ".lock").write_text("pid 1\n")
        (folder / ".config.yaml.abc.tmp").write_text("na")
    if what == "configuration only":
        (folder / "config.yaml").write_text((finished.folder / "config.yaml").read_text())
    assert same_bits(execute(tiny, folder, resume=True).model, finished.model)
    assert not (folder / ".config.yaml.abc.tmp").exists()


def test_resuming_with_other_values_names_them(tiny, folder, stop_after):
    execute(tiny, folder, should_stop=stop_after(3))
    message = (
        r"the configuration to resume with has 2 problems:\n"
        r"  model\.depth: the run in .* has 6, got 7\n"
        r"  train\.steps: the run in .* has 24, got 30\n"
        r"  a run is resumed as it was begun; for other values start one in a new folder"
    )
    with pytest.raises(ConfigError, match=message):
        execute(tiny.merge({"model.depth": 7, "train.steps": 30}), folder, resume=True)


@pytest.mark.parametrize("step", [10, 24], ids=["interrupted", "finished"])
def test_a_configuration_changed_by_hand_is_refused(tiny, folder, stop_after, step):
    execute(tiny, folder, should_stop=stop_after(step))
    edited = tiny.merge({"train.mu": 0.5, "analysis.gamma0": 0.1})
    path = folder / "config.yaml"
    original = path.read_text()
    text = original.replace("mu: 0.001", "mu: 0.5").replace("gamma0: 0.001", "gamma0: 0.1")
    path.write_text(text)
    message = (
        r"the configuration to resume with has 2 problems:\n"
        r"  train\.mu: the checkpoint in .* has 0\.001, got 0\.5\n"
        r"  analysis\.gamma0: the checkpoint in .* has 0\.001, got 0\.1\n"
        r"  a run is resumed as it was begun"
    )
    summary = (folder / "summary.json").read_text()
    with pytest.raises(ConfigError, match=message):
        execute(edited, folder, resume=True)
    assert (folder / "summary.json").read_text() == summary
    path.write_text(original)
    assert execute(tiny, folder, resume=True).status == "done"


def test_the_model_is_built_as_it_was_trained_whatever_the_file_says_now(finished, tmp_path):
    for name in ("config.yaml", "checkpoint.safetensors"):
        (tmp_path / name).write_bytes((finished.folder / name).read_bytes())
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("effective_depth: 3.0", "effective_depth: 4.0"))
    with pytest.warns(UserWarning, match=r"has no model\.safetensors yet: its checkpoint of step 24 is read"):
        assert load_run_model(tmp_path).effective_depth == 3.0


@pytest.mark.parametrize("use", ["resume", "load"])
def test_a_checkpoint_that_does_not_say_its_configuration(tiny, folder, stop_after, use):
    execute(tiny, folder, should_stop=stop_after(3))
    path = folder / "checkpoint.safetensors"
    state = load_state(path, "checkpoint")
    del state["config"]
    path.write_bytes(save_state(state, "checkpoint"))
    with pytest.raises(StateError, match=r"does not fit this isthmus \(it does not say its configuration\); use the"):
        execute(tiny, folder, resume=True) if use == "resume" else load_run_model(folder)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def count_writes(monkeypatch, kill_at=None):
    """Note what `RunFolder` writes, and be killed before the write of that number."""
    real, written = RunFolder.write_bytes, []

    def write(self, name, data):
        if len(written) == kill_at:
            raise Killed
        written.append(name)
        real(self, name, data)

    monkeypatch.setattr(RunFolder, "write_bytes", write)
    return written


WRITES = 2 + 4 + 10
"""The configuration and the environment, four checkpoints, the products."""


def test_every_state_is_saved_once(tiny, tmp_path, monkeypatch, stop_after):
    def saves(folder, **options):
        with monkeypatch.context() as patch:
            written = count_writes(patch)
            execute(tiny, tmp_path / folder, **options)
        assert written[:2] == (["config.yaml", "environment.json"] if "resume" not in options else written[:2])
        return written.count("checkpoint.safetensors"), len(written)

    assert saves("whole") == (4, WRITES)  # steps 7, 14, 21, 24
    assert saves("between", should_stop=stop_after(10))[0] == 2  # steps 7 and 10
    assert saves("on one", should_stop=stop_after(14))[0] == 2  # steps 7 and 14
    assert saves("on one", resume=True)[0] == 2  # steps 21 and 24


@pytest.mark.parametrize("number", range(WRITES))
def test_a_kill_before_any_write_leaves_what_can_be_resumed(tiny, finished, folder, monkeypatch, same_bits, number):
    with monkeypatch.context() as patch:
        count_writes(patch, kill_at=number)
        with pytest.raises(Killed):
            execute(tiny, folder)
    outcome = execute(tiny, folder, resume=True)
    assert outcome.status == "done"
    assert same_bits(outcome.model, finished.model)
    assert outcome.summary["objective"] == finished.summary["objective"]
    assert {entry.name for entry in folder.iterdir()} == {entry.name for entry in finished.folder.iterdir()}


def test_the_environment_of_a_run_that_saved_nothing_is_not_kept(tiny, folder, monkeypatch):
    with monkeypatch.context() as patch:
        count_writes(patch, kill_at=2)
        with pytest.raises(Killed):
            execute(tiny, folder)
    environment = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps({**environment, "threads": 99}))
    execute(tiny, folder, resume=True)
    assert "resumed" not in (now := json.loads((folder / "environment.json").read_text()))
    assert now["threads"] == 1


def test_a_file_by_a_relative_path_is_found_from_another_folder(tiny, tmp_path, monkeypatch, stop_after):
    (tmp_path / "here" / "below").mkdir(parents=True)
    columns = {name: [((i * k) % 17) / 3 for i in range(40)] for k, name in ((3, "a"), (5, "b"), (7, "y"))}
    pl.DataFrame(columns).write_csv(tmp_path / "here" / "a.csv")
    config = tiny.merge({**FILE, "task.path": "a.csv"})
    monkeypatch.chdir(tmp_path / "here")
    execute(config, "run", should_stop=stop_after(3))
    stored = RunConfig.from_yaml("run/config.yaml")
    assert stored.task.path == str(tmp_path / "here" / "a.csv")
    monkeypatch.chdir(tmp_path / "here" / "below")
    execute(stored, "../run", resume=True, should_stop=stop_after(3))
    assert execute(config.merge({"task.path": "../a.csv"}), "../run", resume=True).status == "done"


def test_a_configuration_written_by_hand_may_use_names_for_others(tiny, folder):
    folder.mkdir()
    (folder / "config.yaml").write_text(tiny.to_yaml())
    assert "initialisation: default" in tiny.to_yaml()
    assert execute(tiny, folder, resume=True).status == "done"


def test_a_damaged_checkpoint_says_what_to_do_and_that_works(tiny, finished, folder, stop_after, same_bits):
    execute(tiny, folder, should_stop=stop_after(10))
    path = folder / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(
        StateError, match=r"damaged or cut short.*; delete it, and --resume trains again from the first"
    ):
        execute(tiny, folder, resume=True)
    path.unlink()
    assert same_bits(execute(tiny, folder, resume=True).model, finished.model)


def test_a_checkpoint_of_other_data(tiny, folder, tmp_path):
    config = tiny.merge({**FILE, "task.path": str(tmp_path / "a.csv")})
    columns = {name: [((i * k) % 17) / 3 for i in range(40)] for k, name in ((3, "a"), (5, "b"), (7, "y"))}
    pl.DataFrame(columns).write_csv(tmp_path / "a.csv")
    execute(config, folder)
    columns["a"][0] += 1
    pl.DataFrame(columns).write_csv(tmp_path / "a.csv")
    with pytest.raises(StateError, match=r"the data of .* are not those that .* was trained on; put them back, or"):
        execute(config, folder, resume=True)


def test_a_checkpoint_that_does_not_fit(tiny, folder, stop_after):
    execute(tiny, folder, should_stop=stop_after(10))
    path = folder / "checkpoint.safetensors"
    state = load_state(path, "checkpoint")
    del state["trainer"]["cursor"]
    path.write_bytes(save_state(state, "checkpoint"))
    with pytest.raises(StateError, match=r"does not fit this isthmus \(KeyError: 'cursor'\); use the version that"):
        execute(tiny, folder, resume=True)


def test_another_number_of_threads_is_warned_about(tiny, folder, stop_after):
    config = tiny.merge({"train.threads": None})
    execute(config, folder, should_stop=stop_after(3))
    environment = json.loads((folder / "environment.json").read_text())
    before, now = environment["threads"] + 1, environment["threads"]
    (folder / "environment.json").write_text(json.dumps({**environment, "threads": before}))
    message = f"the number of threads was {before} and is {now}: the resumed run may end in other bits"
    with pytest.warns(UserWarning, match=message):
        execute(config, folder, resume=True)


# --- divergence -------------------------------------------------------------------------------------------------


def test_a_divergence_keeps_the_last_good_state(tiny, folder, same_bits):
    config = tiny.merge({"train.recipe": "paper", "train.rate": 1e200})
    outcome = execute(config, folder)
    assert outcome.status == "diverged"
    assert "NaN or Inf" in outcome.message
    assert "rate" in outcome.advice
    assert outcome.layer is not None
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "diverged"
    assert (summary["message"], summary["advice"]) == (outcome.message, outcome.advice)
    assert math.isfinite(summary["objective"])
    assert all(bool(torch.isfinite(value).all()) for value in load_run_model(folder).state_dict().values())
    assert load_run(folder).status == "diverged"
    again = execute(config, folder, resume=True)
    assert (again.status, again.message, again.layer) == ("diverged", outcome.message, outcome.layer)
    assert same_bits(again.model, outcome.model)


def test_a_run_stopped_just_before_it_diverges_resumes_to_the_same_end(tiny, tmp_path, stop_after):
    # After the first step the weights are finite and the objective is not: no state to keep, none to read.
    config = tiny.merge({"train.recipe": "paper", "train.rate": 1e200, "train.checkpoint_every": 1})
    whole = execute(config, tmp_path / "whole")
    folder = tmp_path / "stopped"
    outcome = execute(config, folder, should_stop=stop_after(1))
    assert (outcome.status, outcome.step, outcome.summary) == ("interrupted", 1, {})
    assert not (folder / "checkpoint.safetensors").exists()
    again = execute(config, folder, resume=True)
    assert (again.status, again.message) == ("diverged", whole.message)
    assert again.summary["objective"] == whole.summary["objective"]


# --- failures of the machine ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "doing"),
    [
        ("config.yaml", "writing its configuration"),
        ("environment.json", "writing its configuration"),
        ("checkpoint.safetensors", "training"),
        ("layers.parquet", "reading the trained network"),
        ("history.csv", "reading the trained network"),
        ("summary.json", "reading the trained network"),
    ],
)
@pytest.mark.parametrize("error", [OSError(28, "No space left"), PermissionError(13, "Permission denied")], ids=str)
def test_a_full_disk_says_what_to_do(tiny, folder, monkeypatch, name, doing, error):
    real = module.RunFolder.write_bytes

    def write(self, what, data):
        if what == name:
            raise error
        real(self, what, data)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_bytes", write)
        message = (
            rf"the run failed while {doing}: \[Errno \d+\] {error.strerror}; free space or correct permissions, then "
            r"`isthmus train --resume --out .*run`$"
        )
        with pytest.raises(RunError, match=message) as caught:
            execute(tiny, folder)
    assert caught.value.__cause__ is error
    assert execute(tiny, folder, resume=True).status == "done"


def test_a_closed_pipe_gets_no_advice_on_space(tiny, folder):
    def closed(row):
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(RunError, match=r"the run failed while training: \[Errno 32\] Broken pipe$"):
        execute(tiny, folder, on_record=closed)


# --- folders ----------------------------------------------------------------------------------------------------


def test_an_existing_run_is_not_touched(tiny, finished):
    before = {entry.name: entry.read_bytes() for entry in finished.folder.iterdir()}
    with pytest.raises(FolderError, match="already holds a run"):
        execute(tiny, finished.folder)
    assert {entry.name: entry.read_bytes() for entry in finished.folder.iterdir()} == before


def test_overwriting_replaces_it(tiny, folder):
    execute(tiny, folder)
    (folder / "report.html").write_text("old")
    (folder / "notes.txt").write_text("mine")
    execute(tiny.merge({"seed": 5, "train.steps": 4}), folder, overwrite=True)
    assert load_run(folder).summary["seed"] == 5
    assert not (folder / "report.html").exists()
    assert (folder / "notes.txt").read_text() == "mine"
    assert "resumed" not in json.loads((folder / "environment.json").read_text())


def test_resume_and_overwrite_exclude_each_other(tiny, folder):
    with pytest.raises(FolderError, match="either resumed or overwritten: give one of resume and overwrite"):
        execute(tiny, folder, resume=True, overwrite=True)


def test_there_is_nothing_to_resume_in_other_folders(tiny, folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    with pytest.raises(FolderError, match="is not a run folder: there is nothing to resume"):
        execute(tiny, folder, resume=True)


def test_a_run_that_lost_its_configuration(tiny, folder, stop_after):
    execute(tiny, folder, should_stop=stop_after(3))
    (folder / "config.yaml").unlink()
    with pytest.raises(FolderError, match=r"has lost its config\.yaml: put it back, or start anew with --overwrite"):
        execute(tiny, folder, resume=True)


def test_a_busy_folder_is_refused(tiny, folder):
    with RunFolder(folder).lock(), pytest.raises(FolderError, match=r"another process .* is training in"):
        execute(tiny, folder)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"task.kind": "file", "task.path": "no-such.csv"}, FileNotFoundError, "no-such.csv"),
        ({"task.kind": "digits", "model.width": 20}, ValueError, "width must be at least the larger end"),
        (
            {"train.batch_size": 61, "task.train": None, "task.kind": "digits", "model.width": 9},
            ValueError,
            "width",
        ),
    ],
)
def test_misuse_leaves_no_folder(tiny, folder, overrides, error, message):
    neutral = {"task.dims": "30,3,30", "task.hidden": 20} if overrides.get("task.kind") else {}
    with pytest.raises(error, match=message):
        execute(tiny.merge({"model.width": 40, **neutral, **overrides}), folder)
    assert not folder.exists()


def test_a_failure_while_training_keeps_the_last_checkpoint(tiny, finished, folder, monkeypatch, same_bits):
    real = RunFolder.write_bytes
    calls = []

    def full(self, name, data):
        if name == module.CHECKPOINT:
            calls.append(name)
            if len(calls) == 2:
                raise OSError(28, "No space left on device")
        real(self, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_bytes", full)
        message = (
            r"the run failed while training: .*No space left on device; free space or correct permissions, then `isth"
        )
        with pytest.raises(RunError, match=message):
            execute(tiny, folder)
    started = []
    outcome = execute(tiny, folder, resume=True, on_start=started.append)
    assert started[0].step == 7
    assert same_bits(outcome.model, finished.model)
