"""The page of a comparison: one file that opens offline, its maps, its figure as SVG and PDF, and its table."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.report._numbers import MISSING, number, show
from isthmus.report.compare.figures import KEYS, compare_figures, maps
from isthmus.report.compare.words import account, compare_cards
from isthmus.report.document import Document
from isthmus.report.spec import Figure
from isthmus.report.tables import HOW_TO_SORT, Cell, Column, Table

if TYPE_CHECKING:
    from isthmus.probe import Comparison

COLUMNS = (
    Column("layer", "layer", "name of the module; @2 its second call in a pass, :input what goes into it"),
    Column("width", "width", "of the state"),
    Column("to", "nearest", "the layer with the highest debiased CKA"),
    Column("cka", "CKA", "debiased linear CKA of the two"),
    Column("low", "interval from", "lower end of its 95 % interval"),
    Column("high", "interval to", "upper end of its 95 % interval"),
    Column("clear", "clear", "whether it is nearer than the second nearest (95 %)"),
    Column("cka_biased", "CKA, biased", "of the two; tends to 1 where rows are few"),
    Column("procrustes", "Procrustes", "distance of the two, 0 to √2"),
    Column("angular", "angle", "arccos of the alignment, in radians", extra=True),
    Column("matched", "same depth", "the layer at the same relative depth", extra=True),
    Column("matched_cka", "CKA there", "debiased CKA with it", extra=True),
    Column("shuffled rows", "shuffled rows", "control: CKA there with rows shuffled", extra=True),
    Column("random weights", "random weights", "control: CKA there with a network of shuffled weights", extra=True),
)


def write_compare_page(comparison: "Comparison", file: str | Path) -> Path:
    """Write a page, and ``figures/compare-*.svg``, ``.pdf`` beside it; earlier ones are replaced.

    Args:
        comparison: what `isthmus.probe.compare` found.
        file: the page's name, ending in .html; or a folder, made where it is missing, for ``compare.html``.

    Returns:
        The path of the page.

    Raises:
        ImportError: plotly, matplotlib or jinja2 is not installed.
    """
    file = Path(file)
    if file.suffix != ".html":
        return ComparePage(comparison).write(file)
    named = type("NamedPage", (ComparePage,), {"file": file.name})
    return Path(named(comparison).write(file.parent))


@dataclass(frozen=True)
class ComparePage(Document):
    """The document of a comparison.

    Args:
        comparison: what was found.
    """

    comparison: "Comparison"
    file = "compare.html"
    template = "compare.html.j2"
    keys = KEYS

    @property
    def title(self) -> str:
        """What is compared."""
        a, b = self.comparison.names
        return f"{a}: layer against layer" if self.comparison.itself else f"{a} against {b}"

    def sections(self) -> Mapping[str, Any]:
        """Facts and notes, the reading, key numbers, maps, what was not compared."""
        found = self.comparison
        chosen = [(one.name, one.type, one.reason) for one in found.skipped if one.chosen]
        return {
            "facts": _facts(found),
            "notes": found.notes,
            "said": account(found),
            "cards": compare_cards(found),
            "maps": maps(found),
            "longest": max(map(len, found.layers_b)),
            "skipped": chosen,
            "others": sum(not one.chosen for one in found.skipped),
        }

    def figures(self) -> tuple[Figure, ...]:
        """By layer."""
        return compare_figures(self.comparison)

    def tables(self) -> tuple[Table, ...]:
        """The nearest layers."""
        rows = nearest_rows(self.comparison)
        columns = tuple(c for c in COLUMNS if any(row.get(c.key) is not None for row in rows))
        body = [(False, [_cell(row.get(c.key), c) for c in columns]) for row in rows]
        return (Table("nearest", "Nearest layers", HOW_TO_SORT, columns, body, named=True),) if rows else ()


def nearest_rows(comparison: "Comparison") -> list[dict[str, Any]]:
    """For each layer of a all that is known of its nearest layer, and of the one at the same relative depth."""
    places = {name: i for i, name in enumerate(comparison.layers_a)}
    columns = {name: j for j, name in enumerate(comparison.layers_b)}
    depth = {a: (b, v) for a, b, v in comparison.at_matched_depth}
    controls = {name: dict(zip(one.layers_a, one.values, strict=True)) for name, one in comparison.controls.items()}
    rows = []
    for one in comparison.nearest:
        i, j = places[one.layer], columns[one.to]
        row: dict[str, Any] = {**vars(one), "width": comparison.widths_a[i]}
        row["clear"] = None if one.clear is None else "yes" if one.clear else "no"
        row |= {
            what: number(getattr(comparison, what)[i, j].item()) for what in ("cka_biased", "procrustes", "angular")
        }
        if not comparison.itself:
            row |= {"matched": depth[one.layer][0], "matched_cka": number(depth[one.layer][1])}
        row |= {name: number(values.get(one.layer)) for name, values in controls.items()}
        rows.append(row)
    return rows


def _facts(found: "Comparison") -> list[tuple[str, str]]:
    a, b = found.names
    sizes = [(f"layers of {a}", show(len(found.layers_a)))]
    if not found.itself:
        sizes.append((f"layers of {b}", show(len(found.layers_b))))
    kind = "a sample" if found.rows == found.samples else "a position of a sample"
    folds = "none" if found.replicates is None else f"95 %, {len(found.replicates)} parts of the samples"
    rows = [("samples", show(found.samples)), ("rows", show(found.rows)), ("a row is", kind)]
    return [*sizes, *rows, ("intervals", folds)]


def _cell(value: Any, column: Column) -> Cell:
    if isinstance(value, str):
        return Cell(value, "", column.extra)
    exact = number(value)
    return Cell(MISSING if value is None else show(value), "" if exact is None else repr(exact), column.extra)
