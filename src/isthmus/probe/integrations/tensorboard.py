"""Profiles to TensorBoard, for training loops of one's own.

from isthmus.probe.integrations.tensorboard import TensorBoardProbe

with TensorBoardProbe(held_out_inputs, "runs/mine", every=100) as probing:
    for step in range(10_000):
        ...
        probing.step(net, step)
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from isthmus._support import require
from isthmus.probe.integrations import EXTRA
from isthmus.probe.integrations.watch import SCALARS, Watch, every, scalars_of
from isthmus.probe.profile import Profile


def make_writer(target: object) -> Any:
    """A `SummaryWriter` into a folder; what has ``add_scalar`` is taken as it is.

    Raises:
        ImportError: a folder, and tensorboard is not installed.
        TypeError: neither.
    """
    if hasattr(target, "add_scalar"):
        return target
    if not isinstance(target, str | Path):
        raise TypeError(f"writer: expected a SummaryWriter or a folder, got {type(target).__name__}")
    name, what = "torch.utils.tensorboard", "writing to TensorBoard"
    return require(name, what, f"tensorboard{EXTRA}", "tensorboard").SummaryWriter(str(target))


def write_profile(
    profile: Profile,
    writer: object,
    step: int,
    *,
    columns: Sequence[str] = SCALARS,
    prefix: str = "isthmus/",
) -> dict[str, float]:
    """Write a profile's columns as scalars ``{prefix}{column}/{layer}``; returns them.

    Args:
        profile: of `isthmus.probe.probe`.
        writer: anything with ``add_scalar(name, value, step)``, such as `torch.utils.tensorboard.SummaryWriter`.
        step: of the training.
        columns: of the profile.
        prefix: of the names.

    Raises:
        TypeError: a writer without ``add_scalar``.
        ValueError: a column without numbers.
    """
    if not hasattr(writer, "add_scalar"):
        raise TypeError(f"writer: expected a SummaryWriter, with add_scalar, got {type(writer).__name__}")
    scalars = scalars_of(profile, columns, prefix)
    for name, value in scalars.items():
        writer.add_scalar(name, value, step)
    return scalars


class TensorBoardProbe:
    """Probes a network every few steps of a training loop, and writes scalars of each layer.

    Args:
        data: see `isthmus.probe.integrations.watch.Watch`.
        writer: a `SummaryWriter`, which stays the caller's to close, or a folder.
        every: how many steps lie between two probes; step 0 is one.
        columns: see `Watch`.
        prefix: see `Watch`.
        keep: see `Watch`.
        options: of `probe`: layers, activation, positions, ….

    Attributes:
        watch: what was seen: ``watch.last``, ``watch.profiles``, ``watch.to_dataframe()``.

    Raises:
        ImportError: a folder, and tensorboard is not installed.
        TypeError, ValueError: arguments that do not fit.
    """

    def __init__(
        self,
        data: object,
        writer: object,
        *,
        every: int = 1,
        columns: Sequence[str] = SCALARS,
        prefix: str = "isthmus/",
        keep: int | None = 4,
        **options: Any,
    ) -> None:
        self.every = _every(every)
        self.watch = Watch(data, columns, prefix, keep, options)
        self.writer = make_writer(writer)
        self._own = self.writer is not writer

    def step(self, model: nn.Module, step: int) -> dict[str, float]:
        """After a step of the training: probe if it is due, and write; returns the scalars."""
        if step % self.every:
            return {}
        scalars = self.watch(model, step)
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        return scalars

    def close(self) -> None:
        """Close the writer, if it was made here."""
        if self._own:
            self.writer.close()

    def __enter__(self) -> "TensorBoardProbe":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _every(count: int) -> int:
    checked = every(count, "every")
    assert checked is not None
    return checked
