"""The metric of Newton's method: the Gauss–Newton Hessian whole, layers and all, by way of the outputs.

Between layers the curvature of the data cost is not small: they act together. As a matrix over weights it is too large
to be inverted, L w² square; but its rank is at most that of the outputs, N n_out, and in practice that of the few
directions of each sample that the bottleneck lets through. With rows ``J`` of the Jacobian of the outputs in these
directions, times the root of the cost's curvature there,

    P = μ 1 + JᵀJ,    P⁻¹ = (1 − Jᵀ (μ 1 + J Jᵀ)⁻¹ J) / μ     (Woodbury)

and ``J Jᵀ`` costs no products of the size of the weights: a row of J is, layer by layer, an outer product of a
back-propagated vector g and a feature vector s, so that

    (J Jᵀ)_ij = Σ_ℓ ρ_ℓ ⟨g_ℓi, g_ℓj⟩ ⟨s_ℓ−1,i, s_ℓ−1,j⟩     (the neural tangent kernel, Jacot et al. 2018).

Where there are more directions than one can afford, the rest, summed over samples, is taken layer by layer in Kronecker
factors (as in `isthmus.curvature.kronecker`); its largest eigenvectors are further rows, each in one layer.

J and Jᵀ are a tangent sweep and a backward sweep. The same inverse answers what must be added to the weights to move
the outputs by a given amount: the second-order correction (Conn, Gould and Toint 2000, section 15.3.2.3) of a step that
left the surface of networks that fit. docs/notes/log/solver.md has the figures.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.curvature.base import Preconditioner, Target
from isthmus.curvature.kronecker import robust_eigh
from isthmus.curvature.linearise import Linearisation, Linearised
from isthmus.curvature.scaled import pieces
from isthmus.problem import Problem

_CHUNK = 2**23  # numbers in a temporary of the sweep that chooses directions
_DENSE = 2**22  # numbers of J: below, it is kept, and products with it replace sweeps (16 MB)
_HIDDEN = 1e-6  # μ over the largest curvature, below which float32 would lose μ
_BLOCK = 400  # rows and columns of the kernel at a time: its temporaries should stay in the cache


class DualPreconditioner(Preconditioner):
    """An approximate inverse Hessian in the variables ``√ρ_ℓ W_ℓ`` (learned ends as they are), by Woodbury's identity.

    Exact for the Gauss–Newton Hessian where ``limit`` is at least N n_out. Where it is less: the directions of the
    outputs, sample by sample, in which it is largest, and the largest eigenvectors of what they leave (of the weights;
    learned ends are seen by the directions only).

    Args:
        problem: whose model and data are used.
        limit: rows of J at most; by default half of what there is, between 500 and 6000. The kernel and its factor take
            8 ``limit``² bytes, a measurement about 2 L w ``limit``² operations.
        share: of the rows that go to what the directions leave.
        dtype: of the metric; float32 is enough, since Newton's method corrects it. Where the curvature of the data cost
            is met to be more than 1e6 times the weight decay, it becomes float64 by itself.
        net: what is measured, where it is not the problem's network but another discretisation of its flow.

    Raises:
        ValueError: a limit below 1, or a share outside [0, 1).
        OverflowError: from `refresh`, where weights are so large that the curvature overflows.
    """

    def __init__(
        self,
        problem: Target,
        limit: int | None = None,
        share: float = 0.3,
        dtype: torch.dtype = torch.float32,
        net: Linearised | None = None,
    ) -> None:
        if net is None:
            if not isinstance(problem, Problem):
                raise TypeError(f"of a {type(problem).__name__} the linearised network must be given as net")
            net = Linearisation(problem, dtype)
        if limit is None:  # of the kernel's eigenvalues few are above μ: docs/notes/log/solver.md
            limit = min(6000, max(500, net.outputs.numel() // 2))
        if limit < 1:
            raise ValueError(f"limit (rows) must be at least 1, got {limit}")
        if not 0 <= share < 1:
            raise ValueError(f"share (of the rows) must lie in [0, 1), got {share}")
        self.problem, self.limit, self.share, self.dtype = problem, limit, share, dtype
        self._point: list[Tensor] = []
        self._net = net

    restores = True

    @property
    def ready(self) -> bool:
        """Whether `refresh` has been called."""
        return bool(self._point)

    @torch.no_grad()
    def refresh(self) -> None:
        """Measure at the present parameters of the problem."""
        self.measure_at([p.detach().clone() for p in self.problem.parameters])

    @torch.no_grad()
    def measure_at(self, point: Sequence[Tensor]) -> None:
        """Measure at these parameters (kept as they are for `state_dict`)."""
        self._point = list(point)
        net = self._net
        net.at(point)
        W = net.point[0]
        self._roots = torch.tensor(net.quadrature, dtype=W.dtype, device=W.device).sqrt()[:, None, None]
        roots = self.problem.loss.root(net.outputs).contiguous()  # (samples, out, columns)
        # of the rows that are Kronecker eigenvectors: bases of every layer; layer, left, right; root of the curvature
        self._bases: tuple[Tensor, Tensor] | None = None
        self._chosen = W.new_zeros((3, 0), dtype=torch.int64)
        self._strength = W.new_zeros(0)
        gamma = W.new_zeros((len(W), W.shape[1], W.shape[1]))
        self._samples, self._covectors = self._choose(roots, gamma)
        kernel = self._kernel(gamma)
        if self._hides(kernel):
            self.stiff, self.dtype = True, torch.float64
            if kernel.dtype != torch.float64:
                assert isinstance(self.problem, Problem)
                self._net = Linearisation(self.problem, torch.float64)
                return self.measure_at(point)
        self._factor = self._factored(kernel)

    def _hides(self, kernel: Tensor) -> bool:
        """Whether the largest curvature is beyond what float32 can tell from μ; found once, it stays."""
        own = isinstance(self._net, Linearisation) and isinstance(self.problem, Problem)
        largest = float(kernel.diagonal().max())
        return self.stiff or (own and math.isfinite(largest) and self.problem.mu < _HIDDEN * largest)

    def _choose(
        self, roots: Float[Tensor, "samples out columns"], gamma: Float[Tensor, "layers width width"]
    ) -> tuple[Tensor, Float[Tensor, "rows out"]]:
        """Samples and covectors (the root of the cost's curvature times a unit vector) of the rows of J.

        Where not all can be had, the sums ``Σ D Dᵀ/m`` over all of them go to ``gamma``.
        """
        N, out, columns = roots.shape
        count = min(self.limit, N * columns)
        if count == N * columns:
            return torch.arange(N, device=roots.device).repeat_interleave(columns), roots.mT.reshape(N * columns, out)
        count = max(1, round(count * (1 - self.share)))
        local = roots.new_zeros((N, columns, columns))
        net, w = self._net, self._net.point[0].shape[1]
        size, layers = max(1, _CHUNK // (w * columns)), len(net.quadrature)
        for start in range(0, N, size):
            part = slice(start, start + size)
            # samples first, so that each one's Gram matrix is a batched product
            G = (net.out_map.T @ roots[part]).permute(1, 0, 2).contiguous()  # (width, samples, columns)
            adjoints = net.adjoints(G, lambda slopes, part=part: slopes[:, part, None])  # type: ignore[misc]
            for layer, D in zip(range(layers - 1, -1, -1), adjoints, strict=False):
                by_sample, m = D.transpose(0, 1).contiguous(), net.quadrature[layer]
                weight = net.features[layer][:, part].square().sum(dim=0) / m
                local[part] += weight[:, None, None] * torch.bmm(by_sample.mT, by_sample)
                gamma[layer].addmm_(D.reshape(w, -1), D.reshape(w, -1).T, alpha=1 / m)
        values, vectors = torch.linalg.eigh(local)
        chosen = values.flatten().topk(count).indices.sort().values
        samples, column = chosen // columns, chosen % columns
        unit = vectors[samples, :, column]
        return samples, torch.bmm(roots[samples], unit[:, :, None])[:, :, 0].contiguous()

    def _kernel(self, gamma: Float[Tensor, "layers width width"]) -> Tensor:
        """``J Jᵀ``; ``gamma``: see `_choose`."""
        samples, C, net = self._samples, self._covectors, self._net
        L, S, rows = len(net.quadrature), net.features, len(C)
        D = list(net.adjoints(net.out_map.T @ C.T, lambda slopes: slopes[:, samples]))
        back = D.pop() if net.learned else None
        D.reverse()
        self._complete(gamma, D)
        self._dense = self._rows(D, back) if self._numbers() <= _DENSE else None
        K = C.new_zeros((rows + len(self._strength),) * 2)

        def add(left: Tensor, right: Tensor, factor: float) -> None:
            for i in range(0, rows, _BLOCK):
                a = slice(i, min(i + _BLOCK, rows))
                for j in range(0, i + 1, _BLOCK):
                    b = slice(j, min(j + _BLOCK, rows))
                    K[a, b].addcmul_(left[:, a].T @ left[:, b], right[:, a].T @ right[:, b], value=factor)

        for layer, m in enumerate(net.quadrature):
            add(D[layer], S[layer][:, samples], 1 / m)
        if back is not None:
            add(C.T, net.end[:, samples], 1.0)
            add(back, net.x.T[:, samples], 1.0)
        if self._bases is not None:
            for layer in range(L):
                here = (self._chosen[0] == layer).nonzero()[:, 0]
                _, left, right = self._chosen[:, here]
                g = self._bases[0][layer].T[left] @ D[layer]
                s = self._bases[1][layer].T[right] @ S[layer][:, samples]
                K[rows + here, :rows] = g.mul_(s).mul_(self._strength[here, None] / self._roots[layer, 0, 0])
            K.diagonal()[rows:] = self._strength.square()
        return K

    def _factored(self, K: Tensor) -> Tensor:
        """The Cholesky factor of ``μ 1 + J Jᵀ``."""
        shift = self.problem.mu
        K.diagonal().add_(shift)
        factor, failed = torch.linalg.cholesky_ex(K)
        while int(failed) > 0:  # rounding of float32 beside large curvature; P stays positive with a larger shift
            if not bool(torch.isfinite(K).all()):
                raise OverflowError(
                    f"the curvature of the data cost is beyond {self.dtype}: the weights are too large for it"
                )
            K.diagonal().add_(9 * shift)
            shift *= 10
            factor, failed = torch.linalg.cholesky_ex(K)
        return factor

    def _complete(self, gamma: Float[Tensor, "layers width width"], D: list[Tensor]) -> None:
        """Choose the Kronecker eigenvectors: the largest of what the directions leave."""
        count = self.limit - D[0].shape[1]
        if count == 0 or not bool(gamma.any()):
            return
        for layer, d in enumerate(D):
            gamma[layer].addmm_(d, d.T, alpha=-1 / self._net.quadrature[layer])
        a, U = robust_eigh(gamma)
        b, V = robust_eigh(torch.stack([S @ S.T / S.shape[1] for S in self._net.features]))
        curvature = a.clamp_min(0)[:, :, None] * b.clamp_min(0)[:, None, :]
        best = curvature.flatten().topk(min(count, curvature.numel()))
        index = best.indices[best.values > 0]
        self._bases, self._strength = (U, V), curvature.flatten()[index].sqrt()
        self._chosen = torch.stack(torch.unravel_index(index, curvature.shape))

    def _numbers(self) -> int:
        return (len(self._covectors) + len(self._strength)) * sum(p.numel() for p in self._net.point)

    def _rows(self, D: list[Tensor], back: Tensor | None) -> Float[Tensor, "rows variables"]:
        """J itself: outer products of back-propagated vectors and features, then the Kronecker eigenvectors."""
        net, samples = self._net, self._samples
        S = torch.stack([S[:, samples] for S in net.features])
        parts = [torch.einsum("lai,lbi->ilab", torch.stack(D), S).div_(self._roots).flatten(1)]
        if back is not None:
            parts.append(torch.einsum("ai,bi->iab", back, net.x.T[:, samples]).flatten(1))
            parts.append(torch.einsum("ai,bi->iab", self._covectors.T, net.end[:, samples]).flatten(1))
        rows = torch.cat(parts, dim=1)
        if self._bases is None:
            return rows
        layer, left, right = self._chosen
        U, V = self._bases[0][layer, :, left], self._bases[1][layer, :, right]
        further = rows.new_zeros((len(layer), *net.point[0].shape))
        further[torch.arange(len(layer), device=rows.device), layer] = (
            self._strength[:, None, None] * U[:, :, None] * V[:, None, :]
        )
        further = torch.nn.functional.pad(further.flatten(1), (0, rows.shape[1] - net.point[0].numel()))
        return torch.cat((rows, further))

    def _jacobian(self, v: Tensor) -> Float[Tensor, "rows"]:
        """J v, by a tangent sweep."""
        if self._dense is not None:
            return self._dense @ v
        v_W, *v_ends = pieces(v, self._net.point)
        outputs = self._net.tangent([v_W / self._roots, *v_ends])
        seen = (outputs.T[self._samples] * self._covectors).sum(dim=1)
        if self._bases is None:
            return seen
        layer, left, right = self._chosen
        rotated = self._bases[0].mT @ v_W @ self._bases[1]
        return torch.cat((seen, rotated[layer, left, right] * self._strength))

    def _transposed(self, u: Float[Tensor, "rows"]) -> Tensor:
        """``Jᵀ u``, by a backward sweep."""
        if self._dense is not None:
            return self._dense.T @ u
        rows = len(self._samples)
        outputs = torch.zeros_like(self._net.outputs.T)
        outputs.index_add_(0, self._samples, self._covectors * u[:rows, None])
        W, *ends = self._net.transposed(outputs.T)
        W.div_(self._roots)
        if self._bases is not None:
            layer, left, right = self._chosen
            rotated = torch.zeros_like(W)
            rotated[layer, left, right] = u[rows:] * self._strength
            W.add_(self._bases[0] @ rotated @ self._bases[1].mT)
        return torch.cat([t.flatten() for t in (W, *ends)])

    def _solved(self, u: Float[Tensor, "rows"]) -> Float[Tensor, "rows"]:
        # two triangular solves of a vector; `cholesky_solve` takes twelve times as long (docs/notes/log/solver.md)
        half = torch.linalg.solve_triangular(self._factor, u[:, None], upper=False)
        return torch.linalg.solve_triangular(self._factor.mT, half, upper=True)[:, 0]

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
        c = torch.cat((c, torch.zeros_like(self._strength)))
        return self._transposed(self._solved(c)).neg_()

    def state_dict(self) -> dict[str, Any]:
        """The parameters at which it was measured: the rest follows from them."""
        return {"point": list(self._point)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a state back: measure there again."""
        if state["point"]:
            self.measure_at([p.clone() for p in state["point"]])
