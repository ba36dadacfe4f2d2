"""Kronecker-factored curvature: the metric in which L-BFGS starts.

The Gauss–Newton Hessian of the data cost in ``W_ℓ`` is, sample by sample, ``s_i s_iᵀ ⊗ J_iᵀ H J_i`` with the features
``s_i = σ(A_{ℓ−1})_i``, the Jacobian ``J_i`` of the outputs with respect to ``A_ℓ``, and the Hessian H of the cost in
the outputs. Replacing the mean of products by the product of means (Martens and Grosse 2015, "K-FAC") makes it
``S ⊗ Γ``, so that it is inverted, together with the weight decay, by two small eigendecompositions a layer. Γ is
estimated by backward sweeps of random output vectors of covariance H.

Why here: curvature ranges over 7 orders of magnitude, and the flattest of it, μρ, belongs to weights that no longer
matter. In this metric they go in one step to where (E9) wants them.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.curvature.base import Preconditioner
from isthmus.curvature.scaled import pieces
from isthmus.problem import Problem


class KroneckerPreconditioner(Preconditioner):
    """An approximate inverse Hessian of the objective, in the variables ``√ρ_ℓ W_ℓ`` (learned ends as they are).

    Args:
        problem: whose model and data are used.
        damping: factor on the data part. Layers act together, which a block-diagonal metric does not see; measured
            on Figure 1's network, smaller than 1 is better: docs/notes/log/solver.md.
        sweeps: random backward sweeps for one estimate of Γ.
    """

    def __init__(self, problem: Problem, damping: float = 0.03, sweeps: int = 2) -> None:
        self.problem, self.damping, self.sweeps = problem, damping, sweeps
        self.refreshes = 0
        self._bases: list[tuple[Tensor, Tensor, Tensor]] = []  # left, right, 1/curvature: one a parameter

    @property
    def ready(self) -> bool:
        """Whether `refresh` has been called."""
        return bool(self._bases)

    @torch.no_grad()
    def refresh(self) -> None:
        """Measure the factors at the present parameters: ``sweeps`` backward sweeps, then ``eigh``.

        After an evaluation at these parameters its features are used; else there is a forward sweep first.
        """
        problem, model = self.problem, self.problem.model
        generator = torch.Generator().manual_seed(self.refreshes)
        self.refreshes += 1
        flow, rho, learned = problem.features(), model.rho.tolist(), model.ends == "learned"
        samples, L, w = flow.samples, model.depth, model.width
        outputs = model.out_map @ flow.end
        gamma = model.weight.new_zeros((L + 1, w, w))
        for _ in range(self.sweeps):
            flow.gradient(L).copy_(model.out_map.T @ problem.loss.sample(outputs, generator))
            flow.backward(model.weight, rho, 0.0, None, learned, visit=lambda layer, G: gamma[layer].addmm_(G, G.T))
        gamma /= samples * self.sweeps
        features = torch.bmm(flow.S, flow.S.mT) / samples
        scale = problem.loss.curvature_factor * self.damping
        left, right = problem.pooled(gamma[1:]), problem.pooled(features)
        self._bases = [self._invert(left, right, scale * torch.as_tensor(problem.scales[0]).square())]
        if learned:
            x, A_end = problem.x.T, flow.end
            eye = torch.eye(model.out_features, dtype=gamma.dtype, device=gamma.device)
            self._bases.append(self._invert(gamma[0], x @ x.T / samples, scale))
            self._bases.append(self._invert(eye, A_end @ A_end.T / samples, scale))

    def _invert(self, left: Tensor, right: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        (a, U), (b, V) = robust_eigh(left), robust_eigh(right)
        curvature = a.clamp_min(0)[..., :, None] * b.clamp_min(0)[..., None, :]
        # contiguous: `eigh` gives columns first, a file does not keep that, and products of the two differ in bits
        return U.contiguous(), V.contiguous(), 1 / (scale * curvature + self.problem.mu)

    def apply(self, v: Float[Tensor, "variables"]) -> Float[Tensor, "variables"]:
        """The approximate inverse Hessian times a flat vector in L-BFGS's variables."""
        pieces = []
        for X, (U, V, inverse) in self._rotated(v):
            pieces.append((U @ X.mul_(inverse) @ V.mT).flatten())
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def square(self, v: Float[Tensor, "variables"]) -> float:
        """``⟨v, apply(v)⟩`` at half the cost."""
        return sum(float((X.square_() * inverse).sum()) for X, (_, _, inverse) in self._rotated(v))

    def _rotated(self, v: Tensor) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor, Tensor]]]:
        """Every parameter's part of a vector in the eigenbases, new tensors, with the bases."""
        for X, (U, V, inverse) in zip(pieces(v, self.problem.parameters), self._bases, strict=True):
            yield U.mT @ X @ V, (U, V, inverse)

    def state_dict(self) -> dict[str, Any]:
        """The factors and the count that seeds the next ones."""
        return {"refreshes": self.refreshes, "bases": [list(basis) for basis in self._bases]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a state back."""
        self.refreshes = int(state["refreshes"])
        self._bases = [(U.clone(), V.clone(), inverse.clone()) for U, V, inverse in state["bases"]]


def robust_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors of symmetric positive matrices; where LAPACK gives up, of slightly shifted ones."""
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        wide = matrix.double()
        shift = 1e-7 * wide.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] + 1e-30
        eye = torch.eye(matrix.shape[-1], dtype=wide.dtype, device=wide.device)
        # distinct shifts: repeated eigenvalues, as neurons that are doubled make them, are what it fails on
        spread = torch.linspace(1, 2, matrix.shape[-1], dtype=wide.dtype, device=wide.device)
        values, vectors = torch.linalg.eigh(wide + shift * eye * spread)
        values, vectors = values.to(matrix.dtype), vectors.to(matrix.dtype)
    return values, vectors
