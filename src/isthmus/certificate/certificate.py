"""The certificate: how far a network is from a critical point, in the numbers that the theory asks for."""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._types import PerLayer
from isthmus.activations import ReLU
from isthmus.bottleneck import collapsed
from isthmus.certificate.kind import KindOfPoint
from isthmus.certificate.kinks import kink_residual
from isthmus.geodesic import Geodesic
from isthmus.mechanics import ORDERS, modified_hamiltonians, stationarity_residual
from isthmus.thresholds import CRITICAL, CRITICAL_AT_KINKS


@dataclass(frozen=True)
class Certificate:
    """How critical a path is; everything in float64. 0 everywhere at a critical point, but for what says otherwise.

    Args:
        residual: stationarity residual per layer (E9).
        residual_max: its largest.
        residual_median: its median.
        gradient_norm: of the objective in the variables ``√ρ_ℓ W_ℓ``, absolute.
        duality_gap: ``|μΣρ_ℓ‖W_ℓ‖² + Σ⟨W_ℓ, ∂C/∂W_ℓ⟩|`` over its first part: scaling all weights must not pay.
        hamiltonian: staggered ``−2H/L̃`` per layer; empty at L̃ = 0.
        h_spread: its largest minus its smallest. Not 0 at a critical point: the O(ρ) error of the layers.
        h_predicted: the spread that symplectic Euler has to first order at a critical point, see `hamiltonian_drift`.
        h_unexplained: the spread that is left when that is taken away: O(ρ²) at a critical point.
        h_modified_spread: the spread that is left when the second order is taken away as well (E15): O(ρ³).
        modified_order: which of 1 (H itself), 2 and 3 leaves the least: where ρ is large, a longer series may be worse.
        hamiltonian_modified: ``−2H̃/L̃`` per layer, of that order; empty at L̃ = 0.
        kink_residual: of a ReLU network, the largest residual with the best derivatives at kinks; None for other σ.
        kink_width: states within this times the layer's root mean square count as kinks.
        kinks: how many.
        collapsed: whether the outputs do not depend on the inputs.
        kind: minimum, saddle or undecided; None where nobody asked (`isthmus.certificate.kind_of`).
    """

    residual: PerLayer
    residual_max: float
    residual_median: float
    gradient_norm: float
    duality_gap: float
    hamiltonian: Float[Tensor, "layers_or_none"]
    h_spread: float
    h_predicted: float
    h_unexplained: float
    h_modified_spread: float
    modified_order: int
    hamiltonian_modified: Float[Tensor, "layers_or_none"]
    kink_residual: float | None
    kink_width: float
    kinks: int
    collapsed: bool
    kind: KindOfPoint | None = None

    @property
    def converged(self) -> bool:
        """Whether the residual is at most 1e-4; for ReLU up to its kinks, 1e-3."""
        if self.collapsed:
            return False
        at_kinks = self.kink_residual is not None and self.kink_residual <= CRITICAL_AT_KINKS
        return self.residual_max <= CRITICAL or at_kinks

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON (NaN and infinity as None)."""

        def plain(value: Any) -> Any:
            if isinstance(value, Tensor):
                return [plain(v) for v in value.tolist()]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        values = {f.name: plain(getattr(self, f.name)) for f in fields(self) if f.name != "kind"}
        kind = None if self.kind is None else self.kind.to_dict()
        return values | {"kind": kind, "converged": self.converged}


def certify(
    geodesic: Geodesic, kink_width: float = 1e-3, kink_iterations: int = 1000, kind: KindOfPoint | None = None
) -> Certificate:
    """Check a path afresh.

    Args:
        geodesic: from `Problem.geodesic`, which computes it in float64.
        kink_width: of ReLU's kinks, relative to the root mean square of a layer's states; 0 leaves them out.
        kink_iterations: of the search for the best derivatives there.
        kind: what ``kind_of(problem)`` found, to stand in the certificate; a path alone cannot say.

    Raises:
        ValueError: a path that is not finite.
    """
    g = geodesic
    if not bool(torch.isfinite(g.A).all() and torch.isfinite(g.M).all()):
        raise ValueError("the path or its momenta are not finite: nothing can be certified")
    residual = stationarity_residual(g.A, g.M, g.W, g.activation)
    optimal = g.M[1:].mT @ g.activation.features(g.A[:-1])
    off = (g.W - optimal) * g.rho.sqrt()[:, None, None] * g.weight_decay
    squares = (g.rho * g.W.square().sum(dim=(1, 2))).sum()
    cross = (g.rho * (g.W * optimal).sum(dim=(1, 2))).sum()
    orders = list(modified_hamiltonians(g)) if g.effective_depth > 0 else [residual.new_zeros(0)] * len(ORDERS)
    spreads = [float(v.max() - v.min()) if len(v) else math.nan for v in (*orders, orders[0] - orders[1])]
    best = min(range(len(ORDERS)), key=lambda i: spreads[i])
    kinks = None
    if isinstance(g.activation, ReLU) and kink_width > 0:
        kinks = kink_residual(g.A, g.M[-1], g.W, g.rho, g.effective_depth, g.activation, kink_width, kink_iterations)
    return Certificate(
        residual=residual,
        residual_max=float(residual.max()),
        residual_median=float(residual.quantile(0.5)),
        gradient_norm=float(off.norm()),
        duality_gap=float((squares - cross).abs() / squares) if float(squares) > 0 else 0.0,
        hamiltonian=orders[0],
        h_spread=spreads[0],
        h_predicted=spreads[3],
        h_unexplained=spreads[1],
        h_modified_spread=spreads[2],
        modified_order=ORDERS[best],
        hamiltonian_modified=orders[best],
        kink_residual=None if kinks is None else float(kinks.residual.max()),
        kink_width=kink_width,
        kinks=0 if kinks is None else kinks.kinks,
        collapsed=collapsed(g),
        kind=kind,
    )
