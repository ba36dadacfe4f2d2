"""Recipes, the trainer and `solve`: from a problem to a path that is nearly critical."""

from isthmus._rooms import callable_room
from isthmus.solve.recipes import RECIPES, Stage, recipe
from isthmus.solve.refine import carry_path, coarse_start, refine_depth
from isthmus.solve.result import TrainResult
from isthmus.solve.solver import Solution, solve
from isthmus.solve.trainer import Record, Trainer

__all__ = [
    "RECIPES",
    "Record",
    "Solution",
    "Stage",
    "TrainResult",
    "Trainer",
    "carry_path",
    "coarse_start",
    "recipe",
    "refine_depth",
    "solve",
]

callable_room(__name__)
