"""`LeakyResNet`: the network of arXiv:2405.17573 as a `torch.nn.Module`."""

import warnings
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from isthmus._types import Path, Rows, Weights
from isthmus.activations import Activation, ReLU
from isthmus.initialise import DEFAULT_INITIALISATION, Shape, initialise

Ends = Literal["fixed", "learned"]


def check_step_sizes(rho: Tensor, effective_depth: float) -> None:
    """Check that ρ is a partition of [0, 1]; warn where a layer's skip changes sign (``ρ_ℓL̃ > 1``).

    Raises:
        ValueError: not one-dimensional, not positive and finite, or not summing to 1.
    """
    if rho.ndim != 1 or rho.numel() == 0:
        raise ValueError(f"step-sizes must be a non-empty vector (layers,), got shape {tuple(rho.shape)}")
    if not bool(torch.isfinite(rho).all()) or not bool((rho > 0).all()):
        raise ValueError(f"every step-size must be positive and finite, got {rho.tolist()}")
    total = float(rho.double().sum())
    if abs(total - 1) > 1e-5:
        raise ValueError(f"step-sizes must sum to 1, got a sum of {total:.8g}; divide them by it")
    largest = float(rho.max()) * effective_depth
    if largest > 1 + 1e-6:
        layer = int(rho.argmax()) + 1
        warnings.warn(
            f"rho * effective_depth is {largest:.3g} > 1 at layer {layer}: its skip connection changes sign; "
            f"more layers (depth > {effective_depth:g}) or a smaller effective depth avoid it",
            stacklevel=3,
        )


