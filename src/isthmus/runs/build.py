"""From a configuration to the objects that train: task, model, mesh scheduler, problem, trainer."""

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from isthmus.runs.config import MeshConfig, ModelConfig, RunConfig
from isthmus.runs.problems import ConfigError, Problem

if TYPE_CHECKING:
    from isthmus.activations import Activation
    from isthmus.mesh import StepSizeRule
    from isthmus.model import LeakyResNet
    from isthmus.solve import Trainer
    from isthmus.tasks import Task


@dataclass(frozen=True)
class Built:
    """What a configuration makes.

    Args:
        task: the data, on the CPU in float64.
        model: the network.
        trainer: the trainer, at step 0; ``trainer.problem`` has the data on the device.
        device: where, resolved: ``cpu``, ``cuda``.
    """

    task: "Task"
    model: "LeakyResNet"
    trainer: "Trainer"
    device: str


def resolve(config: RunConfig) -> RunConfig:
    """The configuration as a run stores it, which says what it did: names that stand for others are replaced.

    The data file's path becomes absolute, so that the run can be resumed from another working directory.
    """
    changes: dict[str, Any] = {}
    if config.task.path is not None and not os.path.isabs(config.task.path):
        changes["task.path"] = os.path.abspath(config.task.path)
    if config.model.initialisation == "default":
        from isthmus.initialise import DEFAULT_INITIALISATION

        changes["model.initialisation"] = DEFAULT_INITIALISATION
    return config.merge(changes) if changes else config


def resolve_device(name: str) -> str:
    """``cpu`` or ``cuda``.

    Raises:
        ConfigError: ``cuda`` where torch sees no GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        text = "expected cpu or auto, since torch finds no CUDA device here; got 'cuda'"
        raise ConfigError([Problem("train.device", text)])
    return ("cuda" if available else "cpu") if name == "auto" else name


def build_task(config: RunConfig) -> "Task":
    """The data of a configuration.

    Raises:
        ValueError: data that cannot be used, see `isthmus.tasks`.
        FileNotFoundError: no such data file.
        ImportError: a package that the task needs is not installed.
    """
    from isthmus.tasks import make_task

    task = config.task
    options: dict[str, Any] = {"seed": config.seed, "train": task.train, "test": task.test}
    if task.normalise != "default":
        options["normalise"] = task.normalise
    if task.kind == "teacher":
        options |= {
            "kind": task.teacher,
            "dims": task.dims,
            "hidden": task.hidden,
            "layers": task.teacher_layers,
        }
    else:
        options["test_fraction"] = task.test_fraction
    if task.kind == "file":
        options |= {"path": task.path, "task_type": task.task_type, "constant": task.constant}
        target = task.target[0] if task.target is not None and len(task.target) == 1 else task.target
        options |= {"target": target, "drop": task.drop, "centre": task.centre}
    return make_task(task.kind, **{name: value for name, value in options.items() if value is not None})


def build_activation(config: ModelConfig) -> "Activation":
    """The nonlinearity of a configuration."""
    from isthmus.activations import Identity, ReLU, SmoothReLU

    if config.activation == "smooth_relu":
        return SmoothReLU(append_one=config.append_one, sharpness=config.sharpness)
    return {"relu": ReLU, "identity": Identity}[config.activation](append_one=config.append_one)


def build_rule(config: MeshConfig) -> "StepSizeRule":
    """The rule for the step-sizes."""
    from isthmus.mesh import Adaptive, Equidistant, Irregular

    if config.kind == "irregular":
        return Irregular(irregularity=config.irregularity)
    if config.kind == "adaptive":
        names = ("floor", "smoothing", "relaxation", "cap", "slow_cap")
        return Adaptive(**{name: getattr(config, name) for name in names})
    return Equidistant()


def build_model(config: RunConfig, inputs: int, outputs: int, device: str = "cpu") -> "LeakyResNet":
    """The network of a configuration, for data of these dimensions.

    Raises:
        ValueError: a width smaller than the data's dimensions.
    """
    from isthmus.model import LeakyResNet

    model = config.model
    return LeakyResNet(
        inputs,
        outputs,
        width=model.width,
        depth=model.depth,
        effective_depth=model.effective_depth,
        activation=build_activation(model),
        ends=model.ends,
        initialisation=model.initialisation,
        seed=config.seed,
        dtype=getattr(torch, config.train.dtype),
        device=device,
    )


def build(config: RunConfig) -> Built:
    """Everything that a configuration needs to train, at step 0.

    Raises:
        ValueError: data or sizes that cannot be used.
        FileNotFoundError: no such data file.
        ImportError: a package that the task needs is not installed.
    """
    from isthmus.mesh import MeshScheduler
    from isthmus.problem import Problem as Objective
    from isthmus.solve import Trainer, recipe

    train = config.train
    device = resolve_device(train.device)
    task = build_task(config)
    model = build_model(config, task.inputs, task.outputs, device)
    data = task.to(dtype=getattr(torch, train.dtype), device=device)
    tested = len(data.x_test) > 0
    objective = Objective(
        model,
        data.x_train,
        data.y_train,
        loss=task.loss,
        mu=train.mu,
        x_test=data.x_test if tested else None,
        y_test=data.y_test if tested else None,
    )
    stages = recipe(train.recipe, steps=train.steps, rate=train.rate, full_batch=train.batch_size is None)
    scheduler = None
    if config.mesh.kind != "equidistant":
        moving = sum(stage.steps for stage in stages if not stage.optimiser.full_batch)
        last = round(config.mesh.freeze_fraction * moving)
        rule, every = build_rule(config.mesh), config.mesh.every
        scheduler = MeshScheduler(model, rule, data.x_train, every=every, freeze_after=last)
    trainer = Trainer(
        objective,
        stages,
        scheduler=scheduler,
        batch_size=train.batch_size,
        seed=config.seed,
        log_every=train.log_every,
        tolerance=train.tolerance,
    )
    return Built(task, model, trainer, device)


def fingerprint(task: "Task") -> str:
    """A digest of the data, by which a resumed run knows that it still has the same."""
    digest = hashlib.sha256(task.loss.encode())
    for part in (task.x_train, task.y_train, task.x_test, task.y_test):
        digest.update(f"{tuple(part.shape)}{part.dtype}".encode())
        digest.update(part.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
