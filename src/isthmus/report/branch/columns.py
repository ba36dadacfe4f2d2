"""The table of a branch's points: which columns, their heads, what they mean. Without torch."""

from typing import Any

from isthmus.report._numbers import MISSING, number, show
from isthmus.report.tables import Cell, Column
from isthmus.runs.branch_folder import BranchData

NAMES = {"effective_depth": "L̃", "mu": "μ", "sharpness": "sharpness"}
"""What a parameter is called in words."""
LABELS = {"effective_depth": "effective depth {L}", "mu": "weight decay μ", "sharpness": "sharpness of σ"}
"""What a parameter is called at an axis."""
LOGARITHMIC = ("mu", "sharpness")

_KNOWN = (
    Column("value", "", "of the parameter that is followed"),
    Column("branch", "branch", "0 is the first; one more after each jump or switch"),
    Column("objective", "objective", "data cost and penalty (E3)"),
    Column("residual", "residual", "largest stationarity residual over the layers (E9)"),
    Column("kind", "kind", "minimum or saddle, as far as the least eigenvalue of the Hessian was seen"),
    Column("minus_2h_over_l", "−2H/L̃", "median over layers, the layers' own error removed as far as it is known"),
    Column("h_spread", "spread", "greatest less least −2H/L̃ over the layers, the error removed"),
    Column("coi_least", "least COI", "least stable cost of identity over the states (E7)"),
    Column("k_star", "k*", "directions in which the representation varies about its mean along the plateau"),
    Column("rank", "rank", "of the bottleneck, at the threshold; one direction may be the mean"),
    Column("trusted", "trusted", "1 where nothing speaks against k*", extra=True),
    Column("steps", "Newton", "steps of Newton's method"),
    Column("products", "products", "Hessian products, all that the point has cost"),
    Column("data_cost", "data cost", "over the training part", extra=True),
    Column("penalty", "penalty", "the rest of the objective", extra=True),
    Column("least", "least eigenvalue", "of the Hessian, relative to the metric of Newton's method", extra=True),
    Column("speed", "speed", "how fast the weights change with the coordinate, ‖dx/dτ‖/‖x‖", extra=True),
    Column("direction", "direction", "1 where the branch goes up in the coordinate, −1 where down", extra=True),
    Column("seconds", "seconds", "wall-clock", extra=True),
)
_LEFT_OUT = ("stable", "collapsed")


def point_columns(data: BranchData) -> tuple[Column, ...]:
    """Every column that some point has a value in, those that are always shown first."""
    present = {key for point in data.points for key, value in point.items() if value is not None}
    head = NAMES.get(data.parameter, data.parameter)
    known = [Column(c.key, c.head or head, c.meaning, c.extra) for c in _KNOWN if c.key in present or c.key == "kind"]
    others = sorted(present - {c.key for c in _KNOWN} - set(_LEFT_OUT))
    return (*known, *(Column(key, key.replace("_", " "), key, extra=True) for key in others))


def point_rows(data: BranchData, columns: tuple[Column, ...]) -> list[tuple[bool, list[Cell]]]:
    """Each point's cells; marked where it is no certified minimum."""
    return [
        (not (data.certified(i) and data.minimum(i)), [_cell(data, i, column) for column in columns])
        for i in range(len(data.points))
    ]


def kind(data: BranchData, index: int) -> str:
    """Minimum or saddle."""
    return "minimum" if data.minimum(index) else "saddle"


def _cell(data: BranchData, index: int, column: Column) -> Cell:
    if column.key == "kind":
        return Cell(kind(data, index), "", column.extra)
    value: Any = data.points[index].get(column.key)
    exact = number(value)
    shown = MISSING if exact is None else show(exact, 6 if column.key == "value" else 4)
    return Cell(shown, "" if exact is None else repr(exact), column.extra)
