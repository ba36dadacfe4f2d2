"""The page of a simplified network: one file that opens offline, its figures as SVG and PDF, and its tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.report._numbers import number, show
from isthmus.report.document import Document
from isthmus.report.simplify.figures import KEYS, simplify_figures
from isthmus.report.simplify.words import account, signed, simplify_cards
from isthmus.report.spec import Figure
from isthmus.report.tables import HOW_TO_SORT, Cell, Column, Table

if TYPE_CHECKING:
    from isthmus.probe import Simplified

ROUNDS = (
    Column("name", "block", "what went, in order"),
    Column("predicted", "predicted", "change of the loss, predicted before it went"),
    Column("measured", "measured", "change of the loss, measured after it went"),
    Column("loss", "loss", "mean loss of what is left"),
)
CANDIDATES = (
    Column("name", "block", "of those that could go"),
    Column("stack", "stack", "the run of blocks it belongs to"),
    Column("predicted", "predicted", "change of the loss if it alone went"),
    Column("step_change", "step", "‖ΔA‖/‖A‖, how far it moves the state"),
    Column("cosine", "cosine", "mean cosine between its input and its output"),
    Column("what", "what became of it", "went, stayed, or why it cannot go"),
)


def write_simplify_page(found: "Simplified", folder: str | Path) -> Path:
    """Write ``simplify.html``, and ``figures/simplify-*.svg``, ``.pdf``; earlier ones are replaced.

    Args:
        found: what `isthmus.probe.simplify` made.
        folder: made where it is missing.

    Returns:
        The path of the page.

    Raises:
        ImportError: plotly, matplotlib or jinja2 is not installed.
    """
    return SimplifyPage(found).write(Path(folder))


@dataclass(frozen=True)
class SimplifyPage(Document):
    """The document of a simplified network.

    Args:
        found: what was made.
    """

    found: "Simplified"
    file = "simplify.html"
    template = "simplify.html.j2"
    keys = KEYS

    @property
    def title(self) -> str:
        """What it is."""
        return f"{type(self.found.model).__name__}, simplified"

    def sections(self) -> Mapping[str, Any]:
        """Facts, the reading, key numbers."""
        facts = [("blocks dropped", show(len(self.found.dropped))), ("kept", show(len(self.found.kept)))]
        return {"facts": facts, "said": account(self.found), "cards": simplify_cards(self.found)}

    def figures(self) -> tuple[Figure, ...]:
        """The loss as blocks go, the ranking."""
        return simplify_figures(self.found)

    def tables(self) -> tuple[Table, ...]:
        """What went, and the first ranking."""
        found, loss, body = self.found, self.found.loss_before, []
        for one in found.rounds:
            loss += one.measured
            cells = [one.name, signed(one.predicted), signed(one.measured), show(loss)]
            body.append((False, _cells(cells, (None, one.predicted, one.measured, loss))))
        tables = []
        if body:
            tables.append(Table("rounds", "What went", HOW_TO_SORT, ROUNDS, body, named=True))
        ranked = []
        for candidate in found.candidates:
            what = candidate.reason or ("went" if candidate.name in found.dropped else "stayed")
            values = [number(v) for v in (candidate.predicted, candidate.step_change, candidate.cosine)]
            cells = [candidate.name, candidate.stack, *map(show, values), what]
            ranked.append((candidate.name in found.dropped, _cells(cells, (None, None, *values, None))))
        if ranked:
            tables.append(Table("candidates", "The first ranking", HOW_TO_SORT, CANDIDATES, ranked, named=True))
        return tuple(tables)


def _cells(texts: list[str], values: tuple[float | None, ...]) -> list[Cell]:
    return [Cell(text, "" if value is None else repr(value), False) for text, value in zip(texts, values, strict=True)]
