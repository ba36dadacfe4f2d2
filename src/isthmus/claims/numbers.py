"""Everything that the figures and claims read from one network, as JSON values."""

import math
from typing import Any

import torch
from torch import Tensor

from isthmus._support import number
from isthmus.bottleneck import bottleneck, collapsed
from isthmus.certificate import certify
from isthmus.geodesic import Geodesic
from isthmus.mechanics import FeatureMetric, hamiltonian, mechanics, theorem4
from isthmus.thresholds import CRITICAL

LAYERS = (
    "p",
    "rho",
    "kinetic_stable",
    "potential_stable",
    "cross_stable",
    "kinetic_stable_off_image",
    "potential_stable_off_image",
    "cross_stable_off_image",
    "hamiltonian",
    "minus_2h_over_l",
    "minus_2h_over_l_stable",
    "minus_2h_over_l_order2",
    "minus_2h_over_l_order3",
    "residual",
    "balancedness_defect",
    "speed_k",
    "step_change",
    "norm_b_features",
    "norm_w",
)
"""Columns of the table by layer that are kept."""

STATES = ("coi", "coi_stable", "rank_a", "norm_a", "norm_b")
"""Columns of the table by state that are kept."""

GAMMAS = (1e-2, 1e-3, 1e-4)
"""γ_0 at which the bounds of Theorem 4 are computed."""

MODES = 16
"""Singular values kept of each spectrum."""


def network_numbers(
    geodesic: Geodesic, zero_cost: float, test_cost: float | None, kind: str | None = None, spectra: bool = False
) -> dict[str, Any]:
    """Numbers of one network.

    Args:
        geodesic: its path.
        zero_cost: data cost of the zero network, on the training part.
        test_cost: data cost on the test part, None where there is none.
        kind: of the critical point: minimum, saddle, undecided; None where nobody asked.
        spectra: keep the largest singular values of all states and weights.

    Returns:
        ``values`` by name, ``layers`` and ``states`` by column, ``bounds`` by γ_0, ``spectra_a`` and ``spectra_w``.
        A network that has collapsed has ``values`` alone.
    """
    certificate = certify(geodesic)
    values: dict[str, Any] = {
        "effective_depth": geodesic.effective_depth,
        "mu": geodesic.weight_decay,
        "data_cost": geodesic.data_cost,
        "objective": geodesic.objective,
        "zero_cost": zero_cost,
        "test_cost": test_cost,
        "residual_max": certificate.residual_max,
        "residual_median": certificate.residual_median,
        "kink_residual": certificate.kink_residual,
        "certified": certificate.converged,
        "critical": certificate.residual_max <= CRITICAL,
        "collapsed": collapsed(geodesic),
        "kind": kind,
    }
    if values["collapsed"]:
        return {"values": _plain(values)}
    try:
        table = mechanics(geodesic)
    except ValueError:  # every feature of a layer is zero
        return {"values": _plain(values | {"collapsed": True})}
    said = bottleneck(geodesic, table, zero_cost=zero_cost, kind=kind or "")  # overfitting is read from `test_cost`
    values |= {
        "minus_2h_over_l": said.interval[0],
        "coi_least": said.interval[1],
        "k_star": said.k_star,
        "rank": said.rank,
        "trusted": said.trusted,
        "path_length": float(table["path_length"][-1]),
        "norm_b_max": max(map(float, table["norm_b"])),
        "norm_b_features_max": max(map(float, table["norm_b_features"])),
        "rows_of_momentum": _rows_of_momentum(geodesic.M[0]),
    }
    found: dict[str, Any] = {
        "values": values,
        "layers": {name: list(table[name]) for name in LAYERS},
        "states": {name: list(table[name]) for name in STATES} | {"negative_share": _negative_share(geodesic.A)},
        "bounds": bounds(geodesic),
    }
    if spectra:
        found |= {
            "spectra_a": table.spectra_a[:, :MODES].tolist(),
            "spectra_w": table.spectra_w[:, :MODES].tolist(),
        }
    return dict(_plain(found))


