"""`TwoEnded`: a solution of (E9) with A given at p = 0 and B at p = 1, and `Gap`: a network against it."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._types import PerLayer
from isthmus.activations import Activation
from isthmus.geodesic import Geodesic
from isthmus.mechanics import scaled_hamiltonian, stationarity_residual
from isthmus.mesh import layer_midpoints
from isthmus.status import Status
from isthmus.two_ended._types import NodePath, NodeWeights, Points, StageWeights, StepSizes
from isthmus.two_ended.interpolate import hermite, velocities


@dataclass(frozen=True)
class Gap:
    """The distance between an L-layer network and the continuous flow. Everything relative but the differences.

    Args:
        path: ``‖A_ℓ − A(p_ℓ)‖/‖A(p_ℓ)‖`` of every state ``(layers + 1,)``.
        weights: ``‖W_ℓ − W(p)‖/‖W(p)‖`` at the midpoint of every layer.
        hamiltonian: L̃ times the staggered H of every layer, minus the flow's.
        objective: the network's (E3) minus the flow's.
        data_cost: the same of C.
        residual: the network's own largest stationarity residual: how much of the gap more training would remove.
        error: the flow's own estimated error: below it a gap says nothing.
    """

    path: Float[Tensor, "layers_plus_1"]
    weights: PerLayer
    hamiltonian: PerLayer
    objective: float
    data_cost: float
    residual: float
    error: float

    def __str__(self) -> str:
        """The worst of each, in a line."""
        return (
            f"path {float(self.path.max()):.2g}, weights {float(self.weights.max()):.2g} (relative, worst layer); "
            f"L̃H off by {float(self.hamiltonian.abs().max()):.2g}; objective {self.objective:+.3g}; "
            f"network's residual {self.residual:.1g}, flow's error {self.error:.1g}"
        )


@dataclass(frozen=True)
class TwoEnded:
    """A numerical solution of (E9), arXiv:2405.17573, with its two end conditions. Batch-first, float64.

    Args:
        A: states at the nodes ``(steps + 1, samples, width)``.
        M: scaled momenta ``M = L̃B = −(1/μ)∂C/∂A`` at the same nodes (not staggered), same shape.
        steps: step-sizes of the mesh.
        stage_weights: what was solved for: ``(steps · stages, width, width_in)``.
        order: of the scheme.
        effective_depth: L̃.
        weight_decay: μ.
        activation: σ.
        objective: (E3), by the scheme's own quadrature.
        data_cost: C.
        status: of the last solve on a mesh.
        residual: its largest relative stationarity residual.
        error: estimated relative error of A and M, the worst node's, by halving the mesh; NaN where not estimated.
        defect: of each step, see `isthmus.two_ended.interpolate.defects`.
        products: Hessian products spent in all.
        message: what happened, and what to do about it.
    """

    A: NodePath = field(repr=False)
    M: NodePath = field(repr=False)
    steps: StepSizes = field(repr=False)
    stage_weights: StageWeights = field(repr=False)
    order: int
    effective_depth: float
    weight_decay: float
    activation: Activation
    objective: float
    data_cost: float
    status: Status
    residual: float
    error: float
    defect: StepSizes = field(repr=False)
    products: int
    message: str

    @property
    def positions(self) -> Float[Tensor, "nodes"]:
        """The nodes, from 0 to 1."""
        return torch.cat((self.steps.new_zeros(1), self.steps.cumsum(0)))

    @property
    def W(self) -> NodeWeights:
        """``W = Mσ(A)ᵀ`` at the nodes, ``(steps + 1, width, width_in)`` (E9)."""
        return self.M.mT @ self.activation.features(self.A)

    @property
    def scaled_hamiltonian(self) -> Float[Tensor, "nodes"]:
        """``L̃H`` at the nodes (E10): constant on the flow, here up to the scheme's order; finite at L̃ = 0."""
        values = [
            scaled_hamiltonian(A, M, self.effective_depth, self.activation) for A, M in zip(self.A, self.M, strict=True)
        ]
        return torch.tensor(values, dtype=torch.float64)

    @property
    def hamiltonian_spread(self) -> float:
        """``max − min`` of L̃H over the nodes."""
        H = self.scaled_hamiltonian
        return float(H.max() - H.min())

    def at(self, p: Points) -> tuple[Float[Tensor, "points samples width"], Float[Tensor, "points samples width"]]:
        """States and momenta at any positions in [0, 1], by cubic Hermite interpolation.

        Raises:
            ValueError: a position outside [0, 1].
        """
        p = torch.as_tensor(p, dtype=torch.float64)
        if not bool(((p >= 0) & (p <= 1 + 1e-12)).all()):
            raise ValueError(f"positions must lie in [0, 1], got {p.tolist()}")
        dA, dM = velocities(self.A, self.M, self.effective_depth, self.activation)
        return hermite(self.A, dA, self.positions, p), hermite(self.M, dM, self.positions, p)

    def weights_at(self, p: Points) -> Float[Tensor, "points width width_in"]:
        """``W = Mσ(A)ᵀ`` at any positions in [0, 1]."""
        A, M = self.at(p)
        return M.mT @ self.activation.features(A)

    def gap(self, geodesic: Geodesic) -> Gap:
        """The distance between a network of L layers and this solution, layer by layer.

        First order in ρ for a network trained to its end, in this solution's basin.

        Raises:
            TypeError: not a Geodesic.
            ValueError: a geodesic of another problem: width, samples, L̃, μ, σ or the inputs differ.
        """
        check_same_problem(geodesic, self.effective_depth, self.weight_decay, self.activation, self.A[0])
        A, _ = self.at(geodesic.positions.clamp(0, 1))
        W = self.weights_at(layer_midpoints(geodesic.rho))
        staggered = [
            scaled_hamiltonian(before, after, self.effective_depth, self.activation)
            for before, after in zip(geodesic.A[:-1], geodesic.M[1:], strict=True)
        ]
        return Gap(
            path=(geodesic.A - A).norm(dim=(1, 2)) / A.norm(dim=(1, 2)),
            weights=(geodesic.W - W).norm(dim=(1, 2)) / W.norm(dim=(1, 2)),
            hamiltonian=torch.tensor(staggered, dtype=torch.float64) - self.scaled_hamiltonian.median(),
            objective=geodesic.objective - self.objective,
            data_cost=geodesic.data_cost - self.data_cost,
            residual=float(stationarity_residual(geodesic.A, geodesic.M, geodesic.W, geodesic.activation).max()),
            error=self.error,
        )


