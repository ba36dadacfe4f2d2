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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from isthmus.model import LeakyResNet
from isthmus.probe.batches import device_of, to_device
from isthmus.probe.capture import undisturbed
from isthmus.probe.find import pattern_matches, stacks, unwrap, walk
from isthmus.probe.gates import Gates
from isthmus.probe.inputs import Forward
from isthmus.probe.merge import merge_pair, pair_candidates
from isthmus.probe.removal import Candidate, DropTask, Loss, Round, Simplified, make_task
from isthmus.probe.rows import Choice, tensors_in

# --- ranking -------------------------------------------------------------------------------------------------------


def _predict(
    model: nn.Module, blocks: Mapping[str, nn.Module], where: Mapping[str, str], task: DropTask, order: int
) -> tuple[Gates, dict]:
    """Change of the mean loss without each block, to the order given."""
    device = device_of(model)
    predicted: dict[str, float] = dict.fromkeys(blocks, 0.0)
    weights = 0.0
    # the fused attention kernels have no second derivative
    with undisturbed(model, grad=True), sdpa_kernel(SDPBackend.MATH), Gates(blocks, device, where, task.state) as gates:
        for batch in task:
            moved = to_device(batch, device)
            n = task.weight(model, moved)
            if not n:
                continue  # no labels
            with gates.forward_pass():
                value = task.on(model, moved)
            live = gates.live()
            t = [gates.t[name] for name in live]
            weights += n
            if not live or not value.requires_grad:
                continue
            first = torch.autograd.grad(value, t, create_graph=order == 2, allow_unused=True)
            for name, gate, g in zip(live, t, first, strict=True):
                if g is None:
                    gates.reasons[name] = (
                        "no gradient of the loss reaches its gate, so what dropping it costs is not known"
                    )
                    continue
                change = -float(g.detach())
                if order == 2 and g.requires_grad:
                    (h,) = torch.autograd.grad(g, gate, retain_graph=True, allow_unused=True)
                    change += 0.5 * float(h.detach()) if h is not None else 0.0
                predicted[name] += n * change
    if not weights:
        raise ValueError("data: no samples came, or none with a label")
    return gates, {name: value / weights for name, value in predicted.items()}


def _rank(model: nn.Module, blocks: dict[str, nn.Module], where: dict[str, str], task: DropTask, order: int) -> list:
    gates, predicted = _predict(model, blocks, where, task, order)
    out = []
    for name in blocks:
        reason = gates.trail.apart.get(where[name]) or gates.reasons.get(name)
        if reason is None and not gates.sums[name][3]:
            reason = "it is never called"
        change, size, cosines, rows = gates.sums[name]
        out.append(
            Candidate(
                name,
                where[name],
                math.nan if reason else predicted[name],
                math.sqrt(change / size) if size else math.nan,
                cosines / rows if rows else math.nan,
                reason,
            )
        )
    return sorted(out, key=lambda c: (c.reason is not None, c.predicted if c.reason is None else 0.0))


def rank_blocks(
    model: nn.Module,
    data: object,
    loss: Loss,
    *,
    blocks: str | Sequence[str] | None = None,
    target: Callable[[object], object] | None = None,
    forward: Forward | None = None,
    order: int = 2,
    batch_size: int = 256,
    state: Mapping[str, Choice] | None = None,
) -> list[Candidate]:
    """Blocks of the model's residual stacks, the idlest first; those that cannot go last, with the reason.

    Args:
        model: any module with runs of blocks in an `nn.Sequential` or `nn.ModuleList`; or a `LeakyResNet`, whose pairs
            of neighbouring layers are ranked by what merging them would do.
        data: batches with labels, which can be read more than once.
        loss: ``(output, target) -> scalar``, the mean over the batch.
        blocks: names or patterns, to rank these alone.
        target: where a batch's labels are; by default what of a tuple the model does not take, or ``labels`` of a dict.
        forward: ``(model, batch) -> output``, to run the model in another way.
        order: of the prediction, 1 or 2.
        batch_size: into which a tensor is cut.
        state: by pattern of names, which argument of a block is the state, as in `isthmus.probe.probe.probe`.

    Raises:
        ValueError: no stack of blocks, an unknown order, batches without labels.
        TypeError: data or loss of another type.
    """
    task = make_task(data, loss, forward, target, batch_size, state)
    inner, _ = unwrap(model)
    if isinstance(inner, LeakyResNet):
        return [_pair(c) for c in pair_candidates(inner, *_whole(inner, task), loss, _order(order), "fit")]
    chosen, where = _blocks(inner, blocks)
    return _rank(inner, chosen, where, task, _order(order))


