import polars as pl
import pytest
import torch

from isthmus.activations import Identity, ReLU, SmoothReLU
from isthmus.initialise import DEFAULT_INITIALISATION
from isthmus.mesh import Adaptive, Equidistant, Irregular
from isthmus.runs import ConfigError, RunConfig
from isthmus.runs.build import (
    build,
    build_activation,
    build_rule,
    build_task,
    fingerprint,
    resolve_device,
)


@pytest.mark.parametrize(
    ("overrides", "activation"),
    [
        ({}, ReLU(append_one=True)),
        ({"model.append_one": False}, ReLU(append_one=False)),
        ({"model.activation": "identity"}, Identity()),
        ({"model.activation": "smooth_relu", "model.sharpness": 5}, SmoothReLU(sharpness=5.0)),
    ],
)
def test_activations(overrides, activation):
    assert build_activation(RunConfig().merge(overrides).model) == activation


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        ({}, Equidistant()),
        ({"mesh.kind": "irregular", "mesh.irregularity": 0.3}, Irregular(0.3)),
        ({"mesh.kind": "adaptive"}, Adaptive()),
        (
            {"mesh.kind": "adaptive", "mesh.floor": 0.2, "mesh.smoothing": 3, "mesh.slow_cap": 1.5},
            Adaptive(floor=0.2, smoothing=3, slow_cap=1.5),
        ),
        (
            {"mesh.kind": "adaptive", "mesh.relaxation": 0.1, "mesh.cap": 0.8},
            Adaptive(relaxation=0.1, cap=0.8),
        ),
    ],
)
def test_step_size_rules(overrides, rule):
    assert build_rule(RunConfig().merge(overrides).mesh) == rule


def test_the_model_is_as_configured(tiny):
    built = build(tiny.merge({"model.ends": "learned", "mesh.kind": "irregular"}))
    model = built.model
    assert (model.in_features, model.out_features, model.width, model.depth) == (6, 6, 12, 6)
    assert model.effective_depth == 3.0
    assert model.ends == "learned"
    assert model.weight.dtype == torch.float64
    assert torch.allclose(model.rho, Irregular(0.5).init(6, 3.0).rho)


def test_the_trainer_is_as_configured(tiny):
    overrides = {"train.recipe": "paper", "train.rate": 0.3, "train.batch_size": 7, "train.mu": 0.02}
    trainer = build(tiny.merge(overrides)).trainer
    assert [stage.optimiser.name for stage in trainer.stages] == ["adam", "sgd"]
    assert trainer.stages[0].rate == 0.3
    assert (trainer.total_steps, trainer.batch_size, trainer.log_every) == (24, 7, 4)
    assert trainer.problem.mu == 0.02
    assert trainer.problem.x.dtype == torch.float64
    assert len(trainer.problem.x_test) == 30


def test_minibatches_leave_out_the_full_batch_stages(tiny):
    trainer = build(tiny.merge({"train.batch_size": 7})).trainer
    assert [stage.optimiser.name for stage in trainer.stages] == ["muon"]
    assert trainer.total_steps == 24


def test_the_mesh_freezes_after_its_part_of_the_steps(tiny):
    scheduler = build(
        tiny.merge({"mesh.kind": "adaptive", "mesh.freeze_fraction": 0.5, "mesh.every": 3})
    ).trainer.scheduler
    assert (scheduler.freeze_after, scheduler.every) == (2, 3)  # half of Muon's steps
    assert build(tiny).trainer.scheduler is None


def test_the_seed_decides_data_weights_and_batches(tiny):
    first, again, other = (build(tiny.merge({"seed": seed, "train.batch_size": 7})) for seed in (1, 1, 2))
    assert torch.equal(first.model.weight, again.model.weight)
    assert torch.equal(first.task.x_train, again.task.x_train)
    assert not torch.equal(first.model.weight, other.model.weight)
    assert not torch.equal(first.task.x_train, other.task.x_train)
    assert torch.equal(first.trainer._generator.get_state(), again.trainer._generator.get_state())
    assert not torch.equal(first.trainer._generator.get_state(), other.trainer._generator.get_state())


