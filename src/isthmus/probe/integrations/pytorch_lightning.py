"""A callback for Lightning under the name `pytorch_lightning`; `lightning` has a module of its own.

from isthmus.probe.integrations.pytorch_lightning import ProbeCallback

probing = ProbeCallback(held_out_inputs, every_n_epochs=5, layers="net.blocks.*")
Trainer(callbacks=[probing]).fit(module)
probing.watch.to_dataframe()
"""

from typing import Any

from isthmus._support import require
from isthmus.probe.integrations import EXTRA
from isthmus.probe.integrations._lightning import LightningHooks

_Callback: Any = require("pytorch_lightning", __name__, f"pytorch-lightning{EXTRA}").Callback


class ProbeCallback(LightningHooks, _Callback):
    """`LightningHooks` as a callback; its arguments are described there."""
