"""Equal step-sizes."""

from dataclasses import dataclass

from isthmus.mesh.base import MeshState, StepSizeRule, equal_steps


@dataclass(frozen=True)
class Equidistant(StepSizeRule):
    """``ρ_ℓ = 1/L`` (arXiv:2405.17573, section 5)."""

    def init(self, depth: int, effective_depth: float) -> MeshState:
        """Equal steps.

        >>> Equidistant().init(4, 7.0).rho.tolist()
        [0.25, 0.25, 0.25, 0.25]
        """
        return MeshState(equal_steps(depth))
