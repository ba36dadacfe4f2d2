"""What `isthmus.probe.simplify` is asked, and what it answers."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from isthmus.probe.batches import batches, check_rereadable, device_of, to_device
from isthmus.probe.capture import undisturbed
from isthmus.probe.inputs import Forward, call_of, samples_in, target_of, weight_of
from isthmus.probe.rows import Choice

Loss = Callable[[Any, Any], Tensor]


def checked_loss(value: object) -> Tensor:
    """The value itself.

    Raises:
        TypeError: it is no scalar tensor.
    """
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"loss: expected a scalar tensor, the mean over the batch, got {got}")
    return value


@dataclass(frozen=True)
class Candidate:
    """What dropping one block, or merging one pair, would do.

    Args:
        name: of the block; of a pair ``A_i + A_{i+1}``, the layers.
        stack: the run of blocks it belongs to.
        predicted: change of the loss, to the order asked for; NaN where it cannot go.
        step_change: ``‖ΔA‖_F/‖A‖_F`` over all samples, A the block's output.
        cosine: mean over rows of the cosine between input and output (block influence is one minus it).
        reason: why it cannot go, None where it can.
    """

    name: str
    stack: str
    predicted: float
    step_change: float = math.nan
    cosine: float = math.nan
    reason: str | None = None


@dataclass(frozen=True)
class Round:
    """One block gone: the change of the loss that was predicted for it, and the one that was measured."""

    name: str
    predicted: float
    measured: float


@dataclass(frozen=True)
class Simplified:
    """The smaller network, and what it cost.

    Args:
        model: a working copy without the dropped blocks; the original is untouched.
        rounds: what went, in order, with the predicted and the measured change of the loss.
        kept: names, in the original, of the blocks that stayed.
        loss_before: mean loss over the data.
        loss_after: the same of the smaller network.
        candidates: the ranking of the first round.
        notes: choices made on the way.
        size_before: in the units of the budget that was given.
        size_after: the same of the smaller network.
    """

    model: nn.Module
    rounds: tuple[Round, ...]
    kept: tuple[str, ...]
    loss_before: float
    loss_after: float
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()
    size_before: Mapping[str, float] = field(default_factory=dict)
    size_after: Mapping[str, float] = field(default_factory=dict)

    @property
    def dropped(self) -> tuple[str, ...]:
        """Names of what went, in order."""
        return tuple(r.name for r in self.rounds)

    @property
    def predicted(self) -> float:
        """Predicted change of the loss: the sum over rounds."""
        return sum(r.predicted for r in self.rounds)

    @property
    def measured(self) -> float:
        """Measured change of the loss."""
        return self.loss_after - self.loss_before

    def __str__(self) -> str:
        lines = [f"{'dropped':<24}{'predicted':>14}{'measured':>14}"]
        lines += [f"{r.name:<24}{r.predicted:>+14.4g}{r.measured:>+14.4g}" for r in self.rounds]
        lines.append(f"{'in all':<24}{self.predicted:>+14.4g}{self.measured:>+14.4g}")
        lines.append(f"loss {self.loss_before:.4g} -> {self.loss_after:.4g}; kept {', '.join(self.kept) or 'none'}")
        lines += [f"{name} {size:.6g} -> {self.size_after[name]:.6g}" for name, size in self.size_before.items()]
        return "\n".join((*lines, *self.notes))


@dataclass(frozen=True)
class DropTask:
    """Data and loss, and how to run a model on them. Make it with `make_task`."""

    data: object
    loss: Loss
    forward: Forward | None
    target: Callable[[object], object] | None
    batch_size: int
    state: Mapping[str, Choice] = field(default_factory=dict)

    def __iter__(self) -> Iterator[object]:
        return batches(self.data, self.batch_size)

    def output(self, model: nn.Module, batch: object) -> object:
        """What the model returns for a batch, on its device already."""
        return call_of(model, batch, self.forward).run()

    def on(self, model: nn.Module, batch: object) -> Tensor:
        """The loss of a batch, on the model's device already."""
        return checked_loss(self.loss(self.output(model, batch), self.labels(model, batch)))

    def labels(self, model: nn.Module, batch: object) -> object:
        """The target of a batch, by default what `isthmus.probe.batches.target_of` finds."""
        if self.target is not None:
            return self.target(batch)
        return target_of(batch, model if self.forward is None else None)

    def mean(self, model: nn.Module) -> float:
        """Mean loss over the data."""
        total, weights, device = 0.0, 0.0, device_of(model)
        with undisturbed(model):
            for batch in self:
                moved = to_device(batch, device)
                n = self.weight(model, moved)
                total += n * float(self.on(model, moved)) if n else 0.0
                weights += n
        if not weights:
            raise ValueError("data: no samples came, or none with a label")
        return total / weights

    def weight(self, model: nn.Module, batch: object) -> float:
        """What the loss of a batch is a mean over: its share in the whole."""
        return weight_of(self.loss, self.labels(model, batch), samples_in(batch) or 1)


def make_task(
    data: object,
    loss: Loss,
    forward: Forward | None,
    target: Callable[[object], object] | None,
    batch_size: int,
    state: Mapping[str, Choice] | None = None,
) -> DropTask:
    """Checked.

    Raises:
        TypeError: the loss is no function, or the data can be read only once.
    """
    if not callable(loss):
        raise TypeError(f"loss: expected a function (output, target) -> scalar tensor, got {type(loss).__name__}")
    check_rereadable(data)
    return DropTask(data, loss, forward, target, batch_size, state or {})
