"""Numbers and counts of a table of claims, in words: the page and the terminal say the same."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from isthmus.claims.pictures import READINGS
from isthmus.claims.verdicts import Row, Verdict
from isthmus.report._numbers import show, span
from isthmus.report.tables import plain


def headline(rows: Sequence[Row]) -> str:
    """How many claims hold, fail and are undecided."""
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in Verdict}
    return (
        f"{counts[Verdict.HOLDS]} hold, {counts[Verdict.FAILS]} fail, {counts[Verdict.UNDECIDED]} undecided "
        f"(of {len(rows)} judgements)"
    )


def estimate(row: Row) -> str:
    """The estimate."""
    return show(row.estimate, 3)


def interval(row: Row) -> str:
    """Its interval; a dash where there is none."""
    if not (math.isfinite(row.low) and math.isfinite(row.high)):
        return "–"
    return f"{show(row.low, 3)} to {show(row.high, 3)}"


def where(row: Row) -> str:
    """Which networks."""
    return READINGS[row.reading]


def certified(row: Row) -> str:
    """How many of the networks are certified."""
    return f"{row.certified} of {row.networks}"


def facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The few settings that identify a study."""
    size = found.get("size", {})
    dims = size.get("dims")
    pairs = [
        ("size", size.get("name")),
        ("teacher", None if dims is None else "→".join(map(str, dims))),
        ("width", size.get("width")),
        ("N", size.get("rows")),
        ("L", size.get("depth")),
        ("μ", size.get("mu")),
        ("seeds", found.get("seeds")),
        ("computed in", span(float(found["seconds"])) + " of one core" if found.get("seconds") else None),
        ("torch", found.get("environment", {}).get("versions", {}).get("torch")),
    ]
    return [(label, plain(value)) for label, value in pairs if value is not None]
