"""A folder shown in the terminal, and its page: of a run, a branch or a study, whichever it holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from isthmus._support import command
from isthmus.claims.folder import is_study, load_study
from isthmus.claims.pictures import Picture
from isthmus.claims.verdicts import Row
from isthmus.cli.failures import say
from isthmus.runs.branch_folder import is_branch


def show_folder(folder: Path) -> None:
    """Print the tables and the verdict."""
    from rich.console import Console

    if is_branch(folder):
        from isthmus.report.branch.terminal import render_branch
        from isthmus.runs.branch_folder import load_branch

        return render_branch(load_branch(folder), Console())
    if is_study(folder):
        return show_study(*load_study(folder))
    from isthmus.report.run.terminal import render
    from isthmus.runs.reader import load_run

    return render(load_run(folder), Console())


def show_study(pictures: Sequence[Picture], rows: Sequence[Row], found: Mapping[str, Any]) -> None:
    """Print the table of claims; where there is none, what each figure shows."""
    from rich.console import Console

    from isthmus.report.claims.terminal import render_claims, render_pictures

    render_claims(rows, Console()) if rows else render_pictures(pictures, Console())


def page_of(folder: Path) -> Path:
    """Write the page, and return its path.

    Raises:
        ValueError: neither a run nor a branch nor a study.
        ImportError: a package for pages is not installed.
    """
    from isthmus.report import write_branch_page, write_claims_page, write_report

    if is_study(folder):
        return write_claims_page(folder, *load_study(folder))
    return write_branch_page(folder) if is_branch(folder) else write_report(folder)


def write_page(folder: Path) -> tuple[Path | None, bool]:
    """The page, and whether all is well; no page, and a word, where packages or disk space are wanting."""
    again = command("report", folder)
    try:
        return page_of(folder), True
    except ImportError as error:
        say(f"warning: no report was written: {error}; afterwards: {again}")
        return None, True
    except OSError as error:
        say(f"error: no report was written: {error}; free space or correct permissions, then: {again}")
        return None, False
