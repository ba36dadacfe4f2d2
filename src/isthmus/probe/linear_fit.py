"""The linear map that does best what a run of blocks does, from the sums of `PairMoments`: least squares.

ReplaceMe (arXiv:2505.02819) puts ``T = (MᵀM)⁻¹Mᵀ(L − Y)`` in place of a run of transformer blocks: M is what the last
linear layer before the run adds to the stream, Y the stream without it, L the stream after the run, rows are tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.probe.moments import STATES
from isthmus.probe.pairs import STEP, PairMoments
from isthmus.probe.sums import FactorSums


@dataclass(frozen=True)
class LinearFit:
    """``after ≈ before (I + change) + constant``, rows are samples.

    Args:
        change: ``(width, width)``; zero in directions that no row has.
        constant: ``(width,)``, or None where none was fitted.
        objective: mean over rows of the squared residual, ``Σ‖after − fitted‖²/N``.
        identity: the same of the identity: what plain dropping leaves.
    """

    change: Tensor
    constant: Tensor | None
    objective: float
    identity: float

    @property
    def matrix(self) -> Tensor:
        """``I + change``, ``(width, width)``: rows are multiplied by it from the right."""
        return torch.eye(len(self.change), dtype=self.change.dtype, device=self.change.device) + self.change


@torch.no_grad()
def linear_fit(pair: PairMoments, *, constant: bool = True, ridge: float = 0.0) -> LinearFit:
    """Least squares of the rows after on the rows before, ``min ‖before·T + 1cᵀ − after‖²``, exactly, from the sums.

    The step is fitted rather than the rows after, so that what the rows do not determine stays the identity, and a
    small step loses nothing to cancellation.

    Args:
        pair: of method "qr": a triangular factor is as good as all rows.
        constant: fit c as well; without it the objective is ReplaceMe's.
        ridge: adds ``ridge · (‖before‖²/width) · ‖T − I‖²`` to the sum of squares.

    Raises:
        ValueError: no rows yet, method "gram", or a negative ridge.
    """
    pair._some()
    if not isinstance(pair._sums, FactorSums):
        raise ValueError("pair: expected method 'qr'; squares of method 'gram' have lost half of the digits")
    if not ridge >= 0:
        raise ValueError(f"ridge: expected at least 0, got {ridge}")
    factor, states, steps = pair._sums._factor(), pair._sums._columns(STATES), pair._sums._columns(STEP)
    left = torch.cat((factor[:, :1], states), 1) if constant else states
    weight = (ridge * float(states.square().sum()) / pair.width) ** 0.5
    rows = weight * torch.eye(left.shape[1], dtype=left.dtype, device=left.device)[int(constant) :]
    augmented = torch.cat((left, rows)) if ridge else left
    right = torch.cat((steps, steps.new_zeros(len(rows), pair.width))) if ridge else steps
    # not by pivoted or plain QR: rows often span a subspace only
    found = torch.linalg.pinv(augmented, rtol=1e-12) @ right
    residual = float((steps - left @ found).square().sum())
    change, shift = found[int(constant) :], found[0] if constant else None
    return LinearFit(change, shift, residual / pair.count, float(steps.square().sum()) / pair.count)
