"""The objective (E3) of a model on data: value, gradient, residual and geodesic, by the fused flow."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from isthmus.activations import Activation
from isthmus.flow import FlowWorkspace, RecomputeWorkspace, segment_for
from isthmus.geodesic import Geodesic
from isthmus.loss import Loss, loss_of
from isthmus.mechanics.invariants import relative_residual
from isthmus.model import LeakyResNet
from isthmus.status import Status

Memory = Literal["store", "recompute"]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the objective on a batch.

    Args:
        objective: data cost plus penalty.
        data_cost: C of (E3).
        penalty: ``(μ/2)(Σ_ℓ ρ_ℓ‖W_ℓ‖² + ‖learned ends‖²)``.
    """

    objective: float
    data_cost: float
    penalty: float


class _Swept(NamedTuple):
    """The last sweep of the full batch: where its features are (None: overwritten), squared weights, step-sizes."""

    flow: FlowWorkspace | RecomputeWorkspace | None
    squares: Tensor
    rho: list[float]


class Problem:
    """A model, its data and the weight decay: the objective (E3), arXiv:2405.17573.

    ``C(A_1) + (μ/2) Σ_ℓ ρ_ℓ ‖W_ℓ‖_F²`` with μ = λ/L̃, biases included; learned end maps are penalised by
    ``(μ/2)‖·‖_F²`` as well, since otherwise they would carry the scale for free.

    Args:
        model: the network; its parameters are read and written in place.
        x: inputs ``(samples, in_features)``.
        y: targets ``(samples, out_features)``, or class indices ``(samples,)`` for cross-entropy.
        loss: ``mse``, ``(1/N) Σ_i ‖y_i − f(x_i)‖²`` (summed over outputs), ``cross_entropy`` (mean), or any
            `isthmus.loss.Loss`.
        mu: weight decay μ > 0; 0.001 in the paper.
        x_test: inputs of the test part, or None.
        y_test: targets of the test part.
        memory: what a step holds for its backward sweep. ``store``: the features of every layer. ``recompute``: those
            of about √L layers, and checkpoints; a second forward sweep makes the rest again, for a sixth to a third
            more time. A number: the most bytes that the buffers of the sweeps may take, used to recompute as little
            as possible. See docs/benchmarks.md.
        activation: σ that stands in for the model's while this problem is solved (continuation); None: the model's.
        effective_depth: L̃ that stands in for the model's; None: the model's.

    Attributes:
        keep_path: whether `evaluate` keeps every state for `last_path`, at the cost of one pass over a buffer a layer.
            It is set by asking for the path; set it beforehand where the weights move before you ask.

    Raises:
        ValueError: shapes that do not fit the model or each other, μ ≤ 0, an unknown loss, an unknown choice of memory
            or a budget too small for it.
    """

    def __init__(
        self,
        model: LeakyResNet,
        x: Float[Tensor, "samples in_features"],
        y: Tensor,
        *,
        loss: str | Loss = "mse",
        mu: float = 1e-3,
        x_test: Tensor | None = None,
        y_test: Tensor | None = None,
        memory: Memory | int = "store",
        activation: Activation | None = None,
        effective_depth: float | None = None,
    ) -> None:
        if not isinstance(model, LeakyResNet):
            raise TypeError(f"model must be a LeakyResNet, got {type(model).__name__}")
        for name, value in (("x", x), ("y", y), ("x_test", x_test), ("y_test", y_test)):
            if value is not None and not isinstance(value, Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}: use torch.as_tensor")
        if (x_test is None) != (y_test is None):
            raise ValueError("x_test and y_test belong together: give both or neither")
        if not 0 < mu < float("inf"):
            raise ValueError(f"mu (weight decay) must be positive and finite, got {mu}")
        whole = isinstance(memory, int) and not isinstance(memory, bool)
        if not whole and memory not in ("store", "recompute"):
            raise ValueError(f"memory must be 'store', 'recompute' or a whole number of bytes, got {memory!r}")
        self.model, self.loss, self.mu = model, loss_of(loss), float(mu)
        self.activation = model.activation if activation is None else activation
        if self.activation.extra != model.activation.extra:
            raise ValueError(
                f"an activation that stands in for {model.activation} must append as many ones, got {self.activation}"
            )
        self.effective_depth = model.effective_depth if effective_depth is None else float(effective_depth)
        if not 0 <= self.effective_depth < float("inf"):
            raise ValueError(f"effective_depth must be finite and not negative, got {effective_depth}")
        self.memory = memory
        self.keep_path = False
        self.x, self.y = self._data(x, y, "training")
        self.x_test: Tensor | None = None
        self.y_test: Tensor | None = None
        if x_test is not None and y_test is not None and x_test.shape[0] > 0:
            self.x_test, self.y_test = self._data(x_test, y_test, "test")
        self._workspaces: dict[tuple[int, bool], FlowWorkspace | RecomputeWorkspace] = {}
        self._swept: _Swept | None = None

    def __repr__(self) -> str:
        return f"Problem({self.model.extra_repr()}, samples={self.x.shape[0]}, loss={self.loss.name!r}, mu={self.mu:g})"

    def _data(self, x: Tensor, y: Tensor, part: str) -> tuple[Tensor, Tensor]:
        model, weight = self.model, self.model.weight
        if x.ndim != 2 or x.shape[1] != model.in_features or x.shape[0] == 0:
            raise ValueError(
                f"{part} inputs must be (samples, {model.in_features}) with at least one row, got {tuple(x.shape)}"
            )
        self.loss.check(y, x.shape[0], model.out_features, part)
        kind: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
        return x.to(**kind), self.loss.convert(y, **kind)

    @property
    def network(self) -> LeakyResNet:
        """The model with this problem's σ and L̃, as a module of the same parameters; the model itself where they agree.

        `isthmus.branches.Branch.restore` gives problems whose L̃ is not the model's: their outputs are this network's.
        """
        model = self.model
        if (model.activation, model.effective_depth) == (self.activation, self.effective_depth):
            return model
        network = copy.copy(model)  # shallow: parameters and buffers are shared
        network.activation, network.effective_depth = self.activation, self.effective_depth
        return network

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weight, then learned ends where there are any; ``.grad`` is filled by `evaluate`.

        All of them are trained, whatever their ``requires_grad``: nothing here goes through autograd.
        """
        weight = self.model.weight
        return [weight, *(p for p in self.model.parameters() if p is not weight)]

    @property
    def scales(self) -> list[Tensor | float]:
        """Factors on `parameters` in which the penalty is ``(μ/2)‖·‖²``: ``√ρ_ℓ`` for ``W_ℓ``, 1 for learned ends."""
        return [self.model.rho.sqrt()[:, None, None], *[1.0] * (len(self.parameters) - 1)]

    def pooled(self, per_layer: Float[Tensor, "layers ..."]) -> Float[Tensor, "blocks ..."]:
        """What is had of every layer, for every block of ``parameters[0]``: the same, unless layers share weights."""
        return per_layer

    def last_outputs(self) -> Float[Tensor, "out samples"]:
        """The outputs of the last full evaluation."""
        return self.model.out_map.detach() @ self.workspace(path=False).end

    def _workspace(self, samples: int) -> FlowWorkspace | RecomputeWorkspace:
        model, key = self.model, (samples, self.keep_path)
        flow = self._workspaces.get(key)
        if flow is not None and flow.end.dtype == model.weight.dtype:
            return flow
        if len(self._workspaces) > 3:
            self._workspaces.clear()
        if (model.weight.dtype, model.weight.device) != (self.x.dtype, self.x.device):
            raise ValueError(
                f"the model moved to {model.weight.dtype} on {model.weight.device} after the problem was made with "
                f"{self.x.dtype} on {self.x.device}: make a new Problem"
            )
        flow = self._new_workspace(samples)
        self._workspaces[key] = flow
        return flow

    def _new_workspace(self, samples: int) -> FlowWorkspace | RecomputeWorkspace:
        model, weight = self.model, self.model.weight
        shape = (model.depth, model.width, samples)
        kind: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
        if self.memory == "store":
            return FlowWorkspace(self.activation, self.effective_depth, *shape, keep_path=self.keep_path, **kind)
        budget = None if isinstance(self.memory, str) else self.memory
        segment = segment_for(self.activation, *shape, weight.dtype, budget)
        return RecomputeWorkspace(self.activation, self.effective_depth, *shape, segment=segment, **kind)

    def variant(
        self,
        *,
        rows: int | None = None,
        mu: float | None = None,
        activation: Activation | None = None,
        effective_depth: float | None = None,
    ) -> "Problem":
        """The same model under other conditions: the easier problems that continuation passes through.

        It trains the same parameters, and has no test part.

        Args:
            rows: number of training rows to keep, at even distances; all by default.
            mu: another weight decay.
            activation: another σ, which appends as many ones.
            effective_depth: another L̃.

        Raises:
            ValueError: a number of rows outside 1..N; see also the constructor.
        """
        N = self.x.shape[0]
        rows = N if rows is None else rows
        if not 1 <= rows <= N:
            raise ValueError(f"rows must lie in 1..{N} (the training rows), got {rows}")
        chosen = torch.linspace(0, N - 1, rows, dtype=torch.float64).round().long().to(self.x.device)
        return Problem(
            self.model,
            self.x if rows == N else self.x[chosen],
            self.y if rows == N else self.y[chosen],
            loss=self.loss,
            mu=self.mu if mu is None else mu,
            memory=self.memory,
            activation=self.activation if activation is None else activation,
            effective_depth=self.effective_depth if effective_depth is None else effective_depth,
        )

    @torch.no_grad()
    def evaluate(self, batch: Tensor | None = None, gradient: bool = True) -> Evaluation:
        """Evaluate the objective, and write its gradient to every parameter's ``.grad``.

        Args:
            batch: indices of the rows to use; all of them by default.
            gradient: also compute the gradient.
        """
        model = self.model
        x, y = (self.x, self.y) if batch is None else (self.x[batch], self.y[batch])
        flow, rho = self._workspace(x.shape[0]), model.rho.tolist()
        A_end = self._sweep(flow, x, rho)
        cost, d_outputs = self.loss.evaluate(model.out_map @ A_end, y)
        # sums in float64: in float32 the line search could not see small decreases
        squares = self._squared_weights()
        if batch is None:
            self._swept = _Swept(flow, squares, rho)
        elif self._swept is not None and self._swept.flow is flow:
            self._swept = self._swept._replace(flow=None)  # the same number of rows, but others
        learned = model.ends == "learned"
        sums = [cost.reshape(1), squares]
        if learned:
            sums += [end.square().sum(dtype=torch.float64).reshape(1) for end in (model.in_map, model.out_map)]
        if gradient:
            trained = (model.weight, model.in_map, model.out_map) if learned else (model.weight,)
            for parameter in trained:
                if parameter.grad is None:  # at first, and after somebody's zero_grad()
                    parameter.grad = torch.zeros_like(parameter)
            if learned:  # before the backward sweep, which may reuse the buffer of A_end
                torch.addmm(model.out_map, d_outputs, A_end.T, beta=self.mu, out=model.out_map.grad)
            torch.mm(model.out_map.T, d_outputs, out=flow.gradient(model.depth))
            G0 = flow.backward(model.weight, rho, self.mu, model.weight.grad, to_input=learned)
            if learned:
                torch.addmm(model.in_map, G0, x, beta=self.mu, out=model.in_map.grad)
        data_cost, *squared = torch.cat(sums).tolist()  # the one time that the host waits for a GPU
        weights = sum(r * square for r, square in zip(rho, squared, strict=False))
        penalty_value = 0.5 * self.mu * (weights + sum(squared[model.depth :]))
        return Evaluation(data_cost + penalty_value, data_cost, penalty_value)

    def _sweep(self, flow: FlowWorkspace | RecomputeWorkspace, x: Tensor, rho: Sequence[float]) -> Tensor:
        """The forward sweep of these rows; returns the last states, as columns."""
        torch.mm(self.model.in_map, x.T, out=flow.start)
        return flow.forward(self.model.weight, rho)

    def _squared_weights(self) -> Float[Tensor, "layers"]:
        # over one dimension: over two it takes three times as long
        return torch.linalg.vector_norm(self.model.weight.detach().flatten(1), dim=1, dtype=torch.float64).square_()

    @torch.no_grad()
    def residual(self) -> Float[Tensor, "layers"]:
        """Stationarity residual ``‖W_ℓ − M_ℓσ(A_{ℓ−1})ᵀ‖/‖W_ℓ‖`` from the gradient of the last full evaluation.

        The gradient is ``μρ_ℓ(W_ℓ − M_ℓσ(A_{ℓ−1})ᵀ)`` (E9). A layer that is zero with a zero gradient counts as 0.
        """
        weight = self.model.weight
        assert weight.grad is not None
        return relative_residual(weight.grad.norm(dim=(1, 2)) / (self.mu * self.model.rho), weight)

    @torch.no_grad()
    def workspace(self, path: bool = True) -> FlowWorkspace:
        """The buffers of the full batch: features of the last full evaluation, and its path.

        Args:
            path: False where the path is not needed. Asked for the first time, it is computed once more, and later
                evaluations keep it.

        Raises:
            RuntimeError: ``memory`` is not ``store``; or the path was not kept, and the weights have moved since.
        """
        samples = self.x.shape[0]
        if self.memory != "store":
            raise RuntimeError(
                f"memory={self.memory!r} keeps neither path nor features of all layers: make the Problem with "
                "memory='store' (L-BFGS's metric needs it), or train with other stages"
            )
        if path and not self._workspace(samples).keeps_path:
            self.keep_path = True
            if self._swept is not None:
                if not torch.equal(self._swept.squares, self._squared_weights()):
                    raise RuntimeError(
                        "the path of the last evaluation was not kept, and the weights have moved since: evaluate "
                        "again (paths are kept from now on), or set problem.keep_path = True beforehand"
                    )
                self._sweep(self._workspace(samples), self.x, self.model.rho.tolist())
        found = self._workspace(samples)
        assert isinstance(found, FlowWorkspace)
        return found

    @torch.no_grad()
    def features(self) -> FlowWorkspace:
        """The buffers of the full batch with the features of the present parameters: swept forward only if they moved.

        Norms of the layers' weights tell whether they did, as in `workspace`; learned ends are swept always.

        Raises:
            RuntimeError: ``memory`` is not ``store``.
        """
        flow, rho = self.workspace(path=False), self.model.rho.tolist()
        squares = self._squared_weights()
        if self._swept is not None and self.model.ends != "learned":
            swept = self._swept
            if swept.flow is flow and swept.rho == rho and torch.equal(swept.squares, squares):
                return flow
        self._sweep(flow, self.x, rho)
        self._swept = _Swept(flow, squares, rho)
        return flow

    @torch.no_grad()
    def last_path(self) -> Float[Tensor, "layers_plus_1 width samples"]:
        """The path of the last full evaluation, as columns (a buffer: copy it to keep it)."""
        return self.workspace().A

    @torch.no_grad()
    def test(self) -> tuple[float | None, float | None]:
        """Data cost on the test part, and the accuracy where there are classes; None where there is no test part."""
        if self.x_test is None or self.y_test is None:
            return None, None
        return self.score(self.x_test, self.y_test)

    @torch.no_grad()
    def score(self, x: Tensor, y: Tensor) -> tuple[float, float | None]:
        """Data cost and, for classes, accuracy of `network` on any rows."""
        outputs = self.network(x).T
        accuracy = self.loss.accuracy(outputs, y)
        return float(self.loss.evaluate(outputs, y)[0]), accuracy

    @torch.no_grad()
    def geodesic(self, status: Status = Status.UNKNOWN) -> Geodesic:
        """Weights, path and momenta of the whole training part, recomputed in float64."""
        model = self.model
        wide = torch.float64
        flow = FlowWorkspace(
            self.activation,
            self.effective_depth,
            model.depth,
            model.width,
            self.x.shape[0],
            dtype=wide,
            device=model.weight.device,
            keep_gradients=True,
        )
        W, rho = model.weight.detach().to(wide, copy=True), model.rho.to(wide, copy=True)
        steps: Sequence[float] = rho.tolist()
        torch.mm(model.in_map.to(wide), self.x.to(wide).T, out=flow.start)
        outputs = model.out_map.to(wide) @ flow.forward(W, steps)
        cost, d_outputs = self.loss.evaluate(outputs, self.loss.convert(self.y, wide, model.weight.device))
        torch.mm(model.out_map.to(wide).T, d_outputs, out=flow.gradient(model.depth))
        flow.backward(W, steps, 0.0, None)
        penalty = (W.square().sum(dim=(1, 2)) * rho).sum()
        if model.ends == "learned":
            penalty = penalty + model.in_map.double().square().sum() + model.out_map.double().square().sum()
        return Geodesic(
            W=W,
            rho=rho,
            A=flow.A.transpose(1, 2),
            M=flow.G.mul_(-1 / self.mu).transpose(1, 2),
            effective_depth=self.effective_depth,
            weight_decay=self.mu,
            activation=self.activation,
            objective=float(cost + 0.5 * self.mu * penalty),
            data_cost=float(cost),
            colours=self.loss.colours(self.y),
            status=status,
        )
