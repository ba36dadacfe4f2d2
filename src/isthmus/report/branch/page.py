"""The page of a branch: one file that opens offline, its figures as SVG and PDF, its events in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus._support import number
from isthmus.report._numbers import show
from isthmus.report.branch.columns import NAMES, point_columns, point_rows
from isthmus.report.branch.figures import KEYS, branch_figures
from isthmus.report.branch.words import KINDS, cards, end, name, place, summary
from isthmus.report.document import Document
from isthmus.report.spec import Figure
from isthmus.report.tables import HOW_TO_SORT, Table, dotted, plain
from isthmus.runs.branch_folder import BranchData, load_branch
from isthmus.runs.branch_points import PointSpectra, branch_spectra
from isthmus.runs.schema import REPORT

MOST_SPECTRA = 40
"""Points whose spectra are on the page: the slider has no room for more, and the page would grow."""


def write_branch_page(folder: str | Path) -> Path:
    """Write `report.html` and `figures/*.svg`, `figures/*.pdf` into the folder of a branch; earlier ones are replaced.

    Spectra are computed here, from the weights that were kept.

    Returns:
        The path of the page.

    Raises:
        RunFolderError: (a ValueError) the folder cannot be read as a branch; see `isthmus.runs.branch_folder`.
        ImportError: plotly, matplotlib or jinja2 is not installed.
    """
    data = load_branch(folder)
    return BranchPage(data, tuple(branch_spectra(folder, MOST_SPECTRA))).write(data.folder)


@dataclass(frozen=True)
class BranchPage(Document):
    """The document of a branch.

    Args:
        data: as read from its folder.
        spectra: of some of its points; empty where weights were not kept.
    """

    data: BranchData
    spectra: tuple[PointSpectra, ...] = ()
    file = REPORT
    template = "branch.html.j2"
    keys = KEYS

    @property
    def title(self) -> str:
        """The folder's name."""
        return self.data.name

    def sections(self) -> Mapping[str, Any]:
        """Facts and notes, how good the points are, the verdict on the last one, events in words."""
        data = self.data
        notes = list(data.notes())
        if not self.spectra and data.points:
            notes.append("The weights of the points were not kept: there are no spectra.")
        return {
            "facts": _facts(data),
            "notes": notes,
            "said": summary(data),
            "end": end(data),
            "cards": cards(data),
            "parameter": name(data),
            "events": _events(data),
            "origin": _origin(data),
            "settings": dotted(data.settings),
            "configuration": dotted(data.config),
            "environment": dotted(data.environment),
        }

    def figures(self) -> tuple[Figure, ...]:
        """From the curve to the spectra."""
        return branch_figures(self.data, self.spectra)

    def tables(self) -> tuple[Table, ...]:
        """The points."""
        columns = point_columns(self.data)
        reading = f"In the order in which they were found. Shaded rows are not certified, or no minimum. {HOW_TO_SORT}"
        rows = point_rows(self.data, columns)
        return (Table("points", "Points", reading, columns, rows),) if rows else ()


def _facts(data: BranchData) -> list[tuple[str, str]]:
    """The few settings that identify the branch."""
    model, task = data.config.get("model", {}), data.config.get("task", {})
    dims = task.get("dims") if task.get("kind") == "teacher" else None
    found = [
        ("parameter", NAMES.get(data.parameter, data.parameter)),
        ("task", f"teacher {'→'.join(map(str, dims))}" if dims else task.get("kind")),
        ("L", model.get("depth")),
        ("width", model.get("width")),
        ("L̃ at the start", model.get("effective_depth")),
        ("μ at the start", data.config.get("train", {}).get("mu")),
        ("σ", model.get("activation")),
        ("sharpness", model.get("sharpness") if model.get("activation") == "smooth_relu" else None),
        ("tolerance", data.settings.get("tolerance")),
        ("seed", data.config.get("seed")),
    ]
    return [(label, plain(value)) for label, value in found if value is not None]


def _events(data: BranchData) -> list[tuple[str, str, str]]:
    """Kind, place and words of every event."""
    return [
        (KINDS.get(str(event["kind"]), (str(event["kind"]), ""))[0], place(event), str(event["message"]))
        for event in data.events
    ]


def _origin(data: BranchData) -> list[str]:
    """Where the first network came from, in sentences."""
    run, solved = data.start.get("run"), data.start.get("solved")
    words = [f"The start is the network of {run}." if run else "The start was solved from its initial weights."]
    words += [f"{note[:1].upper()}{note[1:]}." for note in map(str, data.start.get("notes", ()))]
    if isinstance(solved, dict):
        before, after = (show(number(solved.get(key)), 2) for key in ("residual_before", "residual"))
        words.append(f"It was solved first: the residual went from {before} to {after}.")
    return words
