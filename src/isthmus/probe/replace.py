"""A run of blocks replaced by one fitted linear map, in a neighbour's weights where that needs no new parameters.

What a residual block adds to the stream passes, in most networks, one linear layer at its end. The block before the run
has such a layer: its weights times the fitted map, and the run is gone, with nothing new in its place (ReplaceMe,
arXiv:2505.02819). Where there is none, a map of ``width² + width`` parameters stands in place of the run.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.activations import Identity
from isthmus.model import LeakyResNet
from isthmus.probe.batches import device_of, to_device
from isthmus.probe.capture import undisturbed
from isthmus.probe.drops import CannotGo, drop_block, holder_of
from isthmus.probe.evidence import Entry
from isthmus.probe.find import pattern_matches, unwrap
from isthmus.probe.gates import Gates, PassThrough
from isthmus.probe.inputs import Forward
from isthmus.probe.linear_fit import LinearFit, linear_fit
from isthmus.probe.pairs import PairMoments
from isthmus.probe.ranking import chosen_blocks
from isthmus.probe.removal import DropTask, Loss, make_task
from isthmus.probe.rows import Choice, with_tensor

INTO = ("auto", "neighbour", "map")


@dataclass(frozen=True)
class Replaced:
    """The smaller network, and what it cost.

    Args:
        model: a working copy; the original is untouched.
        run: names of the blocks that went.
        into: name of the layer whose weights took the map in, or of the place where a new map stands.
        merged: whether no new parameters were needed.
        fit: the least squares fit.
        loss_before: mean loss over the data.
        loss_dropped: of the network without the run and without the map.
        loss_after: of the smaller network.
        notes: choices made on the way.
    """

    model: nn.Module
    run: tuple[str, ...]
    into: str
    merged: bool
    fit: LinearFit
    loss_before: float
    loss_dropped: float
    loss_after: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        how = f"merged into {self.into}" if self.merged else f"a linear map stands at {self.into}"
        rest = self.fit.objective / self.fit.identity if self.fit.identity else 0.0
        lines = [
            f"{', '.join(self.run)}: {how}; {rest:.1%} of the squared step is not linear",
            f"loss {self.loss_before:.4g}; dropped {self.loss_dropped - self.loss_before:+.4g}, "
            f"replaced {self.loss_after - self.loss_before:+.4g}",
        ]
        return "\n".join((*lines, *self.notes))


class LinearStandIn(PassThrough):
    """Stands where a run of blocks was, and returns what the first did, with its state mapped.

    Args:
        stand_in: for the first block of the run.
        fit: the map.
        axis: of the state, along which the width lies.
        like: a parameter, for dtype and device.
    """

    def __init__(self, stand_in: PassThrough, fit: LinearFit, axis: int, like: Tensor) -> None:
        nn.Module.__init__(self)
        vars(self).update({key: value for key, value in vars(stand_in).items() if key not in vars(self)})
        self.axis = axis
        constant = fit.matrix.new_zeros(len(fit.matrix)) if fit.constant is None else fit.constant
        self.weight = nn.Parameter(fit.matrix.T.to(like, copy=True).contiguous())
        self.bias = nn.Parameter(constant.to(like, copy=True))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The mapped state, in the form that the block returned it in."""
        state = self._argument(self._state, args, kwargs)
        mapped = nn.functional.linear(state.movedim(self.axis, -1), self.weight, self.bias).movedim(-1, self.axis)
        return with_tensor(super().forward(*args, **kwargs), state, mapped)


class _States(Gates):
    """Open gates that keep the states before and after each block, and what stands in for it."""

    def __init__(self, blocks: Mapping[str, nn.Module], task: DropTask, device: torch.device, stack: str) -> None:
        super().__init__(blocks, device, dict.fromkeys(blocks, stack), task.state)
        self.states: dict[str, tuple[Tensor, Tensor]] = {}

    def _blend(self, name: str, entry: Entry, y: Tensor | None, output: Any) -> Any:
        made = super()._blend(name, entry, y, output)
        if name not in self.reasons and entry.state is not None and y is not None:
            self.states[name] = entry.state.detach(), y.detach().clone()
        return made


