"""What is summed over samples, behind one interface; here as a triangular factor, in `gram` as matrices of squares.

Both hold blocks of columns side by side, ``[1 | σ(A) | A | …]``; the 1 gives means, and for the factor also everything
about the mean without cancellation: R without its first row and column is the factor of the centred columns.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from isthmus.probe.projection import Projection, project_factor
from isthmus.probe.tsqr import StreamingQR

EPS64 = torch.finfo(torch.float64).eps
# Features are block 0 everywhere, states block 1.
FEATURES, STATES = 0, 1


class Sums(ABC):
    """Sums over rows of blocks of columns.

    Args:
        widths: columns of each block; block 0 holds the entrywise features.
        append_one: whether the features have the constant 1 as well.
    """

    def __init__(self, widths: Sequence[int], append_one: bool) -> None:
        self.widths, self.append_one = tuple(widths), append_one

    @property
    @abstractmethod
    def count(self) -> int:
        """Rows seen."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the sums live."""

    @property
    @abstractmethod
    def chunk(self) -> int:
        """Rows worth handing over at once."""

    @abstractmethod
    def update(self, blocks: Sequence[Tensor]) -> None:
        """Take rows in."""

    @abstractmethod
    def merge(self, other: "Sums") -> "Sums":
        """Sums of both."""

    @abstractmethod
    def project(self, targets: Sequence[int], centred: bool = False) -> Projection:
        """Blocks against the features, both about their means if ``centred`` (the constant 1 is then nothing)."""

    @abstractmethod
    def spectrum(self, block: int, centred: bool = False) -> Tensor:
        """Singular values of a block."""

    @abstractmethod
    def mean(self, block: int) -> Tensor:
        """Mean row of a block."""

    @abstractmethod
    def products(self, first: int, second: int) -> Tensor:
        """Sum over rows of the entrywise product of two blocks of the same width, about their means."""

    @abstractmethod
    def root(self, block: int) -> Tensor:
        """Some matrix with the same ``XᵀX`` as the centred block."""

    @abstractmethod
    def traces(self, block: int) -> tuple[float, float]:
        """``Tr G`` and ``Tr G²`` of the block's ``G = XᵀX`` about its mean."""

    @abstractmethod
    def rounding(self, block: int) -> float:
        """Relative error of the block's second moments about its mean, estimated; 0 where these vanish."""

    @abstractmethod
    def along(self, block: int, direction: Tensor) -> Tensor:
        """``XᵀX v`` of the centred block X."""

    @abstractmethod
    def leading(self, blocks: int) -> "Sums":
        """The sums of the first `blocks` blocks alone."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that hold everything."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state of sums made with the same arguments."""

    @property
    def _width_in(self) -> int:
        return self.widths[FEATURES] + int(self.append_one)


class FactorSums(Sums):
    """The triangular factor (`StreamingQR`): conditioning is never squared. Memory ``(Σ widths + 1)²``."""

    def __init__(
        self,
        widths: Sequence[int],
        append_one: bool,
        *,
        device: torch.device | str = "cpu",
        block_rows: int | None = None,
        stream: StreamingQR | None = None,
    ) -> None:
        super().__init__(widths, append_one)
        self._stream = stream or StreamingQR(1 + sum(widths), device=device, block_rows=block_rows)
        self._cached: Tensor | None = None

    @property
    def count(self) -> int:
        """Rows seen."""
        return self._stream.count

    @property
    def device(self) -> torch.device:
        """Where the sums live."""
        return self._stream.device

    @property
    def chunk(self) -> int:
        """Rows worth handing over at once."""
        return self._stream.block_rows

    def update(self, blocks: Sequence[Tensor]) -> None:
        """Take rows in."""
        self._cached = None
        ones = blocks[0].new_ones((len(blocks[0]), 1))
        self._stream.update((ones, *blocks))

    def merge(self, other: Sums) -> "FactorSums":
        """Sums of both."""
        assert isinstance(other, FactorSums)
        return FactorSums(self.widths, self.append_one, stream=self._stream.merge(other._stream))

    def _factor(self) -> Tensor:
        if self._cached is None:
            self._cached = self._stream.factor()
        return self._cached

    def _columns(self, block: int, centred: bool = False) -> Tensor:
        """Columns of the factor (of the centred ones): the same inner products as the block's."""
        ends = list(accumulate(self.widths, initial=1))
        return self._factor()[int(centred) :, ends[block] : ends[block + 1]]

    def project(self, targets: Sequence[int], centred: bool = False) -> Projection:
        """Blocks against the features."""
        first = int(centred)
        rows = min(len(self._factor()), 1 + self.widths[FEATURES])
        start = 0 if self.append_one and not centred else 1
        features = self._factor()[first:rows, start : 1 + self.widths[FEATURES]]
        tolerance = EPS64 * max(self.count, self._width_in)
        return project_factor(features, [self._columns(i, centred) for i in targets], tolerance, 4 * EPS64)

    def spectrum(self, block: int, centred: bool = False) -> Tensor:
        """Singular values of a block."""
        return torch.linalg.svdvals(self._columns(block, centred))

    def mean(self, block: int) -> Tensor:
        """Mean row of a block."""
        ends = list(accumulate(self.widths, initial=1))
        R = self._factor()
        return R[0, ends[block] : ends[block + 1]] / R[0, 0]

    def products(self, first: int, second: int) -> Tensor:
        """Sum over rows of the entrywise product of two blocks, about their means."""
        return (self._columns(first, True) * self._columns(second, True)).sum(0)

    def root(self, block: int) -> Tensor:
        """Some matrix with the same ``XᵀX`` as the centred block."""
        return self._columns(block, True)

    def traces(self, block: int) -> tuple[float, float]:
        """``Tr G`` and ``Tr G²`` of the block's ``G = XᵀX`` about its mean."""
        columns = self._columns(block, True)
        G = columns @ columns.T if len(columns) < columns.shape[1] else columns.T @ columns
        return float(G.trace()), float(G.square().sum())

    def rounding(self, block: int) -> float:
        """Relative error of the block's second moments about its mean: the rows were rounded with their mean."""
        whole, left = (float(self._columns(block, centred).square().sum()) for centred in (False, True))
        return EPS64 * (whole / left) ** 0.5 if left > 0 else 0.0

    def along(self, block: int, direction: Tensor) -> Tensor:
        """``XᵀX v`` of the centred block."""
        columns = self._columns(block, True)
        return columns.T @ (columns @ direction)

    def leading(self, blocks: int) -> "FactorSums":
        """The sums of the first `blocks` blocks alone."""
        columns = 1 + sum(self.widths[:blocks])
        stream = StreamingQR.of_factor(self._factor()[:columns, :columns], self.count)
        return FactorSums(self.widths[:blocks], self.append_one, stream=stream)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that hold everything."""
        return {"factor": self._factor().clone(), "count": torch.tensor(self.count)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state of sums made with the same arguments."""
        factor = state["factor"].to(self.device)
        self._stream = StreamingQR.of_factor(factor, int(state["count"]), block_rows=self._stream.block_rows)
        self._cached = None
