"""`MeshScheduler`: a step-size rule applied to a model, used like a learning-rate scheduler."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.mesh.base import MeshState, StepSizeRule
from isthmus.mesh.interpolate import interpolate_weights
from isthmus.mesh.monitor import Monitor, monitored
from isthmus.mesh.protocol import MovesWeights, Stepped


class MeshScheduler:
    """Call `step` after every optimiser step; every ``every``-th call moves ρ by the rule.

    Args:
        model: anything `Stepped`. Its ``rho`` (and, on large changes, its ``weight``, or what it moves itself, see
            `MovesWeights`) are changed in place. Its ``rho`` is set to the rule's first step-sizes at once.
        rule: which step-sizes.
        x: inputs whose path is measured where `step` is not given one.
        every: calls between updates. 1 in the paper ("every step or every few").
        freeze_after: no update from this call on, so that training ends on a fixed objective; None: never.
        transfer: where an update changes some ``ρ_ℓ`` by more than this factor minus one, the weights are moved with
            p (`interpolate_weights`) instead of staying tied to ℓ; None: never.
        monitor: what the rule makes equal over steps: the paper's relative ``change``, or the root of the
            ``curvature`` (`shares_of_curvature`). Measured: docs/how-to/mesh.md.

    ``doubt`` says in a sentence why the last update that was due moved nothing though the rule adapts; else None.

    Raises:
        ValueError: ``every`` below 1, or an unknown monitor.
    """

    def __init__(
        self,
        model: Stepped,
        rule: StepSizeRule,
        x: Float[Tensor, "samples *state"] | None = None,
        *,
        every: int = 10,
        freeze_after: int | None = None,
        transfer: float | None = 0.5,
        monitor: Monitor = "change",
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1 step, got {every}")
        if monitor not in ("change", "curvature"):
            raise ValueError(f"monitor must be 'change' or 'curvature', got {monitor!r}")
        lacks = [name for name in ("rho", "trajectory", "set_step_sizes") if not hasattr(model, name)]
        if lacks:
            raise TypeError(
                f"model: a {type(model).__name__} has no {', '.join(lacks)}; wrap residual blocks in "
                "isthmus.mesh.ResidualSteps, a solver's grid in ODEMesh, or write what isthmus.mesh.Stepped asks for"
            )
        self.model, self.rule, self.x, self.monitor = model, rule, x, monitor
        self.every, self.freeze_after, self.transfer = every, freeze_after, transfer
        self.calls = 0
        self.doubt: str | None = None
        self.state: MeshState = rule.init(len(model.rho), self._effective_depth)
        model.set_step_sizes(self.state.rho)

    @property
    def _effective_depth(self) -> float:
        """L̃ where the model has one; 0, which caps nothing, where it has none."""
        return float(getattr(self.model, "effective_depth", 0.0))

    @property
    def frozen(self) -> bool:
        """Whether further calls change nothing."""
        return not self.rule.adapts or (self.freeze_after is not None and self.calls >= self.freeze_after)

    def freeze(self) -> None:
        """Change nothing from now on."""
        self.freeze_after = self.calls if self.freeze_after is None else min(self.calls, self.freeze_after)

    @torch.no_grad()
    def step(self, path: Float[Tensor, "layers_plus_1 samples *state"] | None = None) -> bool:
        """Count one call, and move ρ when it is time.

        Args:
            path: states ``A_0 … A_L`` of any shape (rows or columns); else that of ``x`` is computed.

        Returns:
            Whether the model was changed: an optimiser with memory must then forget it.

        Raises:
            ValueError: neither a path nor ``x``, or a path with other than one state more than steps.
        """
        if path is not None and not isinstance(path, Tensor):
            raise TypeError(f"path: expected the states as one tensor (torch.stack them), got a {type(path).__name__}")
        frozen = self.frozen
        self.calls += 1
        if frozen or self.calls % self.every:
            return False
        if path is None:
            if self.x is None:
                raise ValueError("step() needs the path of states, or the scheduler an x to compute it from")
            path = self.model.trajectory(self.x)
        old = self.state
        shares = monitored(path.detach(), old.rho, self.monitor)
        self.doubt = _doubt(shares)
        self.state = self.rule.update(old, shares, self._effective_depth)
        if torch.equal(self.state.rho, old.rho):
            return False
        ratio = self.state.rho / old.rho
        if self.transfer is not None and float(torch.maximum(ratio, 1 / ratio).max()) > 1 + self.transfer:
            self._move_weights(old.rho, self.state.rho)
        self.model.set_step_sizes(self.state.rho)
        return True

    def _move_weights(self, old: Tensor, new: Tensor) -> None:
        if isinstance(self.model, MovesWeights):
            self.model.move_weights(old, new)
            return
        weight = getattr(self.model, "weight", None)
        if isinstance(weight, torch.nn.Parameter) and weight.ndim == 3 and len(weight) == len(old):
            weight.data.copy_(interpolate_weights(weight.data, old, new))

    def state_dict(self) -> dict[str, Any]:
        """Calls made, and the rule's state."""
        return {"calls": self.calls, "rho": self.state.rho, "updates": self.state.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a state back, and set the model's ρ by it."""
        self.calls = int(state["calls"])
        self.state = MeshState(state["rho"].clone(), int(state["updates"]))
        self.model.set_step_sizes(self.state.rho)


def _doubt(shares: Tensor) -> str | None:
    """Why a rule cannot learn from these numbers; None where it can."""
    if not bool(torch.isfinite(shares).all()):
        step = int((~torch.isfinite(shares)).nonzero()[0]) + 1
        return f"the mesh was left: the states around step {step} are not finite"
    if not bool((shares > 0).any()):
        return "the mesh was left: the states do not change, or not by what the monitor measures"
    return None
