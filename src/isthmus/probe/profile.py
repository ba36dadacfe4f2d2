"""`Profile`: what `probe` read, a row per layer in the order in which they ran, and what it did not read and why."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isthmus.probe.decompose import shared
from isthmus.probe.dimensions import NeighbourDimension, gride, two_nn
from isthmus.probe.find import Skipped
from isthmus.probe.hamiltonian import HamiltonianEstimate, estimates
from isthmus.probe.moments import LayerMoments
from isthmus.probe.overlap import Overlap, neighbourhood_overlap
from isthmus.probe.printed import SHOWN, printed
from isthmus.probe.quantities import null_control
from isthmus.probe.records import EffectiveDepth, LayerRecord, merged
from isthmus.probe.trajectory import PathEstimate, PathMoments, estimate

if TYPE_CHECKING:
    import polars

NEVER_CALLED = "never called in the passes over the data; its parent may use its weights directly"

# What the columns are; quantities come from `isthmus.probe.moments` and `isthmus.probe.pairs`.
COLUMNS: dict[str, str] = {
    "layer": "name of the module; @2 its second call in a pass, :input what goes into it",
    "type": "class of the module",
    "kind": "stream (what enters a stack of blocks), block, linear, conv, module, or state (of a LeakyResNet)",
    "stack": "the run of blocks it belongs to",
    "reading": "which dimension is the width, what a row is, padding",
    "dtype": "of the states as they came; sums are in float64",
    "rows": "number of rows: samples times positions, without padding",
    "width": "of the state",
    "activation": "σ of the cost of identity: what takes the state in, read off the network, or the caller's choice",
    "compared_with": "the state before, for the columns that compare two states",
}


class Profile(Mapping[str, list[Any]]):
    """A mapping from column name to values, a row per layer in order of execution.

    Args:
        records: the accumulators of every layer.
        skipped: what was not read, with reasons.
        notes: choices made on the way.
        gamma0: γ_0 of the stable quantities (E7).
        samples: number of samples seen.
        doubts: what could not be checked or told, and what was taken.
        walks: by stack and shard, sums of the rows' ways along depth.
    """

    def __init__(
        self,
        records: Sequence[LayerRecord],
        skipped: Sequence[Skipped] = (),
        notes: Sequence[str] = (),
        gamma0: float = 1e-3,
        samples: int = 0,
        doubts: Sequence[str] = (),
        walks: Mapping[str, Sequence[PathMoments]] | None = None,
    ) -> None:
        if not gamma0 > 0:
            raise ValueError(f"gamma0 must be positive, got {gamma0}")
        self.records = list(records)
        self.skipped = tuple(skipped)
        self.notes, self.doubts = tuple(notes), tuple(doubts)
        self.gamma0 = float(gamma0)
        self.samples = int(samples)
        self.walks = {stack: list(shards) for stack, shards in (walks or {}).items()}

    # --- the table ----------------------------------------------------------------------------------------------

    @cached_property
    def layers(self) -> list[str]:
        """Names of the rows."""
        calls = Counter(record.site for record in self.records)
        return [f"{r.site}@{r.call + 1}" if calls[r.site] > 1 or r.call else r.site for r in self.records]

    @cached_property
    def columns(self) -> dict[str, list[Any]]:
        """Column name to values; where a quantity is not defined for a layer, None."""
        with shared():
            rows = [self._row(name, record) for name, record in zip(self.layers, self.records, strict=True)]
        names = list(dict.fromkeys(name for row in rows for name in row))
        return {name: [row.get(name) for row in rows] for name in names}

    def _row(self, name: str, record: LayerRecord) -> dict[str, Any]:
        row: dict[str, Any] = {
            "layer": name,
            "type": record.type,
            "kind": record.kind,
            "stack": record.stack,
            "reading": record.reading,
            "dtype": record.dtype,
            "rows": record.count,
            "width": record.moments[0].width,
            "activation": str(record.activation),
            "compared_with": record.before,
        }
        return row | record.columns(self.gamma0)

    def __getitem__(self, name: str) -> list[Any]:
        if name not in self.columns:
            key = next((key for key, head in SHOWN.items() if head == name), None)
            printed_as = f"; {name!r} is the head of {key!r}" if key else ""
            raise KeyError(f"no column {name!r}{printed_as}; there are {', '.join(self.columns)}")
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def record(self, layer: str) -> LayerRecord:
        """The accumulators of one layer.

        Raises:
            KeyError: a layer that was not read, with the reason.
        """
        if layer in self.layers:
            return self.records[self.layers.index(layer)]
        reason = next((s.reason for s in self.skipped if s.name == layer), None)
        hint = f"it was not read: {reason}" if reason else f"there are {', '.join(self.layers)}"
        raise KeyError(f"no layer {layer!r}; {hint}")

    def moments(self, layer: str) -> LayerMoments:
        """The accumulator of one layer over all shards."""
        return merged(self.record(layer).moments)

    def spectrum(self, layer: str) -> Tensor:
        """Singular values of one layer's state, descending."""
        return self.moments(layer).spectrum()

    def null(self, layer: str, kind: str = "gaussian", **options: Any) -> dict[str, Any]:
        """The same quantities for data without structure, see `isthmus.probe.quantities.null_control`."""
        return null_control(self.moments(layer), kind=kind, **options)

    def kept(self, layer: str) -> Tensor:
        """Rows of one layer as they came, in the order of their draw; the same rows of layers with as many positions.

        Raises:
            ValueError: none were kept.
        """
        kept = self.record(layer).kept
        if kept is None or kept.rows is None:
            raise ValueError("no rows were kept: probe(…, neighbours=2000) keeps some of each layer")
        return kept.rows

    def neighbour_dimension(self, layer: str) -> NeighbourDimension:
        """The intrinsic dimension of one layer by TwoNN, with control and doubts: `isthmus.probe.dimensions.two_nn`.

        Raises:
            ValueError: no rows were kept, or fewer than three.
        """
        rows = self.kept(layer)
        return self.record(layer).neighbours or two_nn(rows)

    def dimension_by_scale(self, layer: str, **options: Any) -> tuple[NeighbourDimension, ...]:
        """The intrinsic dimension of one layer on growing scales: `isthmus.probe.dimensions.gride`.

        Raises:
            ValueError: no rows were kept.
        """
        return gride(self.kept(layer), **options)

    def overlap(self, first: str, second: str, k: int = 30, **options: Any) -> Overlap:
        """The share of nearest neighbours that two layers have in common: `neighbourhood_overlap` of their kept rows.

        Raises:
            ValueError: no rows were kept, or not the same ones: the layers have different numbers of positions.
        """
        one, two = (self.record(layer).kept for layer in (first, second))
        rows = [self.kept(layer) for layer in (first, second)]
        if one is not None and two is not None and not torch.equal(one.priorities, two.priorities):
            raise ValueError(f"{first} and {second} keep different rows: their states have not the same positions")
        return neighbourhood_overlap(rows[0], rows[1], k, **options)

    @cached_property
    def effective_depth(self) -> dict[str, EffectiveDepth]:
        """The implied effective depth of each stack of blocks, chain of linear layers, or trajectory.

        A step of a Leaky ResNet is ``A_ℓ = (1 − ρ_ℓL̃)A_{ℓ−1} + ρ_ℓW_ℓσ(A_{ℓ−1})`` (E2): its skip ``1 − ρ_ℓL̃`` can be
        read off two states wherever σ loses something. Off the span of the features σ(A_{ℓ−1}) the skip alone carries
        the state along, hence ``1 − ρ_ℓL̃ = ⟨A_ℓ, A_{ℓ−1}⟩_⊥/‖A_{ℓ−1}‖²_⊥`` (column ``skip``), and L̃ is the sum of the
        leaks ``1 − skip``: exact for a `LeakyResNet`; one a layer for a fully connected network; 0 for a residual
        stack ``x + Wσ(x)``; for other blocks it counts how much of the state they overwrite.

        Where σ is the identity nothing is lost, and no skip can be told: ``activation=`` says what to take instead.

        States may grow along a stack where theirs in the theory do not; with states of norm 1, which change of scale
        takes the place of a leak (docs/theory.md, after (E3)), the leak is ``1 − skip·‖A_{ℓ−1}‖/‖A_ℓ‖``: the
        sum is `EffectiveDepth.normalised`.
        """
        out: dict[str, EffectiveDepth] = {}
        table = self.columns
        if "skip" not in table:
            return out
        for row, record in enumerate(self.records):
            skip, ratio = table["skip"][row], table["growth"][row]
            if record.stack is None or skip is None:
                continue
            before = out.get(record.stack, EffectiveDepth(0, 0.0, 0.0))
            out[record.stack] = EffectiveDepth(
                before.layers + 1, before.value + 1 - skip, before.normalised + 1 - skip / ratio
            )
        return out

    @cached_property
    def paths(self) -> dict[str, PathEstimate]:
        """Length, straightness and turning of the rows' way along each stack of blocks: see `PathEstimate`."""
        found = {stack: estimate(shards) for stack, shards in self.walks.items()}
        return {stack: one for stack, one in found.items() if one is not None}

    def hamiltonian(self, effective_depth: float | str = "implied") -> dict[str, HamiltonianEstimate]:
        """−2H/L̃ along every stack with momenta: ``probe(…, loss=…, weight_decay=…)``; of a LeakyResNet exactly (E10).

        ``L̃H = ½‖Mσ(A)ᵀ‖_F² − L̃Tr[MAᵀ]``, A before a step and ``M = −(1/μ)∂C/∂A`` after it. For other networks this
        takes for granted, and ``stationarity`` and ``step_off_image`` show where it fails, that

        - a step has the form ``A_ℓ = skip·A_{ℓ−1} + V_ℓσ(A_{ℓ−1})`` with the σ given: linear layers in a chain do, and
          blocks with one weight matrix after σ; deeper blocks do not;
        - the loss given plus ``(weight_decay/2)‖V_ℓ‖_F²``, biases included where σ appends a 1, was minimised, by plain
          L2: the decoupled decay of AdamW is another objective;
        - the steps of a stack are equally long, ``ρ = 1/steps``, so that ``μ = ρ·weight_decay``, and leak alike: H is
          constant along p for one L̃ only.

        Args:
            effective_depth: L̃: a number; ``implied`` (`effective_depth`, 0 for a plain residual stack, where −2H/L̃ is
                not defined and ``scaled`` is what there is); or ``normalised``, which counts growth as a leak.

        Raises:
            ValueError: no momenta were read, no L̃ is implied, or another word.
        """
        return estimates(self, effective_depth)

    def narrowest(self) -> str:
        """The layer of the least dimension, the participation ratio corrected for finite rows.

        Of states of a stream where there is one, else of all layers but the last, the output.

        Raises:
            ValueError: the dimension is defined nowhere: too few rows.
        """
        rows = list(range(len(self.records)))
        stream = [i for i in rows if self.records[i].kind in ("stream", "block", "state")]
        known = self.columns.get("participation_ratio_rows", [])
        told = [i for i in stream or rows[: max(1, len(rows) - 1)] if known and known[i] is not None]
        if not told:
            raise ValueError("no layer's dimension is defined: a corrected participation ratio needs four rows or more")
        return self.layers[min(told, key=lambda i: known[i])]

    def idle(self) -> list[str]:
        """All layers with a step, the idlest first, by ``‖ΔA‖/‖A‖``; what dropping them costs, `simplify` says.

        The page calls a layer idle where it moves the state by less than 10 %.
        """
        steps = [
            (s, n) for s, n in zip(self.columns.get("step_change", []), self.layers, strict=False) if s is not None
        ]
        return [name for _, name in sorted(steps)]

    # --- out of here --------------------------------------------------------------------------------------------

    def to_dataframe(self) -> "polars.DataFrame":
        """The table as a polars DataFrame."""
        import polars

        return polars.DataFrame(self.columns, strict=False)

    def skipped_dataframe(self) -> "polars.DataFrame":
        """What was not read: layer, type, reason, and whether it had been chosen."""
        import polars

        names = ("name", "type", "reason", "chosen")
        return polars.DataFrame({n if n != "name" else "layer": [getattr(s, n) for s in self.skipped] for n in names})

    def save(self, file: str | Path) -> Path:
        """Write the table as ``.parquet`` or ``.csv``, or the whole profile as ``.pt`` (see `load`); returns the path.

        Raises:
            ValueError: another ending.
        """
        file = Path(file)
        if file.suffix == ".parquet":
            self.to_dataframe().write_parquet(file)
        elif file.suffix == ".csv":
            self.to_dataframe().write_csv(file)
        elif file.suffix == ".pt":
            torch.save(self.state_dict(), file)
        else:
            raise ValueError(f"expected a name ending in .parquet, .csv or .pt (to be merged later), got {file.name!r}")
        return file

    @classmethod
    def load(cls, file: str | Path) -> "Profile":
        """A profile saved as ``.pt``: on another machine, to `merge`. Tensors and plain data only; nothing is run."""
        return cls.from_state_dict(torch.load(file, weights_only=True, map_location="cpu"))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data from which `from_state_dict` makes the profile anew."""
        skipped = [{f.name: getattr(s, f.name) for f in fields(s)} for s in self.skipped]
        return {
            "records": [record.state_dict() for record in self.records],
            "skipped": skipped,
            "notes": list(self.notes),
            "doubts": list(self.doubts),
            "gamma0": self.gamma0,
            "samples": self.samples,
            "walks": {stack: [one.state_dict() for one in shards] for stack, shards in self.walks.items()},
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "Profile":
        """The profile of which this is the `state_dict`; accumulators come to the CPU."""
        records = [LayerRecord.from_state_dict(saved) for saved in state["records"]]
        skipped = [Skipped(**s) for s in state["skipped"]]
        walks = {
            stack: [PathMoments.from_state_dict(one) for one in shards]
            for stack, shards in state.get("walks", {}).items()
        }
        return cls(records, skipped, state["notes"], state["gamma0"], state["samples"], state.get("doubts", ()), walks)

    def merge(self, other: "Profile") -> "Profile":
        """The profile of both parts of the data, shard by shard; neither is changed.

        A layer that could not be read in one part is not read in the whole.

        Raises:
            ValueError: profiles of other settings, or of layers that do not fit each other.
        """
        if other.gamma0 != self.gamma0:
            raise ValueError(f"only profiles of one gamma0 merge: {self.gamma0:g} here, {other.gamma0:g} there")
        mine, theirs = ({r.key: r for r in p.records} for p in (self, other))
        lost = {s.name for p in (self, other) for s in p.skipped if s.chosen and s.reason != NEVER_CALLED}
        records = []
        for key in dict.fromkeys((*mine, *theirs)):
            a, b = mine.get(key), theirs.get(key)
            if key[0] in lost or f"{key[0]}@{key[1] + 1}" in lost:
                continue
            records.append(a.merge(b) if a is not None and b is not None else a or b)
        read = {record.site for record in records if record is not None}
        skipped = dict.fromkeys(
            s for s in (*self.skipped, *other.skipped) if s.reason != NEVER_CALLED or s.name not in read
        )
        notes = dict.fromkeys((*self.notes, *other.notes))
        whole = [record for record in records if record is not None]
        doubts = dict.fromkeys((*self.doubts, *other.doubts))
        samples = self.samples + other.samples
        walks = {
            stack: [a.merge(b) for a, b in zip(self.walks[stack], other.walks[stack], strict=True)]
            for stack in self.walks.keys() & other.walks.keys()
        }
        return Profile(whole, list(skipped), list(notes), self.gamma0, samples, list(doubts), walks)

    def __str__(self) -> str:
        return printed(self)
