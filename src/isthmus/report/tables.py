"""The words, key numbers and tables of a page as data: columns, cells, and the rows to mark."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isthmus.report._numbers import MISSING, show
from isthmus.report.style import web

HOW_TO_SORT = "Click a head to sort; hover it for its meaning."


@dataclass(frozen=True)
class Account:
    """What a document says in words.

    Attributes:
        headline: the main thing, in a sentence.
        sentences: the rest of what it says.
        doubts: what speaks against it.
    """

    headline: str
    sentences: tuple[str, ...]
    doubts: tuple[str, ...]


@dataclass(frozen=True)
class Card:
    """A key number, its unit or range, and what it means in a line."""

    label: str
    value: str
    detail: str
    meaning: str


@dataclass(frozen=True)
class Column:
    """A column of a page's table; `extra` ones are shown on request."""

    key: str
    head: str
    meaning: str
    extra: bool = False

    @property
    def title(self) -> str:
        """The head as HTML."""
        return web(self.head)


@dataclass(frozen=True)
class Cell:
    """A cell as shown, and the value that sorting uses ("" where there is none)."""

    text: str
    sort: str
    extra: bool


@dataclass(frozen=True)
class Table:
    """A table: `key` names it in the page, `title` heads it, `reading` says how to read it.

    `rows` are cells with whether the row is marked; with `named` the first column is text.
    """

    key: str
    title: str
    reading: str
    columns: tuple[Column, ...]
    rows: list[tuple[bool, list[Cell]]]
    caveat: str = ""
    named: bool = False


def dotted(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as dotted keys and text."""
    found: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, Mapping):
            found += dotted(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", plain(value)))
    return found


def plain(value: Any) -> str:
    """Any JSON value as text."""
    if value is None:
        return MISSING
    if isinstance(value, list):
        return " ".join(plain(item) for item in value) or MISSING
    return show(value) if isinstance(value, float) else str(value)
