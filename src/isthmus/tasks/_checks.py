"""Checks of options shared by all tasks, and the import of data packages."""

import difflib
import importlib
import math
from collections.abc import Iterable
from types import ModuleType

NORMALISATIONS = ("coordinate", "global", "none")


def hint(name: str, valid: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the nearest valid name, or nothing where none is near."""
    names = list(valid)
    folded = {candidate.lower(): candidate for candidate in reversed(names)}
    near = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.5)
    return f"; did you mean {folded[near[0]]!r}?" if near else ""


def check_choice(option: str, value: str, valid: Iterable[str]) -> None:
    """Raise ValueError, with the nearest valid name, unless `value` is one of `valid`."""
    names = list(valid)
    if value not in names:
        raise ValueError(f"{option} must be one of {', '.join(names)}, got {value!r}{hint(str(value), names)}")


def check_seed(seed: int) -> None:
    """Raise ValueError unless `seed` is an integer in [0, 2**63)."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2**63 - 1, got {seed!r}")


def check_fraction(fraction: float | int, zero: bool) -> None:
    """Raise ValueError unless `fraction` lies in (0, 1), or in [0, 1) where `zero` is true."""
    if not math.isfinite(fraction) or not (0 <= fraction < 1) or (fraction == 0 and not zero):
        raise ValueError(f"test_fraction must lie in {'[0, 1)' if zero else '(0, 1)'}, got {fraction}")


def require(module: str, install: str) -> ModuleType:
    """Import a package that only some tasks need.

    Raises:
        ImportError: with the pip command that mends it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"this task needs the package {package} ({error}): pip install '{install}'") from error
