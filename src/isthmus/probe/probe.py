"""`probe(model, data)`: the mechanics of anybody's trained network, in one pass over the data.

The quantities are those of arXiv:2405.17573 (docs/theory.md); they need activations only. For a
`LeakyResNet` the trajectory is read itself, in float64, as `isthmus.mechanics.mechanics` does.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from isthmus.activations import Activation
from isthmus.flow import momenta
from isthmus.model import LeakyResNet
from isthmus.probe.axes import guards
from isthmus.probe.batches import batches, copied, device_of, raise_failed, to_device
from isthmus.probe.capture import Capture, same_bits, undisturbed
from isthmus.probe.consumers import activations_of
from isthmus.probe.evidence import Trail, followed
from isthmus.probe.find import KINDS, Site, Skipped, find_layers, unwrap, walk
from isthmus.probe.inputs import Forward, call_of, doubt_of, samples_in, weight_of
from isthmus.probe.masks import Mask, asked_layers, masks_of
from isthmus.probe.momenta import PenalisedLoss, penalised_loss
from isthmus.probe.printed import by_reason, listed
from isthmus.probe.profile import NEVER_CALLED, Profile
from isthmus.probe.reader import Reader
from isthmus.probe.records import LayerRecord
from isthmus.probe.removal import Loss
from isthmus.probe.rows import Choice, Positions, Reading
from isthmus.probe.states import trajectory_names, trajectory_of


def probe(
    model: nn.Module,
    data: object,
    layers: object = None,
    *,
    kinds: Iterable[str] = KINDS,
    activation: Activation | str | Mapping[str, Activation | str] | None = None,
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
    shards: int | None = None,
    gamma0: float = 1e-3,
    neighbours: int | None = None,
    method: str = "auto",
    max_width: int = 8192,
    distributed: bool = False,
    loss: Loss | None = None,
    weight_decay: float | None = None,
    target: Callable[[object], object] | None = None,
    reading: Reading | None = None,
) -> Profile:
    """Read a network's layers over the data, in one pass and ``O(width²)`` memory a layer and shard.

    The model is left as it was: modes, buffers, random number generators, hooks (`isthmus.probe.capture.undisturbed`).

    Args:
        model: any module; of a compiled or data-parallel one the module inside is read.
        data: a DataLoader, a tensor, a dict (one batch), or any iterable of tensors, tuples and dicts; what of them
            goes to the model, and that labels are dropped: `isthmus.probe.inputs`.
        layers: names, patterns (``*`` within one part of a name, ``**`` across dots), module types, modules, functions
            ``(name, module) -> bool``, or a list of these; None finds them; ``NAME:input`` reads what goes in.
        kinds: what is looked for with ``layers=None``: ``stream``, ``block``, ``linear``, ``conv``.
        activation: σ of the cost of identity, for all layers or by pattern of names: it stands for the *next* layer's.
            By default read off the network: the nonlinearity that takes the state as it is, with an appended 1, else
            the identity without (`isthmus.probe.consumers`); of a `LeakyResNet` its own. Names are those of the command
            line: ``relu``, ``smooth_relu``, ``identity``.
        positions: ``samples``: every token or pixel is a row; ``mean``: the mean over a sample's positions is.
        channels: where the width lies: ``auto`` (`isthmus.probe.rows`), ``first``, ``last``, or these by pattern.
        output: by pattern of names, the index, key or function that picks the tensor to read; else the first one.
        state: by pattern of names of blocks, which argument is the state, by number, name or function; else as
            `isthmus.probe.evidence` says.
        mask: padding: ``"auto"``, a dict's key, or a function of the batch → ``(samples, tokens)``, true where real; or
            these by pattern of names, None for no padding: `isthmus.probe.masks`.
        sequence_first: tokens are ``(tokens, samples, width)``, everywhere or by pattern; layers of `torch.nn` know it
            (``batch_first=False``).
        forward: ``(model, batch) -> anything``, to run the model in another way.
        mode: ``eval``, or ``as_is`` for the mode each module is in.
        autocast: run under `torch.autocast` in this dtype.
        batch_size: into which a tensor is cut.
        max_batches: read no more than these.
        shards: sample j counts in shard ``j mod shards``; standard errors are jackknifed over them. Each has its own
            accumulators (by ``qr`` about 100·width² bytes, 300·width² where two states are compared), hence None: 8 up
            to width 256, 4 up to 512, 2 up to 1024, and above 1, without standard errors.
        gamma0: γ_0 of (E7). 1e-3 worked in the project's trials (docs/theory.md).
        neighbours: keep these many rows of each layer, drawn evenly, for its intrinsic dimension by neighbours (columns
            ``two_nn``; `Profile.neighbour_dimension`, `Profile.dimension_by_scale`, `Profile.overlap`); 2000 is good.
        method: ``qr`` or ``gram``, see `LayerMoments`; ``auto``: ``gram``, and ``qr`` for states in float64, whose
            digits squares would lose.
        max_width: wider layers are skipped, with the reason.
        distributed: each process reads its part of the data; all return the profile of the whole
            (`torch.distributed`, any backend that gathers objects).
        loss: ``(output, target) -> scalar``, the mean over samples, if momenta are wanted (`Profile.hamiltonian`): one
            backward pass a batch, to the states alone.
        weight_decay: with a loss: the network was trained on ``loss + (weight_decay/2)·Σ‖weights‖²``; of a
            `LeakyResNet` it is μ, of ``(μ/2)Σρ‖W‖²`` (E3).
        target: with a loss: where a batch's labels are; by default what of a tuple the model does not take, or a
            dict's ``labels``, ….
        reading: how outputs become rows, in place of the six options of the same names.

    Raises:
        TypeError, ValueError: arguments that do not fit; nothing to read; each says how to mend it.

    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> probe(net, torch.randn(64, 3)).layers
    ['0', '2']
    """
    given = Reading(channels, positions, sequence_first, output or {}, state or {}, max_width)
    if reading is not None and given != Reading():
        raise ValueError(
            "reading: holds channels, positions, sequence_first, output, state and max_width; give these in it"
        )
    reading = reading or given
    if shards is not None and shards < 1:
        raise ValueError(f"shards: expected at least 1, got {shards}")
    if neighbours is not None and neighbours < 3:
        raise ValueError(f"neighbours: expected 3 rows or more, 2000 is good, got {neighbours}")
    own = activations_of(activation)
    objective = penalised_loss(loss, weight_decay, target)
    if objective is not None and reading.positions == "mean":
        raise ValueError("positions: momenta are of single positions; with a loss expected 'samples', got 'mean'")
    if distributed and not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise ValueError("distributed=True: expected torch.distributed.init_process_group to have been called")

    def local() -> Profile:
        inner, notes = unwrap(model)
        leaky = isinstance(inner, LeakyResNet) and forward is None
        sigma = own if own is not None or not leaky else cast(LeakyResNet, inner).activation
        reader = Reader(reading, sigma, shards, method, weight_decay, neighbours=neighbours)
        reader.notes |= dict.fromkeys(notes)
        chosen = _leaky_sites(cast(LeakyResNet, inner), layers) if leaky else find_layers(inner, layers, kinds)
        limit = _Limit(data, batch_size, max_batches)
        if leaky:
            _read_trajectory(cast(LeakyResNet, inner), chosen[0], limit, reader, objective)
        else:
            _read_hooks(inner, chosen[0], limit, reader, _Run(forward, mask, mode, autocast, objective))
        return _profile(reader, *chosen, gamma0, limit.seen)

    return _gather(local) if distributed else _checked(local())


@dataclass
class _Limit:
    """The batches, counted."""

    data: object
    batch_size: int
    most: int | None
    seen: int = 0

    def __iter__(self) -> Any:
        for batch in batches(self.data, self.batch_size):
            if self.most is not None and self.seen >= self.most:
                return
            yield batch
            self.seen += 1


@dataclass(frozen=True)
class _Run:
    forward: Forward | None
    mask: Mask
    mode: str
    autocast: torch.dtype | None
    objective: PenalisedLoss | None


def _read_hooks(model: nn.Module, sites: list[Site], data: _Limit, reader: Reader, run: _Run) -> None:
    reader.modules = dict(walk(model))
    reader.trail = Trail(followed(model, sites), reader.reading.state, reader.reading.output)
    # data outside of Capture: what a generator does between batches is not the model's
    with undisturbed(model, run.mode, grad=run.objective is not None):
        whole = enumerate(data)
        first = list(islice(whole, 1))
        # the first batch twice: what the network makes without hooks is what it must make with them
        alone = [_alone(model, batch, number, reader, run) for number, batch in first]
        with (
            asked_layers(reader.modules, lambda: reader.masks),
            guards(reader.modules, lambda: reader.rank, reader.packs, lambda text: reader.doubts.update({text: None})),
            Capture(sites, reader.event, reader.trail, reader.entered) as capture,
        ):
            for number, batch in chain(first, whole):
                output = _pass(model, batch, number, reader, run, capture)
                if number == 0 and not same_bits(alone.pop(), output):
                    reader.doubts[HOOKS_CHANGE] = None
    reader.judge(reader.trail)


def _pass(
    model: nn.Module, given: object, number: int, reader: Reader, run: _Run, capture: Capture | None = None
) -> object:
    """The network's output on a batch: read with its hooks by the reader, or without them, leaving nothing behind."""
    device = device_of(model)
    batch = to_device(given, device)
    call = call_of(model, batch, run.forward)
    target = run.objective.labels(batch, model) if run.objective is not None else None
    value = None
    if capture is not None:
        masks, notes, doubts = masks_of(batch, call.named, run.mask)
        reader.notes |= dict.fromkeys((*notes, *call.notes))
        doubts += doubt_of(run.objective.loss, target) if run.objective is not None else []
        reader.doubts |= dict.fromkeys(doubts)
        reader.begin(samples_in(batch, reader.reading.sequence_first is True), masks)
        reader.rank = max((x.ndim for x in call.inputs), default=0)
    around = undisturbed(model, "as_is", torch.is_grad_enabled()) if capture is None else capture.forward_pass()
    try:
        with around, torch.autocast(device.type, run.autocast, enabled=run.autocast is not None):
            output = call.run()
            if run.objective is not None and capture is not None:
                value = run.objective.value(output, target)
    except Exception as error:
        raise_failed(error, model, number, call.notes)
    if value is not None and run.objective is not None:
        reader.gradients(value, weight_of(run.objective.loss, target, reader.batch or 1))
    if capture is not None:
        reader.end()
    return output


