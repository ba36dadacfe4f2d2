"""Objective, optimisers and the trainer: from a task and a model to a path that is nearly critical."""

from isthmus.geodesic import Geodesic
from isthmus.solve.kronecker import KroneckerMetric
from isthmus.solve.lbfgs import LBFGS
from isthmus.solve.muon import Muon, orthogonalise
from isthmus.solve.objective import Evaluation, Problem
from isthmus.solve.optimiser import Optimiser
from isthmus.solve.recipes import RECIPES, Stage, recipe
from isthmus.solve.trainer import Record, Trainer, TrainResult, TrainStatus

__all__ = [
    "LBFGS",
    "RECIPES",
    "Evaluation",
    "Geodesic",
    "KroneckerMetric",
    "Muon",
    "Optimiser",
    "Problem",
    "Record",
    "Stage",
    "TrainResult",
    "TrainStatus",
    "Trainer",
    "orthogonalise",
    "recipe",
]
