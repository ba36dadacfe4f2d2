"""Small helpers that several rooms share; nothing here is public."""

import math
import os
import shlex
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

TEMPORARY = ".tmp"
"""The ending of files that are being written; their names begin with a dot."""


def require(module: str, needed_by: str, install: str, package: str | None = None) -> ModuleType:
    """Import a module that only some need, when it is first used.

    Args:
        module: its name.
        needed_by: who needs it, as the message begins: ``the report``.
        install: what pip is to install, as one would type it.
        package: the package's own name, where it is not that of the module.

    Raises:
        ImportError: it is not installed, or fails at import.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = package or module.partition(".")[0].replace("_", "-")
        text = f"{needed_by} needs {package}, which cannot be imported ({error}): pip install {install}"
        raise ImportError(text) from error


def nearest(word: str, options: Iterable[str]) -> str | None:
    """The option most like a word, whatever its case, or None where nothing is.

    >>> nearest("Rleu", ["relu", "identity"])
    'relu'
    """
    return next(iter(_nearest(word, options, 1, 0.6)), None)


def hint(word: str, options: Iterable[str], number: int = 1) -> str:
    """``; did you mean 'relu'?``, with up to ``number`` of the options nearest to a word; nothing where none is near.

    >>> hint("Rleu", ["relu", "identity"])
    "; did you mean 'relu'?"
    """
    close = _nearest(word, options, number, 0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def _nearest(word: str, options: Iterable[str], number: int, cutoff: float) -> list[str]:
    folded = {option.lower(): option for option in reversed(list(options))}
    return [folded[found] for found in get_close_matches(word.lower(), list(folded), number, cutoff)]


def command(*words: object) -> str:
    """A command of the program as one types it in a shell.

    >>> command("report", "my runs/one")
    "isthmus report 'my runs/one'"
    """
    return shlex.join(["isthmus", *map(str, words)])


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all: a temporary one beside it, synced, then renamed over it; returns its path."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def number(value: Any) -> float | None:
    """A finite float, or None for anything else (None, NaN, infinities, text, booleans)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    result = float(value)
    return result if math.isfinite(result) else None