def replace_run(
    model: nn.Module,
    data: object,
    loss: Loss,
    *,
    run: int | Sequence[str],
    into: str = "auto",
    ridge: float = 0.0,
    blocks: str | Sequence[str] | None = None,
    target: Callable[[object], object] | None = None,
    forward: Forward | None = None,
    batch_size: int = 256,
    state: Mapping[str, Choice] | None = None,
    reloadable: bool = False,
) -> Replaced:
    """A smaller working network: one linear map, fitted to the data, does what a run of blocks did.

    Args:
        model: see `isthmus.probe.ranking.rank_blocks`; the original is not touched.
        data: to fit and to measure on; labels are for the loss alone.
        loss: ``(output, target) -> scalar``, the mean over the batch.
        run: names or patterns of the blocks, in a row; or how many, and the run whose measured loss is least goes.
        into: ``neighbour`` (the weights of the block before), ``map`` (a new layer), or ``auto``: the first if it can.
        ridge: see `isthmus.probe.linear_fit.linear_fit`.
        blocks: to look for runs among these alone.
        target: see `rank_blocks`.
        forward: see `rank_blocks`.
        batch_size: see `rank_blocks`.
        state: see `rank_blocks`.
        reloadable: see `isthmus.probe.simplify.simplify`; a new map is then refused for a Hugging Face model.

    Raises:
        ValueError: no such run, or none that can be replaced, with the reasons.
        TypeError: data or loss of another type, or a `LeakyResNet`.
    """
    if into not in INTO:
        raise ValueError(f"into: expected {', '.join(map(repr, INTO))}, got {into!r}")
    task = make_task(data, loss, forward, target, batch_size, state)
    inner, notes = unwrap(model)
    if isinstance(inner, LeakyResNet):
        raise TypeError("model: layers of a LeakyResNet are merged, not replaced: simplify(model, …, merge='fit')")
    _, where = chosen_blocks(inner, blocks)
    before = task.mean(inner)
    best: Replaced | None = None
    reasons: dict[str, str] = {}
    for members in _runs(where, run):
        try:
            made = _replace(inner, members, where, task, into, ridge, reloadable, before, notes)
        except CannotGo as reason:
            reasons[", ".join(members)] = str(reason)
            continue
        best = made if best is None or made.loss_after < best.loss_after else best
    if best is None:
        raise ValueError("no run can be replaced: " + "; ".join(f"{k}: {v}" for k, v in reasons.items()))
    return best


def _runs(where: Mapping[str, str], run: int | Sequence[str]) -> list[list[str]]:
    """Runs of blocks that follow each other, as asked for.

    Raises:
        ValueError: there is none.
    """
    stacks: dict[str, list[str]] = {}
    for name, stack in where.items():
        stacks.setdefault(stack, []).append(name)
    if isinstance(run, int):
        found = [m[i : i + run] for m in stacks.values() for i in range(len(m) - run + 1)] if run > 0 else []
        if not found:
            raise ValueError(f"run: expected 1 to {max(map(len, stacks.values()))} blocks in a row, got {run}")
        return found
    patterns = [run] if isinstance(run, str) else list(run)
    chosen = [name for name in where if any(pattern_matches(p, name) for p in patterns)]
    members = stacks.get(where[chosen[0]], []) if chosen else []
    start = members.index(chosen[0]) if chosen else 0
    if not chosen or members[start : start + len(chosen)] != chosen:
        raise ValueError(f"run: expected blocks in a row of one stack, got {', '.join(chosen) or 'none'} of {stacks}")
    return [chosen]


def _replace(
    original: nn.Module,
    members: list[str],
    where: dict[str, str],
    task: DropTask,
    into: str,
    ridge: float,
    reloadable: bool,
    loss_before: float,
    notes: list[str],
) -> Replaced:
    model = copy.deepcopy(original)
    chosen = {name: module for name, module in chosen_blocks(model, None)[0].items() if name in where}
    stack = [name for name, one in where.items() if one == where[members[0]]]
    place = stack.index(members[0])
    neighbour = stack[place - 1] if place else None
    layer = None
    if into != "map" and neighbour is not None:
        layer = _last_linear(model, neighbour, chosen[neighbour], members, chosen, task, where)
    if layer is None and into == "neighbour":
        raise CannotGo("the block before it has no linear layer at its end whose weights could take the map")
    fit, gates, axis = _fit(model, members, chosen, task, where, layer, ridge)
    said = list(notes)
    dropped = copy.deepcopy(model)
    gone = {name: module for name, module in chosen_blocks(dropped, None)[0].items() if name in members}
    for name in members:
        drop_block(dropped, name, gone[name], where, task)
    if layer is not None:
        _merge(layer, fit)
    else:
        if reloadable and hasattr(model, "save_pretrained"):
            raise CannotGo("a new map would not be saved by save_pretrained")
        holder, part = holder_of(model, chosen[members[0]])[1:]
        like = next(chosen[members[0]].parameters())
        holder._modules[part] = LinearStandIn(gates.stand_ins[members[0]], fit, axis, like)
    for name in members if layer is not None else members[1:]:
        note = drop_block(model, name, chosen[name], where, task, reloadable).note
        said += [f"{name}: {note}"] if note else []
    return Replaced(
        model,
        tuple(members),
        layer.name if layer is not None else members[0],
        layer is not None,
        fit,
        loss_before,
        task.mean(dropped),
        task.mean(model),
        tuple(said),
    )


@dataclass
class _Layer:
    """A linear layer whose output is added to the stream, times `factor`."""

    name: str
    module: Any
    factor: float

    @property
    def transposed(self) -> bool:
        """Whether weights are ``(in, out)``, as in transformers' Conv1D."""
        return not isinstance(self.module, nn.Linear)


