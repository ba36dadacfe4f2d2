"""From exceptions to exit codes: 0 done, 1 the run failed, 2 misuse, 130 interrupted."""

import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import typer

DONE, FAILED, MISUSE, INTERRUPTED = 0, 1, 2, 130

# What a wrong option, file or folder raises; failures of a run that had begun are `RunError`.
_MISUSE = (ValueError, ImportError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


def say(text: str) -> None:
    """Print to the standard error, plainly: no markup, no wrapping."""
    print(text, file=sys.stderr, flush=True)


def wants_traceback(debug: bool) -> bool:
    """Whether errors show their traceback: ``--debug``, or ISTHMUS_DEBUG set to anything but 0."""
    return debug or os.environ.get("ISTHMUS_DEBUG", "0") not in ("", "0")


@contextmanager
def exit_codes(debug: bool = False) -> Iterator[None]:
    """Turn what goes wrong inside into a message on the standard error and an exit code."""
    try:
        with _plain_warnings():
            yield
    except (typer.Exit, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        say("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if wants_traceback(debug):
            traceback.print_exc()
        misuse, failed = isinstance(error, _MISUSE), _is_failed_run(error)
        # A full disk and the like: nobody's bug. `RunError` says by itself what to do.
        machine = isinstance(error.__cause__ if failed else error, OSError)
        say(f"error: {_text(error, bare=misuse or failed or machine)}")
        if machine and not misuse and not failed:
            say("Free space or correct permissions, then give the command again.")
        if not misuse and not machine and not wants_traceback(debug):
            say("Run again with --debug to see where it arose, and please report it to the issue tracker.")
        raise typer.Exit(MISUSE if misuse else FAILED) from None


def _is_failed_run(error: Exception) -> bool:
    """Whether this is `isthmus.runs.RunError`, looked up only where it was loaded: it comes with torch."""
    module = sys.modules.get("isthmus.runs.execution")
    return module is not None and isinstance(error, module.RunError)


def _text(error: Exception, bare: bool) -> str:
    """The message of an exception, with its kind where the message was not written for the user."""
    text = str(error)
    return text if bare and text else f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show each warning once, as one line without the place in the source."""
    shown = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if str(message) not in shown:
            shown.add(str(message))
            say(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield
