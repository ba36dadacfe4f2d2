"""The metric of Newton's method: the Gauss–Newton Hessian whole, layers and all, by way of the outputs.

Between layers the curvature of the data cost is not small: they act together. As a matrix over weights it is too large
to be inverted, L w² square; but its rank is at most that of the outputs, N n_out, and in practice that of the few
directions of each sample that the bottleneck lets through. With rows ``J`` of the Jacobian of the outputs in these
directions, times the root of the cost's curvature there,

    P = μ 1 + JᵀJ,    P⁻¹ = (1 − Jᵀ (μ 1 + J Jᵀ)⁻¹ J) / μ     (Woodbury)

and ``J Jᵀ`` costs no products of the size of the weights: a row of J is, layer by layer, an outer product of a
back-propagated vector g and a feature vector s, so that

    (J Jᵀ)_ij = Σ_ℓ ρ_ℓ ⟨g_ℓi, g_ℓj⟩ ⟨s_ℓ−1,i, s_ℓ−1,j⟩     (the neural tangent kernel, Jacot et al. 2018).

J and Jᵀ are a tangent sweep and a backward sweep. The same inverse answers what must be added to the weights to move
the outputs by a given amount: the second-order correction (Conn, Gould and Toint 2000, section 15.3.2.3) of a step that
left the surface of networks that fit. docs/notes/solver.md has the figures.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.solve.objective import Problem

_CHUNK = 2**23  # numbers in a temporary of the sweep that chooses directions


class DualMetric:
    """An approximate inverse Hessian in the variables ``√ρ_ℓ W_ℓ`` (learned ends as they are), by Woodbury's identity.

    Exact for the Gauss–Newton Hessian where ``limit`` is at least N n_out; above, the directions of the outputs, sample
    by sample, in which it is largest.

    Args:
        problem: whose model and data are used.
        limit: directions at most. The kernel and its factor take 8 ``limit``² bytes, a measurement about 2 L w
            ``limit``² operations.
        dtype: of the metric; float32 is enough, since Newton's method corrects it.
    """

    def __init__(self, problem: Problem, limit: int = 6000, dtype: torch.dtype = torch.float32) -> None:
        if limit < 1:
            raise ValueError(f"limit (directions) must be at least 1, got {limit}")
        self.problem, self.limit, self.dtype = problem, limit, dtype
        self._point: list[Tensor] = []

    @property
    def ready(self) -> bool:
        """Whether `refresh` has been called."""
        return bool(self._point)

    @torch.no_grad()
    def refresh(self) -> None:
        """Measure at the present parameters."""
        self._measure([p.detach().clone() for p in self.problem.parameters])

    def _measure(self, point: Sequence[Tensor]) -> None:
        self._point = list(point)
        problem, model = self.problem, self.problem.model
        act, leak, learned = problem.activation, problem.effective_depth, model.ends == "learned"
        wide = [p.to(self.dtype) for p in point]
        self._W = wide[0].clone()
        self._in_map = (wide[1] if learned else model.in_map.detach().to(self.dtype)).clone()
        self._out_map = (wide[2] if learned else model.out_map.detach().to(self.dtype)).clone()
        self._rho = model.rho.tolist()
        self._roots = torch.tensor(self._rho, dtype=self.dtype, device=self._W.device).sqrt()[:, None, None]
        self._x = problem.x.T.to(self.dtype)
        L, w, N = model.depth, model.width, problem.x.shape[0]
        A = self._in_map @ self._x
        self._S = A.new_ones((L, w + act.extra, N))
        self._slopes = A.new_empty((L, w, N))
        for layer, r in enumerate(self._rho):
            S = self._S[layer]
            S[:w] = act.value(A)
            self._slopes[layer] = act.derivative(A)
            A = torch.addmm(A, self._W[layer], S, beta=1 - r * leak, alpha=r)
        self._end = A
        roots = problem.output_root(self._out_map @ A).contiguous()  # (samples, out, columns)
        self._samples, self._covectors = self._choose(roots)
        self._factor = self._kernel()

    def _pull(self, layer: int, G: Float[Tensor, "width any"], slopes: Tensor) -> Float[Tensor, "width any"]:
        """``∂/∂A_{ℓ−1}`` from ``∂/∂A_ℓ``, of columns that belong to samples with these slopes."""
        r = self._rho[layer]
        pulled = (self._W[layer, :, : G.shape[0]].T @ G).mul_(slopes)
        return pulled.mul_(r).add_(G, alpha=1 - r * self.problem.effective_depth)

    def _choose(self, roots: Float[Tensor, "samples out columns"]) -> tuple[Tensor, Float[Tensor, "rows out"]]:
        """Samples and covectors (the root of the cost's curvature times a unit vector) of the rows of J."""
        N, out, columns = roots.shape
        count = min(self.limit, N * columns)
        index = torch.arange(N, device=roots.device)
        if count == N * columns:
            return index.repeat_interleave(columns), roots.mT.reshape(N * columns, out)
        local = roots.new_zeros((N, columns, columns))
        w, size = self.problem.model.width, max(1, _CHUNK // (self.problem.model.width * columns))
        for start in range(0, N, size):
            part = slice(start, start + size)
            # samples first, so that each one's Gram matrix is a batched product
            G = (self._out_map.T @ roots[part]).permute(1, 0, 2).contiguous()  # (width, samples, columns)
            for layer in range(len(self._rho) - 1, -1, -1):
                by_sample = G.transpose(0, 1).contiguous()
                weight = self._rho[layer] * self._S[layer][:, part].square().sum(dim=0)
                local[part] += weight[:, None, None] * torch.bmm(by_sample.mT, by_sample)
                if layer > 0:
                    slopes = self._slopes[layer][:, part, None].expand_as(G).reshape(w, -1)
                    G = self._pull(layer, G.reshape(w, -1), slopes).view_as(G)
        values, vectors = torch.linalg.eigh(local)
        chosen = values.flatten().topk(count).indices.sort().values
        samples, column = chosen // columns, chosen % columns
        unit = vectors[samples, :, column]
        return samples, torch.bmm(roots[samples], unit[:, :, None])[:, :, 0].contiguous()

    def _kernel(self) -> Tensor:
        """The Cholesky factor of ``μ 1 + J Jᵀ``."""
        samples, C, model = self._samples, self._covectors, self.problem.model
        G = self._out_map.T @ C.T
        rows = C.shape[0]
        K = C.new_zeros((rows, rows))
        size = 2000

        def add(left: Tensor, right: Tensor, factor: float) -> None:
            for i in range(0, rows, size):
                a = slice(i, i + size)
                for j in range(0, i + 1, size):
                    b = slice(j, j + size)
                    K[a, b].addcmul_(left[:, a].T @ left[:, b], right[:, a].T @ right[:, b], value=factor)

        learned = model.ends == "learned"
        if learned:
            add(C.T, self._end[:, samples], 1.0)
        for layer in range(len(self._rho) - 1, -1, -1):
            add(G, self._S[layer][:, samples], self._rho[layer])
            if layer > 0 or learned:
                G = self._pull(layer, G, self._slopes[layer][:, samples])
        if learned:
            add(G, self._x[:, samples], 1.0)
        shift = self.problem.mu
        K.diagonal().add_(shift)
        factor, failed = torch.linalg.cholesky_ex(K)
        while int(failed) > 0:  # rounding of float32 beside large curvature
            K.diagonal().add_(9 * shift)
            shift *= 10
            factor, failed = torch.linalg.cholesky_ex(K)
        return factor

    def _split(self, v: Tensor) -> list[Tensor]:
        pieces, start = [], 0
        for p in self.problem.parameters:
            pieces.append(v[start : start + p.numel()].view(p.shape))
            start += p.numel()
        return pieces

    def _jacobian(self, v: Tensor) -> Float[Tensor, "rows"]:
        """J v, by a tangent sweep."""
        pieces, leak, w = self._split(v), self.problem.effective_depth, self._W.shape[1]
        V = pieces[0] * self._roots
        dA = pieces[1] @ self._x if len(pieces) > 1 else None
        for layer, r in enumerate(self._rho):
            moved = V[layer] @ self._S[layer]
            if dA is not None:
                moved.addmm_(self._W[layer, :, :w], self._slopes[layer] * dA, alpha=r).add_(dA, alpha=1 - r * leak)
            dA = moved
        assert dA is not None
        outputs = self._out_map @ dA
        if len(pieces) > 1:
            outputs.addmm_(pieces[2], self._end)
        return (outputs.T[self._samples] * self._covectors).sum(dim=1)

    def _transposed(self, u: Float[Tensor, "rows"]) -> Tensor:
        """``Jᵀ u``, by a backward sweep."""
        learned = self.problem.model.ends == "learned"
        outputs = self._covectors.new_zeros((self._x.shape[1], self._out_map.shape[0]))
        outputs = outputs.index_add_(0, self._samples, self._covectors * u[:, None]).T
        G = self._out_map.T @ outputs
        W = torch.empty_like(self._W)
        for layer in range(len(self._rho) - 1, -1, -1):
            torch.mm(G, self._S[layer].T, out=W[layer])
            if layer > 0 or learned:
                G = self._pull(layer, G, self._slopes[layer])
        W.mul_(self._roots)
        if not learned:
            return W.flatten()
        return torch.cat((W.flatten(), (G @ self._x.T).flatten(), (outputs @ self._end.T).flatten()))

    def _solved(self, u: Float[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        return torch.cholesky_solve(u[:, None], self._factor)[:, 0]

    @torch.no_grad()
    def apply(self, v: Tensor) -> Tensor:
        """The approximate inverse Hessian times a flat vector in the scaled variables."""
        narrow = v.to(self.dtype)
        return (narrow - self._transposed(self._solved(self._jacobian(narrow)))).div_(self.problem.mu).to(v.dtype)

    @torch.no_grad()
    def restoration(self, excess: Float[Tensor, "out samples"]) -> Tensor:
        """What to add to the scaled parameters so that the outputs lose ``excess``, at least cost to first order.

        The minimiser of ``½‖J d + c‖² + (μ/2)‖d‖²``, c being the excess as J's rows see it.
        """
        c = (excess.T.to(self.dtype)[self._samples] * self._covectors).sum(dim=1)
        return self._transposed(self._solved(c)).neg_()

    def state_dict(self) -> dict[str, Any]:
        """The parameters at which it was measured: the rest follows from them."""
        return {"point": list(self._point)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a state back: measure there again."""
        if state["point"]:
            self._measure([p.clone() for p in state["point"]])
