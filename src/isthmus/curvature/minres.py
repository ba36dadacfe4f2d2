"""Minimum residuals (Paige and Saunders 1975): symmetric linear systems of either sign, preconditioned."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LinearSolution:
    """What `minres` found.

    Args:
        x: the solution, flat.
        residual: norm of what is left, in the preconditioner's metric, relative to the right side's.
        products: spent.
        least: the least Ritz value of the preconditioned matrix that was met: negative proves that the matrix has a
            negative eigenvalue (Sylvester).
    """

    x: Float[Tensor, "variables"]
    residual: float
    products: int
    least: float


@torch.no_grad()
def minres(
    product: Callable[[Tensor], Tensor],
    right: Float[Tensor, "variables"],
    inverse: Callable[[Tensor], Tensor],
    accuracy: float,
    limit: int,
) -> LinearSolution:
    """Solve ``A x = b`` for a symmetric A, by preconditioned minimum residuals.

    Args:
        product: ``v ↦ Av``.
        right: b.
        inverse: ``v ↦ P⁻¹v``, symmetric and positive definite.
        accuracy: at which the residual is small enough, relative, in the metric of ``P⁻¹``.
        limit: products at most.
    """
    x = torch.zeros_like(right)
    v, v_before = right.clone(), torch.zeros_like(right)
    z = inverse(v)
    size = float(z @ v)
    if not size > 0:
        return LinearSolution(x, 0.0, 0, math.inf)
    gamma, gamma_before = math.sqrt(size), 1.0
    eta = first = gamma
    s_before = s = 0.0
    c_before = c = 1.0
    w_before, w = torch.zeros_like(right), torch.zeros_like(right)
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(limit):
        z = z / gamma
        Az = product(z)
        delta = float(Az @ z)
        v_next = Az.add_(v, alpha=-delta / gamma).add_(v_before, alpha=-gamma / gamma_before)
        z_next = inverse(v_next)
        gamma_next = math.sqrt(max(float(z_next @ v_next), 0.0))
        diagonal.append(delta)
        beside.append(gamma_next)
        a0 = c * delta - c_before * s * gamma
        a1 = math.hypot(a0, gamma_next)
        a2, a3 = s * delta + c_before * c * gamma, s_before * gamma
        if a1 == 0:  # the right side is exhausted, and the matrix is singular there
            break
        c_before, s_before, c, s = c, s, a0 / a1, gamma_next / a1
        w_before, w = w, z.add(w_before, alpha=-a3).add_(w, alpha=-a2).div_(a1)
        x.add_(w, alpha=c * eta)
        eta = -s * eta
        if abs(eta) <= accuracy * first or gamma_next <= 1e-14 * first:
            break
        v_before, v, z = v, v_next, z_next
        gamma_before, gamma = gamma, gamma_next
    return LinearSolution(x, abs(eta) / first, len(diagonal), _least(diagonal, beside))


def _least(diagonal: list[float], beside: list[float]) -> float:
    """The least eigenvalue of Lanczos' matrix."""
    if not diagonal:
        return math.inf
    T = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    off = torch.tensor(beside[: len(diagonal) - 1], dtype=torch.float64)
    T += torch.diag(off, 1) + torch.diag(off, -1)
    return float(torch.linalg.eigvalsh(T)[0])