def _order(order: int) -> int:
    if order not in (1, 2):
        raise ValueError(f"order: expected 1 (gradient) or 2 (and curvature), got {order!r}")
    return order


def _blocks(model: nn.Module, wanted: str | Sequence[str] | None) -> tuple[dict[str, nn.Module], dict[str, str]]:
    found = stacks(model)
    modules = dict(walk(model))
    where = {block: stack for stack, members in found.items() for block in members}
    if wanted is not None:
        patterns = [wanted] if isinstance(wanted, str) else list(wanted)
        where = {b: s for b, s in where.items() if any(pattern_matches(p, b) for p in patterns)}
    if not where:
        listed = "; ".join(f"{s}: {', '.join(b)}" for s, b in found.items()) or "none"
        raise ValueError(
            "expected blocks in a row in an nn.Sequential or nn.ModuleList"
            + (f" whose names fit {wanted!r}" if wanted is not None else "")
            + f"; stacks of {type(model).__name__}: {listed}"
        )
    return {name: modules[name] for name in where}, where


# --- smaller networks -----------------------------------------------------------------------------------------------


def _holder(model: nn.Module, block: nn.Module) -> tuple[nn.Module, str]:
    for _, module in walk(model):
        if isinstance(module, nn.Sequential | nn.ModuleList):
            for part, child in module._modules.items():
                if getattr(child, "_orig_mod", child) is block:
                    return module, part
    raise AssertionError("a block outside of any container")


class _Needed(Exception):
    """A block that cannot be taken out, and why."""


def _drop(model: nn.Module, name: str, block: nn.Module, where: Mapping[str, str], task: DropTask) -> str | None:
    """Take the block out; where the rest is another network without it, put a `PassThrough` there and say so.

    What the network without the block is, its gate at 0 says: the block as the identity, all else as it is. Later
    blocks may be called with their number, or take more from the block than the state.

    Raises:
        _Needed: neither way gives that network.
    """
    device = device_of(model)
    batch = to_device(next(iter(task)), device)
    with undisturbed(model), Gates({name: block}, device, where, task.state, t=0.0) as gates:
        with gates.forward_pass():
            wanted = task.output(model, batch)
    holder, part = _holder(model, block)
    before = dict(holder._modules)
    left = {key: module for key, module in before.items() if key != part}
    if all(key.isdigit() for key in left):
        left = {str(i): module for i, module in enumerate(left.values())}
    reasons: list[str] = []
    for members in (left, before | {part: gates.stand_ins[name]}):
        holder._modules = members
        try:
            with undisturbed(model):
                if _alike(task.output(model, batch), wanted):
                    return f"a PassThrough stands in its place: without it {reasons[0]}" if reasons else None
            reasons.append("the others compute something else than with the block as identity")
        except Exception as error:
            reasons.append(f"the model fails ({type(error).__name__}: {error})")
    holder._modules = before
    raise _Needed(f"it cannot go: without it {reasons[0]}; with a PassThrough in its place {reasons[1]}")


