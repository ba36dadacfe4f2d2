"""Tasks: teachers, data that ships in packages, and the user's own files, all as one `Task`."""

from isthmus.tasks.base import Task
from isthmus.tasks.datasets import digits, mnist, mnist1d
from isthmus.tasks.files import from_file
from isthmus.tasks.inputs import Inputs, inputs_from_file
from isthmus.tasks.make import KINDS, make_task
from isthmus.tasks.teachers import Teacher, teacher_task
from isthmus.tasks.validate import constant_columns, validate

__all__ = [
    "KINDS",
    "Inputs",
    "Task",
    "Teacher",
    "constant_columns",
    "digits",
    "from_file",
    "inputs_from_file",
    "make_task",
    "mnist",
    "mnist1d",
    "teacher_task",
    "validate",
]