def _alone(model: nn.Module, batch: object, number: int, reader: Reader, run: _Run) -> object:
    """The network's output on a copy of a batch, which it may change, while it is watched which σ takes what."""

    def once() -> object:
        return _pass(model, copied(batch), number, reader, run)

    try:
        with reader.consumers.watching(model):
            return once()
    except NotImplementedError as error:
        if "HigherOrderOperator" not in str(error):
            raise
    reader.consumers.taken.clear()
    reader.consumers.unwatched = "it runs operators that take functions (flex_attention, cond)"
    return once()


HOOKS_CHANGE = (
    "the network's output with hooks is not, bit for bit, the one without: it looks at hooks, draws at random, or "
    "keeps something between calls; what was read may be of another pass than the network makes alone"
)


def _leaky_sites(model: LeakyResNet, layers: object) -> tuple[list[Site], list[Skipped]]:
    names, chosen = trajectory_names(model, None), trajectory_names(model, layers)
    skipped = [Skipped(n, "state", "not among the layers asked for") for n in names if n not in chosen]
    return [Site(n, model, "output", "state", "trajectory") for n in chosen], skipped


def _read_trajectory(
    model: LeakyResNet, sites: list[Site], data: _Limit, reader: Reader, objective: PenalisedLoss | None
) -> None:
    device, rho = model.weight.device, model.rho.double()
    ends = [0.0, *rho.cumsum(0).tolist()]
    L_tilde = model.effective_depth
    with undisturbed(model):
        for given in data:
            batch = to_device(given, device)
            A = trajectory_of(model, batch)
            reader.begin(A.shape[1])
            for site in sites:
                i = int(site.name.removeprefix("A_"))
                before = Positions(A[i - 1].unsqueeze(1), None, "") if i else None
                extra = {"p": ends[i]}
                if i:
                    extra |= {"rho": float(rho[i - 1]), "rho_effective_depth": float(rho[i - 1]) * L_tilde}
                state = Positions(A[i].unsqueeze(1), None, "")
                sigma, label = reader.activation_of(site.name, A[i]), "trajectory, in float64"
                before_sigma = reader.activation_of(f"A_{i - 1}", A[i - 1]) if i else sigma
                reader.add(
                    site, 0, state, before, f"A_{i - 1}", label, "float64", "trajectory", sigma, before_sigma, extra
                )
                if before is not None:
                    reader.walks.step("trajectory", before, state)
            if objective is not None:
                _trajectory_momenta(model, A, batch, sites, reader, objective)
            reader.end()


