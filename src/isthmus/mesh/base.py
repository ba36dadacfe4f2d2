"""The interface of a step-size rule: state in, state out, no network needed."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._types import PerLayer, StepSizesVector


@dataclass(frozen=True)
class MeshState:
    """What a rule carries from one update to the next.

    Args:
        rho: step-sizes ``(layers,)``, positive, summing to 1, float64.
        updates: how many updates have been made.
    """

    rho: StepSizesVector
    updates: int = 0


class StepSizeRule(ABC):
    """How step-sizes are chosen: once (`init`), and from the speeds of a path (`update`)."""

    @property
    def adapts(self) -> bool:
        """Whether `update` ever changes anything."""
        return False

    @abstractmethod
    def init(self, depth: int, effective_depth: float) -> MeshState:
        """The first step-sizes.

        Raises:
            ValueError: a depth below 1, or no step-sizes of this rule for this depth and L̃.
        """

    def update(self, state: MeshState, changes: PerLayer, effective_depth: float) -> MeshState:
        """The next step-sizes, from the relative change ``‖A_ℓ−A_{ℓ−1}‖/‖A_ℓ‖`` of each layer."""
        return MeshState(state.rho, state.updates + 1)


def equal_steps(depth: int) -> StepSizesVector:
    """``ρ_ℓ = 1/L`` in float64.

    Raises:
        ValueError: a depth below 1.
    """
    if depth < 1:
        raise ValueError(f"a mesh needs at least one layer, got depth {depth}")
    return torch.full((depth,), 1 / depth, dtype=torch.float64)


def relative_changes(path: Float[Tensor, "layers_plus_1 samples *state"]) -> PerLayer:
    """``‖A_ℓ − A_{ℓ−1}‖/‖A_ℓ‖`` of a path of states of any shape, norms over all entries; 0 where nothing moves.

    A step that ends in 0 is divided by the state before it, which makes it 1. States that are not finite give nan.
    """
    entries = tuple(range(1, path.ndim))
    step = torch.linalg.vector_norm((path[1:] - path[:-1]).double(), dim=entries)
    size = torch.linalg.vector_norm(path[1:].double(), dim=entries)
    if bool((size == 0).any()):
        size = torch.where(size == 0, torch.linalg.vector_norm(path[:-1].double(), dim=entries), size)
    return torch.where(step == 0, step, step / size)
