"""A run in the terminal: tables by rich, plain text where the output is no terminal."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isthmus.report._numbers import MISSING, show
from isthmus.report.run.words import Headline, Verdict, certificate, status_line, verdict
from isthmus.report.run.words import cards as key_numbers
from isthmus.report.text import aligned, grid, length, pad, print_plainly
from isthmus.runs.reader import RunData

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console
    from rich.table import Table

WIDTH = 100
_STYLES = {"good": "green", "near": "yellow", "bad": "bold red", "unknown": "yellow"}


@dataclass(frozen=True)
class _Column:
    """A column of the terminal's table; the higher `spare`, the sooner it goes where room is short."""

    key: str
    head: str
    digits: int
    spare: int


_LAYERS = (
    _Column("layer", "layer", 4, 0),
    _Column("p", "p", 3, 0),
    _Column("rho", "rho", 3, 4),
    _Column("rank_w", "rank W", 4, 1),
    _Column("minus_2h_over_l", "-2H/L̃", 4, 0),
    _Column("kinetic_stable", "kinetic", 3, 5),
    _Column("potential_stable", "potential", 4, 6),
    _Column("cross_stable", "cross", 3, 7),
    _Column("speed_k", "speed", 3, 3),
    _Column("residual", "residual", 3, 0),
    _Column("slow", "slow", 4, 2),
)
_STATES = (
    _Column("state", "state", 4, 0),
    _Column("p", "p", 3, 0),
    _Column("rank_a", "rank A", 4, 0),
    _Column("stable_rank_a", "stable rank", 3, 2),
    _Column("coi_stable", "stable COI", 4, 0),
    _Column("coi", "exact COI", 4, 1),
    _Column("norm_a", "‖A‖", 3, 4),
    _Column("norm_b", "‖B‖", 3, 3),
)


def layer_table(run: RunData, width: int = WIDTH) -> "Table":
    """The layers as a rich table of at most `width` places (kinetic, potential, cross: stable norms)."""
    heads, body = _cells(run.layers, _LAYERS, width - 2, gap=3)
    return grid(f"{run.name}: layers", heads, body, ["cyan" if slow else "" for slow in run.column("slow")])


def state_table(run: RunData, width: int = WIDTH) -> "Table":
    """The states as a rich table of at most `width` places, each at its own p (COI: stable norm); empty without."""
    return grid(f"{run.name}: states", *_cells(run.states, _STATES, width - 2, gap=3))


def summary_table(run: RunData) -> "Table":
    """The key numbers as a rich table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(f"{run.name}: summary"),
        title_justify="left",
        pad_edge=False,
        padding=(0, 1),
    )
    table.add_column("quantity", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("", style="dim")
    for label, value, detail in _summary(run):
        table.add_row(Text(label), Text(value), Text(detail))
    return table


def render(run: RunData, console: "Console") -> None:
    """Print layers, states, summary, certificate and verdict with its doubts, for a terminal or a pipe."""
    if not console.is_terminal:
        return print_plainly(plain_text(run), console)
    from rich.padding import Padding
    from rich.text import Text

    console.print(layer_table(run, min(WIDTH, console.width)))
    if run.states is not None:
        console.print(state_table(run, min(WIDTH, console.width)))
    console.print(summary_table(run))
    proof, finding = certificate(run), verdict(run)
    console.print(Text(status_line(run)))
    for note in run.notes:
        console.print(Text(note, style="yellow"))
    console.print(Text.assemble(("Certificate: ", "bold"), (_certificate_line(proof), _STYLES[proof.level])))
    if proof.advice:
        console.print(Text(proof.advice), soft_wrap=True)
    console.print(
        Text.assemble(("Verdict: ", "bold"), (finding.headline, "bold green" if finding.trusted else "bold yellow"))
    )
    for line in _doubt_lines(finding):
        console.print(Padding(Text(line), (0, 0, 0, 2)))


def plain_text(run: RunData, width: int = WIDTH) -> str:
    """The same without colours or frames: columns of text, one line per layer and per state."""
    summary = _summary(run)
    label, value = (max(length(row[i]) for row in summary) for i in (0, 1))
    proof, finding = certificate(run), verdict(run)
    lines = [f"{run.name}: layers", *aligned(*_cells(run.layers, _LAYERS, width, gap=2)), ""]
    if run.states is not None:
        lines += [f"{run.name}: states", *aligned(*_cells(run.states, _STATES, width, gap=2)), ""]
    lines += [f"{run.name}: summary"]
    lines += [f"{pad(a, label, left=True)}  {pad(b, value)}  {c}".rstrip() for a, b, c in summary]
    lines += ["", status_line(run), *run.notes, f"Certificate: {_certificate_line(proof)}"]
    lines += [proof.advice] if proof.advice else []
    lines += [f"Verdict: {finding.headline}", *(f"  {line}" for line in _doubt_lines(finding))]
    return "\n".join(lines)


def _summary(run: RunData) -> list[tuple[str, str, str]]:
    """Label, value and detail of the key numbers."""
    return [(card.label, card.value, card.detail) for card in key_numbers(run)]


def _certificate_line(proof: Headline) -> str:
    """Residual and meaning in a line."""
    line = f"{proof.headline.lower()} (residual: largest {proof.residual_max}, median {proof.residual_median})"
    return line + ("; these energies show optimisation error, not physics" if proof.level == "bad" else "")


def _doubt_lines(finding: Verdict) -> list[str]:
    """Method and doubts below the verdict."""
    lines = [f"made by: {finding.method}"]
    if not finding.doubts:
        return [*lines, "no doubts recorded" if finding.trusted else "not trusted; no doubt was recorded"]
    return [*lines, *(f"doubt: {doubt}" for doubt in finding.doubts)]


def _cells(
    frame: "pl.DataFrame | None", columns: tuple[_Column, ...], width: int, gap: int
) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the columns that fit into `width`."""
    if frame is None:
        return [], []
    content = {column: [_cell(v, column.digits) for v in frame[column.key].to_list()] for column in columns}
    chosen = [c for c in columns if c.spare == 0 or any(cell not in (MISSING, "") for cell in content[c])]
    needed = {c: max(length(c.head), *(map(length, content[c]))) for c in chosen}
    while sum(needed[c] + gap for c in chosen) > width and max(c.spare for c in chosen) > 0:
        chosen.remove(max(chosen, key=lambda c: c.spare))
    return [c.head for c in chosen], [[content[c][i] for c in chosen] for i in range(frame.height)]


def _cell(value: Any, digits: int) -> str:
    """One cell."""
    if isinstance(value, bool):
        return "slow" if value else ""
    return show(value, digits)
