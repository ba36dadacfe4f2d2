"""The quantities of the theory: pure functions of tensors, batch-first, and one table of them all."""

from isthmus._rooms import callable_room
from isthmus.mechanics.cost_of_identity import cost_of_identity
from isthmus.mechanics.hamiltonian import (
    energy_identity_defect,
    flow_velocity,
    hamiltonian,
    hamiltonian_from_velocity,
    scaled_hamiltonian,
)
from isthmus.mechanics.invariants import (
    Theorem4,
    balancedness_defect,
    norm_defect,
    stationarity_residual,
    theorem4,
)
from isthmus.mechanics.lagrangian import Energies, OffImage, best_weights, energies, off_image
from isthmus.mechanics.metric import FeatureMetric
from isthmus.mechanics.modified import (
    ORDERS,
    hamiltonian_drift,
    modified_hamiltonian,
    modified_hamiltonians,
    modified_series,
)
from isthmus.mechanics.richardson import Extrapolated, richardson
from isthmus.mechanics.spectra import nuclear_rank, rank, spectra, stable_rank
from isthmus.mechanics.symmetries import Transformed, raise_effective_depth, stretch
from isthmus.mechanics.table import COLUMNS, MechanicsTable, mechanics

__all__ = [
    "COLUMNS",
    "ORDERS",
    "Energies",
    "Extrapolated",
    "FeatureMetric",
    "MechanicsTable",
    "OffImage",
    "Theorem4",
    "Transformed",
    "balancedness_defect",
    "best_weights",
    "cost_of_identity",
    "energies",
    "energy_identity_defect",
    "flow_velocity",
    "hamiltonian",
    "hamiltonian_drift",
    "hamiltonian_from_velocity",
    "mechanics",
    "modified_hamiltonian",
    "modified_hamiltonians",
    "modified_series",
    "norm_defect",
    "nuclear_rank",
    "off_image",
    "raise_effective_depth",
    "rank",
    "richardson",
    "scaled_hamiltonian",
    "spectra",
    "stable_rank",
    "stationarity_residual",
    "stretch",
    "theorem4",
]

callable_room(__name__)
