"""The report of a run: one page that opens offline, and its figures as files."""

import base64
import json
from pathlib import Path
from typing import Any

from isthmus._support import write_bytes
from isthmus.report._numbers import MISSING, show
from isthmus.report._optional import require
from isthmus.report.columns import COLUMNS, rows
from isthmus.report.figures.build import KEYS, build_figures
from isthmus.report.figures.spec import Figure
from isthmus.report.printed import draw
from isthmus.report.style import web
from isthmus.report.web import specification
from isthmus.report.words import cards, certificate, status_line, verdict
from isthmus.runs.reader import RunData, load_run

FORMATS = ("svg", "pdf")


def write_report(folder: str | Path) -> Path:
    """Write `report.html` and `figures/*.svg`, `figures/*.pdf` into a run folder; earlier ones are replaced.

    Returns:
        The path of the page.

    Raises:
        RunFolderError: (a ValueError) the folder cannot be read as a run; see `load_run`.
        ImportError: plotly, matplotlib or jinja2 is not installed.
    """
    for package in ("plotly", "matplotlib", "jinja2"):
        require(package)
    run = load_run(folder)
    figures = build_figures(run)
    pictures = write_figures(run.folder, figures, KEYS)
    return write_bytes(run.folder / "report.html", render_page(run, figures, pictures).encode("utf-8"))


def render_page(run: RunData, figures: tuple[Figure, ...], pictures: dict[str, bytes]) -> str:
    """The page as HTML; `pictures` are the SVG files shown in print and where scripts are off.

    Raises:
        ImportError: plotly or jinja2 is not installed.
    """
    return render(
        "report.html.j2",
        figures,
        pictures,
        run=run,
        subtitle=_subtitle(run),
        certificate=certificate(run),
        caveat_level=certificate(run).level,
        verdict=verdict(run),
        status_line=status_line(run),
        cards=cards(run),
        columns=COLUMNS,
        rows=rows(run),
        environment=_pairs(run.environment),
        seed=_seed(run),
    )


def write_figures(folder: Path, figures: tuple[Figure, ...], keys: tuple[str, ...]) -> dict[str, bytes]:
    """Write ``figures/KEY.svg`` and ``.pdf`` into a folder; returns the SVG files by key.

    Those of other `keys` are deleted: figures of an earlier report that there are no data for any more.
    """
    target = folder / "figures"
    target.mkdir(exist_ok=True)
    pictures: dict[str, bytes] = {}
    for figure in figures:
        for suffix, content in draw(figure, FORMATS).items():
            write_bytes(target / f"{figure.key}.{suffix}", content)
            if suffix == "svg":
                pictures[figure.key] = content
    for key in keys:
        for suffix in FORMATS:
            if key not in pictures:
                (target / f"{key}.{suffix}").unlink(missing_ok=True)
    return pictures


def render(template: str, figures: tuple[Figure, ...], pictures: dict[str, bytes], **values: Any) -> str:
    """A page with its figures, plotly's script inlined once; `values` are what else the template names.

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
    return environment.get_template(template).render(
        figures=[_figure(figure, pictures.get(figure.key), jinja2) for figure in figures],
        plots=markup(_plots(figures)),
        plotly_script=markup(require("plotly.offline").get_plotlyjs()),
        **values,
    )


def _figure(figure: Figure, picture: bytes | None, jinja2: Any) -> dict[str, Any]:
    """What the template needs of a figure; labels and readings are ours, so their markup is kept."""
    markup = jinja2.utils.markupsafe.Markup
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


def _subtitle(run: RunData) -> list[tuple[str, str]]:
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
    return [(label, _plain(value)) for label, value in found if value not in (None, "")]


def _seed(run: RunData) -> Any:
    """The seed, from wherever it was recorded."""
    for source in (run.summary, run.config, run.environment):
        if source.get("seed") is not None:
            return source["seed"]
    return None


def _pairs(content: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as dotted keys and text."""
    pairs: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, dict):
            pairs += _pairs(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", _plain(value)))
    return pairs


def _plain(value: Any) -> str:
    """Any JSON value as text."""
    if value is None:
        return MISSING
    if isinstance(value, list):
        return " ".join(_plain(item) for item in value)
    return show(value) if isinstance(value, float) else str(value)
