"""`mechanics(geodesic)`: every quantity of the theory, by layers and by states, in one table that saves."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.columns import LAYERS, STATES
from isthmus.geodesic import Geodesic
from isthmus.mechanics.hamiltonian import scaled_hamiltonian
from isthmus.mechanics.invariants import balancedness_defect, norm_defect, stationarity_residual
from isthmus.mechanics.lagrangian import energies, off_image, share
from isthmus.mechanics.metric import FeatureMetric
from isthmus.mechanics.modified import ORDERS, modified_hamiltonians
from isthmus.mechanics.spectra import nuclear_rank, rank, spectra, stable_rank
from isthmus.thresholds import GAMMA0, RANK

if TYPE_CHECKING:
    import polars

Values = list[float] | list[int] | list[bool]
COLUMNS = STATES | LAYERS
"""What each column is. No name but ``p`` is in both parts: ``table["p"]`` are the ends of layers, p_1 … p_L."""


@dataclass(frozen=True)
class MechanicsTable(Mapping[str, Values]):
    """Layers (L rows) and states (L + 1 rows); a mapping from column name, of either, to list of values.

    Args:
        layers: column name to values, in the order of `isthmus.columns.LAYERS`.
        states: likewise, of `isthmus.columns.STATES`: A_0 … A_L, each at its own p.
        spectra_a: singular values of ``A_0 … A_L``, ``(layers + 1, modes)``.
        spectra_w: singular values of ``W_1 … W_L``, ``(layers, modes)``.
        positions: ``p_0 … p_L``.
        gamma0: γ_0 of the stable quantities.
        rank_threshold: of the rank columns, relative to the largest singular value.
    """

    layers: dict[str, Values]
    states: dict[str, Values]
    spectra_a: Float[Tensor, "layers_plus_1 modes_a"]
    spectra_w: Float[Tensor, "layers modes_w"]
    positions: Float[Tensor, "layers_plus_1"]
    gamma0: float
    rank_threshold: float

    def __getitem__(self, name: str) -> Values:
        for part in (self.layers, self.states):
            if name in part:
                return part[name]
        raise KeyError(f"no column {name!r}; there are {', '.join(self)}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers | self.states)

    def __len__(self) -> int:
        return len(self.layers | self.states)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers["layer"])

    def describe(self, column: str) -> str:
        """What a column is, with its equation."""
        self[column]
        return COLUMNS[column].meaning

    def to_dataframe(self) -> "polars.DataFrame":
        """The layers as a polars DataFrame."""
        import polars

        return polars.DataFrame(self.layers)

    def states_dataframe(self) -> "polars.DataFrame":
        """The states as a polars DataFrame."""
        import polars

        return polars.DataFrame(self.states)

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
        """Write the layers as ``.parquet`` or ``.csv``, the states beside them: ``t.csv`` and ``t-states.csv``.

        Returns:
            The path of the layers.

        Raises:
            ValueError: another ending.
        """
        file = Path(file)
        if file.suffix not in (".parquet", ".csv"):
            raise ValueError(f"expected a name ending in .parquet or .csv, got {file.name!r}")
        beside = file.with_name(f"{file.stem}-states{file.suffix}")
        for frame, path in ((self.to_dataframe(), file), (self.states_dataframe(), beside)):
            (frame.write_parquet if file.suffix == ".parquet" else frame.write_csv)(path)
        return file

    def summary(self) -> dict[str, float | None]:
        """Numbers for the whole path; None where undefined (L̃ = 0).

        Minima of the cost of identity are over all states A_0 … A_L, the rest over layers.
        """
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
            "minus_2h_over_l_order2_median": _median(_finite(self["minus_2h_over_l_order2"])),
            "minus_2h_over_l_order3_median": _median(_finite(self["minus_2h_over_l_order3"])),
            "min_coi": min(self["coi"]),
            "min_coi_stable": min(self["coi_stable"]),
            "path_length": float(self["path_length"][-1]),
        }

    def __str__(self) -> str:
        layers = ("layer", "p", "rho", "kinetic_stable", "minus_2h_over_l", "residual", "rank_w")
        states = ("state", "p", "coi", "coi_stable", "rank_a", "stable_rank_a", "norm_b")
        lines = []
        for part, shown in ((self.layers, layers), (self.states, states)):
            lines += ["".join(f"{name:>17}" for name in shown)]
            rows = zip(*(part[name] for name in shown), strict=True)
            lines += ["".join(f"{value:>17.4g}" for value in row) for row in rows]
        return "\n".join(lines)


def _finite(values: Values) -> list[float]:
    return [float(v) for v in values if math.isfinite(v)]


def _median(values: list[float]) -> float | None:
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5)) if values else None


def _quotient(numerator: Tensor, denominator: Tensor) -> list[float]:
    return torch.where(numerator == 0, numerator, numerator / denominator).tolist()


def _rows(geodesic: Geodesic, gamma0: float) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """The quantities of states, and of the layers out of them, that need the metric of ``σ(A_ℓ)``: one each."""
    states, layers = [], []
    for state, A in enumerate(geodesic.A):
        S = geodesic.activation.features(A)
        metric = FeatureMetric.from_features(S)
        last = state == geodesic.depth
        if float(metric.singular_values[0]) == 0 and not last:
            raise ValueError(
                f"every feature of layer {state + 1} is zero: there is no metric; the network has collapsed"
            )
        gamma = metric.gamma(gamma0)
        on, off = metric.parts(A, A, gamma)
        states.append(
            {
                "coi": metric.norm_squared(A),
                "coi_stable": on + off,
                "coi_off_image": metric.outside(A),
                "coi_stable_off_image": share(on, off),
            }
        )
        if not last:
            layers.append(_layer(geodesic, state + 1, S, metric, gamma))
    return states, layers


def _layer(geodesic: Geodesic, layer: int, S: Tensor, metric: FeatureMetric, gamma: float) -> dict[str, float]:
    """The quantities of a layer that need the metric of ``S = σ(A_{ℓ−1})``, ``(samples, width_in)``."""
    L_tilde = geodesic.effective_depth
    A, M = geodesic.A[layer - 1], geodesic.M[layer]
    velocity = (geodesic.A[layer] - A) / geodesic.rho[layer - 1]
    row = {
        "length": float(geodesic.rho[layer - 1]) * metric.norm_squared(velocity, gamma) ** 0.5,
        "norm_b_features": float((M.T @ S).norm()),
    }
    if L_tilde > 0:
        exact = energies(A, velocity, L_tilde, metric)
        stable = energies(A, velocity, L_tilde, metric, gamma)
        H = scaled_hamiltonian(A, M, L_tilde, geodesic.activation) / L_tilde
        H_stable = stable.kinetic + stable.potential
        off = off_image(A, velocity, metric, gamma)
        row |= {
            "kinetic": exact.kinetic,
            "kinetic_stable": stable.kinetic,
            "potential": exact.potential,
            "potential_stable": stable.potential,
            "cross": exact.cross,
            "cross_stable": stable.cross,
            "kinetic_stable_off_image": off.kinetic,
            "potential_stable_off_image": off.potential,
            "cross_stable_off_image": off.cross,
            "hamiltonian": H,
            "hamiltonian_stable": H_stable,
            "minus_2h_over_l": -2 * H / L_tilde,
            "minus_2h_over_l_stable": -2 * H_stable / L_tilde,
            "minus_2h_over_l_off_image": 2 / L_tilde * float((M * metric.off(A)).sum()),
        }
    return row


@torch.no_grad()
def mechanics(geodesic: Geodesic, gamma0: float = GAMMA0, rank_threshold: float = RANK) -> MechanicsTable:
    """Every quantity of (E4)–(E11) along a path: of each state, and of each layer.

    Energies and H of layer ℓ pair A_{ℓ−1} with B_ℓ (staggered), and belong to the layer's midpoint.

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
    of_states, rows = _rows(g, gamma0)
    s_a, s_w = spectra(g.A), spectra(g.W)
    change, size = (g.A[1:] - g.A[:-1]).norm(dim=(1, 2)), g.A[1:].norm(dim=(1, 2))
    speed_k = [row["length"] / r for row, r in zip(rows, g.rho.tolist(), strict=True)]
    append_one = g.activation.append_one
    defect = balancedness_defect(g.W, g.rho, g.effective_depth) if append_one else norm_defect(g.W)
    per_b = g.effective_depth if g.effective_depth > 0 else 1.0
    lengths = torch.tensor([row["length"] for row in rows], dtype=torch.float64)
    from_metric = {name: [row.get(name, math.nan) for row in rows] for name in LAYERS}
    if g.effective_depth > 0:
        modified = zip(ORDERS, modified_hamiltonians(g).tolist(), strict=True)
        from_metric |= {f"minus_2h_over_l_order{order}": values for order, values in modified if order > 1}
    layers: dict[str, Values] = from_metric | {
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
        "norm_b_features": [row["norm_b_features"] / per_b for row in rows],
        "norm_w": g.W.norm(dim=(1, 2)).tolist(),
        "norm_bias": (g.W[:, :, -1].norm(dim=1) if append_one else torch.zeros(L)).tolist(),
        "stable_rank_w": stable_rank(s_w).tolist(),
        "rank_w": rank(s_w, rank_threshold).tolist(),
        "slow": [v <= 0.5 * sum(row["length"] for row in rows) / float(g.rho.sum()) for v in speed_k],
    }
    states: dict[str, Values] = {
        "state": list(range(L + 1)),
        "p": g.positions.tolist(),
        **{name: [row[name] for row in of_states] for name in of_states[0]},
        "rank_a": rank(s_a, rank_threshold).tolist(),
        "stable_rank_a": stable_rank(s_a).tolist(),
        "nuclear_rank_a": nuclear_rank(s_a).tolist(),
        "norm_a": g.A.norm(dim=(1, 2)).tolist(),
        "norm_b": (g.M.norm(dim=(1, 2)) / per_b).tolist(),
    }
    return MechanicsTable(layers, states, s_a, s_w, g.positions, gamma0, rank_threshold)
