"""Optimisers, one a file, behind one interface: settings that `start` a run on a problem."""

from isthmus.optimise.first_order import SGD, Adam
from isthmus.optimise.lbfgs import LBFGS
from isthmus.optimise.muon import Muon, orthogonalise
from isthmus.optimise.newton import Newton
from isthmus.optimise.optimiser import Optimiser, Run
from isthmus.optimise.settle import Settle

__all__ = [
    "LBFGS",
    "SGD",
    "Adam",
    "Muon",
    "Newton",
    "Optimiser",
    "Run",
    "Settle",
    "orthogonalise",
]
