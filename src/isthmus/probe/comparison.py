"""`Comparison`: tables of similarity between layers, their intervals and controls, and what they say in words."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.probe.find import Skipped
from isthmus.probe.similarity import DepthTest, jackknife, matched
from isthmus.thresholds import ALIKE

if TYPE_CHECKING:
    import polars

ENDINGS = (".html", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Control:
    """Debiased CKA at matched depths in a case where there is nothing to find.

    Args:
        name: which control.
        layers_a: layers of a.
        layers_b: the layer of b at the same relative depth, for each.
        own: debiased CKA of these.
        values: the same in the control; NaN where it could not be read.
    """

    name: str
    layers_a: list[str]
    layers_b: list[str]
    own: list[float]
    values: list[float]

    @property
    def highest(self) -> float:
        """The largest magnitude; 0 where nothing could be read."""
        return max((abs(v) for v in self.values if math.isfinite(v)), default=0.0)

    @property
    def mean(self) -> float:
        """The mean over layers; NaN where nothing could be read."""
        known = [v for v in self.values if math.isfinite(v)]
        return sum(known) / len(known) if known else math.nan

    @property
    def not_above(self) -> list[str]:
        """Layers of a that are not more alike than in the control."""
        return [n for n, x, c in zip(self.layers_a, self.own, self.values, strict=True) if x <= c]


@dataclass(frozen=True)
class Nearest:
    """The layer of b that is nearest to a layer of a, by debiased CKA.

    Args:
        layer: of a.
        to: of b.
        cka: debiased.
        low: lower end of the 95 % interval, None where there is none.
        high: upper end.
        clear: whether it is nearer than the second nearest by more than the interval of the difference; None where that
            cannot be told.
    """

    layer: str
    to: str
    cka: float
    low: float | None
    high: float | None
    clear: bool | None


@dataclass(frozen=True)
class Comparison:
    """What `isthmus.probe.compare` found. Tables have a's layers as rows and b's as columns; NaN is undefined.

    Args:
        names: of the networks.
        layers_a: names of layers, in order of execution.
        layers_b: likewise; those of a where a network is compared with itself.
        widths_a: of the states.
        widths_b: likewise.
        itself: one network against itself.
        samples: that were read.
        rows: of every layer.
        positions: ``samples`` or ``mean``.
        cka: debiased linear CKA.
        cka_biased: biased linear CKA.
        cka_error: standard error of `cka`, jackknifed over folds of samples; None for none.
        replicates: `cka` without each fold.
        alignment: ``c = ‖XᵀY‖_*/(‖X‖_F‖Y‖_F)`` about the means, of which Procrustes distances are made.
        alignment_error: its standard error.
        alignment_bias: by how much few rows make it too large, to first order; None where there are no folds.
        factor: 97.5 % quantile of Student's t for the number of folds.
        no_intervals: why there are none, where there are none.
        controls: by name.
        depth: whether similarity follows depth.
        skipped: what was not compared, with the reason.
        notes: on how networks were run.
        doubts: what speaks against the numbers.
    """

    names: tuple[str, str]
    layers_a: list[str]
    layers_b: list[str]
    widths_a: list[int]
    widths_b: list[int]
    itself: bool
    samples: int
    rows: int
    positions: str
    cka: Float[Tensor, "a b"]
    cka_biased: Float[Tensor, "a b"]
    cka_error: Float[Tensor, "a b"] | None
    replicates: Float[Tensor, "folds a b"] | None
    alignment: Float[Tensor, "a b"]
    alignment_error: Float[Tensor, "a b"] | None
    alignment_bias: Float[Tensor, "a b"] | None
    factor: float
    no_intervals: str
    controls: Mapping[str, Control]
    depth: DepthTest | None
    skipped: list[Skipped]
    notes: list[str]
    doubts: list[str]

    @property
    def cka_interval(self) -> tuple[Tensor, Tensor] | None:
        """Ends of the 95 % interval of `cka`; None where there is none."""
        return _interval(self.cka, self.cka_error, self.factor)

    @property
    def procrustes(self) -> Float[Tensor, "a b"]:
        """Orthogonal Procrustes distance about the means at unit Frobenius norm, ``√(2 − 2c)``: 0 to √2."""
        return _distance(self.alignment)

    @property
    def procrustes_interval(self) -> tuple[Tensor, Tensor] | None:
        """Ends of its 95 % interval: that of c less its bias, transformed. Where rows are few the distance itself,
        which the definition makes too small, may lie outside.
        """
        if self.alignment_bias is None:
            return None
        ends = _interval(self.alignment - self.alignment_bias, self.alignment_error, self.factor)
        return None if ends is None else (_distance(ends[1]), _distance(ends[0]))

    @property
    def biased_distances(self) -> int:
        """How many Procrustes distances lie outside of their intervals."""
        ends = self.procrustes_interval
        slack = 1e-6  # roots of differences at rounding
        return 0 if ends is None else int((self.procrustes < ends[0] - slack).sum())

    @property
    def angular(self) -> Float[Tensor, "a b"]:
        """The angle ``arccos c`` (Williams et al. 2021), in radians: 0 to π/2."""
        return self.alignment.clamp(-1, 1).arccos()

    @property
    def nearest(self) -> list[Nearest]:
        """For each layer of a, the nearest layer of b; of one network, the nearest other layer."""
        found = []
        values = self.cka.clone()
        if self.itself:
            values.fill_diagonal_(math.nan)
        for i, layer in enumerate(self.layers_a):
            known = torch.isfinite(values[i]).nonzero()[:, 0].tolist()
            if not known:
                continue
            j = max(known, key=lambda k: float(values[i, k]))
            ends = self.cka_interval
            low, high = (None, None) if ends is None else (float(ends[0][i, j]), float(ends[1][i, j]))
            found.append(Nearest(layer, self.layers_b[j], float(values[i, j]), low, high, self._clear(i, j, known)))
        return found

    def _clear(self, i: int, j: int, known: list[int]) -> bool | None:
        others = [k for k in known if k != j]
        if self.replicates is None or not others:
            return None
        second = max(others, key=lambda k: float(self.cka[i, k]))
        error = float(jackknife(self.replicates[:, i, j] - self.replicates[:, i, second]))
        return float(self.cka[i, j] - self.cka[i, second]) > self.factor * error

    @property
    def at_matched_depth(self) -> list[tuple[str, str, float]]:
        """Layers of a, the layer of b at the same relative depth, and their debiased CKA."""
        pairs = enumerate(matched(len(self.layers_a), len(self.layers_b)))
        return [(self.layers_a[i], self.layers_b[j], float(self.cka[i, j])) for i, j in pairs]

    @property
    def groups(self) -> list[list[str]]:
        """Runs of consecutive layers of one network of which all pairs have a debiased CKA of at least 0.9."""
        found: list[list[int]] = []
        for i in range(len(self.layers_a) if self.itself else 0):
            if found and all(float(self.cka[i, j]) >= ALIKE for j in found[-1]):
                found[-1].append(i)
            else:
                found.append([i])
        return [[self.layers_a[i] for i in group] for group in found]

    @property
    def verdict(self) -> str:
        """What the numbers say, in a sentence."""
        a, b = self.names
        if not bool(torch.isfinite(self.cka).any()):
            return f"Nothing can be said: {self.rows} rows are too few."
        if self.itself:
            groups = self.groups
            many = "1 group" if len(groups) == 1 else f"{len(groups)} groups"
            inside = "; ".join(g[0] if len(g) == 1 else f"{g[0]} to {g[-1]}" for g in groups[:8])
            return f"One network against itself: {many} of layers (debiased CKA ≥ {ALIKE:g} inside): {inside}."
        pairs = {x: y for x, y, _ in self.at_matched_depth}
        near = self.nearest
        hits = sum(pairs[one.layer] == one.to for one in near)
        values = [v for *_, v in self.at_matched_depth if math.isfinite(v)]
        middle = f"{median(values):.2f}" if values else "undefined"
        many = "none is" if not hits else "1 is" if hits == 1 else f"{hits} are"
        return (
            f"Of {len(near)} layers of {a}, {many} nearest to the layer of {b} at the same relative depth; the "
            f"median debiased CKA there is {middle}."
        )

    def table(self, what: str = "cka") -> "polars.DataFrame":
        """A measure as a table: a column of a's layers, then one for each of b's.

        Args:
            what: ``cka``, ``cka_biased``, ``procrustes`` or ``angular``.

        Raises:
            ValueError: another measure.
        """
        import polars

        if what not in MEASURES:
            raise ValueError(f"what: expected one of {', '.join(MEASURES)}, got {what!r}")
        values: Tensor = getattr(self, what)
        columns = {name: _known(values[:, j]) for j, name in enumerate(self.layers_b)}
        schema = {n: polars.Float64 for n in columns}
        rows = polars.Series("layer" if "layer" not in columns else "layer of a", self.layers_a, polars.String)
        return polars.DataFrame(columns, schema=schema).insert_column(0, rows)

    def to_dataframe(self) -> "polars.DataFrame":
        """Long form: a row for each pair of layers, with all measures and ends of intervals."""
        import polars

        columns = self._columns()
        kinds = {n: polars.String if n in ("a", "b") else polars.Float64 for n in columns}
        return polars.DataFrame(columns, schema=kinds)

    def _columns(self) -> dict[str, list[Any]]:
        count = len(self.layers_b)
        found: dict[str, list[Any]] = {
            "a": [name for name in self.layers_a for _ in range(count)],
            "b": [*self.layers_b] * len(self.layers_a),
        }
        empty = [None] * len(found["a"])
        for what in MEASURES:
            found[what] = _known(getattr(self, what).flatten())
            if what in ("cka", "procrustes"):
                ends = self.cka_interval if what == "cka" else self.procrustes_interval
                for side in (0, 1):
                    found[f"{what}_{('low', 'high')[side]}"] = empty if ends is None else _known(ends[side].flatten())
        return found

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, undefined numbers as None."""
        return {
            "names": list(self.names),
            "itself": self.itself,
            "samples": self.samples,
            "rows": self.rows,
            "positions": self.positions,
            "verdict": self.verdict,
            "layers": {"a": self.layers_a, "b": self.layers_b},
            "widths": {"a": self.widths_a, "b": self.widths_b},
            "pairs": self._columns(),
            "nearest": [vars(one) for one in self.nearest],
            "groups": self.groups,
            "controls": {
                name: {**vars(one), "own": _plain(one.own), "values": _plain(one.values)}
                for name, one in self.controls.items()
            },
            "depth": None if self.depth is None else vars(self.depth),
            "skipped": [vars(one) for one in self.skipped],
            "notes": self.notes,
            "doubts": self.doubts,
        }

    def save(self, file: str | Path) -> Path:
        """Write a page (``.html``, with its figures in a folder beside it), all as ``.json``, or the pairs as a table.

        Returns:
            The path.

        Raises:
            ValueError: an ending other than .html, .json, .csv and .parquet.
            ImportError: the page needs plotly, matplotlib and jinja2, the tables polars.
        """
        file = Path(file)
        if file.suffix not in ENDINGS:
            raise ValueError(f"expected a name ending in {', '.join(ENDINGS)}, got {file.name!r}")
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".html":
            # The room of pages stands above this one: it is looked up by name when asked for, and never imported here.
            write = import_module("isthmus.report").write_compare_page
            return Path(write(self, file))
        if file.suffix == ".json":
            file.write_text(json.dumps(self.to_dict(), ensure_ascii=False, indent=1, allow_nan=False), encoding="utf-8")
        elif file.suffix == ".csv":
            self.to_dataframe().write_csv(file)
        else:
            self.to_dataframe().write_parquet(file)
        return file

    def __str__(self) -> str:
        near = self.nearest
        width = max([len(n) for n in self.layers_a] + [5])
        other = max([len(n) for n in self.layers_b] + [7])
        lines = [
            self.verdict,
            "",
            f"{'layer':<{width}}  {'nearest':<{other}}  {'CKA':>6}  {'95 % interval':>16}  clear",
        ]
        for one in near:
            ends = "" if one.low is None or one.high is None else f"{one.low:.3f} to {one.high:.3f}"
            clear = "" if one.clear is None else "yes" if one.clear else "no"
            lines.append(f"{one.layer:<{width}}  {one.to:<{other}}  {one.cka:>6.3f}  {ends:>16}  {clear}")
        lines += ["", f"{self.samples} samples, {self.rows} rows; debiased linear CKA"]
        lines += [f"{name}: CKA {one.mean:.3f} at matched depths" for name, one in self.controls.items()]
        if self.depth is not None:
            own, others, p = self.depth.matched, self.depth.shuffled, self.depth.p
            lines.append(
                f"shuffled layers: CKA {own:.3f} at matched depths, {others:.3f} in random order (p = {p:.3g})"
            )
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"doubt: {doubt}" for doubt in self.doubts]
        chosen = [one for one in self.skipped if one.chosen]
        if chosen:
            lines.append(f"not compared ({len(chosen)}):")
        lines += [f"  {one.name}: {one.reason}" for one in chosen]
        return "\n".join(lines)


MEASURES = ("cka", "cka_biased", "procrustes", "angular")


def _interval(value: Tensor, error: Tensor | None, factor: float) -> tuple[Tensor, Tensor] | None:
    return None if error is None else (value - factor * error, value + factor * error)


def _distance(c: Tensor) -> Tensor:
    return (2 - 2 * c).clamp(min=0).sqrt()


def _known(x: Tensor) -> list[float | None]:
    return _plain(x.tolist())


def _plain(values: list[float]) -> list[float | None]:
    return [v if math.isfinite(v) else None for v in values]