def _linear_layers(block: nn.Module, width: int) -> list[tuple[str, nn.Module]]:
    found = []
    for name, module in block.named_modules():
        out = module.out_features if isinstance(module, nn.Linear) else getattr(module, "nf", None)
        if out == width and isinstance(getattr(module, "weight", None), nn.Parameter):
            found.append((name, module))
    return found


def _last_linear(
    model: nn.Module,
    name: str,
    block: nn.Module,
    members: list[str],
    chosen: Mapping[str, nn.Module],
    task: DropTask,
    where: Mapping[str, str],
) -> _Layer | None:
    """The layer whose output goes into the stream as it is, but for a factor: seen by what a change of it changes."""
    device = device_of(model)
    batch = to_device(next(iter(task)), device)
    ran = {key: chosen[key] for key in (name, *members)}

    def states(hook: tuple[nn.Module, Callable[..., Any]] | None) -> Tensor | None:
        gates = _States(ran, task, device, where[name])
        with undisturbed(model), gates:
            handle = hook[0].register_forward_hook(hook[1]) if hook else None
            try:
                with gates.forward_pass():
                    task.output(model, batch)
            finally:
                if handle is not None:
                    handle.remove()
        return gates.states[name][1].double() if name in gates.states else None

    plain = states(None)
    held = [id(p) for _, module in model.named_modules(remove_duplicate=False) for p in module._parameters.values()]
    for part, module in reversed(_linear_layers(block, plain.shape[-1])) if plain is not None else ():
        shift = torch.empty(0)

        def push(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            nonlocal shift
            generator = torch.Generator().manual_seed(0)
            size = float(output.detach().double().square().mean() ** 0.5) or 1.0
            shift = size * torch.randn(output.shape, generator=generator).to(output)
            return output + shift

        moved = states((module, push))
        if plain is None or moved is None or shift.shape != plain.shape or held.count(id(module.weight)) > 1:
            continue
        step, wide = moved - plain, shift.double()
        factor = float((step * wide).sum() / wide.square().sum())
        if factor and float((step - factor * wide).norm()) <= 1e-3 * float(step.norm()):
            return _Layer(f"{name}.{part}" if part else name, module, factor)
    return None


def _fit(
    model: nn.Module,
    members: list[str],
    chosen: Mapping[str, nn.Module],
    task: DropTask,
    where: Mapping[str, str],
    layer: _Layer | None,
    ridge: float,
) -> tuple[LinearFit, _States, int]:
    """One pass over the data: what the layer adds (or the state before the run) against what it should."""
    device = device_of(model)
    pair: PairMoments | None = None
    axis = -1
    added: list[Tensor] = []
    handle = layer.module.register_forward_hook(lambda _, __, y: added.append(y.detach().clone())) if layer else None
    gates = _States({n: chosen[n] for n in members}, task, device, where[members[0]])
    try:
        with undisturbed(model), gates:
            for batch in task:
                added.clear()
                with gates.forward_pass():
                    task.output(model, to_device(batch, device))
                reason = next((gates.reasons[n] for n in members if n in gates.reasons), None)
                if reason is not None or not {members[0], members[-1]} <= gates.states.keys():
                    raise CannotGo(reason or "it is never called")
                before, after = gates.states[members[0]][0].double(), gates.states[members[-1]][1].double()
                convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in chosen[members[0]].modules())
                axis = 1 if convolves and before.ndim > 3 else -1
                source = layer.factor * added[-1].double() if layer is not None else before
                pair = pair or PairMoments(before.shape[axis], Identity(append_one=False), device=device)
                pair.update(_rows(source, batch, axis), _rows(source + (after - before), batch, axis))
    finally:
        if handle is not None:
            handle.remove()
    if pair is None:
        raise ValueError("data: no samples came")
    constant = layer is None or layer.module.bias is not None
    return linear_fit(pair, constant=constant, ridge=ridge), gates, axis


def _rows(x: Tensor, batch: object, axis: int) -> Tensor:
    """States as rows, without padding where the batch has an ``attention_mask`` of the same samples and tokens."""
    rows = x.movedim(axis, -1)
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if isinstance(mask, Tensor) and rows.ndim == 3 and mask.shape == rows.shape[:2]:
        return rows[mask.to(rows.device).bool()]
    return rows.reshape(-1, rows.shape[-1])


@torch.no_grad()
def _merge(layer: _Layer, fit: LinearFit) -> None:
    """Multiply the map into a layer's weights: ``m → m(I + change) + constant/factor``."""
    weight, bias = layer.module.weight, layer.module.bias
    wide = weight.double() if layer.transposed else weight.double().T
    new = wide @ fit.matrix.to(wide)
    weight.copy_(new if layer.transposed else new.T)
    if bias is not None and fit.constant is not None:
        bias.copy_(bias.double() @ fit.matrix.to(wide) + fit.constant.to(wide) / layer.factor)