def test_teachers_are_as_configured():
    task = build_task(
        RunConfig().merge({"task.teacher": "resnet", "task.dims": "5,2,4", "task.train": 20, "task.test": 9})
    )
    assert (task.inputs, task.outputs, len(task.x_train), len(task.x_test)) == (5, 4, 20, 9)
    assert "resnet" in str(task.notes)
    assert len(build_task(RunConfig()).x_train) == 1000


def test_normalisation_is_the_tasks_own_unless_given():
    config = RunConfig().merge({"task.dims": "5,2,4", "task.train": 20})
    assert build_task(config).notes["normalise"] == "coordinate"
    assert build_task(config.merge({"task.normalise": "global"})).notes["normalise"] == "global"


def test_data_sets_take_their_options():
    task = build_task(RunConfig().merge({"task.kind": "digits", "task.train": 50, "task.test_fraction": 0.5}))
    assert (len(task.x_train), task.classes) == (50, 10)
    assert 890 <= len(task.x_test) <= 905


def test_files_take_their_options(tmp_path):
    file = tmp_path / "a.csv"
    frame = pl.DataFrame(
        {name: [((i * k) % 17) / 3 for i in range(40)] for k, name in ((3, "a"), (5, "b"), (7, "y1"), (11, "y2"))}
    )
    frame = frame.with_columns(pl.lit(1.0).alias("flat"), pl.arange(40).alias("id"))
    frame.write_csv(file)
    base = RunConfig().merge({"task.kind": "file", "task.path": str(file), "task.drop": "id", "task.constant": "drop"})
    task = build_task(base.merge({"task.target": "y1,y2"}))
    assert (task.inputs, task.outputs) == (2, 2)
    by_number = build_task(base.merge({"task.target": 2, "task.task_type": "regression"}))
    assert by_number.notes["targets"] == ["y1"]
    mixed = build_task(base.merge({"task.target": "y2,2"}))
    assert mixed.notes["targets"] == ["y2", "y1"]
    with pytest.raises(ValueError, match="flat"):
        build_task(base.merge({"task.target": "y1", "task.constant": "error"}))


def test_target_columns_are_first_names_and_then_numbers(tmp_path):
    file = tmp_path / "a.csv"
    pl.DataFrame({str(k): [((i * k) % 17) / 3 for i in range(40)] for k in (1, 2, 3)}).write_csv(file)
    base = RunConfig().merge({"task.kind": "file", "task.path": str(file)})
    for target, name in ((2, "2"), ("3", "3"), ("0", "1"), ("-1", "3")):
        assert build_task(base.merge({"task.target": target})).notes["targets"] == [name]


def test_a_relative_path_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = RunConfig().merge({"task.kind": "file", "task.path": "x/../a.csv"})
    assert config.resolved().task.path == str(tmp_path / "a.csv")
    assert config.resolved().resolved() == config.resolved()


def test_the_default_initialisation_gets_its_name():
    assert RunConfig().resolved().model.initialisation == DEFAULT_INITIALISATION
    named = RunConfig().merge({"model.initialisation": "small"})
    assert named.resolved() == named


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [resolve_device(name) for name in ("cpu", "auto")] == ["cpu", "cpu"]
    with pytest.raises(ConfigError, match=r"train\.device: expected cpu or auto, since torch finds no CUDA device"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [resolve_device(name) for name in ("cpu", "auto", "cuda")] == ["cpu", "cuda", "cuda"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [resolve_device(name) for name in ("cuda:0", "cuda:1")] == ["cuda:0", "cuda:1"]
    message = (
        r"train\.device: expected cpu, auto or cuda:0 to cuda:1, since torch finds no other CUDA device here; got "
    )
    with pytest.raises(ConfigError, match=message + "'cuda:2'"):
        resolve_device("cuda:2")


def test_a_device_with_a_number_is_accepted_in_form_and_refused_where_it_is_not_there(monkeypatch):
    config = RunConfig().merge({"train.device": "cuda:1"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"since torch finds no CUDA device here; got 'cuda:1'"):
        build(config)


def test_the_fingerprint_tells_data_apart():
    config = RunConfig().merge({"task.dims": "5,2,4", "task.train": 20, "task.test": 5})
    task = build_task(config)
    assert fingerprint(task) == fingerprint(build_task(config))
    assert fingerprint(task) != fingerprint(build_task(config.merge({"seed": 1})))
    task.y_test[0, 0] += 1e-12
    assert fingerprint(task) != fingerprint(build_task(config))
