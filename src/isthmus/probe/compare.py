"""`compare(a, b, data)`: how alike the layers of two networks are, in one pass over the data.

Two checkpoints, two seeds, trained against untrained; or one network against itself. States are read by `probe`'s rules
and matched row by row; the measures, and their sources, are those of `isthmus.probe.similarity`.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice

import torch
from torch import Tensor, nn

from isthmus.model import LeakyResNet
from isthmus.probe.batches import batches
from isthmus.probe.beside import Fold, Pass, Side
from isthmus.probe.comparison import Comparison, Control
from isthmus.probe.find import KINDS, Skipped, find_layers, stacks, unwrap
from isthmus.probe.inputs import Forward
from isthmus.probe.masks import Mask
from isthmus.probe.printed import listed
from isthmus.probe.rows import Choice, Reading
from isthmus.probe.similarity import (
    LEAST_ROWS,
    OwnSums,
    alignment,
    cka,
    cka_debiased,
    depth_test,
    jackknife,
    ratio,
    student,
)
from isthmus.probe.states import Hooked, Trajectory, trajectory_names

SHUFFLED, RANDOM = "shuffled rows", "random weights"
CONTROLS = (SHUFFLED, RANDOM)
SORTED = 0.05
"""Debiased CKA of shuffled rows beyond which batches are said to differ from one another. Its mean is 0 where they do
not, and its spread is of the order of one over the square root of samples at most; three such are added."""


def compare(
    a: nn.Module,
    b: nn.Module | None,
    data: object,
    *,
    layers: object = None,
    layers_b: object = None,
    kinds: Iterable[str] | None = None,
    positions: str = "samples",
    channels: str | Mapping[str, str] = "auto",
    output: Mapping[str, Choice] | None = None,
    state: Mapping[str, Choice] | None = None,
    mask: Mask = "auto",
    sequence_first: bool | Mapping[str, bool] = False,
    forward: Forward | None = None,
    mode: str = "eval",
    autocast: torch.dtype | None = None,
    batch_size: int = 256,
    max_batches: int | None = None,
    max_width: int = 8192,
    controls: Sequence[str] = CONTROLS,
    procrustes: bool = True,
    folds: int = 10,
    max_memory: float | int = 2 * 2**30,
    seed: int = 0,
    names: tuple[str, str] = ("a", "b"),
) -> Comparison:
    """Compare all layers of two networks on the same batches, which are read once.

    Both networks are left as they were (`isthmus.probe.capture.undisturbed`); each runs twice on the first batch, with
    hooks and without, to see that hooks change nothing.

    Args:
        a: any module; its layers are the rows of the result.
        b: another one, whose layers are the columns; None, or a itself: the layers of a against each other, run once.
        data: as of `isthmus.probe.probe.probe`; an iterator will do.
        layers: which layers; None: the states of the residual stream where there are stacks of blocks, else every
            linear and convolutional layer.
        layers_b: of b, where its layers have other names.
        kinds: what is looked for with ``layers=None``, as in `probe`.
        positions: ``samples``: every token or pixel is a row, and layers with other numbers of them are not compared;
            ``mean``: a sample's mean is its row, and all layers are.
        channels: where the width lies, as in `probe`, as are the following to `max_width`; patterns may name layers of
            either.
        output: which tensor of an output is read.
        state: which argument of a block is the state.
        mask: padding.
        sequence_first: tokens before samples.
        forward: ``(model, batch) -> anything``, to run both in another way.
        mode: ``eval`` or ``as_is``.
        autocast: run under `torch.autocast` in this dtype.
        batch_size: into which a tensor is cut.
        max_batches: read no more than these.
        max_width: wider layers are left out.
        controls: ``shuffled rows`` (b's samples in random order within a batch: debiased CKA about 0) and ``random
            weights`` (a copy of b with the entries of each parameter shuffled, which runs too: a third forward pass).
        procrustes: whether Procrustes distances are computed: a decomposition of ``width × width`` a pair.
        folds: into which samples are dealt, for intervals (delete-a-fold jackknife); each has its own sums.
        max_memory: bytes that the sums may take, in float64; where folds do not fit, intervals are made of groups of
            consecutive samples, and said to be. 2 GiB: that much two networks of 13 states of width 768 need for it.
        seed: of folds, controls and permutations.
        names: of the two, in what is printed.

    Raises:
        TypeError, ValueError: arguments that do not fit, data that cannot be used, no two layers with the same rows,
            sums beyond ``max_memory``; each says how to mend it.

    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> bool(torch.allclose(compare(net, None, torch.randn(64, 3)).cka.diagonal(), torch.ones(2).double()))
    True
    """
    wrong = [one for one in controls if one not in CONTROLS]
    if wrong or isinstance(controls, str):
        raise ValueError(f"controls: expected some of {', '.join(map(repr, CONTROLS))}, got {controls!r}")
    if folds < 5:
        raise ValueError(f"folds: expected at least 5, got {folds}")
    reading = Reading(channels, positions, sequence_first, output or {}, state or {}, max_width)
    run = _Run(reading, forward, mask, mode, autocast, kinds)
    second = a if b is None else b
    itself = unwrap(second)[0] is unwrap(a)[0]
    if itself and layers_b is not None:
        raise ValueError("layers_b: one network is compared with itself; layers= chooses its layers")
    sides: list[Side] = []
    skipped: list[Skipped] = []
    for place, model in enumerate([a] if itself else [a, second]):
        own = layers_b if place and layers_b is not None else layers
        side, gone = run.side(model, own, names[place], "; layers_b= names those of the second" if place else "")
        sides.append(side)
        skipped += [_named(one, names[place], itself) for one in gone]
    random, why = _random(run, second, layers if itself or layers_b is None else layers_b, seed, controls)
    taken = Pass(sides, random, SHUFFLED in controls, folds, max_memory, seed)
    taken.doubts |= dict.fromkeys(why)
    with ExitStack() as stack:
        for one in [*sides, *([random] if random is not None else [])]:
            stack.enter_context(one.source.open())
        for number, batch in enumerate(islice(iter(batches(data, batch_size)), max_batches)):
            taken.take(batch, number)
        whole = taken.finish()
    for side in sides:
        skipped += [_named(one, side.label, itself) for one in side.dropped.values()]
    _check(taken)
    return _result(taken, whole, skipped, procrustes, reading.positions, seed)


class _Run:
    """How networks are run, the same way for all."""

    def __init__(
        self,
        reading: Reading,
        forward: Forward | None,
        mask: Mask,
        mode: str,
        autocast: torch.dtype | None,
        kinds: Iterable[str] | None,
    ) -> None:
        self.reading, self.forward, self.mask, self.mode, self.autocast = reading, forward, mask, mode, autocast
        self.kinds = None if kinds is None else tuple(kinds)

    def side(self, model: nn.Module, layers: object, label: str, advice: str = "") -> tuple[Side, list[Skipped]]:
        """A network with the layers to read, and those that are not."""
        inner, notes = unwrap(model)
        if isinstance(inner, LeakyResNet) and self.forward is None:
            wanted = trajectory_names(inner, layers)
            every = trajectory_names(inner, None)
            gone = [Skipped(n, "state", "not among the layers asked for") for n in every if n not in wanted]
            return Side(Trajectory(inner, wanted), label), gone
        kinds = self.kinds if self.kinds is not None else ("stream", "block") if stacks(inner) else KINDS
        try:
            sites, gone = find_layers(inner, layers, kinds)
        except ValueError as error:
            raise ValueError(f"{error} (in network {label}{advice})") from error
        source = Hooked(inner, sites, self.reading, self.forward, self.mask, self.mode, self.autocast)
        source.notes |= dict.fromkeys(notes)
        side = Side(source, label, types={site.name: type(site.module).__name__ for site in sites})
        return side, gone


def _named(one: Skipped, label: str, itself: bool) -> Skipped:
    return one if itself else Skipped(f"{label}: {one.name}", one.type, one.reason, one.chosen)


def _random(
    run: _Run, model: nn.Module, layers: object, seed: int, controls: Sequence[str]
) -> tuple[Side | None, list[str]]:
    """A copy of a network with the entries of each parameter in random order; None with the reason."""
    if RANDOM not in controls:
        return None, []
    try:
        made = copy.deepcopy(unwrap(model)[0])
    except Exception as error:
        return None, [f"random weights: the network cannot be copied ({type(error).__name__}); no control"]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.reshape(-1)[order].reshape(parameter.shape))
    return run.side(made, layers, "the network with shuffled weights")[0], []


def _check(taken: Pass) -> None:
    for side in taken.sides:
        if not side.alive:
            reasons = [f"{name}: {one.reason}" for name, one in side.dropped.items()]
            raise ValueError(f"layers: none of {side.label} can be compared. {'; '.join(reasons[:4])}")


def _result(
    taken: Pass, whole: Fold, skipped: list[Skipped], procrustes: bool, positions: str, seed: int
) -> Comparison:
    rows, columns = torch.tensor(taken.a.alive), torch.tensor(taken.b.alive)

    def kept(x: Tensor) -> Tensor:
        return x.cpu()[..., rows[:, None], columns]

    n = whole.cross.n
    debiased = kept(cka_debiased(whole.cross, whole.a, whole.b))
    biased = kept(cka(whole.cross, whole.a, whole.b))
    if taken.itself:
        debiased, biased = _symmetric(debiased), _symmetric(biased)
    if n < 2:
        biased.fill_(math.nan)
    replicates = _replicates(taken, whole, kept, debiased)
    distances = (
        alignment(
            whole.cross,
            whole.a,
            whole.b,
            [(f.cross, f.a, f.b) for f in taken.kept] if replicates is not None else (),
            taken.itself,
        )
        if procrustes and n > 1
        else None
    )
    value = torch.full_like(debiased, math.nan) if distances is None else kept(distances.value)
    turns = None if distances is None or distances.replicates is None else kept(distances.replicates)
    bias = None if distances is None or distances.bias is None else kept(distances.bias)
    found = Comparison(
        names=(taken.a.label, taken.b.label),
        layers_a=[taken.a.names[i] for i in taken.a.alive],
        layers_b=[taken.b.names[j] for j in taken.b.alive],
        widths_a=[taken.a.layout.widths[i] for i in taken.a.alive],
        widths_b=[taken.b.layout.widths[j] for j in taken.b.alive],
        itself=taken.itself,
        samples=taken.samples,
        rows=n,
        positions=positions,
        cka=debiased,
        cka_biased=biased,
        cka_error=None if replicates is None else jackknife(replicates),
        replicates=replicates,
        alignment=value,
        alignment_error=None if turns is None else jackknife(turns),
        alignment_bias=bias,
        factor=_factor(replicates),
        no_intervals=taken.no_intervals,
        controls=_controls(taken, whole, debiased),
        depth=None if taken.itself else depth_test(debiased, seed=seed),
        skipped=skipped,
        notes=list(dict.fromkeys(note for side in taken.sides for note in _said(side, side.source.notes, taken))),
        doubts=[],
    )
    heard = [*taken.doubts, *(doubt for side in taken.sides for doubt in _said(side, side.source.doubts, taken))]
    found.doubts.extend(dict.fromkeys((*heard, *_doubts(taken, found))))
    return found


def _said(side: Side, texts: Iterable[str], taken: Pass) -> list[str]:
    return [text if taken.itself else f"{side.label}: {text}" for text in texts]


def _symmetric(x: Tensor) -> Tensor:
    return (x + x.T) / 2


def _factor(replicates: Tensor | None) -> float:
    return math.nan if replicates is None else student(len(replicates) - 1)


def _replicates(taken: Pass, whole: Fold, kept: Callable[[Tensor], Tensor], debiased: Tensor) -> Tensor | None:
    """Debiased CKA without each fold of samples, or without each group; None with the reason in `taken`."""
    if whole.cross.n < LEAST_ROWS:
        taken.no_intervals = f"{whole.cross.n} rows; unbiased estimates need {LEAST_ROWS}"
    elif taken.mode == "folds" and taken.samples < 2 * taken.folds:
        taken.no_intervals = f"{taken.samples} samples; intervals need {2 * taken.folds}, two for each of {taken.folds}"
    elif taken.mode == "groups" and len(taken.groups) < 5:
        taken.no_intervals = f"{len(taken.groups)} whole groups of samples; intervals need 5"
    if taken.no_intervals:
        return None
    if taken.mode == "folds":
        own = [cka_debiased(whole.cross.without(f.cross), *_less(whole, f, taken.itself)).cpu() for f in taken.kept]
        found = torch.stack([kept(one) for one in own])
    else:
        sums = [torch.stack(part).cpu() for part in zip(*taken.groups, strict=True)]
        less = [part.sum(0) - part for part in sums]
        found = torch.stack([kept(ratio(*one)) for one in zip(*less, strict=True)])
        apart = (kept(ratio(*(part.sum(0) for part in sums))) - debiased).abs()
        if bool((apart > 3 * jackknife(found) + 0.02).any()):
            taken.no_intervals = (
                "groups of consecutive samples give another similarity than all of them: sorted data, or rows of a "
                "sample that resemble each other; shuffle the data, or raise max_memory"
            )
            return None
    return found


def _less(whole: Fold, fold: Fold, itself: bool) -> tuple[OwnSums, OwnSums]:
    a = whole.a.without(fold.a)
    return a, a if itself else whole.b.without(fold.b)


def _controls(taken: Pass, whole: Fold, debiased: Tensor) -> dict[str, Control]:
    """Debiased CKA at matched depths, of shuffled rows and of shuffled weights."""
    pairs = [(i, j) for i, j in taken.pairs if i in taken.a.alive and j in taken.b.alive]
    if not pairs or whole.cross.n < LEAST_ROWS:
        return {}
    rows = [taken.a.names[i] for i, _ in pairs]
    columns = [taken.b.names[j] for _, j in pairs]
    place_a, place_b = ({i: k for k, i in enumerate(side.alive)} for side in (taken.a, taken.b))
    own = [float(debiased[place_a[i], place_b[j]]) for i, j in pairs]
    a, b = whole.a.hsic_unbiased(), whole.b.hsic_unbiased()
    found = {}
    if taken.shuffled_sums and not taken.unshuffled:
        values = [_one(taken.shuffled_sums[i].hsic_unbiased(), a[i], b[j]) for i, j in pairs]
        found[SHUFFLED] = Control(SHUFFLED, rows, columns, own, values)
    if taken.random_own is not None and taken.random is not None:
        c = taken.random_own.hsic_unbiased()
        live = set(taken.random.alive)
        values = [_one(taken.random_sums[i].hsic_unbiased(), a[i], c[j]) if j in live else math.nan for i, j in pairs]
        found[RANDOM] = Control(RANDOM, rows, columns, own, values)
    return found


def _one(cross: Tensor, a: Tensor, b: Tensor) -> float:
    return float(ratio(cross, a[None], b[None])[0, 0])


def _doubts(taken: Pass, found: Comparison) -> list[str]:
    """What speaks against the numbers, in words."""
    said = []
    if found.rows < LEAST_ROWS:
        said.append(f"{found.rows} rows: debiased CKA needs {LEAST_ROWS}")
    if found.cka_error is None:
        said.append(f"no intervals: {found.no_intervals}")
    if found.rows > found.samples:
        said.append(
            "every position is a row, and those of a sample are not independent: the debiased CKA is corrected for "
            "chance between rows, not between samples (intervals are over samples); positions='mean' makes one row a "
            "sample"
        )
    wide = [n for n, w in {**_widths(found, 0), **_widths(found, 1)}.items() if w >= found.rows]
    if wide:
        said.append(
            f"biased CKA tends to 1 where the width is not well below the rows ({found.rows}): {listed(wide)}"
            "; so does the Procrustes distance to 0; read the debiased one"
        )
    if found.cka_error is not None:
        low = found.cka - found.factor * found.cka_error
        count = int(((low <= 0) & torch.isfinite(low)).sum())
        if count:
            said.append(f"the intervals of {count} of {low.numel()} pairs hold 0: no similarity shown")
    outside = found.biased_distances
    if outside:
        said.append(
            f"{outside} of {found.cka.numel()} Procrustes distances lie outside of their intervals: too small for want "
            "of rows; the intervals are corrected for it to first order, the distances are those of the definition"
        )
    if taken.unshuffled:
        said.append("shuffled rows: batches of one sample cannot be shuffled; no control")
    shuffled, random = found.controls.get(SHUFFLED), found.controls.get(RANDOM)
    if shuffled is not None and shuffled.highest > SORTED + 3 / math.sqrt(found.samples):
        said.append(_unshuffled(found, shuffled.highest))
    if random is not None and random.not_above:
        said.append(f"no more alike than with shuffled weights: {listed(random.not_above)}")
    return said


def _unshuffled(found: Comparison, highest: float) -> str:
    """What it means that samples in random order are still alike."""
    still = f"samples in random order still have a debiased CKA of up to {highest:.2g}"
    if found.rows > found.samples:
        return (
            f"{still}: what positions have in common, whatever the sample, or data in sorted batches; the maps contain "
            "it, and positions='mean' takes out what positions share"
        )
    return f"{still}: they are shuffled within batches, and batches differ, as those of sorted data; shuffle the data"


def _widths(found: Comparison, side: int) -> dict[str, int]:
    names, widths = (found.layers_a, found.widths_a) if not side else (found.layers_b, found.widths_b)
    label = "" if found.itself else f"{found.names[side]}: "
    return {f"{label}{name}": width for name, width in zip(names, widths, strict=True)}
