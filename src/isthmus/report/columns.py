"""The layer table of the page: which columns, their heads, what they mean."""

from dataclasses import dataclass

from isthmus.report._numbers import MISSING, number, show
from isthmus.report.data import RunData
from isthmus.report.style import web


@dataclass(frozen=True)
class Column:
    """A column of the layer table; `extra` ones are shown on request."""

    key: str
    head: str
    meaning: str
    extra: bool = False

    @property
    def title(self) -> str:
        """The head as HTML."""
        return web(self.head)


@dataclass(frozen=True)
class Cell:
    """A cell as shown, and the value that sorting uses ("" where there is none)."""

    text: str
    sort: str
    extra: bool


COLUMNS = (
    Column("layer", "ℓ", "layer"),
    Column("p", "{pl}", "end of the layer"),
    Column("rho", "{rho}", "step-size"),
    Column("rank_a", "rank A", "singular values of A above the threshold"),
    Column("rank_w", "rank W", "singular values of W above the threshold"),
    Column("coi_stable", "COI stable", "cost of identity with stable norms (E7)"),
    Column("coi", "COI", "cost of identity, exact: discontinuous", extra=True),
    Column(
        "minus_2h_over_l_stable",
        "−2H/L̃ stable",
        "rank from below, Hamiltonian from the stable norms",
        extra=True,
    ),
    Column("minus_2h_over_l", "−2H/L̃", "rank from below (E10), (E11)"),
    Column("kinetic_stable", "kinetic stable", "(1/2L̃)‖∂A‖² in stable norms (E6), (E7)"),
    Column("potential_stable", "potential stable", "−(L̃/2) COI in stable norms (E6), (E7)"),
    Column("cross_stable", "cross stable", "cross term of the Lagrangian in stable norms (E6), (E7)", extra=True),
    Column("hamiltonian", "H", "Hamiltonian (E10) at the staggered pair"),
    Column("residual", "residual", "stationarity residual, from the first of (E9)"),
    Column("speed_k", "speed", "‖∂A‖ in the stable norm of K (E11)"),
    Column("slow", "slow", "belongs to the slow stretch"),
    Column("rho_effective_depth", "ρL̃", "1: fully connected layer; above 1: skip flips sign", extra=True),
    Column("kinetic", "kinetic", "exact norms (E6)", extra=True),
    Column("potential", "potential", "exact norms (E6)", extra=True),
    Column("cross", "cross", "exact norms (E6)", extra=True),
    Column("hamiltonian_stable", "H stable", "Hamiltonian from the stable norms", extra=True),
    Column("coi_off_image", "off image", "part of A outside the image of K", extra=True),
    Column("balancedness_defect", "balance defect", "how far (E4) is from holding", extra=True),
    Column("speed", "relative speed", "‖∂A‖_F / ‖A‖_F", extra=True),
    Column("step_change", "step change", "‖A_ℓ − A_ℓ₋₁‖ / ‖A_ℓ‖, what the adaptive mesh equalises", extra=True),
    Column("path_length", "path length", "cumulative", extra=True),
    Column("norm_a", "‖A‖", "Frobenius norm", extra=True),
    Column("norm_b", "‖B‖", "Frobenius norm of the momenta (E8)", extra=True),
    Column("norm_b_features", "‖Bσᵀ‖", "Frobenius norm", extra=True),
    Column("norm_w", "‖W‖", "Frobenius norm, bias included", extra=True),
    Column("norm_bias", "‖b‖", "norm of the bias column", extra=True),
    Column("stable_rank_a", "stable rank A", "‖A‖²_F / ‖A‖²_op", extra=True),
    Column("nuclear_rank_a", "nuclear rank A", "‖A‖²_* / ‖A‖²_F", extra=True),
    Column("stable_rank_w", "stable rank W", "‖W‖²_F / ‖W‖²_op", extra=True),
)


def rows(run: RunData) -> list[tuple[bool, list[Cell]]]:
    """Each layer's cells, and whether the layer is slow."""
    slow = run.column("slow")
    content = [(column, run.column(column.key)) for column in COLUMNS]
    return [
        (bool(slow[i]), [_cell(values[i], column.extra) for column, values in content])
        for i in range(run.layers.height)
    ]


def _cell(value: float | int | bool | None, extra: bool) -> Cell:
    """One cell."""
    if isinstance(value, bool):
        return Cell("slow" if value else "", str(int(value)), extra)
    if value is None:
        return Cell(MISSING, "", extra)
    exact = number(value)
    return Cell(show(value), "" if exact is None else repr(exact), extra)
