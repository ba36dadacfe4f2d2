"""The page of a study: the paper's statement beside ours for every figure, and the table of claims."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from isthmus.claims.pictures import Picture
from isthmus.claims.verdicts import Row
from isthmus.report.claims.figures import claims_figures
from isthmus.report.claims.words import certified, estimate, facts, headline, interval, where
from isthmus.report.document import Document
from isthmus.report.spec import Figure
from isthmus.report.tables import Table, dotted

FIGURES, CLAIMS = "figures.html", "claims.html"


def write_claims_page(
    folder: str | Path, pictures: Sequence[Picture], rows: Sequence[Row], found: Mapping[str, Any]
) -> Path:
    """Write the page, and ``figures/KEY.svg``, ``.pdf`` and ``.png``.

    Args:
        folder: of the study.
        pictures: what is behind its figures.
        rows: its table of claims; empty for the figures alone, which go into another file.
        found: the study's facts, as in its ``study.json``.

    Returns:
        The path of the page: ``claims.html``, or ``figures.html`` without claims.

    Raises:
        ImportError: plotly, matplotlib or jinja2 is not installed.
    """
    kind = ClaimsPage if rows else FiguresPage
    return kind(tuple(pictures), tuple(rows), found).write(Path(folder))


@dataclass(frozen=True)
class ClaimsPage(Document):
    """The document of a study.

    Args:
        pictures: what is behind its figures.
        rows: its table of claims.
        found: its facts.
    """

    pictures: tuple[Picture, ...]
    rows: tuple[Row, ...]
    found: Mapping[str, Any]
    file = CLAIMS
    template = "claims.html.j2"
    keys = ()  # those that were drawn before are of the same study
    formats = ("svg", "pdf", "png")

    @property
    def title(self) -> str:
        """What it is of."""
        return "Leaky ResNets: the paper's figures and claims, with seeds, intervals and certificates"

    def sections(self) -> Mapping[str, Any]:
        """Facts, the count of verdicts, the table of claims, failures, settings."""
        return {
            "facts": facts(self.found),
            "commands": list(dict.fromkeys(row.command for row in self.rows)),
            "command": self.found.get("command", ""),
            "headline": headline(self.rows) if self.rows else "",
            "claims": [list(map(_line, group)) for _, group in groupby(self.rows, lambda row: row.key)],
            "failures": [(f["job"], f["reason"]) for f in self.found.get("failures", ())],
            "settings": dotted(self.found.get("size", {})),
            "environment": dotted(self.found.get("environment", {})),
        }

    def figures(self) -> tuple[Figure, ...]:
        """Those of the paper."""
        return claims_figures(self.pictures)

    def tables(self) -> tuple[Table, ...]:
        """None that sorts: claims are read in order."""
        return ()


class FiguresPage(ClaimsPage):
    """The same without claims."""

    file = FIGURES


def _line(row: Row) -> dict[str, Any]:
    return {
        "key": row.key,
        "statement": row.statement,
        "source": row.source,
        "measure": row.measure,
        "where": where(row),
        "rule": row.rule,
        "estimate": estimate(row),
        "interval": interval(row),
        "seeds": row.seeds,
        "certified": certified(row),
        "verdict": row.verdict.value,
        "note": row.note,
    }
