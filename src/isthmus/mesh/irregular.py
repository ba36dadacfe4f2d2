"""Fixed step-sizes that are small at both ends."""

from dataclasses import dataclass

import torch

from isthmus.mesh.base import MeshState, StepSizeRule, equal_steps


@dataclass(frozen=True)
class Irregular(StepSizeRule):
    """``ρ_ℓ ∝ 1 + a(1/4 − |ℓ/L − 1/2|)``, normalised to sum to 1 exactly (arXiv:2405.17573, section 5).

    Args:
        irregularity: a in [0, 1); 0 is equidistant.

    Raises:
        ValueError: a outside [0, 1).
    """

    irregularity: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.irregularity < 1:
            raise ValueError(f"irregularity a must lie in [0, 1), got {self.irregularity}")

    def init(self, depth: int, effective_depth: float) -> MeshState:
        """The steps of the formula; ``ρL̃ < 1`` everywhere needs ``L > (1 + a/4)L̃``."""
        rho = equal_steps(depth)
        layer = torch.arange(1, depth + 1, dtype=torch.float64)
        rho = rho * (1 + self.irregularity * (0.25 - (layer / depth - 0.5).abs()))
        return MeshState(rho / rho.sum())
