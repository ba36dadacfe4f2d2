"""The objective to second order: linearised outputs, exact Hessian products, and preconditioners."""

from isthmus.curvature.base import Preconditioner, SecondOrder, Target
from isthmus.curvature.dual import DualPreconditioner
from isthmus.curvature.hessian import Hessian
from isthmus.curvature.kronecker import KroneckerPreconditioner
from isthmus.curvature.linearise import Linearisation, Linearised
from isthmus.curvature.lowest import (
    Lowest,
    dense,
    least_eigenpairs,
    lowest,
    scaled_product,
    sign_is_clear,
    spectrum,
)
from isthmus.curvature.minres import LinearSolution, minres
from isthmus.curvature.scaled import ScaledParameters

__all__ = [
    "DualPreconditioner",
    "Hessian",
    "KroneckerPreconditioner",
    "LinearSolution",
    "Linearisation",
    "Linearised",
    "Lowest",
    "Preconditioner",
    "ScaledParameters",
    "SecondOrder",
    "Target",
    "dense",
    "least_eigenpairs",
    "lowest",
    "minres",
    "scaled_product",
    "sign_is_clear",
    "spectrum",
]
