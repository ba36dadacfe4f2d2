"""What the callbacks for both of Lightning's names share."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from isthmus.probe.integrations.watch import SCALARS, Watch, every


@contextmanager
def _without_logs(module: nn.Module) -> Iterator[None]:
    """What the module logs in its forward pass is of training, and not of this pass."""
    for name in ("log", "log_dict"):
        vars(module)[name] = lambda *_, **__: None
    try:
        yield
    finally:
        for name in ("log", "log_dict"):
            vars(module).pop(name, None)


class LightningHooks:
    """Probes a LightningModule every few epochs or steps of the optimiser, and logs by the Trainer's loggers.

    The first probe is before the first step, so that a mistake shows at once. Under several processes each probes its
    copy (sharded models need that) and the first one logs; ``distributed=True`` merges their data, see `probe`.

    Args:
        data: see `isthmus.probe.integrations.watch.Watch`.
        every_n_epochs: training epochs between two probes, each at the end of an epoch; None: never.
        every_n_steps: steps of the optimiser between two probes; None: never.
        at_start: also before training.
        model: which part of the LightningModule to probe; by default the module itself, whose ``forward`` then runs.
        columns: see `Watch`.
        prefix: see `Watch`.
        keep: see `Watch`.
        options: of `probe`: layers, activation, positions, ….

    Attributes:
        watch: what was seen: ``watch.last``, ``watch.profiles``, ``watch.to_dataframe()``.

    Raises:
        ValueError: an interval below 1.
        TypeError: data that can be read only once.
    """

    def __init__(
        self,
        data: object,
        *,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        at_start: bool = True,
        model: Callable[[Any], nn.Module] | None = None,
        columns: Sequence[str] = SCALARS,
        prefix: str = "isthmus/",
        keep: int | None = 4,
        **options: Any,
    ) -> None:
        super().__init__()
        self.every_n_epochs, self.every_n_steps = (
            every(every_n_epochs, "every_n_epochs"),
            every(every_n_steps, "every_n_steps"),
        )
        self.at_start, self.model = at_start, model
        self.watch = Watch(data, columns, prefix, keep, options)

    def _probe(self, trainer: Any, module: nn.Module) -> None:
        step = int(trainer.global_step)
        if step in self.watch.profiles or step in self.watch.failures:
            return  # gradients are still being accumulated, or the epoch ends on a step that was probed
        with _without_logs(module):
            scalars = self.watch(module if self.model is None else self.model(module), step)
        for logger in trainer.loggers if scalars else ():
            logger.log_metrics(scalars, step=step)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Before training."""
        if self.at_start:
            self._probe(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After a batch."""
        step = int(trainer.global_step)
        if self.every_n_steps is not None and step and step % self.every_n_steps == 0:
            self._probe(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """After an epoch."""
        if self.every_n_epochs is not None and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._probe(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The tables, for Lightning's checkpoint."""
        return self.watch.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From Lightning's checkpoint."""
        self.watch.load_state_dict(state_dict)
