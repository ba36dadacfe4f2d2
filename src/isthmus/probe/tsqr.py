"""Streaming thin QR of tall matrices: the triangular factor of all rows seen, in memory flat in their number.

For ``X = QR`` every norm, inner product and singular value made of X's columns is that of R's. R of two stacked parts
is R of their two R's stacked (TSQR: Demmel, Grigori, Hoemmen and Langou, arXiv:0808.2664), so parts merge. No square of
X is formed, and no digits are lost to one.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# Rows gathered before a factorisation, in units of the columns: the triangle on top of them is work done again. Eight
# are a fifth faster than two at width 512 and take three times the memory: docs/notes/probe.md, and
# benchmarks/streaming_coi.py --blocks. Where two exceed BLOCK_BYTES, down to one.
BLOCK_FACTOR = 2
BLOCK_BYTES = 2**28


def default_block(columns: int) -> int:
    """Rows gathered before a factorisation.

    >>> default_block(1025), default_block(8193)
    (2050, 8193)
    """
    return max(columns, min(max(BLOCK_FACTOR * columns, 1024), BLOCK_BYTES // (8 * columns)))


def pieces(rows: int, room: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut ``rows`` so that the first piece fills ``room`` and the others hold at most ``size``.

    >>> list(pieces(7, 2, 3))
    [(0, 2), (2, 5), (5, 7)]
    """
    start = 0
    while start < rows:
        stop = min(rows, start + (room if start == 0 else size))
        yield start, stop
        start = stop


class StreamingQR:
    """Triangular factor of rows that arrive in batches of any size.

    Rows are gathered and factorised in blocks that do not depend on how the batches were cut, so the same rows in the
    same order give the same bits. Another order, or another merge, gives the same numbers to about 1e-14 of the
    largest singular value (tests/probe/test_probe_tsqr.py asserts 1e-12).

    Args:
        columns: number of columns.
        device: where the factor lives.
        block_rows: rows gathered before a factorisation; by default twice the columns, 1024 at least.

    Raises:
        ValueError: no columns, or blocks without rows.
    """

    def __init__(self, columns: int, *, device: torch.device | str = "cpu", block_rows: int | None = None) -> None:
        block_rows = default_block(max(columns, 1)) if block_rows is None else block_rows
        if columns < 1 or block_rows < 1:
            raise ValueError(f"columns and block_rows must be positive, got {columns} and {block_rows}")
        self.columns, self.block_rows = columns, block_rows
        self.count = 0
        # first `_top` rows: the factor so far; after them, up to `_used`, rows not yet factorised
        self._buffer = torch.empty(0, columns, dtype=torch.float64, device=device)
        self._top = self._used = 0

    @property
    def device(self) -> torch.device:
        """Where the factor lives."""
        return self._buffer.device

    def _grow(self, rows: int) -> None:
        if rows <= len(self._buffer):
            return
        rows = min(max(rows, 2 * len(self._buffer)), self.columns + self.block_rows)
        larger = self._buffer.new_empty(rows, self.columns)
        larger[: self._used] = self._buffer[: self._used]
        self._buffer = larger

    def _factorise(self) -> None:
        R = torch.linalg.qr(self._buffer[: self._used], mode="r").R
        self._top = self._used = len(R)
        self._buffer[: self._top] = R

    def update(self, blocks: Sequence[Tensor]) -> None:
        """Take rows in, given as blocks of columns ``(n, c_i)`` side by side; they are copied as float64.

        Raises:
            ValueError: blocks that do not have ``columns`` columns between them, or not the same number of rows.
        """
        widths, rows = [block.shape[1] for block in blocks], len(blocks[0])
        if sum(widths) != self.columns or any(len(block) != rows for block in blocks):
            shapes = ", ".join(str(tuple(block.shape)) for block in blocks)
            raise ValueError(f"expected blocks with the same rows and {self.columns} columns in all, got {shapes}")
        for start, stop in pieces(rows, self._top + self.block_rows - self._used, self.block_rows):
            end = self._used + stop - start
            self._grow(end)
            column = 0
            for block, width in zip(blocks, widths, strict=True):
                self._buffer[self._used : end, column : column + width].copy_(block[start:stop])
                column += width
            self._used = end
            if self._used == self._top + self.block_rows:
                self._factorise()
        self.count += rows

    def factor(self) -> Tensor:
        """R, upper triangular or trapezoidal, ``(min(count, columns), columns)``; the stream may go on afterwards."""
        if self._used > self._top:
            return torch.linalg.qr(self._buffer[: self._used], mode="r").R
        return self._buffer[: self._top].clone()

    def merge(self, other: "StreamingQR") -> "StreamingQR":
        """The factor of both streams' rows; neither is changed.

        Raises:
            ValueError: another number of columns.
        """
        if other.columns != self.columns:
            raise ValueError(f"only streams of the same columns merge: {self.columns} here, {other.columns} there")
        stacked = torch.cat((self.factor(), other.factor().to(self.device)))
        return self.of_factor(stacked, self.count + other.count, block_rows=self.block_rows)

    @classmethod
    def of_factor(cls, rows: Tensor, count: int, *, block_rows: int | None = None) -> "StreamingQR":
        """A stream of ``count`` rows whose inner products are those of ``rows``, triangular or not."""
        made = cls(rows.shape[1], device=rows.device, block_rows=block_rows)
        made._buffer = rows.to(torch.float64, copy=True)
        made._used = len(rows)
        if len(rows):
            made._factorise()
            # trailing room is made anew when rows arrive
            made._buffer = made._buffer[: made._top].clone()
        made.count = count
        return made
