"""A comparison in the terminal: the verdict, the nearest layers, the controls and doubts."""

from typing import TYPE_CHECKING

from isthmus.report._numbers import MISSING, show
from isthmus.report.compare.words import account
from isthmus.report.style import shortened
from isthmus.report.text import aligned, grid, length, print_plainly

if TYPE_CHECKING:
    from rich.console import Console

    from isthmus.probe import Comparison

WIDTH = 120
HEADS = ["layer", "nearest", "CKA", "95 % interval", "clear", "Procrustes"]


def compare_rows(comparison: "Comparison") -> list[list[str]]:
    """The cells of the table."""
    rows = []
    places = {name: i for i, name in enumerate(comparison.layers_a)}
    columns = {name: j for j, name in enumerate(comparison.layers_b)}
    for one in comparison.nearest:
        ends = MISSING if one.low is None or one.high is None else f"{show(one.low, 3)} to {show(one.high, 3)}"
        clear = MISSING if one.clear is None else show(one.clear)
        distance = show(float(comparison.procrustes[places[one.layer], columns[one.to]]), 3)
        rows.append([shortened(one.layer, 32), shortened(one.to, 32), show(one.cka, 3), ends, clear, distance])
    return rows


def render_compare(comparison: "Comparison", console: "Console") -> None:
    """Print verdict, table, controls, what was left out and doubts; for a terminal or a pipe."""
    if not console.is_terminal:
        return print_plainly(compare_text(comparison), console)
    from rich.text import Text

    console.print(Text(account(comparison).headline, style="bold"))
    console.print(grid("", HEADS, compare_rows(comparison), named=True))
    for line, style in _lines(comparison):
        console.print(Text(line, style=style))


def compare_text(comparison: "Comparison") -> str:
    """The same without colours or frames."""
    body = compare_rows(comparison)
    names = max(length(row[0]) for row in (HEADS, *body))
    padded = [[row[0] + " " * (names - length(row[0])), *row[1:]] for row in (HEADS, *body)]
    table = aligned(padded[0], padded[1:]) if body else []
    return "\n".join([account(comparison).headline, "", *table, "", *(line for line, _ in _lines(comparison))])


def _lines(comparison: "Comparison") -> list[tuple[str, str]]:
    said = account(comparison)
    lines = [(f"{comparison.samples} samples, {comparison.rows} rows; debiased linear CKA", "")]
    lines += [(sentence, "") for sentence in said.sentences]
    lines += [(f"note: {note}", "dim") for note in comparison.notes]
    chosen = [one for one in comparison.skipped if one.chosen]
    if chosen:
        lines.append((f"Not compared ({len(chosen)}):", "bold"))
    lines += [(f"  {one.name}: {one.reason}", "yellow") for one in chosen]
    lines += [(f"doubt: {doubt}", "yellow") for doubt in said.doubts]
    return lines
