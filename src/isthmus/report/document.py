"""What every page has in common: a document says what it shows, and this writes it, with its figures as files."""

import base64
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from isthmus._support import write_bytes
from isthmus.report._optional import require
from isthmus.report.printed import draw
from isthmus.report.spec import Figure
from isthmus.report.style import web
from isthmus.report.tables import Table
from isthmus.report.web import specification


class Document(ABC):
    """A page with its figures. Another kind of document is one more of these, in a room of its own.

    Attributes:
        file: name of the page in its folder.
        template: of the page, in ``templates/``; it extends ``base.html.j2`` and says where figures and tables stand.
        keys: of all figures that it may have: files of those that it has no data for are deleted.
        formats: of the figures' files; SVG among them, which the page shows in print.
    """

    file: ClassVar[str]
    template: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]
    formats: ClassVar[tuple[str, ...]] = ("svg", "pdf")

    @property
    @abstractmethod
    def title(self) -> str:
        """The head of the page."""

    @property
    def caveat(self) -> str:
        """Class of the caveats above figures and tables: "near" or "bad"."""
        return "near"

    @abstractmethod
    def sections(self) -> Mapping[str, Any]:
        """Words and numbers, by the names that the template uses; among them `facts` and `cards`."""

    @abstractmethod
    def figures(self) -> tuple[Figure, ...]:
        """Those that there are data for, in the order of the page."""

    @abstractmethod
    def tables(self) -> tuple[Table, ...]:
        """Likewise."""

    def write(self, folder: Path) -> Path:
        """Write the page and ``figures/KEY.FORMAT``; earlier ones are replaced. Returns the page's path.

        Raises:
            ImportError: plotly, matplotlib or jinja2 is not installed.
        """
        for package in ("plotly", "matplotlib", "jinja2"):
            require(package)
        folder.mkdir(parents=True, exist_ok=True)
        figures = self.figures()
        pictures = _write_figures(folder, figures, self.keys, self.formats)
        return write_bytes(folder / self.file, self.render(figures, pictures).encode("utf-8"))

    def render(self, figures: tuple[Figure, ...], pictures: Mapping[str, bytes]) -> str:
        """The page as HTML, plotly's script inlined once.

        Args:
            figures: `figures()`.
            pictures: SVG files by key, shown in print and where scripts are off.

        Raises:
            ImportError: plotly or jinja2 is not installed.
        """
        jinja2 = require("jinja2")
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("isthmus.report", "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        markup = jinja2.utils.markupsafe.Markup
        return str(
            environment.get_template(self.template).render(
                title=self.title,
                caveat_level=self.caveat,
                figures=[_figure(figure, pictures.get(figure.key), markup) for figure in figures],
                tables=self.tables(),
                plots=markup(_plots(figures)),
                formats=self.formats,
                plotly_script=markup(require("plotly.offline").get_plotlyjs()),
                **self.sections(),
            )
        )


def _write_figures(
    folder: Path, figures: tuple[Figure, ...], keys: tuple[str, ...], formats: tuple[str, ...]
) -> dict[str, bytes]:
    """Write ``figures/KEY.FORMAT`` into a folder, delete those of other `keys`; the SVG files by key."""
    target = folder / "figures"
    target.mkdir(exist_ok=True)
    pictures: dict[str, bytes] = {}
    for figure in figures:
        for suffix, content in draw(figure, formats).items():
            write_bytes(target / f"{figure.key}.{suffix}", content)
            if suffix == "svg":
                pictures[figure.key] = content
    for key in keys:
        for suffix in formats:
            if key not in pictures:
                (target / f"{key}.{suffix}").unlink(missing_ok=True)
    return pictures


def _figure(figure: Figure, picture: bytes | None, markup: Any) -> dict[str, Any]:
    """What the template needs of a figure; labels and readings are ours, so their markup is kept."""
    return {
        "key": figure.key,
        "title": markup(web(figure.title)),
        "reading": markup(web(figure.reading)),
        "caveat": figure.caveat,
        "notes": [markup(web(note)) for note in figure.notes],
        "panels": [markup(web(panel.title)) for panel in figure.panels],
        "picture": "" if picture is None else "data:image/svg+xml;base64," + base64.b64encode(picture).decode("ascii"),
    }


def _plots(figures: tuple[Figure, ...]) -> str:
    """Every panel's specification as JSON that may stand inside a script element."""
    plots = {
        f"{figure.key}-{place}": specification(panel) for figure in figures for place, panel in enumerate(figure.panels)
    }
    text = json.dumps(plots, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for sign in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
