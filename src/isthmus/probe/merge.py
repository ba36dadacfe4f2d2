"""Two neighbouring layers of a `LeakyResNet` as one: p keeps its range, and the path its ends."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.mechanics import best_weights
from isthmus.model import LeakyResNet


@dataclass(frozen=True)
class PairCandidate:
    """What merging layers ``layer`` and ``layer + 1`` would do to the loss."""

    layer: int
    predicted: float
    step_change: float
    cosine: float
    reason: str | None


def _merged_weight(model: LeakyResNet, layer: int, before: Tensor, after: Tensor, how: str) -> Tensor:
    rho, W = model.rho.detach().double(), model.weight.detach().double()
    first, second = rho[layer - 1], rho[layer]
    if how == "average":
        return (first * W[layer - 1] + second * W[layer]) / (first + second)
    velocity = (after - before) / (first + second)
    return best_weights(before, velocity, model.effective_depth, model.activation)


def merge_pair(model: LeakyResNet, layer: int, x: Tensor, how: str = "fit") -> LeakyResNet:
    """A copy with the layers ``layer`` and ``layer + 1`` (counted from 1) as one of step-size ``ρ_ℓ + ρ_{ℓ+1}``.

    Args:
        model: of at least two layers.
        layer: 1 … depth − 1.
        x: inputs ``(samples, in_features)``.
        how: ``fit``: the least weights that carry the states of these inputs along, (E5) of arXiv:2405.17573;
            ``average``: the weights' mean, weighted by the step-sizes, which needs no data.

    Raises:
        ValueError: no such pair, or another ``how``.
    """
    if not 1 <= layer < model.depth:
        raise ValueError(f"layer: expected 1 to {model.depth - 1} (a pair of neighbours), got {layer}")
    if how not in ("fit", "average"):
        raise ValueError(f"merge: expected 'fit' or 'average', got {how!r}")
    A = _states(model, x)
    W = _merged_weight(model, layer, A[layer - 1], A[layer + 1], how).to(model.weight)
    rho = model.rho.detach()
    smaller = copy.deepcopy(model)
    smaller.depth = model.depth - 1
    smaller.weight = nn.Parameter(
        torch.cat((model.weight[: layer - 1], W[None], model.weight[layer + 1 :])).detach(),
        requires_grad=model.weight.requires_grad,
    )
    smaller.rho = torch.cat((rho[: layer - 1], rho[layer - 1 : layer + 1].sum(0, keepdim=True), rho[layer + 1 :]))
    return smaller


@torch.no_grad()
def _states(model: LeakyResNet, x: Tensor) -> Tensor:
    return copy.deepcopy(model).double().trajectory(x.to(model.weight.device).double())


def pair_candidates(
    model: LeakyResNet, x: Tensor, y: Any, loss: Callable[[Any, Any], Tensor], order: int, how: str
) -> list[PairCandidate]:
    """Every pair of neighbours, the idlest first: the change of the loss, to the order given, if they are merged.

    In float64. A pair whose ``ρL̃`` would exceed 1 stays: its skip connection would change sign (E2).
    """
    wide = copy.deepcopy(model).double()
    A = _states(model, x)
    y = y.double() if isinstance(y, Tensor) and y.is_floating_point() else y
    out = []
    for layer in range(1, model.depth):
        step = float(model.rho[layer - 1 : layer + 1].double().sum()) * model.effective_depth
        before, after = A[layer - 1], A[layer + 1]
        change = float((after - before).norm() / after.norm()) if float(after.norm()) else math.nan
        cosine = float(nn.functional.cosine_similarity(before, after).mean())
        if step > 1 + 1e-6:
            reason = f"merged, rho * effective_depth would be {step:.3g} > 1 and its skip change sign"
            out.append(PairCandidate(layer, math.nan, change, cosine, reason))
            continue
        W = _merged_weight(model, layer, before, after, how)
        r = float(model.rho[layer - 1 : layer + 1].double().sum())
        merged = (1 - step) * before + r * wide.activation.features(before) @ W.T
        predicted = _along(wide, layer + 1, after, merged - after, y, loss, order)
        out.append(PairCandidate(layer, predicted, change, cosine, None))
    return sorted(out, key=lambda c: (c.reason is not None, c.predicted if c.reason is None else 0.0))


def _along(
    model: LeakyResNet, start: int, A: Tensor, change: Tensor, y: Any, loss: Callable[[Any, Any], Tensor], order: int
) -> float:
    """``C(A + s·change)`` from s = 0 to 1 to the order given, by derivatives at 0."""
    s = torch.zeros((), dtype=A.dtype, device=A.device, requires_grad=True)
    state = A + s * change
    for r, W in zip(model.rho[start:], model.weight.detach()[start:], strict=True):
        state = (1 - r * model.effective_depth) * state + r * model.activation.features(state) @ W.T
    value = loss(state @ model.out_map.detach().T, y)
    (first,) = torch.autograd.grad(value, s, create_graph=order == 2)
    if order == 1 or not first.requires_grad:
        return float(first.detach())
    (second,) = torch.autograd.grad(first, s, allow_unused=True)
    return float(first.detach()) + (0.5 * float(second.detach()) if second is not None else 0.0)
