"""Momenta: back-propagated gradients at the states, and the sums over samples that the Hamiltonian (E10) needs.

A step of a stack is taken as ``A_ℓ = skip·A_{ℓ−1} + V_ℓσ(A_{ℓ−1})``, trained on the loss C (a mean over samples) plus
``(decay/2)‖V_ℓ‖_F²``. Where that is stationary, ``V_ℓ = M_ℓσ(A_{ℓ−1})ᵀ`` with the momenta ``M_ℓ = −(1/decay)∂C/∂A_ℓ``,
A before the step and M after it (staggered: docs/theory.md). In the paper's terms ``V_ℓ = ρ_ℓW_ℓ`` and
``decay = μ/ρ_ℓ``, so the paper's own momenta are these over ρ_ℓ.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.activations import Activation, ReLU
from isthmus.probe.inputs import target_of
from isthmus.probe.moments import checked_rows
from isthmus.probe.removal import Loss, checked_loss
from isthmus.probe.rows import with_tensor


@dataclass(frozen=True)
class PenalisedLoss:
    """What the network was trained on. Make it with `penalised_loss`."""

    loss: Loss
    weight_decay: float
    target: Callable[[object], object] | None

    def labels(self, batch: object, model: nn.Module) -> object:
        """The target of a batch, by default what `isthmus.probe.batches.target_of` finds."""
        return target_of(batch, model) if self.target is None else self.target(batch)

    def value(self, output: object, target: object, dtype: torch.dtype | None = None) -> Tensor:
        """The loss of a batch; targets that are no labels are brought to ``dtype`` where one is given."""
        if dtype is not None and isinstance(target, Tensor) and target.is_floating_point():
            target = target.to(dtype)
        return checked_loss(self.loss(output, target))


def penalised_loss(
    loss: Loss | None, weight_decay: float | None, target: Callable[[object], object] | None
) -> PenalisedLoss | None:
    """Checked; None where no gradients are asked for.

    Raises:
        ValueError: one of loss and weight decay without the other, or a decay that is not positive.
        TypeError: a loss that is no function.
    """
    if loss is None and weight_decay is None:
        return None
    if loss is None or weight_decay is None:
        given, missing = ("weight_decay", "loss") if loss is None else ("loss", "weight_decay")
        raise ValueError(f"momenta need loss= and weight_decay= both: got {given}, but no {missing}")
    if not callable(loss):
        raise TypeError(f"loss: expected a function (output, target) -> scalar tensor, got {type(loss).__name__}")
    if not 0 < weight_decay < math.inf:
        raise ValueError(
            f"weight_decay: expected a positive number, got {weight_decay}: without a penalty on the weights there is "
            "no Hamiltonian"
        )
    return PenalisedLoss(loss, float(weight_decay), target)


def perturbed(output: Any, x: Tensor, delta: Tensor) -> Any | None:
    """The output with ``x + delta`` in place of the tensor x, wherever it lies in it; None where it does not.

    The gradient at delta = 0 is that at x, whatever happens to x + delta later, and frozen parameters do not matter.
    """
    with torch.enable_grad():
        return with_tensor(output, x, x + delta)


class MomentumMoments:
    """Sums over samples of gradients after a step against states and features before it, in memory O(width²).

    Args:
        width: number of neurons.
        activation: σ of the features.
        device: where the sums live.
    """

    def __init__(
        self, width: int, activation: Activation | None = None, *, device: torch.device | str = "cpu", **_: object
    ) -> None:
        self.width, self.activation = width, ReLU() if activation is None else activation
        size: dict[str, Any] = {"dtype": torch.float64, "device": device}
        # Σ g σ(a)ᵀ; Σ ⟨g, before⟩, Σ ⟨g, after⟩, Σ ‖g‖²: g times the samples of its batch, whose mean the loss is
        self._features = torch.zeros(width, width + self.activation.extra, **size)
        self._rows = torch.zeros(3, **size)
        self.count, self.samples = 0, 0.0

    @torch.no_grad()
    def update(self, before: Tensor, after: Tensor, gradient: Tensor, batch: int | float, samples: int | float) -> None:
        """Add rows ``(n, width)`` of states before and after, and of gradients of the batch's loss after.

        Args:
            before: states before the step.
            after: states after it.
            gradient: of the batch's mean loss, at the states after.
            batch: what the batch's loss is a mean over: its samples, or their labels.
            samples: how many of them these rows come from.

        Raises:
            ValueError: another width, unequal numbers of rows, NaN or infinite entries.
            TypeError: rows that are not floating point.
        """
        rows = [
            checked_rows(x, self.width, name).to(self._rows)
            for x, name in ((before, "before"), (after, "after"), (gradient, "gradients"))
        ]
        if len({len(x) for x in rows}) > 1:
            raise ValueError(f"before, after and gradient must have the same rows, got {[len(x) for x in rows]}")
        A, B, g = rows
        g = g * batch
        self._features += g.T @ self.activation.features(A)
        self._rows += torch.stack(((g * A).sum(), (g * B).sum(), g.square().sum()))
        self.count, self.samples = self.count + len(g), self.samples + samples

    def merge(self, other: "MomentumMoments") -> "MomentumMoments":
        """The sums of both; neither changes.

        Raises:
            ValueError: another width or activation.
        """
        if (self.width, self.activation) != (other.width, other.activation):
            raise ValueError(
                f"only momenta of the same layer merge: here {self.width} {self.activation}, there {other.width} "
                f"{other.activation}"
            )
        made = MomentumMoments(self.width, self.activation, device=self._rows.device)
        made._features = self._features + other._features.to(self._rows)
        made._rows = self._rows + other._rows.to(self._rows)
        made.count, made.samples = self.count + other.count, self.samples + other.samples
        return made

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that hold everything."""
        counts = torch.tensor([self.count, self.samples], dtype=torch.float64)
        return {"features": self._features.clone(), "rows": self._rows.clone(), "counts": counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state of sums made with the same arguments."""
        self._features, self._rows = (state[name].to(self._rows, copy=True) for name in ("features", "rows"))
        count, self.samples = state["counts"].tolist()
        self.count = int(count)

    def best_weights(self, decay: float) -> Tensor:
        """``M σ(A)ᵀ``, ``(width, width_in)``: the weights V of a step at which the objective is stationary."""
        return -self._features / (self.samples * decay)

    def quantities(self, decay: float) -> dict[str, float]:
        """Of the momenta ``M = −(1/decay)∂C/∂A`` after the step.

        - momentum_norm ``‖M‖_F``; momentum_features ``‖Mσ(A)ᵀ‖_F``, A before the step.
        - momentum_state ``Tr[MAᵀ]`` with A before the step, momentum_after with A after it.
        """
        scale = 1 / (self.samples * decay)
        before, after, squares = self._rows.tolist()
        return {
            "momentum_norm": scale * squares**0.5,
            "momentum_features": float(self.best_weights(decay).norm()),
            "momentum_state": -scale * before,
            "momentum_after": -scale * after,
        }
