"""Minima of the cost of identity: a search for counterexamples to what the paper proves of them.

The claim (arXiv:2405.17573): a local minimum of the COI ``‖Aσ(A)⁺‖_F²`` (ReLU, no appended 1) that stays one when a
zero neuron is added is non-negative, and its COI is its rank. The search descends from random representations, adds a
neuron near zero, and descends again, until a new neuron no longer helps. What is left is looked at.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._support import require

RIDGE = 1e-6
"""γ_0 of the norm that is minimised: the COI itself is discontinuous."""
TRIES, NEURONS, NEAR_ZERO = 4, 8, 1e-2
"""Random neurons that are tried at a minimum, neurons added at most, and their size beside the others'."""
LOWER, NEGATIVE, OFF_RANK, FLAT = 1e-4, 1e-3, 0.05, 1e-3
"""What counts as lower; as negative (share of ``‖A‖²``); as another number than the rank; as converged (gradient)."""
_RANK = 1e-3


def cost(A: Float[Tensor, "width samples"]) -> Float[Tensor, ""]:
    """The stable COI of columns A, ``Tr[A (K + γI)⁻¹ Aᵀ]`` with ``K = σ(A)ᵀσ(A)`` and γ relative to ``‖K‖_op`` (E7)."""
    S = A.clamp(min=0)
    K = S.T @ S
    gamma = RIDGE * torch.linalg.matrix_norm(S.detach(), 2).square()
    return (A.T * torch.linalg.solve(K + gamma * torch.eye(len(K), dtype=A.dtype), A.T)).sum()


def descend(A: Float[Tensor, "width samples"]) -> tuple[Float[Tensor, "width samples"], float, float]:
    """Down to a minimum by L-BFGS: where, its cost, and the largest entry of the gradient at unit size of A.

    Raises:
        ImportError: scipy is not installed.
    """
    minimize = require("scipy.optimize", "the claims", "'isthmus[claims]'").minimize

    def value_and_gradient(x: Any) -> tuple[float, Any]:
        at = torch.as_tensor(x).reshape(A.shape).requires_grad_()
        value = cost(at)
        (gradient,) = torch.autograd.grad(value, at)
        return value.item(), gradient.flatten().numpy()

    options = {"maxiter": 3000, "maxfun": 6000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 20}
    found = minimize(value_and_gradient, A.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
    end = torch.as_tensor(found.x).reshape(A.shape)
    return end, float(found.fun), float(abs(found.jac).max()) * float(end.abs().max())


def search(width: int, samples: int, starts: int, seed: int) -> dict[str, Any]:
    """Minima from random starts, and how many of them contradict the claim.

    Args:
        width: neurons at the start.
        samples: N.
        starts: random representations.
        seed: of all that is random.

    Returns:
        ``minima``: that no neuron lowers, converged; ``open``: starts that led to none; ``negative``: minima with
        negative entries; ``off_rank``: whose cost is no rank; ``against``: either; ``lowered``: minima that a neuron
        lowered on the way; ``ranks``: of the minima.
    """
    random = torch.Generator().manual_seed(seed)
    counts = {"minima": 0, "open": 0, "negative": 0, "off_rank": 0, "against": 0, "lowered": 0}
    ranks: list[int] = []
    for _ in range(starts):
        A, value, gradient = descend(torch.randn(width, samples, dtype=torch.float64, generator=random))
        stays = False
        for _ in range(NEURONS):
            trials = [descend(_with_neuron(A, random)) for _ in range(TRIES)]
            best = min(trials, key=lambda trial: trial[1])
            if best[1] > value - LOWER:
                stays = True
                break
            (A, value, gradient), counts["lowered"] = best, counts["lowered"] + 1
        if not stays or gradient > FLAT:
            counts["open"] += 1
            continue
        s = torch.linalg.svdvals(A)
        rank = int((s > _RANK * s[0]).sum())
        negative = float(A.clamp(max=0).square().sum() / A.square().sum()) > NEGATIVE
        off = abs(value - rank) > OFF_RANK
        counts["minima"] += 1
        counts["negative"] += negative
        counts["off_rank"] += off
        counts["against"] += negative or off
        ranks.append(rank)
    return counts | {"ranks": ranks}


def _with_neuron(A: Tensor, random: torch.Generator) -> Tensor:
    size = NEAR_ZERO * float(A.norm()) / A.shape[1]
    return torch.cat([A, size * torch.randn(1, A.shape[1], dtype=A.dtype, generator=random)])
