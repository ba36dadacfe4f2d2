"""One pass over the data through two networks: their states side by side, summed, with folds and controls."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.probe.find import Skipped
from isthmus.probe.rows import Positions
from isthmus.probe.similarity import Dealer, Layout, OwnSums, Sums, matched
from isthmus.probe.states import Source, Structure, common_structure, described, rows_of, structure_of

GROUP = 32
"""Samples of a group whose HSIC is estimated alone, where folds do not fit into memory."""
CONSTANT = 1e-12
"""A state that varies by less than this part of its mean does not vary: float64 would show rounding only."""


@dataclass
class Side:
    """A network in the pass: its source, the layers that are compared, and those that fell out on the way."""

    source: Source
    label: str
    names: list[str] = field(default_factory=list)
    layout: Layout = field(default_factory=lambda: Layout(()))
    shift: Tensor | None = None
    types: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, Skipped] = field(default_factory=dict)

    def drop(self, name: str, reason: str) -> None:
        """Leave a layer out, for the first reason that came up."""
        self.dropped.setdefault(name, Skipped(name, self.types.get(name, "layer"), reason, True))

    def finish(self) -> None:
        """What shows after all batches: misread layers, and constant ones."""
        self.source.finish()
        for name, skipped in self.source.failed.items():
            self.dropped[name] = skipped

    @property
    def alive(self) -> list[int]:
        """Numbers of the layers that were read to the end."""
        return [i for i, name in enumerate(self.names) if name not in self.dropped]


@dataclass
class Fold:
    """The sums of some of the rows."""

    cross: Sums
    a: OwnSums
    b: OwnSums

    @staticmethod
    def size(a: Layout, b: Layout, itself: bool) -> int:
        """Bytes."""
        return Sums.size(a, b) + OwnSums.size(a) + (0 if itself else OwnSums.size(b))


@dataclass
class Pass:
    """Takes batches in.

    Args:
        sides: the two networks, or the one.
        random: the network with shuffled weights, if it runs.
        shuffled: whether pairs of shuffled rows are summed.
        folds: of samples, for intervals.
        max_memory: bytes that the sums may take.
        seed: of folds and shuffles.
    """

    sides: list[Side]
    random: Side | None
    shuffled: bool
    folds: int
    max_memory: float | int
    seed: int
    samples: int = 0
    doubts: dict[str, None] = field(default_factory=dict)
    kept: list[Fold] = field(default_factory=list)
    groups: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    shuffled_sums: list[Sums] = field(default_factory=list)
    random_sums: list[Sums] = field(default_factory=list)
    random_own: OwnSums | None = None
    no_intervals: str = ""
    mode: str = "folds"
    unshuffled: bool = False
    _open: Fold | None = None
    _filled: int = 0
    _total: Fold | None = None

    def __post_init__(self) -> None:
        self._dealer = Dealer(self.folds, self.seed)
        self._generator = torch.Generator().manual_seed(self.seed)

    @property
    def itself(self) -> bool:
        """One network against itself."""
        return len(self.sides) == 1

    @property
    def a(self) -> Side:
        """The network of the rows."""
        return self.sides[0]

    @property
    def b(self) -> Side:
        """The network of the columns."""
        return self.sides[-1]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Layers at matched depths, which the controls are about."""
        return list(enumerate(matched(len(self.a.names), len(self.b.names))))

    def take(self, batch: object, number: int) -> None:
        """Run all networks on a batch and sum."""
        states = [side.source.states(batch, number) for side in self.sides]
        everything = [*self.sides, *([self.random] if self.random is not None else [])]
        if self.random is not None:
            found = self._random_states(batch, number)
            if found is None:
                everything.pop()
            else:
                states.append(found)
        live = [
            {name: state for name, state in found.items() if name not in side.dropped}
            for side, found in zip(everything, states, strict=True)
        ]
        structure = common_structure(live[: len(self.sides)])
        if structure is None:
            raise ValueError(self._no_common(live))
        if not self.a.names:
            self._begin(live, structure, everything)
        if not structure[0]:
            return
        device = self._total.cross.xy.device if self._total is not None else torch.device("cpu")
        rows = [_rows(side, found, structure, device, number) for side, found in zip(everything, live, strict=True)]
        self._sum(rows, structure)
        self.samples += structure[0]

    def _random_states(self, batch: object, number: int) -> dict[str, Positions] | None:
        """Those of the network with shuffled weights; None, and no control, where it cannot run."""
        assert self.random is not None
        try:
            return self.random.source.states(batch, number)
        except Exception as error:  # weights in another order may break what the network takes for granted
            what = str(error).partition(". ")[0]
            self.doubts[f"random weights: such a network does not run ({type(error).__name__}: {what}); no control"] = (
                None
            )
            self.random, self.random_own, self.random_sums = None, None, []
            return None

    def _no_common(self, live: list[dict[str, Positions]]) -> str:
        def said(side: Side, found: Mapping[str, Positions]) -> str:
            kinds = dict.fromkeys(described(structure_of(state)) for state in found.values())
            return f"{side.label} has {', '.join(list(kinds)[:4]) or 'no layer that could be read'}"

        for side in self.sides:
            side.source.finish()
        why = "; ".join(said(side, found) for side, found in zip(self.sides, live, strict=False))
        failed = [f"{side.label}, {n}: {s.reason}" for side in self.sides for n, s in side.source.failed.items()]
        more = f" ({'; '.join(failed[:3])})" if failed else ""
        return f"layers: no layers of both have the same rows: {why}{more}. positions='mean' makes one row a sample"

    def _begin(self, live: list[dict[str, Positions]], structure: Structure, everything: list[Side]) -> None:
        first = next(state for state in live[0].values() if structure_of(state) == structure)
        device = first.values.device if first.values.device.type != "mps" else torch.device("cpu")
        for side, found in zip(everything, live, strict=True):
            side.names = [name for name, state in found.items() if structure_of(state) == structure]
            for name in set(found) - set(side.names):
                side.drop(name, _mismatch(structure_of(found[name]), structure))
            side.layout = Layout(tuple(found[name].width for name in side.names))
            if side.names and structure[0]:
                side.shift = torch.cat([rows_of(found[name], device).mean(0) for name in side.names])
        if self.random is not None and self.random.names != self.b.names:
            self.doubts["random weights: the network with shuffled weights has other layers; no control"] = None
            self.random.names = []
        self._budget()
        self._total = self._fold(device)
        if self.mode == "folds":
            self.kept = [self._fold(device) for _ in range(self.folds)]
        widths = [(Layout((self.a.layout.widths[i],)), Layout((self.b.layout.widths[j],))) for i, j in self.pairs]
        if self.shuffled:
            self.shuffled_sums = [Sums(*one, device) for one in widths]
        if self.random is not None and self.random.names:
            self.random_sums = [Sums(*one, device) for one in widths]
            self.random_own = OwnSums(self.random.layout, device)

    def _fold(self, device: torch.device) -> Fold:
        own = OwnSums(self.a.layout, device)
        other = own if self.itself else OwnSums(self.b.layout, device)
        return Fold(Sums(self.a.layout, self.b.layout, device), own, other)

    def _budget(self) -> None:
        """Folds, groups one by one, or no intervals: what the memory allows.

        Raises:
            ValueError: not even the sums fit.
        """
        one = Fold.size(self.a.layout, self.b.layout, self.itself)
        pairs = 8 * sum(self.a.layout.widths[i] * self.b.layout.widths[j] for i, j in self.pairs)
        controls = pairs * (int(self.shuffled) + 2 * int(self.random is not None))
        if (self.folds + 2) * one + controls <= self.max_memory:
            return
        need = f"max_memory={(self.folds + 2) * one + controls:.1e} keeps {self.folds} folds"
        if 2 * one + controls <= self.max_memory:
            self.mode = "groups"
            self.doubts[f"intervals are of groups of {GROUP} consecutive samples, each alone: {need}"] = None
            return
        self.mode = "none"
        self.no_intervals = f"the sums fit into memory once only: {need}"
        if one + controls <= self.max_memory:
            return
        share = ((self.max_memory - controls) / one) ** 0.5 if self.max_memory > controls else 0.0
        fit = [int(share * len(side.names)) for side in self.sides]
        raise ValueError(
            f"max_memory: the sums of {len(self.a.names)} × {len(self.b.names)} layers of {self.a.layout.width} and "
            f"{self.b.layout.width} columns take {(one + controls) / 1e9:.2g} GB, more than "
            f"{self.max_memory / 1e9:.2g} GB; about {' × '.join(map(str, (fit * 2)[:2]))} such layers fit: name fewer "
            f"with layers=, or pass max_memory={one + controls:.1e}"
        )

    def _sum(self, rows: list[Tensor], structure: Structure) -> None:
        assert self._total is not None
        X, Y = rows[0], rows[len(self.sides) - 1]
        owner = torch.arange(structure[0]).repeat_interleave(structure[1])
        if structure[2] is not None:
            owner = owner[torch.tensor(list(structure[2]), dtype=torch.bool)]
        if self.mode == "folds":
            dealt = self._dealer.deal(structure[0])[owner]
            for g in dealt.unique().tolist():
                own = (dealt == g).nonzero()[:, 0].to(X.device)
                _update(self.kept[g], X[own], Y[own], self.itself)
        elif self.mode == "groups":
            self._into_groups(X, Y, owner, structure[0])
        else:
            _update(self._total, X, Y, self.itself)
        self._controls(X, Y, rows, structure)

    def _into_groups(self, X: Tensor, Y: Tensor, owner: Tensor, samples: int) -> None:
        start = 0
        while start < samples:
            if self._open is None:
                self._open, self._filled = self._fold(X.device), 0
            end = min(samples, start + GROUP - self._filled)
            own = ((owner >= start) & (owner < end)).to(X.device)
            _update(self._open, X[own], Y[own], self.itself)
            self._filled += end - start
            start = end
            if self._filled == GROUP:
                fold = self._open
                a = fold.a.hsic_unbiased()
                b = a if self.itself else fold.b.hsic_unbiased()
                self.groups.append((fold.cross.hsic_unbiased(), a, b))
                self._close()

    def _close(self) -> None:
        assert self._total is not None
        if self._open is not None:
            _add(self._total, self._open, self.itself)
            self._open = None

    def _controls(self, X: Tensor, Y: Tensor, rows: list[Tensor], structure: Structure) -> None:
        left, right = self.a.layout.slices(), self.b.layout.slices()
        if self.shuffled_sums:
            samples, positions, keep = structure
            if samples < 2 and keep is None:
                self.unshuffled = True
            if keep is None:
                order = torch.randperm(samples, generator=self._generator).to(Y.device)
                mixed = Y.reshape(samples, positions, -1)[order].reshape(Y.shape)
            else:
                mixed = Y[torch.randperm(len(Y), generator=self._generator).to(Y.device)]
            for (i, j), sums in zip(self.pairs, self.shuffled_sums, strict=True):
                sums.update(X[:, left[i]], mixed[:, right[j]])
        if self.random_own is not None:
            Z = rows[-1]
            self.random_own.update(Z)
            for (i, j), sums in zip(self.pairs, self.random_sums, strict=True):
                sums.update(X[:, left[i]], Z[:, right[j]])

    def finish(self) -> Fold:
        """The sums of all rows; layers that fell out are in `Side.dropped`."""
        if self._total is None or not self.samples:
            raise ValueError("data: no samples came; a generator that was read before? max_batches=0?")
        self._close()
        for fold in self.kept:
            _add(self._total, fold, self.itself)
        sides: list[tuple[Side, OwnSums]] = [(self.a, self._total.a), (self.b, self._total.b)]
        for side in [*self.sides, *([self.random] if self.random is not None else [])]:
            side.finish()
        for side, own in sides[: len(self.sides)]:
            assert side.shift is not None
            means = [float(side.shift[one].square().sum()) for one in side.layout.slices()]
            for name, left, mean in zip(side.names, own.variance().tolist(), means, strict=True):
                if own.each[0].n > 1 and left <= CONSTANT**2 * mean * own.each[0].n:
                    side.drop(name, "it is the same for every row of the data: no similarity is defined")
        return self._total


