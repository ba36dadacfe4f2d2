"""Idle layers: what dropping a block would do to the loss, and the smaller network without the idlest.

A block of a residual stack gets a gate, ``y = x + t·(block(x) − x)``: t = 1 is the network, t = 0 the network without
the block. Dropping it changes the loss by ``−∂C/∂t + ½ ∂²C/∂t²`` to second order, all blocks from one backward pass and
one more each (the second derivatives; `order=1` goes without). Blocks go one by one; after each the prediction is made
anew for the network that is left, and the loss is measured. A `LeakyResNet` cannot drop a layer without moving its end:
there two neighbours are merged (`isthmus.probe.merge`), and the gate is on what that changes.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from isthmus.model import LeakyResNet
from isthmus.probe.batches import device_of, to_device
from isthmus.probe.budget import Sizer, checked_budget
from isthmus.probe.configs import cache_fault, has_config
from isthmus.probe.drops import CannotGo, drop_block
from isthmus.probe.find import pattern_matches, unwrap
from isthmus.probe.inputs import Forward
from isthmus.probe.leaky import merge_layers
from isthmus.probe.ranking import checked_order, chosen_blocks, rank
from isthmus.probe.removal import Candidate, DropTask, Loss, Round, Simplified, make_task
from isthmus.probe.rows import Choice


def simplify(
    model: nn.Module,
    data: object,
    loss: Loss,
    *,
    keep: int | Sequence[str] | None = None,
    drop: int | None = None,
    max_increase: float | None = None,
    blocks: str | Sequence[str] | None = None,
    target: Callable[[object], object] | None = None,
    forward: Forward | None = None,
    order: int = 2,
    batch_size: int = 256,
    merge: str = "fit",
    state: Mapping[str, Choice] | None = None,
    budget: Mapping[str, int | float] | None = None,
    reloadable: bool = False,
) -> Simplified:
    """A smaller working network, without the blocks that do least; the original is not touched.

    Say how far to go by one of: ``keep`` (how many of the blocks that could go stay; or names of blocks to keep),
    ``drop`` (how many go), ``max_increase`` (blocks go while the *measured* loss is at most so far above that before;
    one that is too dear is put back, and the next is tried), ``budget`` (blocks go until the model is as small as that;
    with ``max_increase`` no further than the loss allows, and ``notes`` say what was not reached).

    A Hugging Face model's configuration, numbers of layers and cache follow (`isthmus.probe.configs`); what
    ``save_pretrained`` would not bring back is said in ``notes``, or refused with ``reloadable``.

    Args:
        model: see `rank_blocks`.
        data: see `rank_blocks`; better not the data that accuracy is then reported on.
        loss: see `rank_blocks`.
        keep: of a `LeakyResNet`, the number of layers left.
        drop: how many.
        max_increase: of the measured mean loss over the data.
        blocks: see `rank_blocks`.
        target: see `rank_blocks`.
        forward: see `rank_blocks`.
        order: see `rank_blocks`.
        batch_size: see `rank_blocks`.
        merge: for a `LeakyResNet`, ``fit`` or ``average``: see `isthmus.probe.merge.merge_pair`.
        state: see `rank_blocks`.
        budget: upper limits of ``parameters``, ``flops`` (of a pass over the first batch), ``ms`` (its median time).
        reloadable: refuse to drop blocks without which a Hugging Face model cannot be saved and loaded again.

    Raises:
        ValueError: not exactly one way to say how far, numbers that cannot be reached, names that fit nothing.
        TypeError: data or loss of another type.
    """
    limits = checked_budget(budget)
    if sum((keep is not None, drop is not None, max_increase is not None or bool(limits))) != 1:
        raise ValueError(
            "expected exactly one of keep=…, drop=… and max_increase=… (budget=… alone, or with max_increase)"
        )
    task = make_task(data, loss, forward, target, batch_size, state)
    inner, notes = unwrap(model)
    smaller = copy.deepcopy(inner)
    if isinstance(smaller, LeakyResNet):
        if limits:
            raise ValueError("budget: of a LeakyResNet say keep=…, drop=… or max_increase=…")
        return merge_layers(smaller, task, keep, drop, max_increase, checked_order(order), merge)
    chosen, where = chosen_blocks(smaller, blocks)
    first = rank(smaller, chosen, where, task, checked_order(order))
    can = [c.name for c in first if c.reason is None]
    forced, count = _how_many(can, keep, drop, "; ".join(dict.fromkeys(str(c.reason) for c in first if c.reason)))
    going = _Going(smaller, task, chosen, where, first, notes, order, reloadable)
    going.run(forced, count, max_increase, Sizer(task, limits))
    if len(going.rounds) < count and max_increase is None and not limits:
        notes.append(f"{len(going.rounds)} of {count} blocks went: the others cannot")
    going.check_cache(inner)
    return going.result()


class _Going:
    """Blocks that go one by one: what is left of the model, the ranking, what was refused."""

    def __init__(
        self,
        model: nn.Module,
        task: DropTask,
        chosen: dict[str, nn.Module],
        where: dict[str, str],
        first: list[Candidate],
        notes: list[str],
        order: int,
        reloadable: bool,
    ) -> None:
        self.model, self.task, self.chosen, self.where = model, task, chosen, where
        self.first, self.ranking, self.notes = first, first, notes
        self.order, self.reloadable = order, reloadable
        self.rounds: list[Round] = []
        self.refused: dict[str, str] = {}
        self.sizes: list[dict[str, float]] = []
        self.loss_before = self.loss_now = task.mean(model)

    def run(self, forced: set[str] | None, count: int, max_increase: float | None, sizer: Sizer) -> None:
        """Drop until the number asked for went, the budget is met, or the gate lets none through."""
        gate = math.inf if max_increase is None else self.loss_before + max_increase
        self.sizes = [sizer.size(self.model)] * 2
        while len(self.rounds) < count and (not sizer.budget or sizer.over(self.sizes[1])):
            free = [c for c in self.ranking if c.reason is None and (forced is None or c.name in forced)]
            if not free:
                break
            if not self._drop(free[0], gate):
                continue
            self.sizes[1] = sizer.size(self.model)
            if self.chosen and len(self.rounds) < count:
                ranking = rank(self.model, self.chosen, self.where, self.task, self.order)
                self.ranking = [_refuse(c, self.refused) for c in ranking]
        for name in sizer.over(self.sizes[1]):
            self.notes.append(
                f"budget: {name} is {self.sizes[1][name]:.6g}, above {sizer.budget[name]:.6g}: no further block can go"
            )

    def _drop(self, candidate: Candidate, gate: float) -> bool:
        name = candidate.name
        try:
            gone = drop_block(self.model, name, self.chosen[name], self.where, self.task, self.reloadable)
        except CannotGo as reason:
            self.notes.append(f"{name}: {reason}")
            self.refused[name] = str(reason)
            self.first = [_refuse(c, self.refused) for c in self.first]
            self.ranking = [_refuse(c, self.refused) for c in self.ranking]
            return False
        loss = self.task.mean(self.model)
        if not loss <= gate:
            gone.undo()
            self.refused[name] = f"measured, the loss without it is {loss:.4g}, above {gate:.4g}"
            self.ranking = [_refuse(c, self.refused) for c in self.ranking]
            return False
        del self.chosen[name]
        self.notes += [f"{name}: {gone.note}"] if gone.note else []
        self.rounds.append(Round(name, candidate.predicted, loss - self.loss_now))
        self.loss_now = loss
        return True

    def check_cache(self, original: nn.Module) -> None:
        """Say where a model that generated with a cache no longer does."""
        if not self.rounds or not has_config(self.model):
            return
        batch = to_device(next(iter(self.task)), device_of(self.model))
        fault = cache_fault(self.model, batch)
        if fault and not cache_fault(original, batch):
            self.notes.append(fault)

    def result(self) -> Simplified:
        """What came of it."""
        return Simplified(
            self.model,
            tuple(self.rounds),
            tuple(self.chosen),
            self.loss_before,
            self.loss_now,
            tuple(self.first),
            tuple(self.notes),
            *self.sizes,
        )


def _refuse(candidate: Candidate, refused: Mapping[str, str]) -> Candidate:
    if candidate.name not in refused:
        return candidate
    return replace(candidate, predicted=math.nan, reason=refused[candidate.name])


def _how_many(can: list[str], keep: object, drop: int | None, why: str) -> tuple[set[str] | None, int]:
    """The only ones that may go (None: all), and how many go at most."""
    if isinstance(keep, Sequence):
        patterns = [keep] if isinstance(keep, str) else list(keep)
        lost = [p for p in patterns if not any(pattern_matches(str(p), name) for name in can)]
        if lost:
            raise ValueError(f"keep: {lost[0]!r} fits no block that could go; those are {', '.join(can) or 'none'}")
        forced = {name for name in can if not any(pattern_matches(str(p), name) for p in patterns)}
        return forced, len(forced)
    if isinstance(keep, int):
        drop = len(can) - keep
    if drop is None:
        return None, len(can)
    if not 0 <= drop <= len(can):
        raise ValueError(
            f"expected to keep 0 to {len(can)} of the {len(can)} blocks that could go ({', '.join(can) or 'none'}); "
            f"asked to drop {drop}" + (f". The others cannot: {why}" if why else "")
        )
    return None, drop
