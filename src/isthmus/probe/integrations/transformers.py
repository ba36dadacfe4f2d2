"""A callback for Hugging Face's `Trainer`.

from isthmus.probe.integrations.transformers import ProbeCallback

probing = ProbeCallback(trainer.get_eval_dataloader(), every_n_epochs=1, max_batches=8).attach(trainer)
trainer.train()
probing.watch.to_dataframe()
"""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from isthmus._support import require
from isthmus.probe.integrations import EXTRA
from isthmus.probe.integrations.watch import SCALARS, Watch, every

_TrainerCallback: Any = require("transformers", __name__, f"transformers{EXTRA}").TrainerCallback


class ProbeCallback(_TrainerCallback):
    """Probes the model every few epochs or steps of the optimiser, and logs by ``Trainer.log``.

    A Trainer hands itself to no callback: `attach` it, and what it logs reaches whatever the Trainer reports to. Given
    as ``Trainer(callbacks=[…])`` it can only write into ``trainer.state.log_history``, and says so where there are
    reports to miss. The first probe is before the first step, so that a mistake shows at once.

    Args:
        data: see `isthmus.probe.integrations.watch.Watch`; of a dict the keys that the model takes are used, without
            the labels, and an ``attention_mask`` leaves padding out.
        every_n_epochs: epochs between two probes, each at the end of an epoch; None: never.
        every_n_steps: steps of the optimiser between two probes; None: never.
        at_start: also before training.
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
        self.at_start = at_start
        self.watch = Watch(data, columns, prefix, keep, options)
        self._trainer: Any = None

    def attach(self, trainer: Any) -> "ProbeCallback":
        """Add this callback to a Trainer, and log by it.

        Raises:
            TypeError: no Trainer.
        """
        if not hasattr(trainer, "add_callback") or not hasattr(trainer, "log"):
            raise TypeError(f"trainer: expected a transformers.Trainer, got {type(trainer).__name__}")
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        self._trainer = trainer
        return self

    def _probe(self, state: Any, control: Any, model: nn.Module) -> None:
        step = int(state.global_step)
        if step in self.watch.profiles or step in self.watch.failures:
            return
        scalars = self.watch(model, step)
        if not scalars:
            return
        if self._trainer is None:
            state.log_history.append({**scalars, "epoch": state.epoch, "step": step})
            return
        # logging clears the flag by which the Trainer was told to log its own loss after this step
        due = control.should_log
        self._trainer.log(scalars)
        control.should_log = due

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Before training."""
        if self._trainer is None and args.report_to:
            warnings.warn(
                f"isthmus: what is probed goes to trainer.state.log_history alone and not to "
                f"{', '.join(args.report_to)}; for that, give the callback by probe_callback.attach(trainer)",
                stacklevel=2,
            )
        if self.at_start:
            self._probe(state, control, model)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """After a step of the optimiser."""
        if self.every_n_steps is not None and state.global_step % self.every_n_steps == 0:
            self._probe(state, control, model)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """After an epoch."""
        if self.every_n_epochs is not None and round(state.epoch or 0) % self.every_n_epochs == 0:
            self._probe(state, control, model)
