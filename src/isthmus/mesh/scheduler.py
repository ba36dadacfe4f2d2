"""`MeshScheduler`: a step-size rule applied to a model, used like a learning-rate scheduler."""

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.mesh.base import MeshState, StepSizeRule, relative_changes
from isthmus.mesh.interpolate import interpolate_weights


@runtime_checkable
class Meshed(Protocol):
    """What a scheduler needs of a model; `isthmus.LeakyResNet` has it."""

    depth: int
    effective_depth: float
    weight: torch.nn.Parameter
    rho: Tensor

    def trajectory(self, x: Tensor) -> Tensor:
        """The states ``(layers + 1, samples, width)``."""

    def set_step_sizes(self, rho: Tensor) -> None:
        """Replace ρ."""


class MeshScheduler:
    """Call `step` after every optimiser step; every ``every``-th call moves ρ by the rule.

    Args:
        model: its ``rho`` (and, on large changes, its ``weight``) are changed in place. Its ``rho`` is set to the
            rule's first step-sizes at once.
        rule: which step-sizes.
        x: inputs whose path is measured where `step` is not given one.
        every: calls between updates. 1 in the paper ("every step or every few").
        freeze_after: no update from this call on, so that training ends on a fixed objective; None: never.
        transfer: where an update changes some ``ρ_ℓ`` by more than this factor minus one, the weights are moved with
            p (`interpolate_weights`) instead of staying tied to ℓ; None: never.

    Raises:
        ValueError: ``every`` below 1.
    """

    def __init__(
        self,
        model: Meshed,
        rule: StepSizeRule,
        x: Float[Tensor, "samples in_features"] | None = None,
        *,
        every: int = 10,
        freeze_after: int | None = None,
        transfer: float | None = 0.5,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        self.model, self.rule, self.x = model, rule, x
        self.every, self.freeze_after, self.transfer = every, freeze_after, transfer
        self.calls = 0
        self.state: MeshState = rule.init(model.depth, model.effective_depth)
        model.set_step_sizes(self.state.rho)

    @property
    def frozen(self) -> bool:
        """Whether further calls change nothing."""
        return not self.rule.adapts or (self.freeze_after is not None and self.calls >= self.freeze_after)

    def freeze(self) -> None:
        """Change nothing from now on."""
        self.freeze_after = self.calls if self.freeze_after is None else min(self.calls, self.freeze_after)

    @torch.no_grad()
    def step(self, path: Float[Tensor, "layers_plus_1 rows columns"] | None = None) -> bool:
        """Count one call, and move ρ when it is time.

        Args:
            path: states ``A_0 … A_L``, rows or columns, if they are at hand; else the path of ``x`` is computed.

        Returns:
            Whether the model was changed: an optimiser with memory must then forget it.

        Raises:
            ValueError: neither a path nor ``x``.
        """
        frozen = self.frozen
        self.calls += 1
        if frozen or self.calls % self.every:
            return False
        if path is None:
            if self.x is None:
                raise ValueError("step() needs the path of states, or the scheduler an x to compute it from")
            path = self.model.trajectory(self.x)
        old = self.state
        self.state = self.rule.update(old, relative_changes(path), self.model.effective_depth)
        if torch.equal(self.state.rho, old.rho):
            return False
        ratio = self.state.rho / old.rho
        if self.transfer is not None and float(torch.maximum(ratio, 1 / ratio).max()) > 1 + self.transfer:
            self.model.weight.data.copy_(interpolate_weights(self.model.weight.data, old.rho, self.state.rho))
        self.model.set_step_sizes(self.state.rho)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Calls made, and the rule's state."""
        return {"calls": self.calls, "rho": self.state.rho, "updates": self.state.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a state back, and set the model's ρ by it."""
        self.calls = int(state["calls"])
        self.state = MeshState(state["rho"].clone(), int(state["updates"]))
        self.model.set_step_sizes(self.state.rho)
