"""`mechanics(geodesic)`: every quantity of the theory, a row per layer, in one table that saves."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.columns import LAYERS as COLUMNS
from isthmus.geodesic import Geodesic
from isthmus.mechanics.hamiltonian import scaled_hamiltonian
from isthmus.mechanics.invariants import balancedness_defect, norm_defect, stationarity_residual
from isthmus.mechanics.lagrangian import energies
from isthmus.mechanics.metric import FeatureMetric
from isthmus.mechanics.spectra import nuclear_rank, rank, spectra, stable_rank

if TYPE_CHECKING:
    import polars

Values = list[float] | list[int] | list[bool]


@dataclass(frozen=True)
class MechanicsTable(Mapping[str, Values]):
    """One row per layer; `COLUMNS` says what each column is. A mapping from column name to list of values.

    Args:
        columns: column name to values, in the order of `COLUMNS`.
        spectra_a: singular values of ``A_0 … A_L``, ``(layers + 1, modes)``.
        spectra_w: singular values of ``W_1 … W_L``, ``(layers, modes)``.
        positions: ``p_0 … p_L``.
        gamma0: γ_0 of the stable quantities.
        rank_threshold: of the rank columns, relative to the largest singular value.
        coi_end: cost of identity of the end state ``A_L``, exact and stable (no layer starts there).
    """

    columns: dict[str, Values]
    spectra_a: Float[Tensor, "layers_plus_1 modes_a"]
    spectra_w: Float[Tensor, "layers modes_w"]
    positions: Float[Tensor, "layers_plus_1"]
    gamma0: float
    rank_threshold: float
    coi_end: tuple[float, float]

    def __getitem__(self, name: str) -> Values:
        if name not in self.columns:
            raise KeyError(f"no column {name!r}; there are {', '.join(self.columns)}")
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def depth(self) -> int:
        """Number of rows."""
        return len(self.columns["layer"])

    def describe(self, column: str) -> str:
        """What a column is, with its equation."""
        self[column]
        return COLUMNS[column].meaning

    def to_dataframe(self) -> "polars.DataFrame":
        """The table as a polars DataFrame."""
        import polars

        return polars.DataFrame(self.columns)

    def spectra_dataframe(self) -> "polars.DataFrame":
        """The spectra, long: kind ("A" | "W"), layer, p (W: the layer's midpoint), index, value."""
        import polars

        frames = []
        middles = (self.positions[1:] + self.positions[:-1]) / 2
        for kind, values, p, first in (
            ("A", self.spectra_a, self.positions, 0),
            ("W", self.spectra_w, middles, 1),
        ):
            rows, modes = values.shape
            frames.append(
                polars.DataFrame(
                    {
                        "kind": [kind] * (rows * modes),
                        "layer": [first + i for i in range(rows) for _ in range(modes)],
                        "p": [v for v in p.tolist() for _ in range(modes)],
                        "index": list(range(modes)) * rows,
                        "value": values.flatten().tolist(),
                    }
                )
            )
        return polars.concat(frames)

    def save(self, file: str | Path) -> Path:
        """Write the table as ``.parquet`` or ``.csv``; returns the path.

        Raises:
            ValueError: another ending.
        """
        file = Path(file)
        if file.suffix == ".parquet":
            self.to_dataframe().write_parquet(file)
        elif file.suffix == ".csv":
            self.to_dataframe().write_csv(file)
        else:
            raise ValueError(f"expected a name ending in .parquet or .csv, got {file.name!r}")
        return file

    def summary(self) -> dict[str, float | None]:
        """Numbers for the whole path: medians with their range, minima; None where undefined (L̃ = 0)."""
        h = _finite(self["minus_2h_over_l"])
        stable = _finite(self["minus_2h_over_l_stable"])
        residual = [float(r) for r in self["residual"]]
        return {
            "residual_max": max(residual),
            "residual_median": _median(residual),
            "minus_2h_over_l_median": _median(h),
            "minus_2h_over_l_min": min(h) if h else None,
            "minus_2h_over_l_max": max(h) if h else None,
            "minus_2h_over_l_stable_median": _median(stable),
            "min_coi": min(*self["coi"], self.coi_end[0]),
            "min_coi_stable": min(*self["coi_stable"], self.coi_end[1]),
            "path_length": float(self["path_length"][-1]),
        }

    def __str__(self) -> str:
        shown = ("layer", "p", "rho", "coi_stable", "kinetic_stable", "minus_2h_over_l", "residual", "rank_a")
        lines = ["".join(f"{name:>17}" for name in shown)]
        lines += ["".join(f"{self[name][row]:>17.4g}" for name in shown) for row in range(self.depth)]
        return "\n".join(lines)


def _finite(values: Values) -> list[float]:
    return [float(v) for v in values if math.isfinite(v)]


def _median(values: list[float]) -> float | None:
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5)) if values else None


def _quotient(numerator: Tensor, denominator: Tensor) -> list[float]:
    return torch.where(numerator == 0, numerator, numerator / denominator).tolist()


