"""The one description of a run folder: what is written and what is read agree with it."""

import json

import polars as pl
import pytest

from isthmus.mechanics import COLUMNS
from isthmus.report.run import columns, terminal
from isthmus.runs import execute
from isthmus.runs.reader import load_run
from isthmus.runs.schema import ENVIRONMENT, FILES, LOCK, REPORT, SUMMARY_VALUES, TABLES


@pytest.fixture
def outcome(tiny, folder):
    return execute(tiny.merge({"train.steps": 4}), folder)


def test_every_file_of_a_run_is_described(outcome):
    written = {entry.name for entry in outcome.folder.iterdir()}
    assert written == {*FILES, *(file for table in TABLES.values() for file in table.files), LOCK} - {REPORT}


def test_tables_hold_the_columns_and_types_of_the_schema(outcome):
    for table in TABLES.values():
        assert dict(pl.read_parquet(outcome.folder / table.parquet).schema) == table.types
    run = load_run(outcome.folder)
    assert set(run.tables) == set(TABLES)
    assert run.notes == ()


def test_the_summary_holds_the_values_of_the_schema(outcome):
    summary = json.loads((outcome.folder / "summary.json").read_text())
    kinds = {"integer": int, "flag": bool, "text": (str, list), "number": (int, float)}
    assert set(SUMMARY_VALUES) - set(summary) == {"train_accuracy", "test_accuracy"}  # no classes here
    for name, value in summary.items():
        assert value is None or isinstance(value, kinds[SUMMARY_VALUES[name].kind]), name


def test_everything_has_a_meaning():
    columns = [column for table in TABLES.values() for column in table.columns.values()]
    assert all(column.head and column.meaning for column in (*columns, *SUMMARY_VALUES.values()))
    assert set(FILES) > {ENVIRONMENT}


def test_mechanics_page_and_terminal_take_their_columns_from_it():
    layers, states = TABLES["layers"].columns, TABLES["states"].columns
    assert (columns.LAYERS[0].key, columns.STATES[0].key) == ("layer", "state")
    assert {**states, **layers} == COLUMNS and set(states) & set(layers) == {"p"}
    for schema, shown, printed in (
        (layers, columns.LAYERS, terminal._LAYERS),
        (states, columns.STATES, terminal._STATES),
    ):
        assert {column.key: column.meaning for column in shown} == {key: c.meaning for key, c in schema.items()}
        assert {column.key for column in printed} <= set(schema)


def test_a_table_with_other_columns_is_refused():
    history = {name: [1.0] for name in TABLES["history"].columns if name != "penalty"}
    with pytest.raises(ValueError, match=r"columns of history: unknown \['loss'\], lacking \['penalty'\]; see isthmus"):
        TABLES["history"].frame({**history, "loss": [1.0]})
