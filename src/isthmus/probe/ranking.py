"""What dropping each block would do to the loss, all blocks from one pass."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from isthmus.model import LeakyResNet
from isthmus.probe.batches import device_of, to_device
from isthmus.probe.capture import undisturbed
from isthmus.probe.find import pattern_matches, stacks, unwrap, walk
from isthmus.probe.gates import Gates
from isthmus.probe.inputs import Forward
from isthmus.probe.leaky import pair_of, whole
from isthmus.probe.merge import pair_candidates
from isthmus.probe.removal import Candidate, DropTask, Loss, make_task
from isthmus.probe.rows import Choice


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


def rank(model: nn.Module, blocks: dict[str, nn.Module], where: dict[str, str], task: DropTask, order: int) -> list:
    """Candidates, the idlest first; see `rank_blocks`."""
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
        return [pair_of(c) for c in pair_candidates(inner, *whole(inner, task), loss, checked_order(order), "fit")]
    chosen, where = chosen_blocks(inner, blocks)
    return rank(inner, chosen, where, task, checked_order(order))


def checked_order(order: int) -> int:
    """The order itself.

    Raises:
        ValueError: neither 1 nor 2.
    """
    if order not in (1, 2):
        raise ValueError(f"order: expected 1 (gradient) or 2 (and curvature), got {order!r}")
    return order


def chosen_blocks(model: nn.Module, wanted: str | Sequence[str] | None) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Blocks by name, and name of a block → its run.

    Raises:
        ValueError: none fit.
    """
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
