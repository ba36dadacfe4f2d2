"""The layer table of the page: which columns, their heads, what they mean."""

from dataclasses import dataclass

from isthmus.columns import LAYERS
from isthmus.report._numbers import MISSING, number, show
from isthmus.report.style import web
from isthmus.runs.reader import RunData


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


_FIRST = (
    *("layer", "p", "rho", "rank_a", "rank_w", "coi_stable", "minus_2h_over_l", "kinetic_stable"),
    *("potential_stable", "hamiltonian", "residual", "speed_k", "slow"),
)
_SYMBOLS = {"p": "{pl}", "rho": "{rho}"}

COLUMNS = tuple(
    Column(key, _SYMBOLS.get(key, LAYERS[key].head), LAYERS[key].meaning, key not in _FIRST)
    for key in (*_FIRST, *(key for key in LAYERS if key not in _FIRST))
)
"""Every column of the layer table, those that are always shown first."""


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
