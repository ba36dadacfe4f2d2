"""A callback for Lightning under the name `lightning`; `pytorch_lightning` has a module of its own.

from isthmus.probe.integrations.lightning import ProbeCallback

probing = ProbeCallback(held_out_inputs, every_n_epochs=5, layers="net.blocks.*")
Trainer(callbacks=[probing]).fit(module)
probing.watch.to_dataframe()
"""

from typing import Any

from isthmus._support import require
from isthmus.probe.integrations import EXTRA
from isthmus.probe.integrations._lightning import LightningHooks

_Callback: Any = require("lightning.pytorch", __name__, f"lightning{EXTRA}").Callback


class ProbeCallback(LightningHooks, _Callback):
    """`LightningHooks` as a callback; its arguments are described there."""
