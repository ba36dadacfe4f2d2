"""Tables for the terminal and for pipes."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from isthmus.report import layer_table, load_run, plain_text, render, summary_table

Make = Callable[..., Path]


def printed(folder: Path, terminal: bool, width: int = 100, file: Any = None) -> str:
    file = io.StringIO() if file is None else file
    console = Console(file=file, force_terminal=terminal, width=width, color_system=None, legacy_windows=False)
    render(load_run(folder), console)
    return file.getvalue() if isinstance(file, io.StringIO) else ""


@pytest.mark.parametrize("terminal", [True, False])
def test_shows_layers_summary_and_verdict(make_run: Make, terminal: bool) -> None:
    text = printed(make_run(residual=0.9), terminal)
    flat = " ".join(text.split())
    for part in (
        "figure-1: layers", "figure-1: summary", "-2H/L̃", "residual", "Rank estimate k*", "not to be trusted",
        "Certificate: not a critical point (residual: largest 0.9, median 0.36)",
        "these energies show optimisation error, not physics", "Verdict: No verdict: the residual is 0.9, beyond 0.1.",
        "doubt: the largest residual is 0.9", "made by: ranks of A",
    ):  # fmt: skip
        assert part in flat, part
    layers, states = text.split("figure-1: states")
    for part in (layers, states):
        assert sum(line.strip().startswith(tuple(f"{i} " for i in range(1, 21))) for line in part.splitlines()) == 20


@pytest.mark.parametrize("width", [100, 80, 60])
def test_table_fits(make_run: Make, width: int) -> None:
    text = printed(make_run(effective_depth=7.0), True, width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "residual" in text and "…" not in text.split("summary")[0]
    assert ("cross" in text.split("summary")[0]) == (width > 105)


def test_plain_text_has_no_frames_and_aligns(make_run: Make) -> None:
    text = printed(make_run(), False, width=40)
    assert not set("━─│┃┏┓") & set(text) and "\x1b" not in text
    rows = text.splitlines()[1:22]
    ends = {cell_len(row[: row.index("residual") + 8]) if "residual" in row else None for row in rows}
    assert ends != {None} and all(row.split()[0].isdigit() for row in rows[1:])


def test_markup_in_names_is_printed_as_written(make_run: Make) -> None:
    folder = make_run(name="[bold]x[/bold] [/]", summary={"verdict": "[red]odd[/red] :smile:", "message": "[/]"})
    for terminal in (True, False):
        text = printed(folder, terminal)
        assert "[bold]x[/bold] [/]: layers" in text and "[red]odd[/red] :smile:" in text


def test_ascii_outputs_get_ascii(make_run: Make) -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="ascii") as stream:
        printed(make_run(residual=0.9), False, file=stream)
        stream.flush()
        text = raw.getvalue().decode("ascii")
    assert "-2H/L~" in text and "?" not in text


@pytest.mark.parametrize("residual", [30.0, 4.1, 0.11])
def test_beyond_the_trust_limit_there_is_no_verdict(make_run: Make, residual: float) -> None:
    text = plain_text(load_run(make_run(residual=residual, summary={"verdict": "A bottleneck of rank 9 at p = 0.75"})))
    assert f"Verdict: No verdict: the residual is {residual:g}, beyond 0.1." in text
    assert "A bottleneck of rank" not in text
    (estimate,) = [line for line in text.splitlines() if line.startswith("Rank estimate")]
    assert estimate.split()[3] == "–" and "a count of 3 is not to be trusted" in estimate


def test_a_trusted_run_and_missing_numbers(make_run: Make) -> None:
    assert "no doubts recorded" in plain_text(load_run(make_run("a")))
    text = plain_text(load_run(make_run("b", effective_depth=0.0)))
    assert "–" in text and "nan" not in text and "None" not in text
    text = plain_text(load_run(make_run("c", summary={"trusted": False, "doubts": []})))
    assert "not trusted; no doubt was recorded" in text


def test_unfinished_runs_say_so(make_run: Make) -> None:
    for terminal in (True, False):
        text = " ".join(printed(make_run(f"run{terminal}", status="diverged", rows=2), terminal).split())
        assert "diverged: 10 steps" in text and "the last good state" in text and "lower the rate." in text


def test_tables_are_rich_tables(make_run: Make) -> None:
    run = load_run(make_run(depth=200))
    assert layer_table(run).row_count == 200
    assert summary_table(run).row_count == 9
    assert json.dumps(plain_text(run))
