"""Standard errors without a decomposition a shard: what leaving a shard out changes, to first order.

The delete-a-group jackknife needs every quantity without each group. With sums of squares the whole is decomposed once,
and each group's sums enter by first-order perturbation: eigenvalues by ``v_iᵀ dG v_i``, norms by their derivatives in
``SSᵀ``, ``SMᵀ`` and ``MMᵀ``. The change is that of means over rows, ``dG = (n/n')G' − G``: sums would shrink by the
group's share, which is no small change and changes no dimension. Ratios and counts are then evaluated as they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.probe.decompose import eigenvectors
from isthmus.probe.gram import GramSums
from isthmus.probe.projection import Projection, project_itself
from isthmus.probe.sums import Sums

# Fewer rows than these, in widths: leaving a group out is no small change of what the exact norm inverts.
ROWS_FOR_FIRST_ORDER = 4


# A group that holds more than this many times its fair share of one feature is no small part of what is inverted.
FAIR = 3.0


def small_parts(whole: Sums, parts: Sequence[Sums], width: int) -> tuple[GramSums, list[GramSums]] | None:
    """The sums, where leaving any part out is a small change: enough rows, no part with a feature almost by itself."""
    own = [part for part in parts if isinstance(part, GramSums)]
    if not isinstance(whole, GramSums) or whole.count < ROWS_FOR_FIRST_ORDER * width:
        return None
    small = all(part.largest_share(whole) * whole.count <= FAIR * max(part.count, 1) for part in own)
    return (whole, own) if small else None


@dataclass(frozen=True)
class Nearby:
    """A `Projection` after a small change of its sums; it answers what quantities ask of one.

    Args:
        base: before the change; what rounding does is taken from it.
        gamma0: γ_0 for which `stable` holds.
        exact: ``Tr[M_i K⁺ M_kᵀ]``.
        smooth: the same with ``K + γI``.
        off: ``⟨M_i, M_k⟩`` off the features' span.
        energies: ``⟨M_i, M_k⟩``.
    """

    base: Projection
    gamma0: float
    exact: Float[Tensor, "matrices matrices"]
    smooth: Float[Tensor, "matrices matrices"]
    off: Float[Tensor, "matrices matrices"]
    energies: Float[Tensor, "matrices matrices"]

    @property
    def rank(self) -> int:
        """That of the whole."""
        return self.base.rank

    @property
    def condition(self) -> float:
        """That of the whole."""
        return self.base.condition

    @property
    def squared(self) -> bool:
        """That of the whole."""
        return self.base.squared

    def inner(self, first: int = 0, second: int = 0) -> float:
        """``Tr[M_1 K⁺ M_2ᵀ]``."""
        return float(self.exact[first, second])

    def stable(self, first: int = 0, second: int = 0, *, gamma0: float) -> float:
        """The same at ``γ = γ_0‖K‖_op``."""
        assert gamma0 == self.gamma0
        return float(self.smooth[first, second])

    def energy(self, which: int = 0) -> float:
        """``‖M‖_F²``."""
        return float(self.energies[which, which])

    def outside(self, which: int = 0) -> float:
        """Relative size of what the exact norm drops."""
        total = self.energy(which)
        return (max(float(self.off[which, which]), 0.0) / total) ** 0.5 if total > 0 else 0.0

    def off_span(self, first: int, second: int) -> float:
        """``⟨M_1, M_2⟩`` off the span of the features."""
        return float(self.off[first, second])

    def error(self) -> float:
        """That of the whole."""
        return self.base.error()

    def stable_error(self, which: int = 0, gamma0: float = 1e-3) -> float:
        """That of the whole."""
        return self.base.stable_error(which, gamma0)


class Sensitivity:
    """Derivatives of a projection's norms in its sums.

    Args:
        sums: of all rows.
        targets: the blocks M_i.
        centred: about their means.
        gamma0: γ_0 of the stable norm.
    """

    def __init__(self, sums: GramSums, targets: Sequence[int], centred: bool, gamma0: float) -> None:
        self.targets, self.centred, self.gamma0, self.count = targets, centred, gamma0, sums.count
        self.base = sums.project(targets, centred)
        self.K, self.B, self.E = sums.parts(targets, centred)
        values, V = eigenvectors(self.K)
        base, many = self.base, range(len(targets))
        squares, self.gamma, self.first = values.clamp_min(0), gamma0 * base.top, V[:, 0]
        inverse = torch.where(base._kept(), 1 / torch.where(base._kept(), squares, 1.0), 0.0)[:, None]
        smooth = (1 / (squares + self.gamma))[:, None] if self.gamma > 0 else torch.zeros_like(inverse)
        D = [V.T @ block for block in self.B]
        # regressions of M on the features: with γ, without; and the latter times K⁺ once more
        self.Y, self.P, self.Z = ([V @ (f * d) for d in D] for f in (smooth, inverse, inverse**2))
        self.YY, self.PP, self.ZP = (
            {(i, k): a[i] @ b[k].T for i in many for k in many if symmetric is False or k >= i}
            for a, b, symmetric in ((self.Y, self.Y, True), (self.P, self.P, True), (self.Z, self.P, False))
        )
        coefficients = base.coefficients
        self.slope = self.E.new_zeros(self.E.shape)  # of the stable norm in γ
        if self.gamma > 0:
            weights = (smooth[:, 0]).square()
            for i in many:
                for k in many:
                    inside = ((coefficients[i] * coefficients[k]).sum(1) * weights).sum()
                    self.slope[i, k] = -(inside + base.off[i, k] / self.gamma**2)

    def without(self, rest: GramSums) -> Nearby:
        """The projection of fewer rows, from their sums."""
        K, B, E = rest.parts(self.targets, self.centred)
        scale = self.count / rest.count
        dK, dB, dE = scale * K - self.K, [scale * b - a for a, b in zip(self.B, B, strict=True)], scale * E - self.E
        many = range(len(self.targets))
        exact, smooth, off = (E.new_zeros(E.shape) for _ in range(3))
        d_gamma = self.gamma0 * float(self.first @ (dK @ self.first))

        def dot(a: Tensor, b: Tensor) -> float:
            return float(torch.dot(a.flatten(), b.flatten()))

        for i in many:
            for k in range(i, len(self.targets)):
                base = self.base
                free = dE[i, k] - dot(self.P[i], dB[k]) - dot(self.P[k], dB[i]) + dot(self.PP[i, k], dK)
                off[i, k] = off[k, i] = (float(base.off[i, k]) + free) / scale
                moved = dot(self.Z[i], dB[k]) + dot(self.Z[k], dB[i])
                moved -= dot(self.ZP[i, k], dK) + dot(self.ZP[k, i], dK)
                exact[i, k] = exact[k, i] = base.inner(i, k) + moved
                if self.gamma > 0:
                    left = dE[i, k] - dot(self.Y[i], dB[k]) - dot(self.Y[k], dB[i]) + dot(self.YY[i, k], dK)
                    value = base.stable(i, k, gamma0=self.gamma0) + left / self.gamma + self.slope[i, k] * d_gamma
                    smooth[i, k] = smooth[k, i] = float(value)
        return Nearby(self.base, self.gamma0, exact, smooth, off, E)


@dataclass(frozen=True)
class Without:
    """What a layer's sums would give without one of its groups of rows.

    Args:
        sums: those of the rows left.
        projections: by whether about the mean.
        spectra: singular values of the states, by whether about the mean; none where they are not held.
    """

    sums: GramSums
    projections: dict[bool, Projection | Nearby]
    spectra: dict[bool, Tensor]


def _moved(values: Tensor, V: Tensor, G: Tensor, rest: Tensor, scale: float, rows: int) -> Tensor:
    """Eigenvalues of what is left, by those of the whole G, descending, no more than the rows."""
    moved = (values + (((scale * rest - G) @ V) * V).sum(0)) / scale
    return moved.clamp_min(0).sort(descending=True).values[: max(rows, 0)]


def leave_out(
    whole: GramSums, shards: Sequence[GramSums], targets: Sequence[int], gamma0: float, both: bool, spectra: int | None
) -> Iterator[Without]:
    """The sums without each shard, to first order.

    Args:
        whole: of all shards.
        shards: each with rows, fewer than all.
        targets: blocks against the features.
        gamma0: γ_0 of the stable norm.
        both: about the mean as well.
        spectra: the block whose spectrum is wanted, None: of none.
    """
    kinds = (False, True) if both else (False,)
    alone = whole.alone(targets)
    own = {c: whole._matrix(spectra, spectra, c) for c in kinds} if spectra is not None else {}
    decomposed = {c: eigenvectors(G) for c, G in own.items()}
    sensitive = {} if alone else {c: Sensitivity(whole, targets, c, gamma0) for c in kinds}
    for shard in shards:
        rest = whole.without(shard)
        found: dict[bool, Projection | Nearby] = {}
        singular: dict[bool, Tensor] = {}
        for c in kinds:
            if c in own:
                assert spectra is not None
                left, scale = rest._matrix(spectra, spectra, c), whole.count / rest.count
                values = _moved(*decomposed[c], own[c], left, scale, rest.count - int(c))
                singular[c] = values.sqrt()
            if alone:
                noise = whole.noise_of(float(own[c].diagonal().sum()), c)
                found[c] = project_itself(values, (8 * noise) ** 0.5, noise, rest.count - int(c), len(values))
            else:
                found[c] = sensitive[c].without(rest)
        yield Without(rest, found, singular)
