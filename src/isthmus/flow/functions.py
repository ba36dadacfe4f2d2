"""`path` and `momenta`: the fused flow as functions of batch-first tensors (E2), (E8)."""

import torch
from torch import Tensor

from isthmus._types import Path, Rows, StepSizesVector, Weights
from isthmus.activations import Activation
from isthmus.flow.workspace import FlowWorkspace


def _check(W: Tensor, rho: Tensor, width: int, activation: Activation) -> None:
    if W.shape[1] != width or W.shape[2] != width + activation.extra:
        raise ValueError(
            f"weights must be (layers, {width}, {width + activation.extra}) for states of width {width} and "
            f"{activation}, got {tuple(W.shape)}"
        )
    if rho.shape[0] != W.shape[0]:
        raise ValueError(f"one step-size a layer: {W.shape[0]} weight matrices, but {rho.shape[0]} step-sizes")


def path(A0: Rows, W: Weights, rho: StepSizesVector, effective_depth: float, activation: Activation) -> Path:
    """The path ``A_0, …, A_L`` of (E2), arXiv:2405.17573, section 1.

    Args:
        A0: inputs in the representation space, batch-first ``(samples, width)``.
        W: weights ``(layers, width, width + 1)``, the bias as last column; without the appended 1 ``(…, width)``.
        rho: step-sizes ``(layers,)``, summing to the range of p (1 in the paper).
        effective_depth: L̃ ≥ 0.
        activation: σ.

    Returns:
        ``(layers + 1, samples, width)``, batch-first (a transposed view of the columns).

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check(W, rho, A0.shape[1], activation)
    flow = FlowWorkspace(
        activation, effective_depth, W.shape[0], A0.shape[1], A0.shape[0], dtype=A0.dtype, device=A0.device
    )
    with torch.no_grad():
        flow.start.copy_(A0.T)
        flow.forward(W, rho.tolist())
    return flow.A.transpose(1, 2)


def momenta(
    A: Path,
    M_end: Rows,
    W: Weights,
    rho: StepSizesVector,
    effective_depth: float,
    activation: Activation,
) -> Path:
    """The momenta along a path, scaled as ``M = L̃B = −(1/μ) ∂C/∂A``: finite also at L̃ = 0 (E8).

    ``M_ℓ`` belongs *after* layer ℓ. With the state *before* it, ``A_{ℓ−1}``, it makes the staggered pair at which the
    Hamiltonian and the stationarity of ``W_ℓ`` are to be evaluated (docs/theory.md).

    Args:
        A: the path ``(layers + 1, samples, width)``.
        M_end: ``−(1/μ) ∂C/∂A_L``, ``(samples, width)``.
        W: weights ``(layers, width, width_in)``.
        rho: step-sizes ``(layers,)``.
        effective_depth: L̃ ≥ 0.
        activation: σ.

    Returns:
        ``(layers + 1, samples, width)``: ``M_0, …, M_L``.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    layers, samples, width = A.shape[0] - 1, A.shape[1], A.shape[2]
    _check(W, rho, width, activation)
    if W.shape[0] != layers:
        raise ValueError(f"a path of {layers + 1} states has {layers} layers, but there are {W.shape[0]} weights")
    flow = FlowWorkspace(
        activation,
        effective_depth,
        layers,
        width,
        samples,
        dtype=A.dtype,
        device=A.device,
        keep_gradients=True,
    )
    with torch.no_grad():
        flow.A.copy_(A.transpose(1, 2))
        for layer in range(layers):
            activation.value(flow.A[layer], out=flow.S[layer, :width])
        flow.gradient(layers).copy_(M_end.T)
        flow.backward(W, rho.tolist(), 0.0, None)
    return flow.G.transpose(1, 2)
