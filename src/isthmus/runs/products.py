"""What is made when training stops: tables of the mechanics, spectra, a projection, a summary."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from isthmus._support import number
from isthmus.runs.config import RunConfig
from isthmus.runs.folder import RunFolder
from isthmus.runs.schema import MODEL, SUMMARY, TABLES
from isthmus.runs.state import save_state
from isthmus.thresholds import NEAR

if TYPE_CHECKING:
    from isthmus.bottleneck import Bottleneck
    from isthmus.geodesic import Geodesic
    from isthmus.mechanics import MechanicsTable
    from isthmus.problem import Problem
    from isthmus.runs.build import Built

MOST_SAMPLES = 200
"""Samples in the projection: more only blacken the picture."""

KIND_PRODUCTS = 300
"""Hessian products of each search for the least eigenvalue at most; the network of 20 layers that
docs/notes/solver.md calls the small case takes about 100."""


def write_products(folder: RunFolder, config: RunConfig, built: "Built", result: Mapping[str, Any]) -> dict[str, Any]:
    """Read the trained network and write everything but the report; returns the summary, written last.

    Args:
        folder: where to.
        config: the run's.
        built: what trained.
        result: ``status``, ``message``, ``advice``, ``layer`` and ``step`` of the training.
    """
    from isthmus.mechanics import mechanics
    from isthmus.status import Status

    trainer, problem = built.trainer, built.trainer.problem
    history = {name: [row.get(name) for row in trainer.history] for name in TABLES["history"].columns}
    folder.write_table(TABLES["history"], history)
    folder.write_bytes(MODEL, model_bytes(built, config))
    geodesic = problem.geodesic(Status(result["status"]))
    threshold = config.analysis.rank_threshold
    table = mechanics(geodesic, gamma0=config.analysis.gamma0, rank_threshold=threshold)
    shown = read_network(problem, geodesic, table, threshold, trainer.least_direction)
    tables: dict[str, Mapping[str, Any]] = {
        "layers": table.layers,
        "states": table.states,
        "spectra": table.spectra_dataframe().to_dict(),
        "projection": projection(geodesic),
    }
    for name, values in tables.items():
        folder.write_table(TABLES[name], values)
    summary = {
        **result,
        **shown,
        **_settings(config, built),
        "steps": trainer.step_count,
        "seconds": trainer.seconds,
    }
    del summary["step"]
    folder.write_json(SUMMARY, summary)
    return summary


def read_network(
    problem: "Problem",
    geodesic: "Geodesic",
    table: "MechanicsTable",
    threshold: float,
    direction: torch.Tensor | None = None,
) -> dict[str, Any]:
    """What a summary says of a network: costs, key numbers, minimum or saddle, the verdict with its doubts.

    Args:
        problem: with the network, and the test part where there is one.
        geodesic: its path.
        table: the mechanics of that.
        threshold: of ranks.
        direction: along which the least eigenvalue of the Hessian is looked for first.
    """
    from isthmus.bottleneck import bottleneck

    scores = _scores(problem, geodesic)
    nothing = torch.zeros(problem.model.out_features, len(problem.x), dtype=torch.float64, device=problem.x.device)
    zero_cost = float(problem.loss.evaluate(nothing, problem.y)[0])
    kind = _kind(problem, direction)
    errors = _errors(problem, table)
    reading = bottleneck(geodesic, table, threshold, scores["test_cost"], zero_cost, errors, kind["kind"])
    return {**scores, **table.summary(), **kind, **_reading_summary(reading)}


def model_bytes(built: "Built", config: RunConfig) -> bytes:
    """Weights, step-sizes and end maps under their own names; in the metadata what rebuilds network and problem."""
    step = built.trainer.step_count
    rebuild = {"config": config.model_dump(mode="json"), "step": step, "fingerprint": built.fingerprint}
    return save_state({**built.model.state_dict(), "rebuild": rebuild}, "model")


def projection(geodesic: "Geodesic") -> dict[str, list[Any]]:
    """The path of up to 200 samples on the two principal axes of all their states, long.

    Each axis points so that its largest entry is positive: the picture does not flip from one machine to another.
    """
    layers, samples, width = geodesic.A.shape
    chosen = torch.linspace(0, samples - 1, min(samples, MOST_SAMPLES)).round().long().to(geodesic.A.device)
    states = geodesic.A[:, chosen].reshape(-1, width)
    centred = states - states.mean(dim=0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -2:].flip(1)
    largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0)
    points = (centred @ axes).reshape(layers, len(chosen), -1).tolist()
    colours = [math.nan] * len(chosen) if geodesic.colours is None else geodesic.colours[chosen].tolist()
    rows = [
        (layer, p, sample, point[0], point[1] if width > 1 else 0.0, colour)
        for layer, p in enumerate(geodesic.positions.tolist())
        for sample, point, colour in zip(chosen.tolist(), points[layer], colours, strict=True)
    ]
    names = TABLES["projection"].columns
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def _scores(problem: "Problem", geodesic: "Geodesic") -> dict[str, Any]:
    """Costs on both parts, and accuracies where there are classes; costs of the training part in float64."""
    test_cost, test_accuracy = problem.test()
    scores: dict[str, Any] = {
        "objective": geodesic.objective,
        "data_cost": geodesic.data_cost,
        "penalty": geodesic.objective - geodesic.data_cost,
        "test_cost": test_cost,
    }
    _, train_accuracy = problem.score(problem.x, problem.y)
    if train_accuracy is not None:
        scores |= {"train_accuracy": train_accuracy, "test_accuracy": test_accuracy}
    return scores


def _kind(problem: "Problem", direction: torch.Tensor | None) -> dict[str, Any]:
    """Minimum, saddle or undecided; ``direction``: where to look first, as the trainer left it."""
    from isthmus.certificate import kind_of

    found = kind_of(problem, limit=KIND_PRODUCTS, start=direction).to_dict()
    return {
        "kind": found["kind"],
        "kind_reason": found["reason"],
        "least_eigenvalue": found["least"],
        "least_eigenvalue_error": found["error"],
    }


def _errors(problem: "Problem", table: "MechanicsTable") -> dict[str, float] | None:
    """The optimiser's error on the ends of the interval of k*, where the network is near enough to a critical point."""
    from isthmus.activations import ReLU
    from isthmus.bottleneck import interval_readings
    from isthmus.certificate import optimiser_error

    near = max(float(value) for value in table["residual"]) <= NEAR
    if not near or isinstance(problem.activation, ReLU) or problem.memory != "store":
        return None
    return optimiser_error(problem, interval_readings(), limit=KIND_PRODUCTS)


def _reading_summary(reading: "Bottleneck") -> dict[str, Any]:
    return {
        "rank_estimate": reading.k_star,
        "rank_with_mean": reading.rank,
        "k_star_low": number(reading.interval[0]),
        "k_star_low_error": number(reading.interval_error[0]),
        "k_star_high": number(reading.interval[1]),
        "k_star_high_error": number(reading.interval_error[1]),
        "trusted": reading.trusted,
        "method": reading.method,
        "doubts": list(reading.doubts),
        "verdict": reading.verdict,
    }


def _settings(config: RunConfig, built: "Built") -> dict[str, Any]:
    model = config.model
    return {
        "effective_depth": model.effective_depth,
        "depth": model.depth,
        "width": model.width,
        "seed": config.seed,
        "task": built.task.name,
        "activation": model.activation,
        "mesh": config.mesh.kind,
        "recipe": config.train.recipe,
        "mu": config.train.mu,
        "rank_threshold": config.analysis.rank_threshold,
    }
