"""Rows that are kept as they are, a bounded number of a layer: what no sum over rows can tell needs them.

Which rows are kept depends on the data, the number of the batch and the row's place in it alone. Layers with as many
positions keep the same rows, so that neighbourhoods of two layers can be compared; parts of the data that are read
apart, to be merged, keep rows of places of their own.
"""

import zlib

import torch
from jaxtyping import Float
from torch import Tensor


class KeptRows:
    """A uniform draw of the rows that came, in their own dtype.

    Args:
        most: rows kept at most.
    """

    def __init__(self, most: int) -> None:
        self.most, self.seen = most, 0
        self.rows: Tensor | None = None
        # kept are the rows of the least priorities, in their order
        self.priorities = torch.zeros(0, dtype=torch.float64)

    def update(self, rows: Float[Tensor, "n width"], priorities: Float[Tensor, "n"]) -> None:
        """Offer rows, each with its priority, a uniform draw."""
        self.seen += len(rows)
        if not len(rows):
            return
        if len(rows) > self.most:  # no more than these can be kept, and only these are copied
            best = priorities.topk(self.most, largest=False).indices
            rows, priorities = rows[best.to(rows.device)], priorities[best]
        rows = rows.detach().cpu()
        together = rows if self.rows is None else torch.cat((self.rows, rows))
        found = torch.cat((self.priorities, priorities))
        order = found.argsort()[: self.most]
        self.rows, self.priorities = together[order].clone(), found[order]

    def merge(self, other: "KeptRows") -> "KeptRows":
        """A draw of both's rows; neither changes.

        Raises:
            ValueError: another number of rows at most.
        """
        if other.most != self.most:
            raise ValueError(f"only draws of as many rows merge: {self.most} here, {other.most} there")
        made = KeptRows(self.most)
        for part in (self, other):
            if part.rows is not None:
                made.update(part.rows, part.priorities)
        made.seen = self.seen + other.seen
        return made

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that hold everything."""
        rows = torch.zeros(0, 0) if self.rows is None else self.rows.clone()
        numbers = torch.tensor([self.most, self.seen])
        return {"rows": rows, "priorities": self.priorities.clone(), "numbers": numbers}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> "KeptRows":
        """The draw of which this is the `state_dict`."""
        most, seen = (int(x) for x in state["numbers"])
        made = cls(most)
        made.seen, made.priorities = seen, state["priorities"].clone()
        made.rows = state["rows"].clone() if len(state["rows"]) else None
        return made


class Draws:
    """Priorities of a batch's rows, the same for all layers with as many positions."""

    def __init__(self) -> None:
        # of the first state seen: other data draw otherwise
        self.seed: int | None = None
        self._known: dict[tuple[int, int, int], Tensor] = {}

    def begin(self) -> None:
        """A batch starts."""
        self._known = {}

    def of(self, offset: int, states: Float[Tensor, "samples positions width"]) -> Float[Tensor, "samples positions"]:
        """Priorities of a batch that `offset` samples came before."""
        samples, positions = states.shape[:2]
        if self.seed is None:
            some = states.detach().flatten()[:4096].contiguous().cpu()
            self.seed = zlib.crc32(some.view(torch.uint8).numpy().tobytes())
        key = (offset, samples, positions)
        if key not in self._known:
            generator = torch.Generator().manual_seed(hash((self.seed, offset, positions)) % 2**63)
            self._known[key] = torch.rand(samples, positions, dtype=torch.float64, generator=generator)
        return self._known[key]
