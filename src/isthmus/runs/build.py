"""From a configuration to the objects that train: task, model, mesh scheduler, problem, trainer."""

import hashlib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from isthmus.runs.config import RunConfig
from isthmus.runs.problems import ConfigError, ConfigProblem, show_value
from isthmus.runs.saved import Saved, read_saved
from isthmus.runs.sections import MeshConfig, ModelConfig
from isthmus.runs.state import StateError

if TYPE_CHECKING:
    from isthmus.activations import Activation
    from isthmus.mesh import MeshScheduler, StepSizeRule
    from isthmus.model import LeakyResNet
    from isthmus.problem import Problem
    from isthmus.solve import Stage, Trainer
    from isthmus.tasks import Task


@dataclass(frozen=True)
class Built:
    """What a configuration makes.

    Args:
        task: the data, on the CPU in float64.
        model: the network.
        trainer: the trainer, at step 0; ``trainer.problem`` has the data on the device.
        device: where, resolved: ``cpu``, ``cuda``, ``cuda:1``.
        fingerprint: a digest of the data.
    """

    task: "Task"
    model: "LeakyResNet"
    trainer: "Trainer"
    device: str
    fingerprint: str


def resolve_device(name: str) -> str:
    """``cpu``, ``cuda`` or ``cuda:N``, as torch takes it.

    Raises:
        ConfigError: a GPU that torch does not see.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    kind, _, number = name.partition(":")
    if kind == "cuda" and not available:
        text = f"expected cpu or auto, since torch finds no CUDA device here; got {name!r}"
        raise ConfigError([ConfigProblem("train.device", text)])
    if number and int(number) >= (count := torch.cuda.device_count()):
        there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        text = f"expected cpu, auto or {there}, since torch finds no other CUDA device here; got {name!r}"
        raise ConfigError([ConfigProblem("train.device", text)])
    return name


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


def build(config: RunConfig, origin: Saved | None = None) -> Built:
    """Everything that a configuration needs to train, at step 0.

    Args:
        config: the configuration.
        origin: the network to start from, where ``model.init_from`` names one.

    Raises:
        ConfigError: an origin of another shape; a device that is not there.
        ValueError: data or sizes that cannot be used.
        FileNotFoundError: no such data file.
        ImportError: a package that the task needs is not installed.
    """
    from isthmus.problem import Problem
    from isthmus.solve import Trainer, recipe

    train = config.train
    device = resolve_device(train.device)
    task = build_task(config)
    model = build_model(config, task.inputs, task.outputs, device)
    data = task.to(dtype=getattr(torch, train.dtype), device=device)
    stages = recipe(train.recipe, steps=train.steps, rate=train.rate, full_batch=train.batch_size is None)
    scheduler = _scheduler(config, model, data.x_train, stages)
    if origin is not None:
        _start_from(origin, config, model, scheduler)
    tested = len(data.x_test) > 0
    problem = Problem(
        model,
        data.x_train,
        data.y_train,
        loss=task.loss,
        mu=train.mu,
        x_test=data.x_test if tested else None,
        y_test=data.y_test if tested else None,
    )
    trainer = Trainer(
        problem,
        (*stages, *(replace(stages[-1], steps=steps) for steps in train.extend)),
        scheduler=scheduler,
        batch_size=train.batch_size,
        seed=config.seed,
        log_every=train.log_every,
        tolerance=train.tolerance,
    )
    return Built(task, model, trainer, device, fingerprint(task))


def _scheduler(
    config: RunConfig, model: "LeakyResNet", x: torch.Tensor, stages: tuple["Stage", ...]
) -> "MeshScheduler | None":
    """What moves the step-sizes; nothing where they are equal. Extensions of the recipe do not move them."""
    from isthmus.mesh import MeshScheduler

    if config.mesh.kind == "equidistant":
        return None
    moving = sum(stage.steps for stage in stages if not stage.optimiser.full_batch)
    last = round(config.mesh.freeze_fraction * moving)
    return MeshScheduler(model, build_rule(config.mesh), x, every=config.mesh.every, freeze_after=last)


def _start_from(origin: Saved, config: RunConfig, model: "LeakyResNet", scheduler: "MeshScheduler | None") -> None:
    """Give a network the weights, ends and step-sizes of a saved one.

    Where the mesh of the configuration is another, its own first step-sizes stand, and the weights are moved with p.

    Raises:
        ConfigError: the shapes differ; every value that makes them differ is named.
    """
    from isthmus.mesh import interpolate_weights

    mine, weights = model.state_dict(), dict(origin.weights)
    keys = ("model.width", "model.depth", "model.append_one")
    pairs = [(key, config.flat()[key], origin.config.flat()[key]) for key in keys]
    problems = [
        ConfigProblem(key, f"{origin.file} has {show_value(theirs)}, got {show_value(ours)}")
        for key, ours, theirs in pairs
        if ours != theirs
    ]
    for name, what, side in (("in_map", "inputs", 1), ("out_map", "outputs", 0)):
        if mine[name].shape[side] != weights[name].shape[side]:
            theirs, ours = weights[name].shape[side], mine[name].shape[side]
            problems.append(ConfigProblem("task", f"{origin.file} was trained on {theirs} {what}, these are {ours}"))
    if problems:
        advice = "weights can start a network of the same shape only"
        raise ConfigError(problems, "the configuration to start with", advice)
    if config.mesh != origin.config.mesh:
        weights["weight"] = interpolate_weights(weights["weight"], weights["rho"], model.rho.to(weights["weight"]))
    if config.mesh.kind != "adaptive" or config.mesh != origin.config.mesh:
        weights["rho"] = model.rho.detach().clone()  # of the rule itself: float32 would round them
    narrow = weights["rho"].dtype != model.rho.dtype
    model.load_state_dict(weights)
    if narrow:  # as float32 has them, they add up to 1 to 1e-8 only
        model.rho.div_(model.rho.sum())
    if scheduler is not None:
        scheduler.load_state_dict({"calls": 0, "rho": model.rho.detach().clone(), "updates": 0})


def load_run_model(path: str | Path, device: str = "cpu") -> "LeakyResNet":
    """The network of a run as it was last saved, finished or not, or of a model.safetensors; see `read_saved`.

    Raises:
        FolderError, StateError, ConfigError: as `isthmus.runs.saved.read_saved`.
    """
    return restore_model(read_saved(path), device)


def load_run_problem(path: str | Path) -> "Problem":
    """The problem of a run with its network, in float64 on the CPU: to be checked or solved further.

    Raises:
        FolderError, StateError, ConfigError: as `isthmus.runs.saved.read_saved`.
        StateError: the data are not those that the run was trained on.
        ValueError, FileNotFoundError, ImportError: the data cannot be made again.
    """
    return restore_problem(read_saved(path))


def restore_model(saved: Saved, device: str = "cpu") -> "LeakyResNet":
    """The network that was saved."""
    weights = saved.weights
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"rho \* effective_depth")
        model = build_model(saved.config, weights["in_map"].shape[1], weights["out_map"].shape[0], device)
    model.load_state_dict(weights)
    return model


def restore_problem(saved: Saved) -> "Problem":
    """The problem that was solved, its data made again, in float64 on the CPU.

    Raises:
        StateError: a run folder's data are not those that it was trained on. (Of a file alone, made elsewhere, this
            is a warning: another machine may round otherwise.)
    """
    from isthmus.problem import Problem

    task = build_task(saved.config)
    if saved.fingerprint not in (None, fingerprint(task)):
        text = f"the data of {task.name!r} are not those that {saved.place} was trained on"
        if not saved.alone:
            raise StateError(f"{text}; put them back")
        warnings.warn(f"{text} to the last bit: changed, or rounded otherwise on another machine", stacklevel=3)
    model = restore_model(saved).double()
    if saved.weights["rho"].dtype != model.rho.dtype:
        model.rho.div_(model.rho.sum())
    return Problem(model, task.x_train, task.y_train, loss=task.loss, mu=saved.config.train.mu)


def fingerprint(task: "Task") -> str:
    """A digest of the data, by which a resumed run knows that it still has the same."""
    digest = hashlib.sha256(task.loss.encode())
    for part in (task.x_train, task.y_train, task.x_test, task.y_test):
        digest.update(f"{tuple(part.shape)}{part.dtype}".encode())
        digest.update(part.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
