"""The table of claims in the terminal."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from isthmus.claims.pictures import Picture
from isthmus.claims.verdicts import Row
from isthmus.report.claims.words import certified, estimate, headline, interval, where
from isthmus.report.text import print_plainly

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 100


def render_claims(rows: Sequence[Row], console: "Console") -> None:
    """Print the table."""
    text = plain_claims(rows, min(WIDTH, console.width) if console.is_terminal else WIDTH)
    if not console.is_terminal:
        return print_plainly(text, console)
    console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def render_pictures(pictures: Sequence[Picture], console: "Console") -> None:
    """Print what the paper says of each figure, and what ours shows."""
    lines: list[str] = []
    for picture in pictures:
        lines += [picture.title, *_wrapped(f"the paper: {picture.statement}", WIDTH)]
        lines += [*_wrapped(f"here: {picture.finding}", WIDTH)]
        lines += [line for note in picture.notes for line in _wrapped(f"note: {note}", WIDTH)]
    if not console.is_terminal:
        return print_plainly("\n".join(lines), console)
    console.print("\n".join(lines), markup=False, highlight=False, emoji=False, soft_wrap=True)


def plain_claims(rows: Sequence[Row], width: int = WIDTH) -> str:
    """The same as text: a claim's sentence, then a line for each reading of it."""
    lines: list[str] = []
    last = ""
    for row in rows:
        if row.statement != last:
            lines += ["", *textwrap.wrap(row.statement, width), *_wrapped(f"{row.measure}: {row.rule}", width)]
            last = row.statement
        number = f"{estimate(row)} [{interval(row)}]"
        seeds = f"{row.seeds} seed{'' if row.seeds == 1 else 's'}, certified {certified(row)}"
        lines += _wrapped(f"{row.verdict.value.upper():<10} {where(row)}: {number}, {seeds}", width)
    return "\n".join([*lines[1:], "", headline(rows)])


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")
