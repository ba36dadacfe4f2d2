"""Everything that the figures and claims read from one network, as JSON values."""

import math
from statistics import median
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


def bounds(geodesic: Geodesic) -> list[dict[str, Any]]:
    """Theorem 4 (E12) in numbers: as stated, with one γ for all p, and pointwise by (E13), with γ_p.

    One γ is γ_0 times the median of ``‖K_p‖_op``; γ_p is γ_0 times its own. Pointwise, ``−2H/L̃`` lies between
    ``‖A_p‖² − (‖∂_pA‖/L̃ + √γ_p ‖B_p‖)²`` and ``‖A_p‖² + γ_p‖B_p‖²`` at every p, in the norms of ``K_p + γ_pI``: the
    largest lower and the least upper bound over layers are kept.

    Returns:
        One dictionary for each of `GAMMAS`, and one for γ = 1/L̃ (``gamma0`` None): ``gamma``; ``value``, ``lower``,
        ``upper`` of the first line of the theorem; ``length``, the path length in it; ``speed_share``, the share of
        layers at which its second line holds; ``pointwise_lower``, ``pointwise_upper``.
    """
    leak, rho = geodesic.effective_depth, geodesic.rho.tolist()
    metrics = [FeatureMetric.from_features(geodesic.activation.features(A)) for A in geodesic.A[:-1]]
    A, B = geodesic.A[:-1], geodesic.M[1:] / leak
    velocity = (geodesic.A[1:] - A) / geodesic.rho[:, None, None]
    H = float(torch.tensor([hamiltonian(a, b, leak, geodesic.activation) for a, b in zip(A, B, strict=True)]).median())
    squares = B.square().sum(dim=(1, 2)).tolist()
    sizes = [metric.gamma(1.0) for metric in metrics]

    def norms(gammas: list[float]) -> tuple[list[float], list[float]]:
        """``‖A_p‖²`` and ``‖∂_pA‖`` by layer."""
        all_of = list(zip(metrics, A, velocity, gammas, strict=True))
        return [m.norm_squared(a, g) for m, a, _, g in all_of], [m.norm_squared(v, g) ** 0.5 for m, _, v, g in all_of]

    found = []
    for gamma0 in (*GAMMAS, None):
        gamma = 1 / leak if gamma0 is None else gamma0 * median(sizes)
        costs, speeds = norms([gamma] * len(metrics))
        length = sum(r * s for r, s in zip(rho, speeds, strict=True))
        bound = theorem4(H, min(costs), length, max(squares), gamma, leak)
        spill = (gamma * max(squares)) ** 0.5
        off = [s - leak * math.sqrt(max(c + 2 * H / leak, 0.0)) for s, c in zip(speeds, costs, strict=True)]
        own = [gamma] * len(metrics) if gamma0 is None else [gamma0 * size for size in sizes]
        costs, speeds = norms(own)
        each = list(zip(costs, speeds, own, squares, strict=True))
        found.append(
            {
                "gamma0": gamma0,
                "gamma": gamma,
                "value": bound.value,
                "lower": bound.lower,
                "upper": bound.upper,
                "length": length,
                "speed_share": sum(-leak * spill <= o <= 2 * leak * spill for o in off) / len(off),
                "pointwise_lower": max(c - (s / leak + (g * b) ** 0.5) ** 2 for c, s, g, b in each),
                "pointwise_upper": min(c + g * b for c, _, g, b in each),
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
