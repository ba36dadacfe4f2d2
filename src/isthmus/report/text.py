"""Tables and signs in a terminal, for every document."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PLAIN = {
    "L̃": "L~",
    "−": "-",
    "–": "-",
    "μ": "mu",
    "ρ": "rho",
    "ℓ": "l",
    "σ": "sigma",
    "λ": "lambda",
    "∞": "inf",
    "‖": "||",
    "∂": "d",
    "≤": "<=",
    "≥": ">=",
    "×": "x",
    "²": "^2",
    "±": "+/-",
    "…": "...",
}


def grid(
    title: str, heads: list[str], body: list[list[str]], styles: Sequence[str] = (), named: bool = False
) -> "Table":
    """A rich table, all cells as they are: no markup.

    Args:
        title: above it.
        heads: of the columns.
        body: the cells of each row.
        styles: of each row; empty for none.
        named: the first column is text, flush left.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=Text(title), title_justify="left", pad_edge=False, padding=(0, 1))
    for place, head in enumerate(heads):
        table.add_column(Text(head), justify="left" if named and not place else "right", no_wrap=True)
    for cells, style in zip(body, styles or [""] * len(body), strict=True):
        table.add_row(*map(Text, cells), style=style)
    return table


def aligned(heads: list[str], body: list[list[str]]) -> list[str]:
    """Rows with their columns flush right."""
    widths = [max(length(row[i]) for row in (heads, *body)) for i in range(len(heads))]
    return [
        "  ".join(pad(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (heads, *body)
    ]


def length(text: str) -> int:
    """Places that a text takes on a screen (a combining tilde takes none)."""
    from rich.cells import cell_len

    return cell_len(text)


def pad(text: str, width: int, left: bool = False) -> str:
    """Text padded to `width` places."""
    space = " " * (width - length(text))
    return text + space if left else space + text


def ascii_only(text: str) -> str:
    """Symbols spelled in ASCII, for outputs with no other signs."""
    for sign, spelled in _PLAIN.items():
        text = text.replace(sign, spelled)
    return text.encode("ascii", "replace").decode("ascii")


def print_plainly(text: str, console: "Console") -> None:
    """Print to a pipe or a file as it is: no markup, no wrapping, in ASCII where the encoding has no other signs."""
    if not (console.encoding or "").lower().startswith("utf"):
        text = ascii_only(text)
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
