"""Kronecker-factored curvature of a discretised flow: the preconditioner of `isthmus.two_ended.newton`.

The same idea as `isthmus.solve.kronecker`, a stage of a Runge–Kutta scheme in place of a layer: the Gauss–Newton
block of stage k is replaced by ``Γ_k ⊗ S_kS_kᵀ/N``, Γ_k the covariance of random output vectors swept backward to it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from isthmus.solve.kronecker import robust_eigh
from isthmus.two_ended._types import StageWeights
from isthmus.two_ended.sweeps import Sweeps


def kronecker_inverse(
    sweeps: Sweeps, W: StageWeights, seed: int, damping: float = 1.0, probes: int = 4
) -> Callable[[Tensor], Tensor]:
    """An approximate inverse of the Hessian over μ, in the variables ``√(h b_i) W_i``, at the last gradient's point.

    Args:
        sweeps: after `Sweeps.gradient`.
        W: the weights of that point.
        seed: of the random sweeps.
        damping: factor on the data part; 1 beat 0.3 and 0.03 (docs/notes/two_ended.md).
        probes: random sweeps.
    """
    generator = torch.Generator().manual_seed(seed)
    gamma = W.new_zeros((W.shape[0], sweeps.width, sweeps.width))
    for _ in range(probes):
        D = sweeps.pull_back(W, sweeps.end.curvature_sample(generator))
        gamma.baddbmm_(D, D.mT)
    samples = sweeps.end.samples
    left, U = robust_eigh(gamma / (samples * probes))
    right, V = robust_eigh(torch.bmm(sweeps.S, sweeps.S.mT))  # N times the mean: C is a mean over samples
    data = left.clamp_min(0)[:, :, None] * right.clamp_min(0)[:, None, :]
    curvature = 1 + damping * data / (sweeps.mu * sweeps.measure[:, None, None])
    return lambda v: U @ ((U.mT @ v @ V) / curvature) @ V.mT