def check_same_problem(
    geodesic: Geodesic, effective_depth: float, weight_decay: float, activation: Activation, start: Tensor
) -> None:
    """Check that a geodesic belongs to the problem of these numbers and of the start state ``(samples, width)``.

    Raises:
        TypeError: not a Geodesic.
        ValueError: naming what differs.
    """
    if not isinstance(geodesic, Geodesic):
        raise TypeError(f"expected a Geodesic, as problem.geodesic() returns it, got {type(geodesic).__name__}")
    expected = {"effective depth": effective_depth, "weight decay": weight_decay, "activation": activation}
    got = {
        "effective depth": geodesic.effective_depth,
        "weight decay": geodesic.weight_decay,
        "activation": geodesic.activation,
    }
    for name, value in expected.items():
        if got[name] != value:
            raise ValueError(f"the geodesic belongs to another problem: its {name} is {got[name]}, expected {value}")
    if geodesic.A[0].shape != start.shape:
        raise ValueError(
            f"the geodesic belongs to another problem: its states are (samples, width) = {tuple(geodesic.A[0].shape)}, "
            f"expected {tuple(start.shape)}"
        )
    if not torch.allclose(geodesic.A[0], start, rtol=1e-5, atol=1e-6):
        raise ValueError("the geodesic belongs to another problem: its path starts from other inputs")
