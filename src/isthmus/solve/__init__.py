"""Objective, optimisers and the trainer: from a task and a model to a path that is nearly critical."""

from isthmus.geodesic import Geodesic
from isthmus.solve.certificate import Certificate, certify, hamiltonian_drift
from isthmus.solve.dual import DualMetric
from isthmus.solve.hessian import Hessian
from isthmus.solve.kronecker import KroneckerMetric
from isthmus.solve.lbfgs import LBFGS
from isthmus.solve.muon import Muon, orthogonalise
from isthmus.solve.newton import Newton
from isthmus.solve.objective import Evaluation, Problem
from isthmus.solve.optimiser import Optimiser
from isthmus.solve.recipes import RECIPES, Stage, recipe
from isthmus.solve.refine import carry_path, coarse_start, refine_depth
from isthmus.solve.solver import Solution, SolveStatus, solve
from isthmus.solve.trainer import Record, Trainer, TrainResult, TrainStatus

__all__ = [
    "LBFGS",
    "RECIPES",
    "Certificate",
    "DualMetric",
    "Evaluation",
    "Geodesic",
    "Hessian",
    "KroneckerMetric",
    "Muon",
    "Newton",
    "Optimiser",
    "Problem",
    "Record",
    "Solution",
    "SolveStatus",
    "Stage",
    "TrainResult",
    "TrainStatus",
    "Trainer",
    "carry_path",
    "certify",
    "coarse_start",
    "hamiltonian_drift",
    "orthogonalise",
    "recipe",
    "refine_depth",
    "solve",
]
