"""One layer's features against its states: the norms of `isthmus.mechanics.FeatureMetric`, from sums over samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.mechanics.spectra import nuclear_rank, rank, stable_rank


@dataclass(frozen=True)
class Projection:
    """Coefficients of matrices M_i in the features' singular basis, and what lies outside of it.

    With ``σ(A) = V diag(s) Uᵀ`` over the samples, ``‖M‖²_{(K+γI)} = Σ_j ‖M u_j‖²/(s_j² + γ) + ‖M_off‖²/γ`` (E7).

    Args:
        singular_values: s, descending.
        coefficients: ``M_i u_j``, ``(matrices, modes, width)``.
        off: inner products ``⟨M_i off, M_k off⟩`` of what lies outside, ``(matrices, matrices)``.
        tolerance: relative to the largest, below which a singular value counts as zero in the exact norm.
        noise: relative error of ``σ(A)σ(A)ᵀ``, if it was formed, else of σ(A).
        squared: whether it was formed.
        undecided: modes taken for zero that squares cannot tell from small ones.
    """

    singular_values: Float[Tensor, "modes"]
    coefficients: Float[Tensor, "matrices modes width"]
    off: Float[Tensor, "matrices matrices"]
    tolerance: float
    noise: float
    squared: bool
    undecided: int = 0

    @property
    def top(self) -> float:
        """``‖K‖_op``."""
        return float(self.singular_values[0]) ** 2 if len(self.singular_values) else 0.0

    def _kept(self) -> Tensor:
        s = self.singular_values
        return (s > self.tolerance * s[:1]) & (s > 0)

    @property
    def rank(self) -> int:
        """Number of features' singular values that count."""
        return int(self._kept().sum())

    @property
    def condition(self) -> float:
        """Largest over smallest of the singular values that count; 1 without features."""
        kept = self.singular_values[self._kept()]
        return float(kept[0] / kept[-1]) if len(kept) else 1.0

    def inner(self, first: int = 0, second: int = 0, gamma: float = 0.0) -> float:
        """``Tr[M_1 (K+γI)^{-1} M_2ᵀ]``; for γ = 0 ``Tr[M_1 K⁺ M_2ᵀ]`` without what lies outside K's image."""
        products = (self.coefficients[first] * self.coefficients[second]).sum(dim=1)
        if gamma > 0:
            inside = (products / (self.singular_values.square() + gamma)).sum()
            return float(inside + self.off[first, second] / gamma)
        kept = self._kept()
        return float((products[kept] / self.singular_values[kept].square()).sum())

    def stable(self, first: int = 0, second: int = 0, *, gamma0: float = 1e-3) -> float:
        """`inner` at ``γ = γ_0‖K‖_op`` (E7); 0 where all features vanish."""
        return self.inner(first, second, gamma0 * self.top) if self.top > 0 else 0.0

    def energy(self, which: int = 0) -> float:
        """``‖M‖_F²``."""
        return float(self.coefficients[which].square().sum() + self.off[which, which])

    def outside(self, which: int = 0) -> float:
        """Relative size of what the exact norm drops: ``‖M − M K K⁺‖_F/‖M‖_F``, 0 for M = 0."""
        total = self.energy(which)
        lost = self.off[which, which] + self.coefficients[which][~self._kept()].square().sum()
        return (float(lost) / total) ** 0.5 if total > 0 else 0.0

    def off_span(self, first: int, second: int) -> float:
        """``⟨M_1, M_2⟩`` off the span of the features that count."""
        lost = self.coefficients[:, ~self._kept()]
        return float(self.off[first, second] + (lost[first] * lost[second]).sum())

    def error(self) -> float:
        """Estimated relative error of the exact norm from rounding, at most 1; minus its log10 are the digits kept.

        First-order perturbation of ``M σ(A)⁺``: noise times the condition, squared where squares were formed. It is 1
        where modes are undecided, for the exact norm jumps when one of them is not zero.
        """
        if self.undecided:
            return 1.0
        return min(1.0, 2 * self.noise * self.condition ** (2 if self.squared else 1))

    def stable_error(self, which: int = 0, gamma0: float = 1e-3) -> float:
        """The same of the stable norm: the condition is bounded by ``γ_0``, and off-image energy weighs ``1/γ``."""
        value = self.stable(which, which, gamma0=gamma0)
        if value <= 0:
            return 0.0
        if not self.squared:
            return min(1.0, 2 * self.noise * gamma0**-0.5)
        return min(1.0, self.noise * (2 / gamma0 + self.energy(which) / (gamma0 * self.top * value)))


