"""Numbers that may be missing: reading, formatting and small statistics without surprises."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from isthmus._support import number as number

MISSING = "–"


def finite(values: Iterable[Any]) -> list[float]:
    """The finite numbers among `values`, in order."""
    return [x for x in map(number, values) if x is not None]


def positive(values: Iterable[Any]) -> list[float | None]:
    """`values` with None wherever a logarithmic axis has no place for them."""
    return [x if x is not None and x > 0 else None for x in map(number, values)]


def show(value: Any, digits: int = 4) -> str:
    """A cell of a table: at most `digits` significant digits; a dash where there is no number.

    >>> show(0.123456), show(1.5e-9), show(20), show(None), show(float("inf")), show(4e-9, 1)
    ('0.1235', '1.5e-9', '20', '–', '∞', '4e-9')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if isinstance(value, int) or (value == int(value) and abs(value) < 10**digits):
        return f"{int(value)}".replace("-", "−")
    plain = f"{value:.{digits}g}"
    if abs(value) >= 1e-3 and "e" not in plain:
        return plain.replace("-", "−")
    mantissa, exponent = f"{value:.{max(digits - 2, 0)}e}".split("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa.replace('-', '−')}e{int(exponent)}"


def span(seconds: float | None) -> str:
    """A length of time in words.

    >>> span(12.34), span(185.0), span(7300.0)
    ('12.3 s', '3 min 5 s', '2 h 1 min')
    """
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def rounded(values: Sequence[Any], digits: int = 6) -> list[float | None]:
    """Numbers cut to `digits` significant digits (a page of plots shrinks threefold); None stays None."""
    return [None if (x := number(v)) is None else float(f"{x:.{digits}g}") for v in values]