def bounds(geodesic: Geodesic) -> list[dict[str, float]]:
    """Theorem 4 (E12) in numbers: as stated, with one γ for all p, and pointwise by (E13), with γ_p.

    One γ is γ_0 times the median of ``‖K_p‖_op``. Pointwise, ``−2H/L̃`` lies between
    ``‖A_p‖² − (‖∂_pA‖/L̃ + √γ_p ‖B_p‖)²`` and ``‖A_p‖² + γ_p‖B_p‖²`` at every p, in the norms of ``K_p + γ_pI``: the
    largest lower and the least upper bound over layers are kept.

    Returns:
        One dictionary for each of `GAMMAS`: ``gamma0``, ``gamma``; ``value``, ``lower``, ``upper`` of the first line of
        the theorem; ``speed_share``, the share of layers at which its second line holds; ``minus_2h_over_l``,
        ``pointwise_lower``, ``pointwise_upper``.
    """
    leak = geodesic.effective_depth
    metrics = [FeatureMetric.from_features(geodesic.activation.features(A)) for A in geodesic.A[:-1]]
    rho = geodesic.rho.tolist()
    A, B = geodesic.A[:-1], geodesic.M[1:] / leak
    velocity = (geodesic.A[1:] - A) / geodesic.rho[:, None, None]
    H = float(torch.tensor([hamiltonian(a, b, leak, geodesic.activation) for a, b in zip(A, B, strict=True)]).median())
    low = -2 * H / leak
    squares = B.square().sum(dim=(1, 2)).tolist()
    sizes = torch.tensor([metric.gamma(1.0) for metric in metrics])
    found = []
    for gamma0 in GAMMAS:
        gamma = gamma0 * float(sizes.median())
        costs = [metric.norm_squared(a, gamma) for metric, a in zip(metrics, A, strict=True)]
        speeds = [metric.norm_squared(v, gamma) ** 0.5 for metric, v in zip(metrics, velocity, strict=True)]
        length = sum(r * s for r, s in zip(rho, speeds, strict=True))
        bound = theorem4(H, min(costs), length, max(squares), gamma, leak)
        spill = (gamma * max(squares)) ** 0.5
        second = [
            -leak * spill <= s - leak * math.sqrt(max(c - low, 0.0)) <= 2 * leak * spill
            for s, c in zip(speeds, costs, strict=True)
        ]
        lowest, highest = [], []
        for i, metric in enumerate(metrics):
            own = metric.gamma(gamma0)
            cost, speed = metric.norm_squared(A[i], own), metric.norm_squared(velocity[i], own) ** 0.5
            lowest.append(cost - (speed / leak + (own * squares[i]) ** 0.5) ** 2)
            highest.append(cost + own * squares[i])
        found.append(
            {
                "gamma0": gamma0,
                "gamma": gamma,
                "value": bound.value,
                "lower": bound.lower,
                "upper": bound.upper,
                "speed_share": sum(second) / len(second),
                "minus_2h_over_l": low,
                "pointwise_lower": max(lowest),
                "pointwise_upper": min(highest),
            }
        )
    return found


def _negative_share(A: Tensor) -> list[float]:
    """The share of ``‖A_ℓ‖²`` that is of negative entries, by state."""
    return (A.clamp(max=0).square().sum(dim=(1, 2)) / A.square().sum(dim=(1, 2))).tolist()


def _rows_of_momentum(M: Tensor) -> float:
    """The least share of the rows (samples) of the initial momenta that holds 90 % of their square."""
    squares = M.square().sum(dim=1).sort(descending=True).values
    count = int((squares.cumsum(0) < 0.9 * squares.sum()).sum()) + 1
    return count / len(squares)


def _plain(value: Any) -> Any:
    """JSON values of five significant digits; None for what is not finite."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    finite = number(float(value))
    return None if finite is None else float(f"{finite:.5g}")