def _alike(a: object, b: object) -> bool:
    """Whether two outputs are the same but for rounding."""
    pairs = list(zip([x for _, x in tensors_in(a)], [x for _, x in tensors_in(b)], strict=False))
    return all(
        x.shape == y.shape and bool((x - y).abs().max() <= 1e-4 * y.abs().max() + 1e-12)
        for x, y in pairs
        if x.is_floating_point() and y.numel() and not x.is_nested
    )


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
) -> Simplified:
    """A smaller working network, without the blocks that do least; the original is not touched.

    Say how far to go by one of: ``keep`` (how many of the blocks that could go stay; or names of blocks to keep),
    ``drop`` (how many go), ``max_increase`` (blocks go while the sum of predicted changes stays below this).

    Args:
        model: see `rank_blocks`.
        data: see `rank_blocks`; better not the data that accuracy is then reported on.
        loss: see `rank_blocks`.
        keep: of a `LeakyResNet`, the number of layers left.
        drop: how many.
        max_increase: of the loss.
        blocks: see `rank_blocks`.
        target: see `rank_blocks`.
        forward: see `rank_blocks`.
        order: see `rank_blocks`.
        batch_size: see `rank_blocks`.
        merge: for a `LeakyResNet`, ``fit`` or ``average``: see `isthmus.probe.merge.merge_pair`.
        state: see `rank_blocks`.

    Raises:
        ValueError: not exactly one of the three, numbers that cannot be reached, names that fit nothing.
        TypeError: data or loss of another type.
    """
    if sum(option is not None for option in (keep, drop, max_increase)) != 1:
        raise ValueError("expected exactly one of keep=…, drop=… and max_increase=…")
    task = make_task(data, loss, forward, target, batch_size, state)
    inner, notes = unwrap(model)
    smaller = copy.deepcopy(inner)
    if isinstance(smaller, LeakyResNet):
        return _merge_layers(smaller, task, keep, drop, max_increase, _order(order), merge)
    chosen, where = _blocks(smaller, blocks)
    ranking = first = _rank(smaller, chosen, where, task, _order(order))
    can = [c.name for c in first if c.reason is None]
    forced, count = _how_many(can, keep, drop, "; ".join(dict.fromkeys(str(c.reason) for c in first if c.reason)))
    rounds: list[Round] = []
    refused: dict[str, str] = {}
    loss_before = loss_now = task.mean(smaller)
    spent = 0.0
    while len(rounds) < count:
        free = [c for c in ranking if c.reason is None and (forced is None or c.name in forced)]
        if not free or (max_increase is not None and spent + free[0].predicted > max_increase):
            break
        gone = free[0]
        try:
            note = _drop(smaller, gone.name, chosen[gone.name], where, task)
        except _Needed as reason:
            notes.append(f"{gone.name}: {reason}")
            refused[gone.name] = str(reason)
            first, ranking = ([_refuse(c, refused) for c in listed] for listed in (first, ranking))
            continue
        del chosen[gone.name]
        notes += [f"{gone.name}: {note}"] if note else []
        loss_next = task.mean(smaller)
        rounds.append(Round(gone.name, gone.predicted, loss_next - loss_now))
        spent, loss_now = spent + gone.predicted, loss_next
        if chosen and len(rounds) < count:
            ranking = [_refuse(c, refused) for c in _rank(smaller, chosen, where, task, order)]
    if len(rounds) < count and max_increase is None:
        notes.append(f"{len(rounds)} of {count} blocks went: the others cannot")
    return Simplified(smaller, tuple(rounds), tuple(chosen), loss_before, loss_now, tuple(first), tuple(notes))


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


# --- Leaky ResNets --------------------------------------------------------------------------------------------------


def _whole(model: LeakyResNet, task: DropTask) -> tuple[Tensor, Any]:
    """All inputs and labels, one after the other."""
    inputs, targets = [], []
    for batch in task:
        moved = to_device(batch, model.weight.device)
        target = task.labels(model, moved)
        x = moved[0] if isinstance(moved, tuple | list) else moved
        if not isinstance(x, Tensor) or not isinstance(target, Tensor):
            raise TypeError("data: of a LeakyResNet expected batches (inputs, targets) of two tensors")
        inputs.append(x)
        targets.append(target)
    if not inputs:
        raise ValueError("data: no samples came")
    return torch.cat(inputs), torch.cat(targets)


def _pair(c: Any) -> Candidate:
    return Candidate(f"{c.layer}+{c.layer + 1}", "trajectory", c.predicted, c.step_change, c.cosine, c.reason)


def _merge_layers(
    model: LeakyResNet,
    task: DropTask,
    keep: int | Sequence[str] | None,
    drop: int | None,
    max_increase: float | None,
    order: int,
    how: str,
) -> Simplified:
    """Merge pairs of neighbours, the idlest first; layers are numbered as in the original."""
    if keep is not None and not isinstance(keep, int):
        raise ValueError("keep: of a LeakyResNet expected how many layers are left, got names")
    count = model.depth - keep if keep is not None else drop if drop is not None else model.depth - 1
    if not 0 <= count < model.depth:
        raise ValueError(f"expected to keep 1 to {model.depth} layers; asked to merge {count} of {model.depth} away")
    x, y = _whole(model, task)
    names = [str(i + 1) for i in range(model.depth)]
    first: tuple[Candidate, ...] = ()
    rounds: list[Round] = []
    loss_before = loss_now = task.mean(model)
    spent = 0.0
    while len(rounds) < count:
        pairs = pair_candidates(model, x, y, task.loss, order, how)
        first = first or tuple(map(_pair, pairs))
        best = next((c for c in pairs if c.reason is None), None)
        if best is None and max_increase is None:
            raise ValueError(f"no pair of layers is left to merge after {len(rounds)}: {pairs[0].reason}")
        if best is None or (max_increase is not None and spent + best.predicted > max_increase):
            break
        model = merge_pair(model, best.layer, x, how)
        joined = f"{names[best.layer - 1]}+{names[best.layer]}"
        names[best.layer - 1 : best.layer + 1] = [joined]
        loss_next = task.mean(model)
        rounds.append(Round(joined, best.predicted, loss_next - loss_now))
        spent, loss_now = spent + best.predicted, loss_next
    return Simplified(model, tuple(rounds), tuple(names), loss_before, loss_now, first)
