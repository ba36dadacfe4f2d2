"""What a path proves: how critical it is, up to rounding or up to ReLU's kinks, and of which kind. Knows no solver."""

from isthmus.certificate.certificate import Certificate, certify
from isthmus.certificate.kind import Kind, KindOfPoint, kind_of
from isthmus.certificate.kinks import KinkResidual, kink_residual
from isthmus.certificate.optimiser_error import optimiser_error
from isthmus.mechanics import hamiltonian_drift

__all__ = [
    "Certificate",
    "Kind",
    "KindOfPoint",
    "KinkResidual",
    "certify",
    "hamiltonian_drift",
    "kind_of",
    "kink_residual",
    "optimiser_error",
]
