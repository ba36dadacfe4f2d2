"""`probe` where people work: callbacks for Lightning and Hugging Face's Trainer, a logger to TensorBoard.

Nothing is imported from here but `Watch`, so that no framework is needed until its own file is imported:
`isthmus.probe.integrations.lightning`, `.pytorch_lightning`, `.transformers`, `.tensorboard`.
"""

from isthmus.probe.integrations.watch import SCALARS, Watch, scalars_of

EXTRA = ", or all of them by pip install 'isthmus[integrations]'"
"""What messages add to the package that is missing."""

__all__ = ["SCALARS", "Watch", "scalars_of"]
