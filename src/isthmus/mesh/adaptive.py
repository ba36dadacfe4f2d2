"""Step-sizes that equalise the relative change of the representation over layers: mesh equidistribution."""

from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus._types import PerLayer, StepSizesVector
from isthmus.mesh.base import MeshState, StepSizeRule, equal_steps


@dataclass(frozen=True)
class Adaptive(StepSizeRule):
    """``ρ_ℓ ← c_ℓ^{-1}/Σ_i c_i^{-1}`` with ``c_ℓ = ‖A_ℓ−A_{ℓ−1}‖/(ρ_ℓ‖A_ℓ‖)`` (arXiv:2405.17573, section 5).

    The paper gives no safeguard. These are the known ones of mesh equidistribution (de Boor 1973; every
    boundary-value code), and each can be switched off:

    Args:
        floor: ``c_ℓ`` is raised to ``floor`` times its mean over p: layers where nothing moves keep a finite step.
            0 switches it off. Tuned: docs/notes/mesh.md.
        smoothing: passes of the kernel (1, 2, 1)/4 over ``log c`` of neighbours; 0 switches it off.
        relaxation: in (0, 1]: the new steps are ``ρ^{1−θ} ρ_new^θ``, normalised; 1 switches it off.
        cap: largest ``ρ_ℓL̃`` of fast layers (``c_ℓ`` above its mean over p). At 1 the skip vanishes.
        slow_cap: the same of slow layers, the bottleneck. Up to 2 the skip map ``1 − ρL̃`` is no expansion. The
            default, 1, keeps its sign in the bottleneck as well.

    Raises:
        ValueError: a setting out of range.
    """

    floor: float = 0.05
    smoothing: int = 1
    relaxation: float = 0.5
    cap: float = 1.0
    slow_cap: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.floor < 1:
            raise ValueError(f"floor must lie in [0, 1), got {self.floor}")
        if self.smoothing < 0:
            raise ValueError(f"smoothing must be a number of passes >= 0, got {self.smoothing}")
        if not 0 < self.relaxation <= 1:
            raise ValueError(f"relaxation must lie in (0, 1], got {self.relaxation}")
        if not 0 < self.cap <= self.slow_cap:
            raise ValueError(f"caps must satisfy 0 < cap <= slow_cap, got cap={self.cap}, slow_cap={self.slow_cap}")

    @property
    def adapts(self) -> bool:
        """True."""
        return True

    def init(self, depth: int, effective_depth: float) -> MeshState:
        """Equal steps.

        Raises:
            ValueError: too few layers for the cap: even equal steps break it.
        """
        rho = equal_steps(depth)
        if effective_depth > self.cap * depth * (1 + 1e-9):
            raise ValueError(
                f"{depth} layers cannot satisfy rho * effective_depth <= {self.cap:g} at effective depth "
                f"{effective_depth:g}: use at least {int(-(-effective_depth // self.cap))} layers or a larger cap"
            )
        return MeshState(rho)

    def update(self, state: MeshState, changes: PerLayer, effective_depth: float) -> MeshState:
        """One safeguarded equidistribution step. Changes that are not finite, or all zero, leave ρ as it is."""
        rho = state.rho
        if changes.shape != rho.shape:
            raise ValueError(f"one change a layer: expected {tuple(rho.shape)}, got {tuple(changes.shape)}")
        changes = changes.to(rho)
        if not bool(torch.isfinite(changes).all()) or not bool((changes > 0).any()):
            return MeshState(rho, state.updates + 1)
        c = changes / rho
        mean = float((c * rho).sum())
        c = c.clamp_min(max(self.floor * mean, 1e-12 * mean))
        for _ in range(self.smoothing):
            c = _smooth(c.log()).exp()
        target = 1 / c
        target = target / target.sum()
        new = rho ** (1 - self.relaxation) * target**self.relaxation
        new = new / new.sum()
        if effective_depth > 0:
            slow = c < (c * new).sum()
            limit = torch.full_like(new, self.cap).masked_fill_(slow, self.slow_cap) / effective_depth
            new = fit_under(new, limit)
        return MeshState(new, state.updates + 1)


def _smooth(v: Tensor) -> Tensor:
    padded = torch.cat((v[:1], v, v[-1:]))
    return 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]


def fit_under(rho: StepSizesVector, limit: PerLayer) -> StepSizesVector:
    """The steps ``min(cρ, limit)`` with the one c for which they sum to 1.

    Where the limits sum to less than 1 there is none; equal multiples of the limits are returned then.
    """
    if float(limit.sum()) <= 1:
        return limit / limit.sum()
    fixed = torch.zeros_like(rho, dtype=torch.bool)
    for _ in range(rho.shape[0]):
        free = 1 - float(limit[fixed].sum())
        scaled = torch.where(fixed, limit, rho * (free / rho[~fixed].sum()))
        over = (scaled > limit * (1 + 1e-12)) & ~fixed
        if not bool(over.any()):
            return scaled
        fixed |= over
    return limit / limit.sum()