def _update(fold: Fold, X: Tensor, Y: Tensor, itself: bool) -> None:
    fold.cross.update(X, Y)
    fold.a.update(X)
    if not itself:
        fold.b.update(Y)


def _add(total: Fold, part: Fold, itself: bool) -> None:
    total.cross.add(part.cross)
    total.a.add(part.a)
    if not itself:
        total.b.add(part.b)


def _mismatch(own: Structure, common: Structure) -> str:
    return (
        f"its rows do not match the other layers': {described(own)} against {described(common)}; positions='mean' "
        "makes one row a sample, layers= chooses others"
    )


def _rows(
    side: Side, found: Mapping[str, Any], structure: Structure, device: torch.device, number: int
) -> Float[Tensor, "n width"]:
    """All layers side by side, about the shift; zeros for those that fell out."""
    n = structure[0] * structure[1] if structure[2] is None else sum(structure[2])
    parts = []
    for name, width in zip(side.names, side.layout.widths, strict=True):
        state = found.get(name)
        if state is None:
            side.drop(name, f"it was not read in batch {number}, counted from 0")
        elif state.width != width:
            side.drop(name, f"its width changes from batch to batch: {width}, then {state.width}")
        elif structure_of(state) != structure:
            side.drop(name, _mismatch(structure_of(state), structure))
        else:
            parts.append(rows_of(state, device))
            continue
        parts.append(torch.zeros(n, width, dtype=torch.float64, device=device))
    whole = torch.cat(parts, 1) if parts else torch.zeros(n, 0, dtype=torch.float64, device=device)
    if side.shift is None and n:
        side.shift = whole.mean(0)
    return whole if side.shift is None else whole - side.shift
