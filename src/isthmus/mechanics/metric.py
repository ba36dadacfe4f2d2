"""The norm ``‖M‖_K² = Tr[M K⁺ Mᵀ]`` of ``K = σ(A)ᵀσ(A)``, exact and stable (section 2 of the theory, (E7)).

No N×N matrix and no pseudo-inverse is formed. With the thin singular value decomposition of the features,
``σ(A) = V diag(s) Uᵀ`` (columns of U live on the samples), and ``c_i = M u_i``:

    ‖M‖²_{(K+γI)} = Σ_i ‖c_i‖²/(s_i² + γ) + ‖M − M U Uᵀ‖²/γ

where the last part is computed from the difference itself, so that nothing cancels however small γ is. The form with
a Cholesky factor, ``(‖M‖² − ‖chol⁻¹ S Mᵀ‖²)/γ``, loses ``−log10(γ/‖K‖)`` digits.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._types import FeatureRows, Rows


@dataclass(frozen=True)
class FeatureMetric:
    """The metric of one layer's features. Make it with `from_features`.

    Args:
        basis: orthonormal basis of the features' span over the samples, ``(samples, rank_or_more)``.
        singular_values: of the features, descending.
        tolerance: relative to the largest, below which a singular value counts as zero in the exact norm.
    """

    basis: Float[Tensor, "samples modes"]
    singular_values: Float[Tensor, "modes"]
    tolerance: float

    @classmethod
    def from_features(cls, S: FeatureRows, tolerance: float | None = None) -> "FeatureMetric":
        """The metric of features σ(A), batch-first ``(samples, width_in)``.

        Args:
            S: the features, with the appended 1 where the convention has it.
            tolerance: of rank decisions; by default machine epsilon times the larger dimension.
        """
        basis, s, _ = torch.linalg.svd(S, full_matrices=False)
        if tolerance is None:
            tolerance = torch.finfo(S.dtype).eps * max(S.shape)
        return cls(basis, s, tolerance)

    def gamma(self, gamma0: float) -> float:
        """``γ = γ_0‖K‖_op`` (E7)."""
        return gamma0 * float(self.singular_values[0]) ** 2

    def _split(self, M: Rows) -> tuple[Tensor, Tensor]:
        coefficients = self.basis.T @ M
        return coefficients, M - self.basis @ coefficients

    def _kept(self) -> Tensor:
        s = self.singular_values
        return (s > self.tolerance * s[0]) & (s > 0)

    def inner(self, M1: Rows, M2: Rows, gamma: float = 0.0) -> float:
        """``Tr[M1 (K+γI)^{-1} M2ᵀ]``; for γ = 0 ``Tr[M1 K⁺ M2ᵀ]``, which drops what lies outside K's image.

        Args:
            M1: batch-first ``(samples, width)``; the paper's matrix is the transpose.
            M2: likewise.
            gamma: γ ≥ 0.

        Raises:
            ValueError: a negative γ.
        """
        if gamma < 0:
            raise ValueError(f"gamma must not be negative, got {gamma}")
        if gamma > 0:
            return sum(self.parts(M1, M2, gamma))
        c1, _ = self._split(M1)
        c2 = c1 if M2 is M1 else self._split(M2)[0]
        kept = self._kept()
        return float(((c1 * c2).sum(dim=1)[kept] / self.singular_values[kept].square()).sum())

    def parts(self, M1: Rows, M2: Rows, gamma: float) -> tuple[float, float]:
        """The two parts of `inner` with γ > 0: on the image of K, and off it. The second grows as 1/γ.

        Args:
            M1: batch-first ``(samples, width)``.
            M2: likewise.
            gamma: γ > 0.

        Raises:
            ValueError: a γ that is not positive: at 0 the second part is infinite, or 0.
        """
        if not gamma > 0:
            raise ValueError(f"gamma must be positive, got {gamma}")
        c1, off1 = self._split(M1)
        c2, off2 = (c1, off1) if M2 is M1 else self._split(M2)
        terms, kept = (c1 * c2).sum(dim=1) / (self.singular_values.square() + gamma), self._kept()
        return float(terms[kept].sum()), float(terms[~kept].sum() + (off1 * off2).sum() / gamma)

    def norm_squared(self, M: Rows, gamma: float = 0.0) -> float:
        """``‖M‖²_{(K+γI)}``; for γ = 0 the part in K's image, ``‖M σ(A)⁺‖_F²``.

        The exact norm is infinite where rows of M leave the image: `outside` says by how much they do.
        """
        return self.inner(M, M, gamma)

    def outside(self, M: Rows) -> float:
        """Relative size of what the exact norm drops: ``‖M − M K K⁺‖_F/‖M‖_F``, 0 for M = 0."""
        total = float(M.norm())
        return float(self.off(M).norm()) / total if total > 0 else 0.0

    def off(self, M: Rows) -> Rows:
        """``M − M K K⁺``: what the exact norm drops."""
        basis = self.basis[:, self._kept()]
        return M - basis @ (basis.T @ M)