def _trajectory_momenta(
    model: LeakyResNet, A: Tensor, batch: object, sites: list[Site], reader: Reader, objective: PenalisedLoss
) -> None:
    """Gradients at the states ``A_1 … A_L``: by autograd at the last, and by (E8) from there."""
    W, rho = model.weight.detach().double(), model.rho.double()
    with torch.enable_grad():
        end = A[-1].detach().requires_grad_()
        output = end @ model.out_map.detach().double().T
        target = objective.labels(batch, model)
        value = objective.value(output, target, torch.float64)
        (last,) = torch.autograd.grad(value, end)
    weight = weight_of(objective.loss, target, len(end))
    if not weight:  # a mean over nothing
        return
    # in units in which μ = 1: M = −∂C/∂A
    found = -momenta(A, -last, W, rho, model.effective_depth, model.activation)[1:]
    for site in sites:
        i = int(site.name.removeprefix("A_"))
        if i:
            before, after, gradient = (Positions(x.unsqueeze(1), None, "") for x in (A[i - 1], A[i], found[i - 1]))
            decay = objective.weight_decay / float(rho[i - 1])
            V = (rho[i - 1] * W[i - 1]).cpu()
            reader.momenta(site.name, before, after, gradient, decay, V, mean_over=weight)


def _profile(reader: Reader, sites: list[Site], skipped: list[Skipped], gamma0: float, seen: int) -> Profile:
    gone = [*skipped, *reader.failed.values(), *reader.other_outputs.values()]
    called = {site for site, _ in (*reader.records, *reader.failed)}
    if seen:
        gone += [Skipped(s.name, type(s.module).__name__, NEVER_CALLED, True) for s in sites if s.name not in called]
    records = _in_order(list(reader.records.values()))
    walks = {stack: shards for stack, shards in reader.walks.of.items() if shards}
    return Profile(records, gone, list(reader.notes), gamma0, reader.samples, list(reader.doubts), walks)


