"""What the columns of tables are: type, unit and meaning, once for those who write, read and show them.

Without torch: `isthmus show` reads tables and needs none.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["number", "integer", "flag", "text"]
Presence = Literal["required", "expected", "optional"]


@dataclass(frozen=True)
class Column:
    """A column of a table, or a value of a summary.

    Args:
        head: a short name for the head of a printed table.
        meaning: what it is in a line, with its equation (docs/theory.md).
        unit: "" for pure numbers.
        kind: type of the values; numbers are float64, and where they may be undefined null.
        presence: a table without a required column cannot be read; one that is expected is noted where it is missing.
    """

    head: str
    meaning: str
    unit: str = ""
    kind: Kind = "number"
    presence: Presence = "expected"


_PER_P = "per unit of p"
_DATA = "that of the data"
_SHARE = "share that lies off the image of K, where γ alone rules: of"

# Staggered quantities pair A_{ℓ−1} with B_ℓ: they are drawn at the layer's midpoint.
LAYERS: dict[str, Column] = {
    "layer": Column("ℓ", "ℓ = 1..L", "layers", "integer", "required"),
    "p": Column("p", "p_ℓ, end of the layer", presence="required"),
    "rho": Column("ρ", "step-size ρ_ℓ", "p"),
    "rho_effective_depth": Column("ρL̃", "ρ_ℓL̃; 1: fully connected layer, above 1: the skip changes its sign"),
    "kinetic": Column("kinetic", "(1/2L̃)‖∂_pA‖_K² (E6), K of A_{ℓ−1}", "dimensions"),
    "kinetic_stable": Column("kinetic stable", "(1/2L̃)‖∂_pA‖² in the stable norm (E6), (E7)", "dimensions"),
    "potential": Column("potential", "−(L̃/2)·COI of A_{ℓ−1} (E6)", "dimensions"),
    "potential_stable": Column("potential stable", "−(L̃/2)·COI in the stable norm (E6), (E7)", "dimensions"),
    "cross": Column("cross", "⟨∂_pA, A_{ℓ−1}⟩_K (E6)", "dimensions"),
    "cross_stable": Column("cross stable", "⟨∂_pA, A⟩ in the stable norm (E6), (E7)", "dimensions"),
    "kinetic_stable_off_image": Column("kinetic off image", f"{_SHARE} `kinetic_stable` (E7)"),
    "potential_stable_off_image": Column("potential off image", f"{_SHARE} `potential_stable` (E7)"),
    "cross_stable_off_image": Column("cross off image", f"{_SHARE} the two parts of `cross_stable`, by size (E7)"),
    "hamiltonian": Column("H", "H(A_{ℓ−1}, B_ℓ) (E10), staggered", "dimensions"),
    "hamiltonian_stable": Column("H stable", "kinetic_stable + potential_stable (E11)", "dimensions"),
    "minus_2h_over_l": Column("−2H/L̃", "estimates the bottleneck rank from below (E10), (E11)", "dimensions"),
    "minus_2h_over_l_stable": Column(
        "−2H/L̃ stable", "estimates the bottleneck rank from below, from hamiltonian_stable", "dimensions"
    ),
    "minus_2h_over_l_off_image": Column(
        "−2H/L̃ off image", "part of `minus_2h_over_l` off the image of K, 2⟨B_ℓ, A_{ℓ−1}⟩ there (E16)", "dimensions"
    ),
    "minus_2h_over_l_order2": Column(
        "−2H̃/L̃, order 2", "−2H/L̃ without what the layers' steps explain of its spread, to O(ρ²) (E15)", "dimensions"
    ),
    "minus_2h_over_l_order3": Column(
        "−2H̃/L̃, order 3", "−2H/L̃ without what the layers' steps explain of its spread, to O(ρ³) (E15)", "dimensions"
    ),
    "residual": Column("residual", "stationarity residual ‖W_ℓ − L̃B_ℓσ(A_{ℓ−1})ᵀ‖/‖W_ℓ‖ (E9)"),
    "balancedness_defect": Column("balance defect", "defect of the balance law (E4), relative to ‖W_ℓ‖²"),
    "speed": Column("relative speed", "‖∂_pA‖_F/‖A_ℓ‖_F", _PER_P),
    "speed_k": Column("speed", "‖∂_pA‖_{K+γI}, the speed of (E11)", _PER_P),
    "step_change": Column("step change", "‖A_ℓ − A_{ℓ−1}‖_F/‖A_ℓ‖_F, which the adaptive mesh equalises"),
    "path_length": Column("path length", "∫_0^{p_ℓ} ‖∂_pA‖_{K+γI} dp"),
    "norm_b_features": Column("‖Bσᵀ‖", "‖B_ℓσ(A_{ℓ−1})ᵀ‖_F"),
    "norm_w": Column("‖W‖", "‖W_ℓ‖_F, bias included"),
    "norm_bias": Column("‖b‖", "‖b_ℓ‖, the bias column of W_ℓ"),
    "stable_rank_w": Column("stable rank W", "‖W_ℓ‖_F²/‖W_ℓ‖_op²"),
    "rank_w": Column("rank W", "singular values of W_ℓ above the threshold, relative to the largest", kind="integer"),
    "slow": Column("slow", "speed_k is at most half its mean over p: here the representation drifts", kind="flag"),
}
"""What belongs to a layer, one row each; see `isthmus.mechanics.mechanics`."""

STATES: dict[str, Column] = {
    "state": Column("ℓ", "ℓ = 0..L", "states", "integer", "required"),
    "p": Column("p", "p_ℓ, where the state is", presence="required"),
    "coi": Column("COI", "cost of identity ‖A_ℓ‖_K² (E6), the part in the image of K: discontinuous", "dimensions"),
    "coi_stable": Column("COI stable", "cost of identity with γ = γ_0‖K‖_op (E7)", "dimensions"),
    "coi_off_image": Column("off image", "relative size of what `coi` drops; the strict value is infinite unless 0"),
    "coi_stable_off_image": Column("COI off image", f"{_SHARE} `coi_stable` (E7)"),
    "rank_a": Column("rank A", "singular values of A_ℓ above the threshold, relative to the largest", kind="integer"),
    "stable_rank_a": Column("stable rank A", "‖A_ℓ‖_F²/‖A_ℓ‖_op²"),
    "nuclear_rank_a": Column("nuclear rank A", "‖A_ℓ‖_*²/‖A_ℓ‖_F²"),
    "norm_a": Column("‖A‖", "‖A_ℓ‖_F", _DATA),
    "norm_b": Column("‖B‖", "‖B_ℓ‖_F, the momenta (E8)"),
}
"""What belongs to a state A_ℓ alone, one row each, A_0 and A_L included."""
