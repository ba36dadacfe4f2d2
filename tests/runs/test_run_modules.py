"""Runs go one way: no module of the rooms knows one that knows it, and what only reads loads no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import isthmus

SOURCES = Path(isthmus.__file__).parent


def imports(room):
    """The modules of a room that each of them imports, also inside functions and for types only."""
    graph = {}
    for file in (SOURCES / room).glob("*.py"):
        if file.stem != "__init__":
            tree = ast.parse(file.read_text(encoding="utf-8"))
            named = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
            stems = [name.split(".")[2:] for name in named if name.startswith(f"isthmus.{room}.")]
            graph[file.stem] = {stem[0] for stem in stems}
    return graph


@pytest.mark.parametrize("room", ["runs", "cli"])
def test_no_module_knows_one_that_knows_it(room):
    graph = imports(room)
    while graph:
        last = {name for name, needed in graph.items() if not needed}
        assert last, f"a circle among {sorted(graph)}"
        graph = {name: needed - last for name, needed in graph.items() if name not in last}


def test_checking_and_resolving_lie_before_building():
    graph = imports("runs")
    assert "build" not in graph["config"] | graph["checks"] | graph["sections"] | graph["saved"] | graph["folder"]
    assert "config" not in graph["checks"] | graph["sections"] | graph["problems"]


def test_reading_and_showing_a_run_load_no_torch():
    code = (
        "import sys, isthmus.runs.reader, isthmus.report.run.terminal, isthmus.report.run.columns, isthmus.cli.main;"
        "assert 'polars' in sys.modules and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
