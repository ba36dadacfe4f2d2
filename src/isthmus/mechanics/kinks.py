"""Stationarity at ReLU's kinks: the distance of the gradient to the Clarke set (Clarke 1983).

Where a state is 0 the derivative of a ReLU may be any number in [0, 1], and a minimum asks only that *some* choice
makes the gradient vanish. Trained networks have many states at kinks, never exactly there: a state within a stated
width of 0 counts (Goldstein's ε-subdifferential). The momenta are linear in the choice at each layer; the best choice
over all layers together is found by projected gradients (Birgin, Martínez and Raydan 2000), so that the result bounds
the distance from above.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._types import Path, PerLayer, Rows, StepSizesVector, Weights
from isthmus.activations import ReLU


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


class _Choice:
    """Momenta, residual and its gradient for a choice of derivatives; columns inside, as in `isthmus.flow`."""

    def __init__(
        self, A: Path, M_end: Rows, W: Weights, rho: StepSizesVector, effective_depth: float, activation: ReLU
    ) -> None:
        self.S = activation.features(A[:-1]).mT.contiguous()
        self.W, self.rho, self.c = W, rho.tolist(), [1 - r * effective_depth for r in rho.tolist()]
        self.M_end, self.L, self.w = M_end.T, W.shape[0], A.shape[2]
        self.size = W.norm(dim=(1, 2)).clamp_min(1e-300)

    def residual(self, D: Tensor) -> tuple[PerLayer, Tensor, Tensor]:
        """Relative residual, the difference W − MSᵀ, and the back-propagated states before the mask."""
        M, off, pulled = self.M_end, torch.empty_like(self.W), torch.empty_like(D)
        for layer in range(self.L - 1, -1, -1):
            torch.addmm(self.W[layer], M, self.S[layer].T, alpha=-1, out=off[layer])
            if layer > 0:
                torch.mm(self.W[layer, :, : self.w].T, M, out=pulled[layer - 1])
                M = self.c[layer] * M + self.rho[layer] * D[layer - 1] * pulled[layer - 1]
        return off.norm(dim=(1, 2)) / self.size, off, pulled

    def gradient(self, D: Tensor, off: Tensor, pulled: Tensor) -> Tensor:
        """Of ``½ Σ_ℓ residual_ℓ²`` in D, by a sweep forward."""
        out = torch.empty_like(D)
        X = torch.zeros_like(self.M_end)
        for layer in range(self.L - 1):
            X = X - (off[layer] / self.size[layer] ** 2) @ self.S[layer]
            out[layer] = self.rho[layer + 1] * X * pulled[layer]
            X = self.c[layer + 1] * X + self.rho[layer + 1] * self.W[layer + 1, :, : self.w] @ (D[layer] * X)
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
        iterations: of the search at most; it ends when fifty have gained less than a hundredth.

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
    D = activation.derivative(inner).contiguous()
    plain, off, pulled = problem.residual(D)
    kinks = int(free.sum())
    best = _search(problem, D, free, (plain, off, pulled), iterations) if kinks else plain
    return KinkResidual(best, plain, width, kinks, kinks / max(1, free.numel()))


def _search(
    problem: _Choice,
    D: Float[Tensor, "inner width samples"],
    free: Tensor,
    at: tuple[PerLayer, Tensor, Tensor],
    iterations: int,
) -> PerLayer:
    """Spectral projected gradients on the sum of squares, the largest of the last ten as the reference.

    Returns the residual whose largest entry was the least.
    """
    residual, off, pulled = at
    best, history, step = residual, [float(residual.square().sum())], 1.0
    g = problem.gradient(D, off, pulled) * free
    for _ in range(iterations):
        direction = ((D - step * g).clamp(0, 1) - D) * free
        slope = float((g * direction).sum())
        if not slope < -1e-14 * history[-1]:
            break
        t = 1.0
        while True:
            trial = D + t * direction
            residual, off, pulled = problem.residual(trial)
            value = float(residual.square().sum())
            if value <= max(history[-10:]) + 2e-4 * t * slope or t < 1e-6:
                break
            t *= 0.5
        g_new = problem.gradient(trial, off, pulled) * free
        s, y = trial - D, g_new - g
        sy, ss = float((s * y).sum()), float(s.square().sum())
        step = min(max(ss / sy, 1e-10), 1e10) if sy > 0 else min(10 * step, 1e10)
        D, g = trial, g_new
        history.append(value)
        if len(history) > 50 and min(history[-50:]) > 0.99 * min(history[:-50]):
            break
        if float(residual.max()) < float(best.max()):
            best = residual
    return best
