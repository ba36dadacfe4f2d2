"""Checks of options shared by all tasks, and the import of data packages."""

import math
from collections.abc import Iterable
from functools import partial

from isthmus import _support
from isthmus._support import hint

NORMALISATIONS = ("coordinate", "global", "none")


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


require = partial(_support.require, needed_by="this task")
