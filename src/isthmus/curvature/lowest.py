"""The least eigenvalues of the Hessian, matrix-free: is a critical point a minimum, and which way is down?

In the scaled variables ``√ρ_ℓ W_ℓ`` a direction that the data do not see has curvature μ, one that they see up to 1e5
times that. Lanczos' method would first resolve the upper end. Davidson's (1975) expands its subspace by preconditioned
residuals instead, and an approximate inverse of the Gauss–Newton Hessian makes the steep directions no more costly than
the flat ones. Subspaces are restarted thick, with the last Ritz vectors as well, which makes up for
the vectors that are dropped ("GD+k": Stathopoulos and Saad 1998, Stathopoulos 2007).

A Ritz value bounds the least eigenvalue from above, and some eigenvalue lies within the residual's norm of it. So one
negative value of ``⟨v, Hv⟩`` proves a saddle. That nothing lower was missed is not proven by any residual: it is what
random starts, or `dense`, are for.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.curvature.base import Preconditioner, SecondOrder
from isthmus.curvature.scaled import ScaledParameters

# Vectors of the subspace at most. On the network of 20 layers in tests/core/test_lowest.py 24, 40 and 80 take 158, 153
# and 142 products, and 80 more time.
_BASIS = 40
# The error, in units of the larger of μ and the eigenvalue, at which a sign that is clear is taken.
_CLEAR = 1e-2
# A new direction that is this small beside what it was, once orthogonal to the others, is rounding.
_LOST = 1e-10


@dataclass(frozen=True)
class Lowest:
    """The least eigenvalues of a symmetric operator that were found.

    Args:
        values: ascending, ``(k,)``; of the Hessian in scaled variables. Upper bounds of the k least eigenvalues.
        vectors: orthonormal, ``(k, variables)``.
        errors: residual norms ``‖Hv − λv‖``: an eigenvalue lies within this of each value.
        unit: what eigenvalues are compared with: μ, the curvature of the penalty.
        products: spent.
        converged: whether every error is within the tolerance, or was enough.
    """

    values: Float[Tensor, "count"]
    vectors: Float[Tensor, "count variables"]
    errors: Float[Tensor, "count"]
    unit: float
    products: int
    converged: bool

    @property
    def relative(self) -> Float[Tensor, "count"]:
        """The values over μ: 1 in a direction that the data do not see, negative where the objective bends down."""
        return self.values / self.unit


def scaled_product(hessian: SecondOrder, scaled: ScaledParameters) -> Callable[[Tensor], Tensor]:
    """``v ↦ Hv`` of flat vectors in scaled variables, at the point of the last ``hessian.linearise()``."""
    return lambda v: scaled.flatten(hessian.product(scaled.unflatten(v)), gradient=True)


def sign_is_clear(unit: float) -> Callable[[float, float], bool]:
    """For ``enough``: whether a value and its error tell the sign, and its size to a hundredth of μ or of itself.

    Args:
        unit: μ.
    """
    return lambda value, error: abs(value) > 2 * error and error <= _CLEAR * max(unit, abs(value))


def lowest(
    hessian: SecondOrder,
    scaled: ScaledParameters,
    preconditioner: Preconditioner | None = None,
    count: int = 1,
    tolerance: float = 1e-3,
    limit: int = 300,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    enough: Callable[[float, float], bool] | None = None,
) -> Lowest:
    """The least eigenvalues of a Hessian at the point of its last `linearise`.

    Args:
        hessian: exact products; those in float32 have errors of about 1e-7 of the largest curvature.
        scaled: its variables.
        preconditioner: measured at or near the point; none for small or well-conditioned problems.
        count: how many, 1 to 8.
        tolerance: on every error, in units of μ.
        limit: products at most.
        start: vectors to begin with, ``(variables,)`` or ``(≤ count, variables)``, such as those of a neighbouring
            point; the rest is random.
        generator: of random starts; seed 0 by default.
        enough: says of the least value and its error that they will do, before the tolerance.

    Raises:
        ValueError: a count outside 1..8, a limit below the count, a tolerance that is not positive, a start of another
            shape or without a finite length.
    """
    return least_eigenpairs(
        scaled_product(hessian, scaled),
        scaled.values(),
        None if preconditioner is None else preconditioner.apply,
        unit=scaled.mu,
        count=count,
        tolerance=tolerance,
        limit=limit,
        start=start,
        generator=generator,
        enough=enough,
    )


@torch.no_grad()
def least_eigenpairs(
    product: Callable[[Tensor], Tensor],
    like: Float[Tensor, "variables"],
    inverse: Callable[[Tensor], Tensor] | None = None,
    *,
    unit: float = 1.0,
    count: int = 1,
    tolerance: float = 1e-3,
    limit: int = 300,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    enough: Callable[[float, float], bool] | None = None,
) -> Lowest:
    """The least eigenvalues of any symmetric operator; see `lowest`.

    Args:
        product: the operator.
        like: a vector of the size, dtype and device wanted.
        inverse: an approximate inverse, positive definite.
        unit: what the tolerance is a multiple of.
        count: how many.
        tolerance: on every error, in units of ``unit``.
        limit: products at most.
        start: vectors to begin with.
        generator: of random starts.
        enough: says of the least value and its error that they will do, before the tolerance.

    Raises:
        ValueError: see `lowest`.

    >>> import torch
    >>> d = torch.arange(-1.0, 30.0, dtype=torch.float64)
    >>> least_eigenpairs(lambda v: d * v, d, tolerance=1e-6).values.round(decimals=9)
    tensor([-1.], dtype=torch.float64)
    """
    size = like.numel()
    if not 1 <= count <= 8:
        raise ValueError(f"count (of eigenvalues) must lie in 1..8, got {count}")
    if limit < count:
        raise ValueError(f"limit (of products) must be at least the count, {count}, got {limit}")
    if not tolerance > 0:
        raise ValueError(f"tolerance (in units of the weight decay) must be positive, got {tolerance}")
    count = min(count, size)
    space = _Subspace(product, like, min(max(_BASIS, 4 * count), size))
    for v in _starts(like, inverse, count, start, generator):
        space.add(v, generator)
    while True:
        found = space.ritz(count, unit, tolerance * unit)
        if enough is not None and enough(float(found.values[0]), float(found.errors[0])):
            return replace(found, converged=True)
        if found.converged or space.full or space.products >= limit:
            return found
        if len(space.basis) >= space.most:
            space.restart(count)
        residuals = space.residuals[found.errors > tolerance * unit]
        for r in residuals[: limit - space.products]:
            space.add(r if inverse is None else inverse(r), generator)


def _starts(
    like: Tensor,
    inverse: Callable[[Tensor], Tensor] | None,
    count: int,
    start: Tensor | None,
    generator: torch.Generator | None,
) -> list[Tensor]:
    """The given vectors, then random ones in which the preconditioner has damped the steep directions."""
    given: list[Tensor] = []
    if start is not None:
        given = list(torch.atleast_2d(start).to(like))
        if any(v.numel() != like.numel() for v in given) or len(given) > count:
            raise ValueError(
                f"start must be at most {count} vectors of {like.numel()} variables, got shape {tuple(start.shape)}"
            )
        if not all(0 < float(v.norm()) < float("inf") for v in given):
            raise ValueError("start must hold vectors of a positive, finite length")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    for _ in range(count - len(given)):
        v = torch.randn(like.numel(), dtype=torch.float64, generator=generator).to(like)
        given.append(v if inverse is None else inverse(v))
    return given


class _Subspace:
    """An orthonormal basis V, its image HV, and the projected matrix."""

    def __init__(self, product: Callable[[Tensor], Tensor], like: Tensor, most: int) -> None:
        self.product, self.like, self.most = product, like, most
        self.basis: list[Tensor] = []
        self.images: list[Tensor] = []
        self.products = 0
        self._projected = like.new_zeros((0, 0), dtype=torch.float64)
        self._last = self._present = like.new_zeros((0, 0), dtype=torch.float64)  # Ritz vectors, as rows, in V
        self.residuals = like.new_zeros((0, like.numel()))

    @property
    def full(self) -> bool:
        """Whether the basis spans everything: Ritz values are the eigenvalues."""
        return len(self.basis) >= self.like.numel()

    def add(self, v: Tensor, generator: torch.Generator | None) -> None:
        """Orthogonalise a vector, twice, and multiply; one that lies in the space already is replaced by chance."""
        if self.full:
            return
        for _ in range(10):
            before = float(v.norm())
            for _ in range(2):
                for u in self.basis:
                    v = v - (u @ v) * u
            norm = float(v.norm())
            if norm > _LOST * before:
                break
            v = torch.randn(v.numel(), dtype=torch.float64, generator=generator).to(v)
        v = v / norm
        self.basis.append(v)
        self.images.append(self.product(v))
        self.products += 1
        row = torch.stack([u @ self.images[-1] for u in self.basis]).double()
        n = len(self.basis)
        grown = row.new_zeros((n, n))
        grown[:-1, :-1] = self._projected
        grown[-1], grown[:, -1] = row, row
        self._projected = grown

    def ritz(self, count: int, unit: float, accuracy: float) -> Lowest:
        """The least Ritz pairs, and the residuals they leave."""
        values, vectors = torch.linalg.eigh(self._projected)
        self._last, self._present = self._present, vectors.T.contiguous()
        chosen = self._present[:count].to(self.like)
        V, HV = chosen @ torch.stack(self.basis), chosen @ torch.stack(self.images)
        self.residuals = HV - values[:count, None].to(V) * V
        errors = self.residuals.norm(dim=1)
        return Lowest(values[:count].to(V), V, errors, unit, self.products, bool((errors <= accuracy).all()))

    def restart(self, count: int) -> None:
        """Keep the lower third of the Ritz vectors, and the wanted ones of the step before."""
        n = len(self.basis)
        kept = [*self._present[: max(count + 1, self.most // 3)]]
        for row in self._last[:count]:
            v = torch.nn.functional.pad(row, (0, n - len(row)))
            for _ in range(2):
                for u in kept:
                    v = v - (u @ v) * u
            if float(v.norm()) > _LOST:
                kept.append(v / v.norm())
        C = torch.stack(kept)
        self._projected = C @ self._projected @ C.T
        self.basis = list(C.to(self.like) @ torch.stack(self.basis))
        self.images = list(C.to(self.like) @ torch.stack(self.images))
        self._present = torch.eye(len(C), dtype=C.dtype, device=C.device)


@torch.no_grad()
def spectrum(
    product: Callable[[Tensor], Tensor], like: Float[Tensor, "variables"]
) -> tuple[Float[Tensor, "variables"], Float[Tensor, "variables variables"], float]:
    """All eigenvalues of a symmetric operator, ascending, and its eigenvectors, as columns; a product a variable.

    Args:
        product: the operator.
        like: a vector of the size, dtype and device wanted.

    Returns:
        Values, vectors, and the error of a value: the backward error of `torch.linalg.eigh`, and of products.
    """
    values, vectors = torch.linalg.eigh(dense(product, like))
    return values, vectors, len(values) * torch.finfo(values.dtype).eps * float(values.abs().max())


@torch.no_grad()
def dense(
    product: Callable[[Tensor], Tensor], like: Float[Tensor, "variables"]
) -> Float[Tensor, "variables variables"]:
    """A symmetric operator as a matrix, a product a column: what an exact count of signs needs, where it is affordable.

    Args:
        product: the operator.
        like: a vector of the size, dtype and device wanted.
    """
    eye = torch.eye(like.numel(), dtype=like.dtype, device=like.device)
    matrix = torch.stack([product(column) for column in eye])
    return 0.5 * (matrix + matrix.T)
