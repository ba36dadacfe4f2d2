"""A branch in the terminal: a line per point, each event after the point that it follows, the verdict on the end."""

from typing import TYPE_CHECKING

from isthmus.report.branch.columns import point_columns, point_rows
from isthmus.report.branch.words import end, event_line, name, summary
from isthmus.report.text import aligned, length, print_plainly
from isthmus.runs.branch_folder import BranchData

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100
_SHORT = ("branch", "products", "steps", "h_spread")  # these go first where room is short


def render_branch(data: BranchData, console: "Console") -> None:
    """Print points, events, how good they are, and the verdict on the last."""
    text = plain_branch(data, min(WIDTH, console.width) if console.is_terminal else WIDTH)
    if not console.is_terminal:
        return print_plainly(text, console)
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def plain_branch(data: BranchData, width: int = WIDTH) -> str:
    """The same as text."""
    head = f"{data.name}: a branch in {name(data)}"
    said = summary(data)
    lines = [head, *_table(data, width), "", f"{said.headline}.", *said.sentences, *data.notes()]
    last = end(data)
    if last is not None:
        lines += [f"The last point: {last.kind}"] if last.kind else []
        lines += [f"Verdict at {last.where}: {last.headline}", f"  made by: {last.method}"]
        lines += [f"  doubt: {doubt}" for doubt in last.doubts] or ["  no doubts recorded"]
    return "\n".join(lines)


def _table(data: BranchData, width: int) -> list[str]:
    """Rows of the columns that fit, events between them."""
    if not data.points:
        return []
    columns = tuple(column for column in point_columns(data) if not column.extra)
    rows = [[cell.text for cell in cells] for _, cells in point_rows(data, columns)]
    chosen = list(range(len(columns)))
    wide = [max(length(columns[i].head), *(length(row[i]) for row in rows)) + 2 for i in chosen]
    for key in _SHORT:
        if sum(wide[i] for i in chosen) > width:
            chosen = [i for i in chosen if columns[i].key != key]
    first, *body = aligned([columns[i].head for i in chosen], [[row[i] for i in chosen] for row in rows])
    lines = [first]
    for index, line in enumerate(body):
        lines.append(line)
        lines += [f"    {event_line(data, event)}" for event in data.events if event.get("after") == index]
    return lines
