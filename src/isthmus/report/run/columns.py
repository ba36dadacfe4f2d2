"""The tables of a run's page, of layers and of states: which columns, their heads, what they mean."""

from collections.abc import Mapping

import polars as pl

from isthmus import columns
from isthmus.report._numbers import MISSING, number, show
from isthmus.report.tables import Cell, Column
from isthmus.runs.reader import RunData

_FIRST = (
    *("layer", "state", "p", "rho", "rank_w", "minus_2h_over_l", "minus_2h_over_l_order3", "kinetic_stable"),
    *("potential_stable", "hamiltonian", "residual", "speed_k", "slow"),
    *("rank_a", "coi_stable", "coi", "stable_rank_a", "norm_b"),
)
_SYMBOLS = {"p": "{pl}", "rho": "{rho}"}


def _columns(schema: Mapping[str, columns.Column]) -> tuple[Column, ...]:
    """Every column of a table, those that are always shown first."""
    ordered = sorted(schema, key=lambda key: _FIRST.index(key) if key in _FIRST else len(_FIRST))
    return tuple(
        Column(key, _SYMBOLS.get(key, schema[key].head), schema[key].meaning, key not in _FIRST) for key in ordered
    )


LAYERS, STATES = _columns(columns.LAYERS), _columns(columns.STATES)


def layer_rows(run: RunData) -> list[tuple[bool, list[Cell]]]:
    """Each layer's cells, and whether the layer is slow."""
    return list(zip(map(bool, run.column("slow")), _cells(run.layers, LAYERS), strict=True))


def state_rows(run: RunData) -> list[tuple[bool, list[Cell]]]:
    """Each state's cells; none is marked."""
    return [] if run.states is None else [(False, cells) for cells in _cells(run.states, STATES)]


def _cells(frame: pl.DataFrame, shown: tuple[Column, ...]) -> list[list[Cell]]:
    content = [[_cell(value, column.extra) for value in frame[column.key].to_list()] for column in shown]
    return [list(row) for row in zip(*content, strict=True)]


def _cell(value: float | int | bool | None, extra: bool) -> Cell:
    """One cell."""
    if isinstance(value, bool):
        return Cell("slow" if value else "", str(int(value)), extra)
    if value is None:
        return Cell(MISSING, "", extra)
    exact = number(value)
    return Cell(show(value), "" if exact is None else repr(exact), extra)
