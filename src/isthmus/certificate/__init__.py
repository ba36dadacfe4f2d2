"""What a path proves: how critical it is, up to rounding or up to ReLU's kinks. Reads a `Geodesic`, knows no solver."""

from isthmus.certificate.certificate import Certificate, certify
from isthmus.certificate.kinks import KinkResidual, kink_residual
from isthmus.mechanics import hamiltonian_drift

__all__ = ["Certificate", "KinkResidual", "certify", "hamiltonian_drift", "kink_residual"]
