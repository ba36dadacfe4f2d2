"""Sums of squares over samples: the faster way to a layer's quantities, at the price of a squared condition."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isthmus.probe.decompose import eigenvalues, eigenvectors
from isthmus.probe.projection import Projection, project_gram, project_itself
from isthmus.probe.sums import FEATURES, STATES, Sums
from isthmus.probe.tsqr import pieces

# sums, squares left out of the matrices, matrices
State = tuple[list[Tensor], Tensor, dict[tuple[int, int], Tensor]]


def product(X: Tensor, Y: Tensor) -> Tensor:
    """``XᵀY`` of contiguous matrices; on CPU by NumPy, whose BLAS does ``XᵀX`` in half the work."""
    if X.device.type != "cpu":
        return X.T @ Y
    import numpy

    return torch.from_numpy(numpy.dot(X.numpy().T, Y.numpy()))


def dots(X: Tensor, Y: Tensor) -> Tensor:
    """``Σ_i X_ij Y_ij`` of each column j; on CPU by NumPy, which makes no product of the matrices' size."""
    if X.device.type != "cpu":
        return (X * Y).sum(0)
    import numpy

    return torch.from_numpy(numpy.einsum("ij,ij->j", X.numpy(), Y.numpy()))


class GramSums(Sums):
    """``SSᵀ``, ``S M_iᵀ``, ``⟨M_i, M_k⟩`` and, unless left out, ``AAᵀ``, over blocks of rows, added in float64.

    The condition is squared; `Projection.error` says what that costs. Products are formed in ``dtype``. Where the
    states are their own features (σ(z) = z without a 1), they are held once.

    Args:
        widths: columns of each block.
        append_one: whether the features have the constant 1 as well.
        dtype: of the products within a block of rows.
        device: where the sums live.
        block_rows: rows of a block; by default 2048, in float32 4096 (docs/notes/probe.md).
        spectra: whether ``AAᵀ`` of block 1, the states, is kept, for spectra; without, they are refused.
        itself: block 1 equals block 0.
    """

    def __init__(
        self,
        widths: Sequence[int],
        append_one: bool,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        block_rows: int | None = None,
        spectra: bool = True,
        itself: bool = False,
    ) -> None:
        super().__init__(widths, append_one)
        self.dtype, self.spectra, self.itself = dtype, spectra, itself
        self.block_rows = block_rows or 16384 // dtype.itemsize
        self._count = 0
        f64: dict[str, Any] = {"dtype": torch.float64, "device": device}
        # the blocks that are held, and where each block is among them
        self._held = [i for i in range(len(self.widths)) if not (itself and i == STATES)]
        self._place = [max(0, i - int(itself)) for i in range(len(self.widths))]
        kept = range(len(self._held))
        self._sums = [torch.zeros(self.widths[i], **f64) for i in self._held]
        self._squares = torch.zeros(len(self._held), len(self._held), max(self.widths), **f64)
        own = [(STATES, STATES)] if spectra and not itself and len(self.widths) > STATES else []
        self._pairs = [(FEATURES, i) for i in kept] + own
        width = [self.widths[i] for i in self._held]
        self._gram = {(i, j): torch.zeros(width[i], width[j], **f64) for i, j in self._pairs}
        self._waiting: list[Tensor] = []
        self._filled = 0
        self._cached: State | None = None

    @property
    def count(self) -> int:
        """Rows seen."""
        return self._count

    @property
    def device(self) -> torch.device:
        """Where the sums live."""
        return self._sums[0].device

    @property
    def chunk(self) -> int:
        """Rows worth handing over at once."""
        return self.block_rows

    def update(self, blocks: Sequence[Tensor]) -> None:
        """Take rows in; they wait for a full block, so that sums do not depend on the cut of batches."""
        self._cached = None
        blocks = [blocks[i] for i in self._held]
        rows = len(blocks[0])
        for start, stop in pieces(rows, self.block_rows - self._filled, self.block_rows):
            if stop - start == self.block_rows:
                full = [block[start:stop].to(self.dtype).contiguous() for block in blocks]
                self._add(self._sums, self._squares, self._gram, full)
                continue
            if not self._waiting:
                size: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
                self._waiting = [torch.empty(self.block_rows, self.widths[i], **size) for i in self._held]
            end = self._filled + stop - start
            for kept, block in zip(self._waiting, blocks, strict=True):
                kept[self._filled : end].copy_(block[start:stop])
            self._filled = end
            if end == self.block_rows:
                self._add(self._sums, self._squares, self._gram, self._waiting)
                self._filled = 0
        self._count += rows

    def _add(self, sums: list[Tensor], squares: Tensor, gram: dict[tuple[int, int], Tensor], X: list[Tensor]) -> None:
        for total, block in zip(sums, X, strict=True):
            total += block.T @ block.new_ones(len(block))
        for (i, j), total in gram.items():
            total += product(X[i], X[j])
        for i in range(1, len(X)):
            for j in range(i, len(X)):
                if (i, j) not in gram:
                    squares[i, j, : X[i].shape[1]] += dots(X[i], X[j])

    def _flushed(self) -> State:
        """Sums with the waiting rows, which go on waiting."""
        if not self._filled:
            return self._sums, self._squares, self._gram
        if self._cached is not None:
            return self._cached
        sums, squares = [x.clone() for x in self._sums], self._squares.clone()
        gram = {key: value.clone() for key, value in self._gram.items()}
        self._add(sums, squares, gram, [rows[: self._filled] for rows in self._waiting])
        self._cached = (sums, squares, gram)
        return self._cached

    def _like(self, widths: Sequence[int]) -> "GramSums":
        return GramSums(
            widths,
            self.append_one,
            dtype=self.dtype,
            device=self.device,
            block_rows=self.block_rows,
            spectra=self.spectra,
            itself=self.itself,
        )

    def merge(self, other: Sums) -> "GramSums":
        """Sums of both."""
        assert isinstance(other, GramSums)
        return self._combined(other, 1)

    def without(self, part: "GramSums") -> "GramSums":
        """Sums of the rows that are not in a part of them."""
        return self._combined(part, -1)

    def _combined(self, other: "GramSums", sign: int) -> "GramSums":
        made = self._like(self.widths)
        (sums, squares, gram), (sums_2, squares_2, gram_2) = self._flushed(), other._flushed()
        device = self.device
        made._sums = [a.add(b.to(device), alpha=sign) for a, b in zip(sums, sums_2, strict=True)]
        made._squares = squares.add(squares_2.to(device), alpha=sign)
        made._gram = {key: value.add(gram_2[key].to(device), alpha=sign) for key, value in gram.items()}
        made._count = self.count + sign * other.count
        return made

    @property
    def noise(self) -> float:
        """Relative error of the sums: of a dot product of one block's length in ``dtype``, by measurement."""
        eps = torch.finfo(self.dtype).eps
        return eps * 4

    def _matrix(self, i: int, j: int, centred: bool) -> Tensor:
        i, j = self._place[i], self._place[j]
        sums, _, gram = self._flushed()
        return gram[i, j] - torch.outer(sums[i], sums[j]) / self.count if centred else gram[i, j]

    def _diagonal(self, i: int, j: int, centred: bool) -> Tensor:
        i, j = sorted((self._place[i], self._place[j]))
        sums, squares, gram = self._flushed()
        raw = gram[i, j].diagonal() if (i, j) in gram else squares[i, j, : len(sums[i])]
        return raw - sums[i] * sums[j] / self.count if centred else raw

    def parts(self, targets: Sequence[int], centred: bool = False) -> tuple[Tensor, list[Tensor], Tensor]:
        """``SSᵀ``, the ``S M_iᵀ`` and the ``⟨M_i, M_k⟩``, with the constant 1 among the features where there is one."""
        sums, _, _ = self._flushed()
        features = self._matrix(FEATURES, FEATURES, centred)
        cross = [self._matrix(FEATURES, i, centred) for i in targets]
        if self.append_one and not centred:
            column = sums[FEATURES][:, None]
            corner = column.new_full((1, 1), self.count)
            features = torch.cat((torch.cat((features, column), 1), torch.cat((column.T, corner), 1)))
            cross = [torch.cat((block, sums[self._place[i]][None])) for block, i in zip(cross, targets, strict=True)]
        energies = features.new_tensor([[float(self._diagonal(i, j, centred).sum()) for j in targets] for i in targets])
        return features, cross, energies

    def noise_of(self, energy: float, centred: bool) -> float:
        """Relative error of the features' sums of some energy; about the mean, that of what was there before."""
        noise = self.noise
        if centred:  # what the mean adds before it is taken off
            raw = float(self._diagonal(FEATURES, FEATURES, False).sum())
            noise *= raw / max(energy, noise * raw, 1e-300)
        return noise

    def alone(self, targets: Sequence[int]) -> bool:
        """Whether the targets are the features themselves: their eigenvalues are then all that is needed."""
        return self.itself and list(targets) == [STATES]

    def project(self, targets: Sequence[int], centred: bool = False) -> Projection:
        """Blocks against the features."""
        rows = self.count - int(centred)
        if self.alone(targets):
            features = self._matrix(FEATURES, FEATURES, centred)
            noise = self.noise_of(float(features.diagonal().sum()), centred)
            values = eigenvalues(features)
            return project_itself(values, (8 * noise) ** 0.5, noise, rows, int((features.diagonal() > 0).sum()))
        features, cross, energies = self.parts(targets, centred)
        noise = self.noise_of(float(features.diagonal().sum()), centred)
        return project_gram(
            eigenvectors(features), cross, energies, (8 * noise) ** 0.5, noise, rows, features.diagonal()
        )

    def spectrum(self, block: int, centred: bool = False) -> Tensor:
        """Singular values of a block; small ones carry an error of the largest times the root of `noise`.

        Raises:
            ValueError: the sums were made without spectra.
        """
        self.spectrum_wanted(block)
        G = self._matrix(block, block, centred)
        values = eigenvalues(G)
        return values.clamp_min(0).sqrt()[: max(self.count - int(centred), 0)]

    def spectrum_wanted(self, block: int) -> None:
        """Refuse where the block's own products were not summed.

        Raises:
            ValueError: they were not.
        """
        place = self._place[block]
        if (place, place) not in self._gram:
            raise ValueError("made with spectra=False: A's own spectrum was not summed; make it with spectra=True")

    def mean(self, block: int) -> Tensor:
        """Mean row of a block."""
        return self._flushed()[0][self._place[block]] / self.count

    def products(self, first: int, second: int) -> Tensor:
        """Sum over rows of the entrywise product of two blocks, about their means."""
        return self._diagonal(first, second, True)

    def root(self, block: int) -> Tensor:
        """Some matrix with the same ``XᵀX`` as the centred block."""
        self.spectrum_wanted(block)
        G = self._matrix(block, block, True)
        values, V = eigenvectors(G)
        return values.clamp_min(0).sqrt()[:, None] * V.T

    def traces(self, block: int) -> tuple[float, float]:
        """``Tr G`` and ``Tr G²`` of the block's ``G = XᵀX`` about its mean."""
        self.spectrum_wanted(block)
        G = self._matrix(block, block, True)
        return float(G.trace()), float(G.square().sum())

    def largest_share(self, whole: "GramSums") -> float:
        """The largest part of any one feature's or state's sum of squares, of the whole's, that these rows hold."""
        found = 0.0
        for i in (FEATURES, STATES):
            own, all_ = self._diagonal(i, i, False), whole._diagonal(i, i, False)
            held = all_ > 0
            if bool(held.any()):
                found = max(found, float((own[held] / all_[held]).max()))
        return found

    def rounding(self, block: int) -> float:
        """Relative error of the block's second moments about its mean: it grows with the mean that is taken off."""
        raw, left = (float(self._diagonal(block, block, centred).sum()) for centred in (False, True))
        return self.noise * raw / abs(left) if left else 0.0

    def along(self, block: int, direction: Tensor) -> Tensor:
        """``XᵀX v`` of the centred block."""
        self.spectrum_wanted(block)
        return self._matrix(block, block, True) @ direction

    def leading(self, blocks: int) -> "GramSums":
        """The sums of the first `blocks` blocks alone."""
        sums, squares, gram = self._flushed()
        made = self._like(self.widths[:blocks])
        held = len(made._held)
        made._sums = [x.clone() for x in sums[:held]]
        made._squares = squares[:held, :held, : max(self.widths[:blocks])].clone()
        made._gram = {key: gram[key].clone() for key in made._pairs}
        made._count = self.count
        return made

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that hold everything."""
        sums, squares, gram = self._flushed()
        state = {f"gram_{i}_{j}": value.clone() for (i, j), value in gram.items()}
        state |= {f"sum_{i}": value.clone() for i, value in enumerate(sums)}
        return state | {"squares": squares.clone(), "count": torch.tensor(self.count)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state of sums made with the same arguments."""
        to: dict[str, Any] = {"device": self.device, "copy": True}
        self._gram = {(i, j): state[f"gram_{i}_{j}"].to(**to) for i, j in self._pairs}
        self._sums = [state[f"sum_{i}"].to(**to) for i in range(len(self._held))]
        self._squares = state["squares"].to(**to)
        self._count, self._filled = int(state["count"]), 0