def _orthonormal(rows: int, columns: int, generator: torch.Generator) -> Float[Tensor, "rows columns"]:
    """Orthonormal columns (or rows, where there are fewer of them), uniformly distributed."""
    tall = torch.randn((max(rows, columns), min(rows, columns)), generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(tall)
    q = q * r.diagonal().sign()
    return q if rows >= columns else q.T


class LeakyResNet(nn.Module):
    """A Leaky ResNet: ``A_ℓ = (1 − ρ_ℓL̃)A_{ℓ−1} + ρ_ℓ W_ℓ σ(A_{ℓ−1})`` (E2), arXiv:2405.17573, section 1.

    Args:
        in_features: dimension of the inputs, at most the width.
        out_features: dimension of the outputs, at most the width.
        width: w, constant along the path. 100 is the paper's.
        depth: number of layers L. 20 is that of the paper's Figure 1.
        effective_depth: L̃ ≥ 0: 0 is a ResNet, ``L̃ = L`` with equal steps a fully connected network.
        activation: σ, with or without the appended 1 (biases).
        ends: ``fixed``: inputs and outputs pass through constant maps with orthonormal columns / rows, so that the
            norms and ranks of the data survive. ``learned``: the same maps, as penalised parameters.
        rho: step-sizes ``(depth,)`` summing to 1; equal ones by default.
        initialisation: a name in `isthmus.initialise.INITIALISATIONS`.
        seed: of the end maps and the weights, from a generator of its own.
        dtype: float32 or float64.
        device: any.

    Attributes:
        weight: ``(depth, width, width + 1)``, the bias as last column; without the appended 1 ``(…, width)``.
        rho: the step-sizes, a buffer: saved with the model, moved by `isthmus.mesh.MeshScheduler`.
        in_map: ``(width, in_features)``; out_map: ``(out_features, width)``: buffers or parameters, see ``ends``.

    Raises:
        ValueError: sizes that do not fit, a negative L̃, step-sizes that do not partition [0, 1], unknown names.

    >>> net = LeakyResNet(3, 2, width=8, depth=4, effective_depth=2.0)
    >>> net(torch.zeros(5, 3)).shape
    torch.Size([5, 2])
    """

    weight: nn.Parameter
    rho: Tensor
    in_map: Tensor
    out_map: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        width: int = 100,
        depth: int = 20,
        effective_depth: float = 7.0,
        activation: Activation | None = None,
        ends: Ends = "fixed",
        rho: Tensor | None = None,
        initialisation: str = DEFAULT_INITIALISATION,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_features", in_features),
            ("out_features", out_features),
            ("width", width),
            ("depth", depth),
        ):
            if not isinstance(value, int):
                raise TypeError(f"{name} must be a whole number (int), got {value!r}")
        if activation is not None and not isinstance(activation, Activation):
            raise TypeError(
                "activation must be one of isthmus's own, such as isthmus.ReLU() or isthmus.SmoothReLU(), got "
                f"{type(activation).__module__}.{type(activation).__name__}: {activation!r}"
            )
        if rho is not None and not isinstance(rho, Tensor):
            raise TypeError(f"rho must be a torch.Tensor (layers,), got {type(rho).__name__}")
        for name, value in (
            ("in_features", in_features),
            ("out_features", out_features),
            ("width", width),
            ("depth", depth),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if max(in_features, out_features) > width:
            raise ValueError(
                f"width must be at least the larger end, max({in_features}, {out_features}), for orthonormal end "
                f"maps to exist; got width {width}"
            )
        if not 0 <= effective_depth < float("inf"):
            raise ValueError(f"effective_depth must be finite and not negative, got {effective_depth}")
        if ends not in ("fixed", "learned"):
            raise ValueError(f"ends must be 'fixed' or 'learned', got {ends!r}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        self.in_features, self.out_features, self.width, self.depth = in_features, out_features, width, depth
        self.effective_depth = float(effective_depth)
        self.activation = ReLU() if activation is None else activation
        self.ends = ends
        self.initialisation = initialisation
        if rho is None:
            rho = torch.full((depth,), 1 / depth, dtype=torch.float64)
        if rho.shape != (depth,):
            raise ValueError(f"one step-size a layer: expected ({depth},), got {tuple(rho.shape)}")
        check_step_sizes(rho, self.effective_depth)
        self.register_buffer("rho", rho.detach().clone().to(dtype=dtype, device=device))
        # The ends come from a stream of their own, so that they are the same for every initialisation.
        generator = torch.Generator().manual_seed(seed)
        in_map = _orthonormal(width, in_features, generator).to(dtype=dtype, device=device)
        out_map = _orthonormal(out_features, width, generator).to(dtype=dtype, device=device)
        if ends == "learned":
            self.in_map, self.out_map = nn.Parameter(in_map.contiguous()), nn.Parameter(out_map.contiguous())
        else:
            self.register_buffer("in_map", in_map.contiguous())
            self.register_buffer("out_map", out_map.contiguous())
        self.weight = nn.Parameter(self._initial_weights(seed).to(dtype=dtype, device=device))

    def _initial_weights(self, seed: int) -> Weights:
        ends = max(self.in_features, self.out_features)
        shape = Shape(self.depth, self.width, self.activation.extra, self.effective_depth, ends)
        return initialise(self.initialisation, shape, seed + 1)

    @torch.no_grad()
    def reset_weights(self, seed: int) -> None:
        """Draw the weights anew, as the constructor does with this seed; end maps stay.

        Args:
            seed: of the weights.
        """
        self.weight.copy_(self._initial_weights(seed))

    def set_step_sizes(self, rho: Float[Tensor, "layers"]) -> None:
        """Replace ρ, checked as in the constructor.

        Raises:
            ValueError: see `check_step_sizes`; or another number of layers.
        """
        if rho.shape != self.rho.shape:
            raise ValueError(f"one step-size a layer: expected ({self.depth},), got {tuple(rho.shape)}")
        check_step_sizes(rho, self.effective_depth)
        self.rho.copy_(rho)

    @property
    def positions(self) -> Float[Tensor, "layers_plus_1"]:
        """``p_0 = 0, p_1, …, p_L = 1``: where the states of `trajectory` lie."""
        return torch.cat((self.rho.new_zeros(1), self.rho.cumsum(0)))

    def trajectory(self, x: Float[Tensor, "samples in_features"]) -> Path:
        """The path ``A_0, …, A_L`` in the representation space, ``(depth + 1, samples, width)``, differentiable.

        Raises:
            ValueError: inputs of another dimension.
        """
        return torch.stack(self._states(x))

    def forward(self, x: Float[Tensor, "samples in_features"]) -> Float[Tensor, "samples out_features"]:
        """The outputs, from plain differentiable operations: works under autograd, torch.func and torch.compile.

        Raises:
            ValueError: inputs of another dimension.
        """
        return self._states(x, keep=False)[-1] @ self.out_map.T

    def _states(self, x: Tensor, keep: bool = True) -> list[Rows]:
        if not isinstance(x, Tensor):
            raise TypeError(f"inputs must be a torch.Tensor, got {type(x).__name__}: use torch.as_tensor")
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise ValueError(
                f"inputs must be (samples, {self.in_features}), got {tuple(x.shape)}; flatten images first"
            )
        if x.dtype != self.in_map.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"inputs are {x.dtype} and the network is {self.in_map.dtype}: convert one of them")
        A = x @ self.in_map.T
        states = [A]
        for r, W in zip(self.rho.unbind(), self.weight.unbind(), strict=True):
            update = nn.functional.linear(
                self.activation.value(A),
                W[:, : self.width],
                W[:, self.width] if self.activation.append_one else None,
            )
            A = (1 - r * self.effective_depth) * A + r * update
            if keep:
                states.append(A)
        return states if keep else [A]

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return (
            f"{self.in_features} -> {self.width} -> {self.out_features}, depth={self.depth}, "
            f"effective_depth={self.effective_depth:g}, activation={self.activation}, ends={self.ends}"
        )
