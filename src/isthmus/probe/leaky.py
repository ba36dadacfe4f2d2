"""A smaller `LeakyResNet`: pairs of neighbouring layers merged, the idlest first."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isthmus.model import LeakyResNet
from isthmus.probe.batches import to_device
from isthmus.probe.merge import merge_pair, pair_candidates
from isthmus.probe.removal import Candidate, DropTask, Round, Simplified


def whole(model: LeakyResNet, task: DropTask) -> tuple[Tensor, Any]:
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


def pair_of(c: Any) -> Candidate:
    """A pair of `isthmus.probe.merge` as a candidate."""
    return Candidate(f"{c.layer}+{c.layer + 1}", "trajectory", c.predicted, c.step_change, c.cosine, c.reason)


def merge_layers(
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
    x, y = whole(model, task)
    names = [str(i + 1) for i in range(model.depth)]
    first: tuple[Candidate, ...] = ()
    rounds: list[Round] = []
    loss_before = loss_now = task.mean(model)
    while len(rounds) < count:
        pairs = pair_candidates(model, x, y, task.loss, order, how)
        first = first or tuple(map(pair_of, pairs))
        can = [c for c in pairs if c.reason is None]
        if not can and max_increase is None:
            raise ValueError(f"no pair of layers is left to merge after {len(rounds)}: {pairs[0].reason}")
        for best in can:  # the idlest whose measured loss the gate lets through
            merged = merge_pair(model, best.layer, x, how)
            loss_next = task.mean(merged)
            if max_increase is None or loss_next <= loss_before + max_increase:
                break
        else:
            break
        model = merged
        joined = f"{names[best.layer - 1]}+{names[best.layer]}"
        names[best.layer - 1 : best.layer + 1] = [joined]
        rounds.append(Round(joined, best.predicted, loss_next - loss_now))
        loss_now = loss_next
    return Simplified(model, tuple(rounds), tuple(names), loss_before, loss_now, first)