def _in_order(records: list[LayerRecord]) -> list[LayerRecord]:
    """What goes into a block before the block and its parts: which it was may have shown at the block's end only."""
    for record in [r for r in records if r.site.endswith(":input")]:
        name = record.site.removesuffix(":input")
        inside = (r for r in records if r.call == record.call and (r.site == name or r.site.startswith(name + ".")))
        first = next(inside, record)
        if records.index(first) < records.index(record):
            records.remove(record)
            records.insert(records.index(first), record)
    return records


def _checked(profile: Profile) -> Profile:
    if not profile.samples:
        raise ValueError("data: no samples came; a generator that was read before? max_batches=0?")
    if profile.records:
        return profile
    grouped = by_reason([s for s in profile.skipped if s.chosen])
    reasons = [f"{listed(names)}: {reason}" for reason, names in grouped.items()]
    raise ValueError("layers: none of the layers could be read. " + "; ".join(reasons[:5]))


def _gather(local: Callable[[], Profile]) -> Profile:
    """Every process's profile, merged in order of ranks; an error in one is raised in all (none is left waiting)."""
    mine: Profile | Exception
    try:
        mine = local()
    except Exception as error:
        mine = error
    world = torch.distributed.get_world_size()
    text = f"{type(mine).__name__}: {mine}" if isinstance(mine, Exception) else None
    gathered: list[Any] = [None] * world
    torch.distributed.all_gather_object(gathered, (text, None if isinstance(mine, Exception) else mine.state_dict()))
    if isinstance(mine, Exception):
        raise mine
    for rank, (failure, _) in enumerate(gathered):
        if failure is not None:
            raise RuntimeError(f"probe: process {rank} failed with {failure}")
    whole = Profile.from_state_dict(gathered[0][1])
    for _, state in gathered[1:]:
        whole = whole.merge(Profile.from_state_dict(state))
    return _checked(whole)
