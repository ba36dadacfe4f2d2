"""Optimisers, one a file, behind one interface: first order, Muon, settling, L-BFGS, Newton."""

from isthmus.optimise.first_order import adam, sgd
from isthmus.optimise.lbfgs import LBFGS
from isthmus.optimise.muon import Muon, orthogonalise
from isthmus.optimise.newton import Newton
from isthmus.optimise.optimiser import Optimiser
from isthmus.optimise.settle import Settle

__all__ = ["LBFGS", "Muon", "Newton", "Optimiser", "Settle", "adam", "orthogonalise", "sgd"]