def project_factor(
    features: Float[Tensor, "modes width_in"],
    targets: Sequence[Tensor],
    tolerance: float,
    noise: float,
) -> Projection:
    """From triangular factors: ``features`` are R's first rows, and ``targets`` all rows, of their columns."""
    rows = len(features)
    U, s, _ = torch.linalg.svd(features, full_matrices=True)
    s = torch.cat((s, s.new_zeros(rows - len(s))))
    stacked = torch.stack([target[:rows] for target in targets])
    rest = torch.stack([target[rows:] for target in targets]).flatten(1)
    return Projection(s, U.T @ stacked, rest @ rest.T, tolerance, noise, squared=False)


def project_itself(
    values: Float[Tensor, "modes"], tolerance: float, noise: float, rows: int, moving: int
) -> Projection:
    """Of features against themselves, from the eigenvalues of ``SSᵀ`` over `rows` rows, `moving` of them not zero."""
    s = values.clamp_min(0).sqrt()
    kept = (s > tolerance * s[:1]) & (s > 0)
    coefficients = torch.where(kept, s, 0.0)[None, :, None]
    off = values.clamp_min(0)[~kept].sum().reshape(1, 1)
    undecided = max(0, min(rows, moving) - int(kept.sum()))
    return Projection(torch.where(kept, s, 0.0), coefficients, off, tolerance, noise, squared=True, undecided=undecided)


def project_gram(
    decomposed: tuple[Float[Tensor, "width_in"], Float[Tensor, "width_in width_in"]],
    cross: Sequence[Tensor],
    energies: Float[Tensor, "matrices matrices"],
    tolerance: float,
    noise: float,
    rows: int,
    diagonal: Float[Tensor, "width_in"],
) -> Projection:
    """From sums over `rows` rows: ``SSᵀ`` decomposed, and its diagonal, the ``S M_iᵀ`` and the ``⟨M_i, M_k⟩``.

    Modes below the tolerance are noise: what M has there counts as outside, which is a difference of large numbers and
    known to ``noise·‖M‖²`` alone.
    """
    values, V = decomposed
    s = values.clamp_min(0).sqrt()
    kept = (s > tolerance * s[:1]) & (s > 0)
    inverse = torch.where(kept, 1 / torch.where(kept, s, 1.0), 0.0)
    C = torch.stack([inverse[:, None] * (V.T @ block) for block in cross])
    flat = C.flatten(1)
    off = energies - flat @ flat.T
    off.diagonal().clamp_(min=0)
    possible = min(rows, int((diagonal > 0).sum()))
    undecided = max(0, possible - int(kept.sum()))
    return Projection(torch.where(kept, s, 0.0), C, off, tolerance, noise, squared=True, undecided=undecided)


def spectral_quantities(s: Float[Tensor, "modes"], suffix: str = "") -> dict[str, float]:
    """Ranks of a matrix from its singular values; all are 0 for the zero matrix.

    stable_rank ``‖A‖_F²/‖A‖_op²``, nuclear_rank ``‖A‖_*²/‖A‖_F²``, participation_ratio ``(Σs²)²/Σs⁴``, effective_rank
    the exponential of the entropy of ``s/Σs`` (Roy and Vetterli 2007), and rank_1e-2, a count relative to the largest.
    """
    s = s if len(s) else s.new_zeros(1)
    squares = s.square()
    shares = s / s.sum() if s[0] > 0 else s
    fourth = squares.square().sum() / squares[0].square() if s[0] > 0 else squares[0]
    participation = (squares.sum() / squares[0]).square() / fourth if s[0] > 0 else fourth
    found = {
        "stable_rank": stable_rank(s),
        "nuclear_rank": nuclear_rank(s),
        "participation_ratio": participation,
        "effective_rank": torch.exp(-torch.special.xlogy(shares, shares).sum()) if s[0] > 0 else squares[0],
        "rank_1e-2": rank(s, 1e-2),
    }
    return {name + suffix: float(value) for name, value in found.items()}
