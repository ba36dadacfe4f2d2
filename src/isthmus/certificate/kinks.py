"""Stationarity at ReLU's kinks: the distance of the gradient to the Clarke set (Clarke 1983).

Where a state is 0, the derivative of a ReLU may be any number in [0, 1], and a minimum requires only that *some* choice
makes the gradient vanish. Trained networks have many states near kinks and hardly one exactly at 0, so a state within
a stated width of 0 counts as one (Goldstein's ε-subdifferential). The momenta are linear in the derivatives of each
layer. The best derivatives of all layers together solve a nonlinear least-squares problem in a box: projected
gradients identify those at an end of [0, 1], and conjugate gradients choose the others (Moré and Toraldo 1991). The
search may stop short of the minimum, so the result bounds the distance from above.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from isthmus._types import Path, PerLayer, Rows, StepSizesVector, Weights
from isthmus.activations import ReLU

_GRADIENTS, _CONJUGATE = 5, 60  # iterations of a round
_WORTHWHILE = 0.98

Derivatives = Float[Tensor, "inner width samples"]  # of layers 1 … L − 1; columns are samples


@dataclass(frozen=True)
class KinkResidual:
    """Stationarity up to the choice of derivatives at kinks.

    Args:
        residual: ``‖W_ℓ − M_ℓσ(A_{ℓ−1})ᵀ‖/‖W_ℓ‖`` with the best derivatives found, per layer.
        plain: the same with the derivative 0 or 1 by the sign of the state.
        width: states within this, times the root mean square of their layer, count as kinks.
        kinks: how many states do.
        share: of all states that have a derivative.
    """

    residual: PerLayer
    plain: PerLayer
    width: float
    kinks: int
    share: float


@dataclass(frozen=True)
class _Point:
    """A choice of derivatives and what belongs to it.

    Args:
        D: derivatives of the inner layers.
        off: ``(W_ℓ − M_ℓS_{ℓ−1}ᵀ)/‖W_ℓ‖``.
        pulled: ``W_ℓᵀM_ℓ`` of the inner layers, before the mask.
        residual: the norms of ``off``, per layer; value: their sum of squares.
    """

    D: Derivatives
    off: Weights
    pulled: Derivatives
    residual: PerLayer
    value: float


class _Choice:
    """Momenta and residual for a choice of derivatives, and its Jacobian; columns inside, as in `isthmus.flow`."""

    def __init__(
        self, A: Path, M_end: Rows, W: Weights, rho: StepSizesVector, effective_depth: float, activation: ReLU
    ) -> None:
        self.S = activation.features(A[:-1]).mT.contiguous()
        self.W, self.rho, self.c = W, rho.tolist(), [1 - r * effective_depth for r in rho.tolist()]
        self.M_end, self.L, self.w = M_end.T, W.shape[0], A.shape[2]
        self.size = W.norm(dim=(1, 2)).clamp_min(1e-300)

    def at(self, D: Derivatives) -> _Point:
        """The point of a choice, by a sweep backward."""
        M, off, pulled = self.M_end, torch.empty_like(self.W), torch.empty_like(D)
        for layer in range(self.L - 1, -1, -1):
            torch.addmm(self.W[layer], M, self.S[layer].T, alpha=-1, out=off[layer])
            if layer > 0:
                torch.mm(self.W[layer, :, : self.w].T, M, out=pulled[layer - 1])
                M = self.c[layer] * M + self.rho[layer] * D[layer - 1] * pulled[layer - 1]
        residual = off.norm(dim=(1, 2)) / self.size  # rounded as in `stationarity_residual`
        return _Point(D, off.div_(self.size[:, None, None]), pulled, residual, float(residual.square().sum()))

    def tangent(self, at: _Point, direction: Derivatives) -> Weights:
        """The derivative of ``off`` along a direction of D."""
        out, dM = torch.empty_like(self.W), torch.zeros_like(self.M_end)
        for layer in range(self.L - 1, -1, -1):
            torch.mm(dM, self.S[layer].T, out=out[layer])
            if layer > 0:
                turned = at.D[layer - 1] * (self.W[layer, :, : self.w].T @ dM)
                turned.addcmul_(direction[layer - 1], at.pulled[layer - 1])
                dM = self.c[layer] * dM + self.rho[layer] * turned
        return out.div_(-self.size[:, None, None])

    def transposed(self, at: _Point, off: Weights) -> Derivatives:
        """The transpose of `tangent`, by a sweep forward: of ``at.off``, the gradient of half the value."""
        out = torch.empty_like(at.D)
        X = torch.zeros_like(self.M_end)
        for layer in range(self.L - 1):
            X = X - (off[layer] / self.size[layer]) @ self.S[layer]
            out[layer] = self.rho[layer + 1] * X * at.pulled[layer]
            X = self.c[layer + 1] * X + self.rho[layer + 1] * self.W[layer + 1, :, : self.w] @ (at.D[layer] * X)
        return out


def kink_residual(
    A: Path,
    M_end: Rows,
    W: Weights,
    rho: StepSizesVector,
    effective_depth: float,
    activation: ReLU,
    width: float = 1e-3,
    iterations: int = 1000,
) -> KinkResidual:
    """The stationarity residual (E9), with the derivatives at kinks chosen so that it is least.

    Args:
        A: path ``(layers + 1, samples, width)``, in float64.
        M_end: scaled momenta at the end, ``−(1/μ)∂C/∂A_L``, ``(samples, width)``.
        W: weights ``(layers, width, width_in)``.
        rho: step-sizes ``(layers,)``.
        effective_depth: L̃.
        activation: a ReLU.
        width: of a kink, relative to the root mean square of the layer's states; 0 gives the plain residual, unless
            states are exactly 0.
        iterations: of the search at most, two sweeps each; it ends where a round of five projected gradients and up to
            sixty conjugate ones gains less than a fiftieth.

    Raises:
        TypeError: another σ: one without kinks has the plain residual.
        ValueError: a negative width.
    """
    if not isinstance(activation, ReLU):
        raise TypeError(f"kinks belong to ReLU, got {activation}: its stationarity residual needs no choice")
    if not width >= 0:
        raise ValueError(f"the width of a kink must not be negative, got {width}")
    problem = _Choice(A, M_end, W, rho, effective_depth, activation)
    inner = A[1:-1].mT
    scale = inner.square().mean(dim=(1, 2), keepdim=True).sqrt()
    free = inner.abs() <= width * scale
    start = problem.at(activation.derivative(inner).contiguous())
    kinks = int(free.sum())
    best = _search(problem, start, free, iterations) if kinks else start.residual
    return KinkResidual(best, start.residual, width, kinks, kinks / max(1, free.numel()))


def _search(problem: _Choice, here: _Point, free: Bool[Tensor, "inner width samples"], iterations: int) -> PerLayer:
    """The residual whose largest entry was the least after a round of both."""
    best, step, spent = here.residual, 1.0, 0
    while spent < iterations:
        before = here.value
        for _ in range(_GRADIENTS):
            here, step = _projected_gradient(problem, here, free, step)
        here, count = _on_the_face(problem, here, free, min(_CONJUGATE, iterations - spent))
        spent += _GRADIENTS + count
        if float(here.residual.max()) <= float(best.max()):  # the largest may not depend on any choice
            best = here.residual
        if not here.value < _WORTHWHILE * before:
            break
    return best


def _projected_gradient(
    problem: _Choice, here: _Point, free: Bool[Tensor, "inner width samples"], step: float
) -> tuple[_Point, float]:
    """A step down within the box, and the length of the next one (Barzilai and Borwein 1988)."""
    g = problem.transposed(here, here.off) * free
    direction = ((here.D - step * g).clamp(0, 1) - here.D) * free
    slope = float((g * direction).sum())
    t = 1.0
    while True:
        trial = problem.at(here.D + t * direction)
        if trial.value <= here.value + 2e-4 * t * slope:
            break
        t *= 0.5
        if t < 1e-6:
            return here, step
    moved = trial.D - here.D
    curvature = float((moved * (problem.transposed(trial, trial.off) * free - g)).sum())
    if curvature > 0:
        return trial, min(max(float(moved.square().sum()) / curvature, 1e-10), 1e10)
    return trial, min(10 * step, 1e10)


def _on_the_face(
    problem: _Choice, here: _Point, free: Bool[Tensor, "inner width samples"], limit: int
) -> tuple[_Point, int]:
    """A Gauss–Newton step of the derivatives that do not press against an end, and how many iterations it took."""
    g = problem.transposed(here, here.off)
    face = free & ~((here.D <= 0) & (g > 0)) & ~((here.D >= 1) & (g < 0))
    x, r = torch.zeros_like(g), -g * face
    d, rr, count = r.clone(), float(r.square().sum()), 0
    start = rr
    while count < limit and rr > 1e-4 * start:
        count += 1
        J = problem.tangent(here, d)
        curvature = float(J.square().sum())
        if not curvature > 0:
            break
        x.add_(d, alpha=rr / curvature)
        r.sub_(problem.transposed(here, J) * face, alpha=rr / curvature)
        rr, last = float(r.square().sum()), rr
        d.mul_(rr / last).add_(r)
    t = 1.0
    while t > 1e-3:
        trial = problem.at((here.D + t * x).clamp(0, 1))
        if trial.value < here.value:
            return trial, count
        t *= 0.5
    return here, count
