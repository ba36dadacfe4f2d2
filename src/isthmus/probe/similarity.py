"""How alike two representations are, from sums over rows: linear CKA, biased and debiased, and Procrustes distances.

For a linear kernel ``K = XXᵀ`` every measure here needs cross products alone, so that memory does not grow with rows:

- biased CKA (Kornblith et al. 2019, arXiv:1905.00414): ``‖XᵀY‖_F² / (‖XᵀX‖_F ‖YᵀY‖_F)`` about the means;
- debiased CKA: the same ratio of unbiased estimates of HSIC (Song et al. 2012; Nguyen et al. 2021, arXiv:2010.15327).
  With K̃ for K without its diagonal, ``k_i = |x_i|²`` and ``s_x = Σ x_i``:
  ``tr K̃L̃ = ‖XᵀY‖_F² − Σ k_i l_i``, ``1ᵀK̃1 = |s_x|² − Σ k_i``, and
  ``1ᵀK̃L̃1 = s_xᵀ(XᵀY)s_y − (Σ k_i y_i)·s_y − (Σ l_i x_i)·s_x + Σ k_i l_i``;
- orthogonal Procrustes (Williams et al. 2021, arXiv:2110.14739; Ding et al. 2021, arXiv:2108.01661): about the means
  and at unit Frobenius norm, ``min_Q ‖X − YQ‖_F = √(2 − 2c)`` and the angle ``arccos c``, where
  ``c = ‖XᵀY‖_*/(‖X‖_F‖Y‖_F)``.

All are the same for rows shifted by a constant: sums are taken about a shift near the mean, in float64.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float
from torch import Tensor

LEAST_ROWS = 4
"""The unbiased estimate of HSIC divides by ``n(n − 3)``."""


@dataclass(frozen=True)
class Layout:
    """Which columns belong to which layer, where the states of several layers stand side by side.

    Args:
        widths: of the layers, in order.
    """

    widths: tuple[int, ...]

    @property
    def width(self) -> int:
        """All columns."""
        return sum(self.widths)

    def slices(self) -> list[slice]:
        """The columns of each layer."""
        ends = list(accumulate(self.widths, initial=0))
        return [slice(a, b) for a, b in pairwise(ends)]

    def per_layer(self, x: Tensor) -> Tensor:
        """Sums over each layer's columns, which are the last dimension: ``(…, width) → (…, layers)``."""
        owner = torch.repeat_interleave(
            torch.arange(len(self.widths), device=x.device), torch.tensor(self.widths, device=x.device)
        )
        return x.new_zeros(*x.shape[:-1], len(self.widths)).index_add_(-1, owner, x)


