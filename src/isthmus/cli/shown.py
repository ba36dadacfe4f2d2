"""A folder shown in the terminal, and its page: of a run or of a branch, whichever it holds."""

from pathlib import Path

from isthmus._support import command
from isthmus.cli.failures import say
from isthmus.runs.branch_folder import is_branch


def show_folder(folder: Path) -> None:
    """Print the tables and the verdict."""
    from rich.console import Console

    if is_branch(folder):
        from isthmus.report.branch.terminal import render_branch
        from isthmus.runs.branch_folder import load_branch

        return render_branch(load_branch(folder), Console())
    from isthmus.report.run.terminal import render
    from isthmus.runs.reader import load_run

    return render(load_run(folder), Console())


def page_of(folder: Path) -> Path:
    """Write the page, and return its path.

    Raises:
        ValueError: neither a run nor a branch.
        ImportError: a package for pages is not installed.
    """
    from isthmus.report import write_branch_page, write_report

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
