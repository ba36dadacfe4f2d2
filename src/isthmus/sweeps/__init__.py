"""Many small computations on one machine: each is done once, kept under the hash of its settings, and never lost."""

from isthmus.sweeps.engine import Done, Sweep, sweep
from isthmus.sweeps.job import Job
from isthmus.sweeps.store import Store, StoreError

__all__ = ["Done", "Job", "Store", "StoreError", "Sweep", "sweep"]
