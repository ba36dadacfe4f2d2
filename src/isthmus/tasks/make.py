"""Tasks by name, for configs and the command line."""

import inspect
from collections.abc import Callable
from typing import Any

from isthmus._support import hint
from isthmus.tasks._checks import check_choice
from isthmus.tasks.base import Task
from isthmus.tasks.datasets import digits, mnist, mnist1d
from isthmus.tasks.files import from_file
from isthmus.tasks.teachers import teacher_task

KINDS: dict[str, Callable[..., Task]] = {
    "teacher": teacher_task,
    "digits": digits,
    "mnist": mnist,
    "mnist1d": mnist1d,
    "file": from_file,
}


def make_task(task: str, /, **options: Any) -> Task:
    """Make a task by the name of its kind; the options are those of the kind's own function.

    >>> make_task("teacher", dims=(8, 2, 8), train=20, test=10)
    Task('teacher 8-2-8', inputs=8, outputs=8, train=20, test=10, loss='mse')

    Args:
        task: "teacher" (`teacher_task`), "digits", "mnist", "mnist1d" or "file" (`from_file`).
        options: keyword arguments of that function. `teacher_task`'s own `kind` is also taken as `network`,
            for configs whose `kind` is the task's.

    Raises:
        ValueError: on an unknown kind or option, with the nearest valid name; on a missing one; and as the
            kind's own function does.
    """
    check_choice("the task's kind", task, KINDS)
    maker = KINDS[task]
    if task == "teacher" and "network" in options:
        if "kind" in options:
            raise ValueError("the task 'teacher' got both 'kind' and 'network', which mean the same: give one")
        options["kind"] = options.pop("network")
    parameters = inspect.signature(maker).parameters
    for option in options:
        if option not in parameters:
            mend = hint(option, parameters) or ";"
            raise ValueError(f"the task {task!r} has no option {option!r}{mend} Its options: {', '.join(parameters)}")
    for option, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise ValueError(f"the task {task!r} needs the option {option!r}")
    return maker(**options)
