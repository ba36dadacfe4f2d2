"""Rankings of the same blocks by several losses or calibration sets, side by side: do they agree on what idles?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from isthmus.probe.ranking import rank_blocks
from isthmus.probe.removal import Candidate, Loss


@dataclass(frozen=True)
class Rankings:
    """What dropping each block would do, by each of several losses or calibration sets.

    Args:
        by: name of the set → candidates, the idlest first.
    """

    by: Mapping[str, tuple[Candidate, ...]]

    def predicted(self, name: str) -> dict[str, float]:
        """Block → predicted change of the loss on one set; NaN where it cannot go."""
        return {c.name: c.predicted for c in self.by[name]}

    @property
    def blocks(self) -> tuple[str, ...]:
        """Blocks that can go by every set, the one whose worst rank is best first."""
        places: dict[str, list[int]] = {}
        for listed in self.by.values():
            for place, c in enumerate(c for c in listed if c.reason is None):
                places.setdefault(c.name, []).append(place)
        common = {name: found for name, found in places.items() if len(found) == len(self.by)}
        return tuple(sorted(common, key=lambda name: (max(common[name]), sum(common[name]))))

    def agreement(self, a: str, b: str) -> float:
        """Spearman's rank correlation of two sets over `blocks`; NaN for fewer than two."""
        names = sorted(self.blocks)
        if len(names) < 2:
            return math.nan
        ranks = []
        for one in (a, b):
            order = [c.name for c in self.by[one] if c.name in names]
            ranks.append(torch.tensor([float(order.index(name)) for name in names]))
        return float(torch.corrcoef(torch.stack(ranks))[0, 1])

    def __str__(self) -> str:
        names = list(self.by)
        lines = [f"{'block':<24}" + "".join(f"{name:>16.15}" for name in names)]
        for block in self.blocks:
            lines.append(f"{block:<24}" + "".join(f"{self.predicted(name)[block]:>+16.4g}" for name in names))
        first = names[0]
        lines += [f"rank correlation of {first} and {name}: {self.agreement(first, name):.2f}" for name in names[1:]]
        return "\n".join(lines)


def rank_side_by_side(model: nn.Module, sets: Mapping[str, tuple[object, Loss]], **options: Any) -> Rankings:
    """`rank_blocks` for each of several pairs of data and loss.

    Args:
        model: see `isthmus.probe.ranking.rank_blocks`.
        sets: name → ``(data, loss)``.
        options: of `rank_blocks`.

    Raises:
        ValueError: no sets, and what `rank_blocks` raises.
        TypeError: what `rank_blocks` raises.
    """
    if not sets:
        raise ValueError("sets: expected at least one name → (data, loss), got none")
    return Rankings({name: tuple(rank_blocks(model, data, loss, **options)) for name, (data, loss) in sets.items()})