def _row(geodesic: Geodesic, layer: int, gamma0: float) -> dict[str, float]:
    """The quantities that need the metric of ``σ(A_{ℓ−1})``."""
    L_tilde = geodesic.effective_depth
    A, M = geodesic.A[layer - 1], geodesic.M[layer]
    velocity = (geodesic.A[layer] - A) / geodesic.rho[layer - 1]
    S = geodesic.activation.features(A)
    metric = FeatureMetric.from_features(S)
    if float(metric.singular_values[0]) == 0:
        raise ValueError(f"every feature of layer {layer} is zero: there is no metric; the network has collapsed")
    gamma = metric.gamma(gamma0)
    row = {
        "coi": metric.norm_squared(A),
        "coi_stable": metric.norm_squared(A, gamma),
        "coi_off_image": metric.outside(A),
        "length": float(geodesic.rho[layer - 1]) * metric.norm_squared(velocity, gamma) ** 0.5,
        "norm_b_features": float((M.T @ S).norm()),
    }
    if L_tilde > 0:
        exact = energies(A, velocity, L_tilde, metric)
        stable = energies(A, velocity, L_tilde, metric, gamma)
        H = scaled_hamiltonian(A, M, L_tilde, geodesic.activation) / L_tilde
        H_stable = stable.kinetic + stable.potential
        row |= {
            "kinetic": exact.kinetic,
            "kinetic_stable": stable.kinetic,
            "potential": exact.potential,
            "potential_stable": stable.potential,
            "cross": exact.cross,
            "cross_stable": stable.cross,
            "hamiltonian": H,
            "hamiltonian_stable": H_stable,
            "minus_2h_over_l": -2 * H / L_tilde,
            "minus_2h_over_l_stable": -2 * H_stable / L_tilde,
        }
    return row


def _end_coi(geodesic: Geodesic, gamma0: float) -> tuple[float, float]:
    A = geodesic.A[-1]
    metric = FeatureMetric.from_features(geodesic.activation.features(A))
    return metric.norm_squared(A), metric.norm_squared(A, max(metric.gamma(gamma0), 1e-300))


@torch.no_grad()
def mechanics(geodesic: Geodesic, gamma0: float = 1e-3, rank_threshold: float = 1e-2) -> MechanicsTable:
    """Every quantity of (E4)–(E11) along a path, evaluated at the staggered pairs ``(A_{ℓ−1}, B_ℓ)``.

    Read the ``residual`` column first: where it is not small, the energies and H are not those of a geodesic.
    At L̃ = 0 energies and H are NaN (they carry 1/L̃); norms of B are then those of ``M = L̃B``.

    Args:
        geodesic: see `isthmus.geodesic.Geodesic`; computed in its dtype, float64.
        gamma0: γ_0 of (E7). 1e-3 worked in the project's trials (docs/theory.md).
        rank_threshold: singular values count above this fraction of the largest.

    Raises:
        ValueError: γ_0 not positive, a threshold outside (0, 1), or a path whose features vanish.
    """
    if not gamma0 > 0:
        raise ValueError(f"gamma0 must be positive, got {gamma0}")
    if not isinstance(geodesic, Geodesic):
        raise TypeError(f"mechanics needs a Geodesic, as problem.geodesic() returns it, got {type(geodesic).__name__}")
    for layer, A in enumerate(geodesic.A):
        if not bool(torch.isfinite(A).all()):
            raise ValueError(f"the path is not finite from A_{layer} on: there is nothing to read")
    g, L = geodesic, geodesic.depth
    rows = [_row(g, layer, gamma0) for layer in range(1, L + 1)]
    s_a, s_w = spectra(g.A), spectra(g.W)
    change, size = (g.A[1:] - g.A[:-1]).norm(dim=(1, 2)), g.A[1:].norm(dim=(1, 2))
    speed_k = [row["length"] / r for row, r in zip(rows, g.rho.tolist(), strict=True)]
    append_one = g.activation.append_one
    defect = balancedness_defect(g.W, g.rho, g.effective_depth) if append_one else norm_defect(g.W)
    per_b = g.effective_depth if g.effective_depth > 0 else 1.0
    lengths = torch.tensor([row["length"] for row in rows], dtype=torch.float64)
    from_metric = {name: [row.get(name, math.nan) for row in rows] for name in COLUMNS}
    columns: dict[str, Values] = from_metric | {
        "layer": list(range(1, L + 1)),
        "p": g.positions[1:].tolist(),
        "rho": g.rho.tolist(),
        "rho_effective_depth": (g.rho * g.effective_depth).tolist(),
        "residual": stationarity_residual(g.A, g.M, g.W, g.activation).tolist(),
        "balancedness_defect": defect.tolist(),
        "speed": _quotient(change / g.rho, size),
        "speed_k": speed_k,
        "step_change": _quotient(change, size),
        "path_length": lengths.cumsum(0).tolist(),
        "norm_a": g.A[:-1].norm(dim=(1, 2)).tolist(),
        "norm_b": (g.M[1:].norm(dim=(1, 2)) / per_b).tolist(),
        "norm_b_features": [row["norm_b_features"] / per_b for row in rows],
        "norm_w": g.W.norm(dim=(1, 2)).tolist(),
        "norm_bias": (g.W[:, :, -1].norm(dim=1) if append_one else torch.zeros(L)).tolist(),
        "stable_rank_a": stable_rank(s_a)[:-1].tolist(),
        "nuclear_rank_a": nuclear_rank(s_a)[:-1].tolist(),
        "stable_rank_w": stable_rank(s_w).tolist(),
        "rank_a": rank(s_a, rank_threshold)[:-1].tolist(),
        "rank_w": rank(s_w, rank_threshold).tolist(),
        "slow": [v <= 0.5 * sum(row["length"] for row in rows) / float(g.rho.sum()) for v in speed_k],
    }
    return MechanicsTable(columns, s_a, s_w, g.positions, gamma0, rank_threshold, _end_coi(g, gamma0))
