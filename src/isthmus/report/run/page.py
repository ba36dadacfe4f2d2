"""The report of a run: one page that opens offline, and its figures as files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.report._numbers import show
from isthmus.report.document import Document
from isthmus.report.run.columns import LAYERS, STATES, layer_rows, state_rows
from isthmus.report.run.figures.build import KEYS, build_figures
from isthmus.report.run.words import cards, certificate, status_line, verdict
from isthmus.report.spec import Figure
from isthmus.report.tables import HOW_TO_SORT, Table, dotted, plain
from isthmus.runs.reader import RunData, load_run
from isthmus.runs.schema import REPORT
from isthmus.thresholds import CRITICAL, DIGITS, SHAPES


def write_report(folder: str | Path) -> Path:
    """Write `report.html` and `figures/*.svg`, `figures/*.pdf` into a run folder; earlier ones are replaced.

    Returns:
        The path of the page.

    Raises:
        RunFolderError: (a ValueError) the folder cannot be read as a run; see `load_run`.
        ImportError: plotly, matplotlib or jinja2 is not installed.
    """
    run = load_run(folder)
    return RunReport(run).write(run.folder)


@dataclass(frozen=True)
class RunReport(Document):
    """The document of a run.

    Args:
        run: as read from its folder.
    """

    run: RunData
    file = REPORT
    template = "run.html.j2"
    keys = KEYS

    @property
    def title(self) -> str:
        """The run's name."""
        return self.run.name

    @property
    def caveat(self) -> str:
        """By the residual."""
        return certificate(self.run).level

    def sections(self) -> Mapping[str, Any]:
        """Notes, verdict, certificate, key numbers, configuration and environment."""
        run = self.run
        return {
            "run": run,
            "facts": _facts(run),
            "certificate": certificate(run),
            "limits": {"critical": show(CRITICAL), "digits": show(DIGITS), "shapes": show(SHAPES)},
            "verdict": verdict(run),
            "status_line": status_line(run),
            "cards": cards(run),
            "environment": dotted(run.environment),
            "seed": _seed(run),
        }

    def figures(self) -> tuple[Figure, ...]:
        """From training to the mechanics along p."""
        return build_figures(self.run)

    def tables(self) -> tuple[Table, ...]:
        """Layers and, where they were written, states."""
        run = self.run
        doubtful = certificate(run).level != "good"
        caveat = "Columns made from H or B share the doubts of the certificate above." if doubtful else ""
        pairs = "Energies and H pair A before the layer with B after it, as the symplectic Euler scheme (E10) asks."
        layers = f"{pairs} They belong to the layer's midpoint; p is its end. Shaded rows are slow. {HOW_TO_SORT}"
        states = f"Each state A_0 … A_L at its own p: p = 0 are the inputs, p = 1 the outputs. {HOW_TO_SORT}"
        made = (
            Table("layers", "Layers", layers, LAYERS, layer_rows(run), caveat),
            Table("states", "States", states, STATES, state_rows(run)),
        )
        return tuple(table for table in made if table.rows)


def _facts(run: RunData) -> list[tuple[str, str]]:
    """The few settings that identify the run."""
    found = [
        ("task", run.summary.get("task")),
        ("L̃", run.value("effective_depth")),
        ("L", run.summary.get("depth")),
        ("width", run.summary.get("width")),
        ("μ", run.value("mu")),
        ("σ", run.summary.get("activation")),
        ("mesh", run.summary.get("mesh")),
        ("recipe", run.summary.get("recipe")),
        ("seed", _seed(run)),
    ]
    return [(label, plain(value)) for label, value in found if value not in (None, "")]


def _seed(run: RunData) -> Any:
    """The seed, from wherever it was recorded."""
    for source in (run.summary, run.config, run.environment):
        if source.get("seed") is not None:
            return source["seed"]
    return None
