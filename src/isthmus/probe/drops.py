"""One block taken out of a model, so that the rest works, is the network without it, and can be saved and loaded."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from isthmus.probe.batches import device_of, to_device
from isthmus.probe.capture import undisturbed
from isthmus.probe.configs import Change, Edit, readings, rebuilt, renumber, saved_part
from isthmus.probe.find import walk
from isthmus.probe.gates import Gates
from isthmus.probe.removal import DropTask
from isthmus.probe.rows import tensors_in

STAND_IN = "a PassThrough stands in its place: without it "
UNSAVED = "; save_pretrained does not know it, and its place in a cache stays empty"


class CannotGo(Exception):
    """A block that cannot be taken out, and why."""


class Dropped:
    """A block that was taken out.

    Args:
        note: what had to be done, None where nothing.
        undo: puts it back.
    """

    def __init__(self, note: str | None, undo: Callable[[], None]) -> None:
        self.note, self.undo = note, undo


def holder_of(model: nn.Module, block: nn.Module) -> tuple[str, nn.Module, str]:
    """Name of the container that a block is in, the container, and the block's name within."""
    for name, module in walk(model):
        if isinstance(module, nn.Sequential | nn.ModuleList):
            for part, child in module._modules.items():
                if getattr(child, "_orig_mod", child) is block:
                    return name, module, part
    raise AssertionError("a block outside of any container")


def without(holder: nn.Module, part: str) -> dict[str, Any]:
    """Members of a container without one of them; numbered anew where their names are numbers."""
    left = {key: module for key, module in holder._modules.items() if key != part}
    return {str(i): m for i, m in enumerate(left.values())} if all(key.isdigit() for key in left) else left


def drop_block(
    model: nn.Module,
    name: str,
    block: nn.Module,
    where: Mapping[str, str],
    task: DropTask,
    reloadable: bool = False,
) -> Dropped:
    """Take the block out; where the rest is another network without it, put a `PassThrough` there and say so.

    What the network without the block is, its gate at 0 says. Later blocks may be called with their number, or take
    more from the block than the state. Configurations follow, and what they build is compared too.

    Args:
        model: is changed.
        name: of the block.
        block: the module.
        where: name of a block → its run.
        task: data and loss; the first batch is what outputs are compared on.
        reloadable: refuse what ``save_pretrained`` could not write.

    Raises:
        CannotGo: no way gives that network.
    """
    batch, wanted, stand_in = _as_identity(model, name, block, where, task)
    same = partial(_difference, task=task, batch=batch, wanted=wanted)
    path, holder, part = holder_of(model, block)
    before, left = dict(holder._modules), without(holder, part)
    gone = list(before).index(part)
    reasons: list[str] = []
    saved = saved_part(model, path)
    again: str | None = None
    usable: Edit | None = None
    for edit in _ways(model, path, [m for m in before.values() if m is not None], gone):
        change = Change()
        holder._modules = left
        edit(change)
        wrong = same(model)
        if wrong is not None:
            reasons.append(wrong)
        else:
            lost = None if saved is None else _reload(saved, same if saved is model else None)
            if lost is None:
                return Dropped(None, _undo(holder, before, change))
            usable, again = usable or edit, again or lost
        _undo(holder, before, change)()
    if usable is not None and not reloadable:
        change = Change()
        holder._modules = left
        usable(change)
        return Dropped(f"saved and loaded again it is another network: {again}", _undo(holder, before, change))
    if again is not None:
        raise CannotGo(f"it cannot go: saved and loaded again the rest is another network: {again}")
    if reloadable and saved is not None:
        raise CannotGo(f"it cannot go: without it {reasons[0]}, and a stand-in would not be saved")
    holder._modules = before | {part: stand_in}
    wrong = same(model)
    if wrong is None:
        note = STAND_IN + reasons[0] + (UNSAVED if saved is not None else "")
        return Dropped(note, _undo(holder, before, Change()))
    holder._modules = before
    raise CannotGo(f"it cannot go: without it {reasons[0]}; with a PassThrough in its place {wrong}")


def _as_identity(
    model: nn.Module, name: str, block: nn.Module, where: Mapping[str, str], task: DropTask
) -> tuple[object, object, nn.Module]:
    """The first batch, what the model returns for it with a block as the identity, and what can stand in for it."""
    device = device_of(model)
    batch = to_device(next(iter(task)), device)
    with undisturbed(model), Gates({name: block}, device, where, task.state, t=0.0) as gates:
        with gates.forward_pass():
            wanted = task.output(model, batch)
    return batch, wanted, gates.stand_ins[name]


def _undo(holder: nn.Module, before: dict[str, nn.Module | None], change: Change) -> Callable[[], None]:
    """What puts the members of a container back, and all else that was changed."""

    def undo() -> None:
        holder._modules = before
        change.undo()

    return undo


def _difference(model: nn.Module, task: DropTask, batch: object, wanted: object) -> str | None:
    """None where a model gives the outputs that are wanted, or what is wrong."""
    try:
        with undisturbed(model):
            alike = _alike(task.output(model, batch), wanted)
    except Exception as error:
        return f"the model fails ({type(error).__name__}: {error})"
    return None if alike else "the others compute something else than with the block as identity"


def _ways(model: nn.Module, path: str, members: Sequence[nn.Module], gone: int) -> list[Edit]:
    """Ways to make numbers and configurations follow; the last, for what computes with its numbers, changes none."""

    def numbers(change: Change) -> None:
        renumber(change, members, gone)

    def both(reading: Edit) -> Edit:
        def edit(change: Change) -> None:
            reading(change)
            numbers(change)

        return edit

    return [*map(both, readings(model, path, len(members), gone)), numbers, lambda change: None]


def _reload(model: nn.Module, same: Callable[[nn.Module], str | None] | None) -> str | None:
    """What is wrong with the model that its configuration builds, with these weights; None where nothing.

    Args:
        model: that is saved.
        same: compares outputs; None where the model is a part of another, and its weights alone are compared.
    """
    try:
        made = rebuilt(model)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    wrong = same(made) if same is not None else None
    return wrong and "its configuration makes blocks of another kind, or at other places"


def _alike(a: object, b: object) -> bool:
    """Whether two outputs are the same but for rounding."""
    pairs = list(zip([x for _, x in tensors_in(a)], [x for _, x in tensors_in(b)], strict=False))
    return all(
        x.shape == y.shape and bool((x - y).abs().max() <= 1e-4 * y.abs().max() + 1e-12)
        for x, y in pairs
        if x.is_floating_point() and y.numel() and not x.is_nested
    )
