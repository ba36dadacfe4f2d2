"""Checks that look at several fields of a configuration at once."""

import math
from collections.abc import Mapping
from typing import Any

from isthmus.runs.problems import ConfigProblem
from isthmus.runs.sections import Sections

# Which value of which field makes others matter.
_ONLY_FOR = {
    ("task.kind", "teacher"): ("task.teacher", "task.dims", "task.hidden", "task.teacher_layers"),
    ("task.kind", "file"): (
        *("task.path", "task.target", "task.task_type", "task.constant", "task.drop", "task.centre"),
    ),
    ("model.activation", "smooth_relu"): ("model.sharpness",),
    ("mesh.kind", "irregular"): ("mesh.irregularity",),
    ("mesh.kind", "adaptive"): (
        *("mesh.every", "mesh.floor", "mesh.smoothing", "mesh.relaxation"),
        *("mesh.cap", "mesh.slow_cap", "mesh.freeze_fraction"),
    ),
}


def cross_problems(config: Sections) -> list[ConfigProblem]:
    """What is wrong with values that are each right by themselves."""
    task, model, train = config.task, config.model, config.train
    problems = []
    if len(task.dims) < 2 or min(task.dims, default=0) < 1:
        problems.append(ConfigProblem("task.dims", f"expected two or more whole numbers >= 1, got {list(task.dims)}"))
    elif task.kind == "teacher" and model.width < max(task.dims[0], task.dims[-1]):
        ends = max(task.dims[0], task.dims[-1])
        problems.append(
            ConfigProblem("model.width", f"expected at least the larger end of task.dims, {ends}, got {model.width}")
        )
    if task.kind == "file" and not task.path:
        problems.append(
            ConfigProblem("task.path", "expected the path of a data file, since task.kind is file; got none")
        )
    if task.kind == "teacher" and task.test_fraction is not None:
        problems.append(
            ConfigProblem("task.test_fraction", "a teacher makes any number of rows: give task.train and task.test")
        )
    if min(train.extend, default=1) < 1:
        problems.append(ConfigProblem("train.extend", f"expected whole numbers >= 1, got {list(train.extend)}"))
    if config.mesh.kind == "adaptive":
        problems += _mesh_problems(config)
    if train.batch_size is not None:
        rows = task.train if task.train is not None else 1000 if task.kind == "teacher" else None
        if rows is not None and train.batch_size > rows:
            problems.append(
                ConfigProblem("train.batch_size", f"expected at most the {rows} training rows, got {train.batch_size}")
            )
    return problems


def _mesh_problems(config: Sections) -> list[ConfigProblem]:
    mesh, model = config.mesh, config.model
    problems = []
    if mesh.cap > mesh.slow_cap:
        text = f"expected at least mesh.cap, {mesh.cap:g}, got {mesh.slow_cap:g}"
        problems.append(ConfigProblem("mesh.slow_cap", text))
    if model.effective_depth > mesh.cap * model.depth * (1 + 1e-9):
        least = math.ceil(model.effective_depth / mesh.cap * (1 - 1e-9))
        text = f"expected at least {least} layers, so that equal steps keep rho * effective_depth <= mesh.cap"
        problems.append(ConfigProblem("model.depth", f"{text}; got {model.depth}"))
    return problems


def doubts(config: Sections, values: Mapping[str, Any], changed: set[str]) -> tuple[str, ...]:
    """What is allowed but probably not meant.

    Args:
        config: the configuration.
        values: the same by dotted key.
        changed: the keys that differ from their defaults.
    """
    words = []
    for (key, wanted), dependents in _ONLY_FOR.items():
        if values[key] == wanted:
            continue
        for name in dependents:
            if name in changed:
                words.append(f"{name} has no effect: it needs {key}: {wanted}, here it is {values[key]}")
    depth, effective = config.model.depth, config.model.effective_depth
    largest = max(step_sizes(config)) * effective
    if largest > 1 + 1e-6:
        words.append(
            f"rho * effective_depth reaches {largest:.3g} > 1, so that layers change the sign of their skip: "
            f"raise model.depth (now {depth}) or lower model.effective_depth (now {effective:g})"
        )
    return tuple(words)


def step_sizes(config: Sections) -> list[float]:
    """The step-sizes that training starts from, without torch; `isthmus.mesh` has the formula."""
    depth = config.model.depth
    a = config.mesh.irregularity if config.mesh.kind == "irregular" else 0.0
    raw = [1 + a * (0.25 - abs(layer / depth - 0.5)) for layer in range(1, depth + 1)]
    return [value / sum(raw) for value in raw]
