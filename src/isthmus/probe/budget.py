"""How large a model is: blocks, parameters, floating point operations and milliseconds of a pass; and how far to go."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isthmus.probe.batches import device_of, to_device
from isthmus.probe.capture import undisturbed
from isthmus.probe.removal import DropTask

BUDGETS = ("parameters", "flops", "ms")
PASSES = 7  # of which the median counts, after one to warm up


def checked_budget(budget: Mapping[str, int | float] | None) -> dict[str, float]:
    """The budget itself.

    Raises:
        ValueError: none of the names that there are, or a limit that is not positive.
    """
    limits = {name: float(limit) for name, limit in (budget or {}).items()}
    for name, limit in limits.items():
        if name not in BUDGETS:
            raise ValueError(f"budget: expected {', '.join(BUDGETS)}, got {name!r}")
        if not limit > 0:
            raise ValueError(f"budget: {name} expected a positive limit, got {limit!r}")
    return limits


@dataclass(frozen=True)
class Sizer:
    """Measures a model in the units that a budget is given in.

    Args:
        task: its first batch is what operations and time are of.
        budget: name → limit; those alone are measured.
    """

    task: DropTask
    budget: Mapping[str, int | float]

    def size(self, model: nn.Module) -> dict[str, float]:
        """Parameters (shared ones once), operations of a pass over the first batch, its median time in ms."""
        found = {name: getattr(self, f"_{name}")(model) for name in self.budget}
        return {name: float(value) for name, value in found.items()}

    def over(self, size: Mapping[str, float]) -> list[str]:
        """Limits that a size exceeds."""
        return [name for name, limit in self.budget.items() if size[name] > limit]

    def _parameters(self, model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    def _flops(self, model: nn.Module) -> int:
        counter = FlopCounterMode(display=False)
        batch = to_device(next(iter(self.task)), device_of(model))
        # fused attention is not counted on every device
        with undisturbed(model), sdpa_kernel(SDPBackend.MATH), counter:
            self.task.output(model, batch)
        return counter.get_total_flops()

    def _ms(self, model: nn.Module) -> float:
        device = device_of(model)
        batch = to_device(next(iter(self.task)), device)
        times = []
        with undisturbed(model):
            for _ in range(PASSES + 1):
                start = time.perf_counter()
                self.task.output(model, batch)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times[1:])
