"""A profile in the terminal: a table that fits the screen, what was not read and why, the reading with its doubts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from isthmus.report._numbers import MISSING, show
from isthmus.report.profile.data import Layer, ProfileData
from isthmus.report.profile.words import account, measured
from isthmus.report.style import shortened
from isthmus.report.text import aligned, grid, length, print_plainly

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 120
LEAST_NAME = 14


@dataclass(frozen=True)
class _Column:
    """A column; the higher `spare`, the sooner it goes where room is short; 0 stays."""

    key: str
    head: str
    digits: int
    spare: int
    error: bool = False


_COLUMNS = (
    _Column("rows", "rows", 6, 5),
    _Column("width", "width", 6, 0),
    _Column("participation_ratio_rows", "dimension", 4, 0, error=True),
    _Column("null:participation_ratio_rows", "null", 4, 1),
    _Column("two_nn", "TwoNN", 3, 1),
    _Column("coi_stable", "stable COI", 3, 2),
    _Column("rank_1e-2_centred", "centred rank", 4, 6),
    _Column("step_change", "step", 3, 0),
    _Column("block_influence", "influence", 3, 4),
    _Column("coi", "exact COI", 4, 7),
    _Column("stable_rank", "stable rank", 3, 8),
)


def profile_rows(data: ProfileData, width: int, gap: int) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the columns that fit; names are cut at their front before a column that must stay goes."""
    content = {c: [_cell(layer, c) for layer in data.layers] for c in _COLUMNS}
    chosen = [c for c in _COLUMNS if any(cell != MISSING for cell in content[c])]
    needed = {c: max(length(c.head), *map(length, content[c])) for c in chosen}
    longest = max(length("layer"), *(length(layer.name) for layer in data.layers))

    def room() -> int:
        return width - sum(needed[c] + gap for c in chosen)

    while room() < min(longest, 2 * LEAST_NAME) and any(c.spare for c in chosen):
        chosen.remove(max(chosen, key=lambda c: c.spare))
    names = [shortened(layer.name, max(min(longest, room()), LEAST_NAME)) for layer in data.layers]
    heads = ["layer", *(c.head for c in chosen)]
    return heads, [[name, *(content[c][i] for c in chosen)] for i, name in enumerate(names)]


def _cell(layer: Layer, column: _Column) -> str:
    if column.key.startswith("null:"):
        null = layer.null.get(column.key.removeprefix("null:"))
        return MISSING if null is None else show(null[0], column.digits)
    return measured(layer, column.key) if column.error else show(layer.value(column.key), column.digits)


def profile_table(data: ProfileData, width: int = WIDTH) -> "Table":
    """The layers as a rich table of at most `width` places."""
    heads, body = profile_rows(data, width - 2, gap=3)
    return grid(data.name, heads, body, ["" if layer.main else "dim" for layer in data.layers], named=True)


def render_profile(data: ProfileData, console: "Console") -> None:
    """Print table, notes, what was not read, and the reading with its doubts; for a terminal or a pipe."""
    if not console.is_terminal:
        return print_plainly(profile_text(data), console)
    from rich.text import Text

    console.print(profile_table(data, min(WIDTH, console.width)))
    for line, style in _lines(data):
        console.print(Text(line, style=style))


def profile_text(data: ProfileData, width: int = WIDTH) -> str:
    """The same without colours or frames."""
    heads, body = profile_rows(data, width, gap=2)
    names = max(length(row[0]) for row in (heads, *body))
    padded = [[row[0] + " " * (names - length(row[0])), *row[1:]] for row in (heads, *body)]
    return "\n".join([data.name, *aligned(padded[0], padded[1:]), "", *(line for line, _ in _lines(data))])


def _lines(data: ProfileData) -> list[tuple[str, str]]:
    """What stands below the table, with a style each."""
    profile, said = data.profile, account(data)
    sigmas = ", ".join(dict.fromkeys(str(layer.row["activation"]) for layer in data.layers))
    lines = [
        (f"{profile.samples} samples; dimension: participation ratio about the mean, corrected for finite rows", ""),
        (f"cost of identity (COI) with {sigmas}, gamma0 = {profile.gamma0:g}", ""),
    ]
    if data.nulls:
        lines.append((f"null: the dimension of the {data.null_kind} null control", ""))
    lines += [(f"note: {note}", "dim") for note in (*data.notes, *profile.notes)]
    if data.skipped:
        lines.append((f"Not read ({len(profile.skipped)}):", "bold"))
    for reason, names, chosen in data.skipped:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        lines.append((f"  {', '.join(names[:4])}{more}: {reason}", "yellow" if chosen else ""))
    lines.append((f"Reading: {said.headline}", "bold"))
    lines += [(f"  {sentence}", "") for sentence in said.sentences]
    lines += [(f"  doubt: {doubt}", "yellow") for doubt in said.doubts]
    return lines
