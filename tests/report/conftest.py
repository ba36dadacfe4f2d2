"""A fabricated run folder: plausible numbers for L = 20, L̃ = 7 and a bottleneck of dimension 3."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

CONFIG = """\
name: {name}
seed: 3
task: {{kind: teacher, dims: [30, 3, 30], train: 1000, test: 1000}}
model: {{width: 100, depth: {depth}, effective_depth: {effective_depth}}}
mesh: {{rule: adaptive}}
train: {{recipe: default, mu: 1e-3}}
analysis: {{gamma0: 1e-3, rank_threshold: 1e-2}}
"""


@dataclass
class Sketch:
    """What a fabricated run is to look like."""

    name: str = "figure-1"
    depth: int = 20
    effective_depth: float = 7.0
    rank: int = 3
    width: int = 100
    residual: float = 6e-5
    rows: int = 300
    samples: int = 120
    classes: int = 0
    status: str = "done"
    collapsed: bool = False
    summary: dict[str, Any] = field(default_factory=dict)


def _mesh(sketch: Sketch) -> tuple[np.ndarray, np.ndarray]:
    place = (np.arange(sketch.depth) + 0.5) / sketch.depth
    rho = 1.0 + 0.9 * np.sin(np.pi * place) ** 2
    rho = rho / rho.sum()
    return rho, np.cumsum(rho)


def _modes(sketch: Sketch, p: np.ndarray) -> np.ndarray:
    """Singular values of A at each p: `rank` that live, 30 that die towards the middle, the rest dust."""
    index = np.arange(sketch.width)
    end = np.exp(-p / 0.035) + np.exp(-(1 - p) / 0.035)
    alive = 22.0 * (1 + 0.5 * end[:, None]) * np.exp(-0.15 * index)
    dying = 20.0 * np.exp(-0.05 * index) * (end[:, None] + 4e-4 * np.exp(-0.1 * index))
    dust = 1e-7 * np.exp(-0.02 * index) * np.ones((len(p), 1))
    values = np.where(index < sketch.rank, alive, np.where(index < 30, dying, dust))
    values[:, 95:] = 0.0
    return np.zeros_like(values) if sketch.collapsed else -np.sort(-values, axis=1)


def _layers(sketch: Sketch) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    rho, p = _mesh(sketch)
    before = p - rho
    L, n = sketch.effective_depth, sketch.depth
    end = np.exp(-before / 0.05) + np.exp(-(1 - p) / 0.05)
    alive = 0.0 if sketch.collapsed else 1.0
    coi = alive * (sketch.rank + 0.05 + 24 * end)
    noise = min(sketch.residual, 3.0) * rng.normal(size=n)
    estimate = alive * (sketch.rank - 0.35) * (1 + 8 * noise)
    speed = alive * L * np.sqrt(np.maximum(coi - (sketch.rank - 0.35), 0.0)) / 9
    table: dict[str, Any] = {
        "layer": np.arange(1, n + 1),
        "p": p,
        "rho": rho,
        "rho_effective_depth": rho * L,
        "residual": sketch.residual * np.exp(-np.abs(rng.normal(size=n))),
        "balancedness_defect": np.abs(noise),
        "speed": speed,
        "speed_k": 3 * speed,
        "step_change": speed * rho,
        "path_length": np.cumsum(speed * rho) * 3,
        "norm_b_features": 2.0 + 0.3 * end,
        "norm_w": alive * (9 + 3 * end),
        "norm_bias": alive * (0.4 + 0.1 * end),
        "stable_rank_w": sketch.rank + 4 * end,
        "rank_w": (sketch.rank + 20 * end).astype(int),
        "slow": (before > 0.15) & (p < 0.85) & (not sketch.collapsed),
    }
    kinetic = L / 2 * np.maximum(coi - estimate, 0.0)
    energies = {
        "kinetic": kinetic,
        "potential": -L / 2 * coi,
        "cross": 2 * end - 0.3,
        "hamiltonian": -L / 2 * estimate,
    }
    for key, values in (energies | {"minus_2h_over_l": estimate}).items():
        table[key] = [math.nan] * n if L == 0 else values
        table[f"{key}_stable"] = [None] * n if L == 0 else 0.985 * np.asarray(values)
    for key in ("minus_2h_over_l_order2", "minus_2h_over_l_order3"):
        table[key] = [math.nan] * n if L == 0 else np.full(n, np.mean(estimate))
    for key in ("kinetic", "potential", "cross"):
        table[f"{key}_stable_off_image"] = [math.nan] * n if L == 0 else 0.6 * end / end.max()
    table["minus_2h_over_l_off_image"] = [math.nan] * n if L == 0 else 0.1 * end
    table["residual"][np.argmax(table["residual"])] = sketch.residual
    return pl.DataFrame(table)


def _states(sketch: Sketch) -> pl.DataFrame:
    rng = np.random.default_rng(3)
    _, p = _mesh(sketch)
    at = np.concatenate([[0.0], p])
    modes = _modes(sketch, at)
    end = np.exp(-at / 0.05) + np.exp(-(1 - at) / 0.05)
    coi = (0.0 if sketch.collapsed else 1.0) * (sketch.rank + 0.05 + 24 * end)
    square = np.maximum((modes**2).sum(1), 1e-300)
    return pl.DataFrame(
        {
            "state": np.arange(sketch.depth + 1),
            "p": at,
            "coi": coi,
            "coi_stable": 0.985 * coi,
            "coi_off_image": np.abs(1e-9 * rng.normal(size=sketch.depth + 1)),
            "coi_stable_off_image": 0.6 * end / end.max(),
            "rank_a": (modes > 0.01 * modes.max(1, keepdims=True)).sum(1),
            "stable_rank_a": square / np.maximum(modes.max(1) ** 2, 1e-300),
            "nuclear_rank_a": modes.sum(1) ** 2 / square,
            "norm_a": np.sqrt((modes**2).sum(1)),
            "norm_b": 1.5 + 0.4 * end,
        }
    )


def _history(sketch: Sketch) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    steps = 10 * np.arange(sketch.rows)
    done = np.arange(sketch.rows) / max(sketch.rows - 1, 1)
    stage = np.where(done < 0.5, "muon", np.where(done < 0.8, "muon, sharper σ", "l-bfgs"))
    data = 0.11 + 29 * np.exp(-14 * done) * (1 + 0.1 * rng.random(sketch.rows))
    penalty = 0.4 * (1 + 0.6 * np.exp(-6 * done))
    residual = sketch.residual * np.exp(9 * (1 - done) * (done > 0.1) + 7 * (done <= 0.1)) ** 0.8
    table = {
        "step": steps,
        "stage": stage,
        "objective": data + penalty,
        "data_cost": data,
        "penalty": penalty,
        "residual_max": residual,
        "residual_median": 0.2 * residual,
        "test_cost": 1.2 * data,
        "rate": 0.02 * (1 - done),
        "seconds": steps / 90.0,
    }
    if sketch.classes:
        table["test_accuracy"] = 0.97 - 0.85 * np.exp(-9 * done)
    frame = pl.DataFrame(table)
    if sketch.rows > 5:  # NaN and null both occur: the residual is not computed at every log point
        frame = frame.with_columns(
            pl.when(pl.col("step") % 30 == 20).then(None).otherwise(pl.col("residual_max")).alias("residual_max"),
            pl.when(pl.col("step") == 0).then(math.nan).otherwise(pl.col("test_cost")).alias("test_cost"),
        )
    return frame


def _spectra(sketch: Sketch) -> pl.DataFrame:
    rho, p = _mesh(sketch)
    at = np.concatenate([[0.0], p])
    a, w = _modes(sketch, at), 0.25 * _modes(sketch, p - rho / 2)
    parts = []
    for kind, values, places, first in (("A", a, at, 0), ("W", w, p - rho / 2, 1)):
        layers, width = values.shape
        layer = np.repeat(np.arange(first, first + layers), width)
        parts.append(
            pl.DataFrame(
                {
                    "kind": [kind] * layers * width,
                    "layer": layer,
                    "p": np.repeat(places, width),
                    "index": np.tile(np.arange(width), layers),
                    "value": values.reshape(-1),
                }
            )
        )
    return pl.concat(parts)


def _projection(sketch: Sketch) -> pl.DataFrame:
    rng = np.random.default_rng(2)
    _, p = _mesh(sketch)
    at = np.concatenate([[0.0], p])
    first, second, third = rng.normal(size=(3, sketch.samples, 2))
    jump_in, jump_out = np.exp(-at / 0.05)[:, None, None], np.exp(-(1 - at) / 0.05)[:, None, None]
    turn = 0.9 * at
    middle = np.stack(
        [
            first[:, 0] * np.cos(turn)[:, None] - first[:, 1] * np.sin(turn)[:, None],
            first[:, 0] * np.sin(turn)[:, None] + first[:, 1] * np.cos(turn)[:, None],
        ],
        axis=-1,
    )
    path = (2 * middle + 1.5 * jump_in * second + 1.2 * jump_out * third) * (not sketch.collapsed)
    colour = np.arange(sketch.samples) % sketch.classes if sketch.classes else first[:, 0] + 0.3 * first[:, 1]
    layers, samples = path.shape[:2]
    return pl.DataFrame(
        {
            "layer": np.repeat(np.arange(layers), samples),
            "p": np.repeat(at, samples),
            "sample": np.tile(np.arange(samples), layers),
            "pc1": path[..., 0].reshape(-1),
            "pc2": path[..., 1].reshape(-1),
            "colour": np.tile(colour, layers),
        }
    )


def _summary(sketch: Sketch, layers: pl.DataFrame, states: pl.DataFrame) -> dict[str, Any]:
    zero = sketch.effective_depth == 0
    estimate = [] if zero else layers["minus_2h_over_l"].to_list()
    bad = sketch.residual > 0.1
    doubts = ["the largest residual is 0.9: H is not that of a critical point"] if bad else []
    rank = None if sketch.collapsed else sketch.rank
    verdict = f"A bottleneck of dimension {rank} between p = 0.15 and p = 0.85."
    if sketch.collapsed:
        verdict, doubts = (
            "No bottleneck: the network has collapsed to zero.",
            ["collapse to the zero network"],
        )
    found = {
        "status": sketch.status,
        "objective": 0.5178123,
        "data_cost": 0.1123,
        "penalty": 0.4055123,
        "test_cost": 0.1411,
        "residual_max": sketch.residual,
        "residual_median": 0.4 * sketch.residual,
        "rank_estimate": rank,
        "minus_2h_over_l_median": float(np.median(estimate)) if estimate else None,
        "minus_2h_over_l_min": min(estimate, default=None),
        "minus_2h_over_l_max": max(estimate, default=None),
        "min_coi": states["coi"].min(),
        "min_coi_stable": states["coi_stable"].min(),
        "effective_depth": sketch.effective_depth,
        "depth": sketch.depth,
        "width": sketch.width,
        "seed": 3,
        "steps": 10 * (sketch.rows - 1) if sketch.rows else 0,
        "seconds": 187.2,
        "message": "",
        "advice": "",
        "task": "teacher 30-3-30",
        "activation": "ReLU",
        "mesh": "adaptive",
        "recipe": "default",
        "mu": 1e-3,
        "verdict": verdict,
        "doubts": doubts,
        "method": "ranks of A over the slow stretch, checked against −2H/L̃",
        "trusted": not doubts,
        "rank_threshold": 1e-2,
    }
    if sketch.classes:
        found |= {"test_accuracy": 0.9672, "train_accuracy": 1.0, "task": "digits"}
    if sketch.status != "done":
        found |= {"message": "loss became NaN at layer 4", "advice": "lower the rate"}
    return found | sketch.summary


def write_run(folder: Path, **changes: Any) -> Path:
    """Fabricate a run folder as `Sketch(**changes)` describes it."""
    sketch = Sketch(**changes)
    folder.mkdir(parents=True, exist_ok=True)
    layers, states = _layers(sketch), _states(sketch)
    config = CONFIG.format(name=json.dumps(sketch.name), depth=sketch.depth, effective_depth=sketch.effective_depth)
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(_summary(sketch, layers, states)), encoding="utf-8")
    environment = {
        "versions": {"python": "3.11.2", "torch": "2.13.0+cpu"},
        "threads": 2,
        "dtype": "float32",
        "seed": 3,
    }
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    history = _history(sketch)
    for name, table in (("layers", layers), ("states", states), ("history", history)):
        table.write_parquet(folder / f"{name}.parquet")
    _spectra(sketch).write_parquet(folder / "spectra.parquet")
    _projection(sketch).write_parquet(folder / "projection.parquet")
    return folder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Fabricate a run folder below tmp_path; keywords are the fields of `Sketch`."""

    def make(where: str = "run", **changes: Any) -> Path:
        return write_run(tmp_path / where, **changes)

    return make


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with its report written once; read it only."""
    from isthmus.report import write_report

    folder = write_run(tmp_path_factory.mktemp("reported") / "run")
    write_report(folder)
    return folder