class Sums:
    """Sums over rows between all layers of one network and all of another.

    Args:
        a: layers of the one, rows of the results.
        b: of the other, columns.
        device: where the sums live.

    Attributes:
        n: rows.
        xy: ``XᵀY (width a, width b)``; the other sums are named after what they are of: ``ky = Σ k_i y_i``.
    """

    FIELDS = ("xy", "sx", "sy", "k", "l", "kl", "ky", "lx")

    def __init__(self, a: Layout, b: Layout, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.a, self.b, self.n = a, b, 0
        many, more = len(a.widths), len(b.widths)
        self.xy, self.sx, self.sy = zeros(a.width, b.width), zeros(a.width), zeros(b.width)
        self.k, self.l, self.kl = zeros(many), zeros(more), zeros(many, more)
        self.ky, self.lx = zeros(many, b.width), zeros(more, a.width)

    @staticmethod
    def size(a: Layout, b: Layout) -> int:
        """Bytes that the sums take."""
        return 8 * (a.width * b.width + (len(b.widths) + 1) * a.width + (len(a.widths) + 1) * b.width)

    def update(self, X: Float[Tensor, "n a"], Y: Float[Tensor, "n b"]) -> None:
        """Take in matching rows, in float64 and about the shift."""
        k, ell = self.a.per_layer(X.square()), self.b.per_layer(Y.square())
        self.n += X.shape[0]
        self.xy.addmm_(X.T, Y)
        self.sx += X.sum(0)
        self.sy += Y.sum(0)
        self.k += k.sum(0)
        self.l += ell.sum(0)
        self.kl.addmm_(k.T, ell)
        self.ky.addmm_(k.T, Y)
        self.lx.addmm_(ell.T, X)

    def add(self, other: "Sums", sign: int = 1) -> "Sums":
        """Take in, or take out, the sums of other rows; returns itself."""
        self.n += sign * other.n
        for name in self.FIELDS:
            getattr(self, name).add_(getattr(other, name), alpha=sign)
        return self

    def without(self, other: "Sums") -> "Sums":
        """The sums of the rows that the other does not hold, as new sums."""
        made = object.__new__(Sums)
        made.a, made.b, made.n = self.a, self.b, self.n - other.n
        for name in self.FIELDS:
            setattr(made, name, getattr(self, name) - getattr(other, name))
        return made

    def hsic(self) -> Float[Tensor, "a b"]:
        """``‖XᵀY‖_F²`` about the means: the biased estimate of HSIC times ``(n − 1)²``."""
        rows = [self.b.per_layer(self.centred(own).square().sum(0)) for own in self.a.slices()]
        return torch.stack(rows)

    def centred(self, own: slice, other: slice = slice(None)) -> Tensor:
        """``XᵀY`` about the means, for some columns of each."""
        return self.xy[own, other] - torch.outer(self.sx[own], self.sy[other]) / max(self.n, 1)

    def hsic_unbiased(self) -> Float[Tensor, "a b"]:
        """The unbiased estimate of HSIC (Song et al. 2012); NaN for fewer than four rows."""
        n = self.n
        if n < LEAST_ROWS:
            return torch.full_like(self.kl, math.nan)
        trace, both = [], []
        for own in self.a.slices():
            part = self.xy[own]
            trace.append(self.b.per_layer(part.square().sum(0)))
            both.append(self.b.per_layer((self.sx[own] @ part) * self.sy))
        tr = torch.stack(trace) - self.kl
        mixed = (
            torch.stack(both) - self.b.per_layer(self.ky * self.sy) - self.a.per_layer(self.lx * self.sx).T + self.kl
        )
        ones_k = self.a.per_layer(self.sx.square()) - self.k
        ones_l = self.b.per_layer(self.sy.square()) - self.l
        whole = torch.outer(ones_k, ones_l) / ((n - 1) * (n - 2))
        return (tr + whole - 2 / (n - 2) * mixed) / (n * (n - 3))


class OwnSums:
    """The same sums of each layer with itself: what the measures are normalised by.

    Args:
        layout: the layers.
        device: where the sums live.
    """

    def __init__(self, layout: Layout, device: torch.device | str = "cpu") -> None:
        self.layout = layout
        self.each = [Sums(Layout((w,)), Layout((w,)), device) for w in layout.widths]

    @staticmethod
    def size(layout: Layout) -> int:
        """Bytes that the sums take."""
        return sum(Sums.size(Layout((w,)), Layout((w,))) for w in layout.widths)

    def update(self, X: Float[Tensor, "n a"]) -> None:
        """Take rows in."""
        for own, sums in zip(self.layout.slices(), self.each, strict=True):
            sums.update(X[:, own], X[:, own])

    def add(self, other: "OwnSums") -> None:
        """Take in the sums of other rows."""
        for mine, theirs in zip(self.each, other.each, strict=True):
            mine.add(theirs)

    def without(self, other: "OwnSums") -> "OwnSums":
        """The sums of the rows that the other does not hold."""
        made = object.__new__(OwnSums)
        made.layout = self.layout
        made.each = [mine.without(theirs) for mine, theirs in zip(self.each, other.each, strict=True)]
        return made

    def hsic(self) -> Float[Tensor, " a"]:
        """``‖XᵀX‖_F²`` about the mean, of each layer."""
        return torch.stack([sums.hsic()[0, 0] for sums in self.each])

    def hsic_unbiased(self) -> Float[Tensor, " a"]:
        """The unbiased estimate, of each layer."""
        return torch.stack([sums.hsic_unbiased()[0, 0] for sums in self.each])

    def variance(self) -> Float[Tensor, " a"]:
        """``‖X‖_F²`` about the mean, of each layer."""
        return torch.stack([(s.k[0] - s.sx.square().sum() / max(s.n, 1)).clamp_min(0) for s in self.each])

    def scale(self) -> Float[Tensor, " a"]:
        """``‖X‖_F²`` about the shift, of each layer: what rounding is of."""
        return torch.stack([s.k[0] for s in self.each])


def ratio(cross: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``cross / √(a bᵀ)``; NaN where a norm is not positive, as of a constant state."""
    product = torch.outer(a.clamp_min(0), b.clamp_min(0))
    return torch.where(product > 0, cross / product.sqrt(), math.nan)


def cka(cross: Sums, a: OwnSums, b: OwnSums) -> Float[Tensor, "a b"]:
    """Linear CKA, biased (Kornblith et al. 2019): 0 to 1."""
    return ratio(cross.hsic(), a.hsic(), b.hsic())


def cka_debiased(cross: Sums, a: OwnSums, b: OwnSums) -> Float[Tensor, "a b"]:
    """Linear CKA of unbiased HSICs: 0 in the mean for independent rows, at most about 1, negative by chance."""
    return ratio(cross.hsic_unbiased(), a.hsic_unbiased(), b.hsic_unbiased())


@dataclass(frozen=True)
class Alignment:
    """What Procrustes distances are made of: ``c = ‖XᵀY‖_*/(‖X‖_F‖Y‖_F)``.

    Args:
        value: c.
        replicates: c without each fold, its nuclear norm to first order in a fold, ``⟨UVᵀ, C − C_g⟩``: one
            decomposition a pair.
        bias: what few rows add to c, of first order in one over the rows: by how much c of half of the folds is larger.
    """

    value: Float[Tensor, "a b"]
    replicates: Float[Tensor, "folds a b"] | None = None
    bias: Float[Tensor, "a b"] | None = None


Fold = tuple[Sums, OwnSums, OwnSums]


def alignment(cross: Sums, a: OwnSums, b: OwnSums, folds: Sequence[Fold] = (), symmetric: bool = False) -> Alignment:
    """The alignment of every pair of layers about their means.

    Args:
        cross: sums of the pairs.
        a: of the rows.
        b: of the columns.
        folds: the same of parts of the rows, for replicates and bias.
        symmetric: a is b: half of the decompositions do.
    """
    left, right = cross.a.slices(), cross.b.slices()
    nuclear = torch.full((len(left), len(right)), math.nan, dtype=torch.float64)
    less, halves = nuclear.new_full((len(folds), *nuclear.shape), math.nan), torch.stack((nuclear, nuclear))
    for i, own in enumerate(left):
        for j, other in enumerate(right):
            if symmetric and j < i:
                nuclear[i, j], less[:, i, j], halves[:, i, j] = nuclear[j, i], less[:, j, i], halves[:, j, i]
                continue
            U, S, Vh = torch.linalg.svd(cross.centred(own, other), full_matrices=False)
            nuclear[i, j] = S.sum()
            less[:, i, j] = _less(cross, folds, own, other, U @ Vh)
            for h, part in enumerate(_halves(folds)):
                halves[h, i, j] = torch.linalg.svdvals(_centred_sum([fold[0] for fold in part], own, other)).sum()
    value = ratio(nuclear, a.variance().cpu(), b.variance().cpu()).clamp(max=1.0)
    if not folds:
        return Alignment(value)
    norms = [(a.without(x).variance().cpu(), b.without(y).variance().cpu()) for _, x, y in folds]
    replicates = torch.stack([ratio(less[g], *one) for g, one in enumerate(norms)])
    return Alignment(value, replicates, _bias(value, halves, folds))


def _less(cross: Sums, folds: Sequence[Fold], own: slice, other: slice, turn: Tensor) -> Tensor:
    """``⟨UVᵀ, XᵀY⟩`` about the means, without each fold."""
    found = []
    for part, _, _ in folds:
        mean = torch.outer(cross.sx[own] - part.sx[own], cross.sy[other] - part.sy[other]) / max(cross.n - part.n, 1)
        found.append((turn * (cross.xy[own, other] - part.xy[own, other] - mean)).sum().cpu())
    return torch.stack(found) if found else torch.zeros(0, dtype=torch.float64)


def _halves(folds: Sequence[Fold]) -> list[Sequence[Fold]]:
    half = len(folds) // 2
    return [folds[:half], folds[half:]] if half else []


def _centred_sum(parts: Sequence[Sums], own: slice, other: slice) -> Tensor:
    n = max(sum(part.n for part in parts), 1)
    xy, sx, sy = parts[0].xy[own, other].clone(), parts[0].sx[own].clone(), parts[0].sy[other].clone()
    for part in parts[1:]:
        xy += part.xy[own, other]
        sx += part.sx[own]
        sy += part.sy[other]
    return xy - torch.outer(sx, sy) / n


def _bias(value: Tensor, halves: Tensor, folds: Sequence[Fold]) -> Tensor:
    """The bias of c at all rows, from its mean over the halves: both fall as one over the rows."""
    found, weight = [], 0.0
    whole = sum(fold[0].n for fold in folds)
    for h, part in enumerate(_halves(folds)):
        x, y = _summed_variance([fold[1] for fold in part]), _summed_variance([fold[2] for fold in part])
        found.append(ratio(halves[h], x.cpu(), y.cpu()).clamp(max=1.0))
        weight += 0.5 * whole / max(sum(fold[0].n for fold in part), 1)
    return (torch.stack(found).mean(0) - value) / (weight - 1)


def _summed_variance(parts: Sequence[OwnSums]) -> Tensor:
    made = OwnSums(parts[0].layout, parts[0].each[0].xy.device)
    for part in parts:
        made.add(part)
    return made.variance()


def jackknife(replicates: Float[Tensor, "folds ..."]) -> Float[Tensor, "..."]:
    """The standard error of a value from its replicates, each without one of the folds."""
    folds = replicates.shape[0]
    return ((replicates - replicates.mean(0)).square().sum(0) * (folds - 1) / folds).sqrt()


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion in ``1/ν``; to 0.2 % from ν = 4 on.

    >>> round(student(9), 3), round(student(1000), 3)
    (2.262, 1.962)
    """
    z, v = 1.959963984540054, float(freedom)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / v ** (power + 1) for power, term in enumerate(terms))


def matched(a: int, b: int) -> list[int]:
    """For each of a layers, the one of b layers at the same relative depth.

    >>> matched(3, 5), matched(4, 4)
    ([0, 2, 4], [0, 1, 2, 3])
    """
    return [round(i * (b - 1) / (a - 1)) if a > 1 else b - 1 for i in range(a)]


@dataclass(frozen=True)
class DepthTest:
    """Whether similarity follows depth: layers at matched depths against layers in random order.

    Args:
        matched: mean CKA of layers at matched depths.
        shuffled: its mean over random orders of b's layers.
        p: the share of orders whose mean is as high, the order itself among them.
    """

    matched: float
    shuffled: float
    p: float

    @property
    def excess(self) -> float:
        """By how much matched depths are more alike."""
        return self.matched - self.shuffled


def depth_test(values: Float[Tensor, "a b"], draws: int = 999, seed: int = 0) -> DepthTest | None:
    """The permutation test of depth; None for fewer than two layers, or values that are not all defined."""
    a, b = values.shape
    if min(a, b) < 2 or not bool(torch.isfinite(values).all()):
        return None
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.arange(a), torch.tensor(matched(a, b))
    own = float(values[rows, columns].mean())
    orders = [torch.randperm(b, generator=generator) for _ in range(draws)]
    others = torch.stack([values[rows, order[columns]].mean() for order in orders])
    as_high = int((others >= own - 1e-12).sum())
    return DepthTest(own, float(others.mean()), (1 + as_high) / (1 + draws))


class Dealer:
    """Deals samples into folds: of every run of as many samples each fold gets one, in random order.

    Args:
        folds: their number.
        seed: of the order.
    """

    def __init__(self, folds: int, seed: int) -> None:
        self.folds, self._cards = folds, self._shuffled(seed)

    def _shuffled(self, seed: int) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield from torch.randperm(self.folds, generator=generator).tolist()

    def deal(self, samples: int) -> Tensor:
        """The folds of the next samples."""
        return torch.tensor([next(self._cards) for _ in range(samples)], dtype=torch.long)
