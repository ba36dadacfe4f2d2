"""What is made when training stops: tables of the mechanics, spectra, a projection, a summary."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from isthmus.runs.config import RunConfig
from isthmus.runs.folder import MODEL, SUMMARY, RunFolder
from isthmus.runs.state import save_state

if TYPE_CHECKING:
    from isthmus.bottleneck import Bottleneck
    from isthmus.geodesic import Geodesic
    from isthmus.model import LeakyResNet
    from isthmus.problem import Problem
    from isthmus.runs.build import Built

MOST_SAMPLES = 200
"""Samples in the projection: more only blacken the picture."""

HISTORY_COLUMNS = (
    *("step", "stage", "objective", "data_cost", "penalty", "residual_max", "residual_median"),
    *("test_cost", "test_accuracy", "rate", "seconds"),
)


def write_products(folder: RunFolder, config: RunConfig, built: "Built", result: Mapping[str, Any]) -> dict[str, Any]:
    """Read the trained network and write everything but the report; returns the summary, written last.

    Args:
        folder: where to.
        config: the run's.
        built: what trained.
        result: ``status``, ``message``, ``advice``, ``layer`` and ``step`` of the training.
    """
    import polars as pl

    from isthmus.bottleneck import bottleneck
    from isthmus.mechanics import mechanics
    from isthmus.status import Status

    trainer, problem = built.trainer, built.trainer.problem
    folder.write_table("history", history_frame(trainer.history))
    folder.write_bytes(MODEL, model_bytes(built.model, config, trainer.step_count))
    geodesic = problem.geodesic(Status(result["status"]))
    threshold = config.analysis.rank_threshold
    table = mechanics(geodesic, gamma0=config.analysis.gamma0, rank_threshold=threshold)
    reading = bottleneck(geodesic, table, threshold=threshold)
    folder.write_table("layers", table.to_dataframe())
    folder.write_table("spectra", table.spectra_dataframe(), csv=False)
    folder.write_table("projection", pl.DataFrame(projection(geodesic)), csv=False)
    summary = {
        **result,
        **_scores(problem, geodesic),
        **table.summary(),
        **_reading_summary(reading),
        **_settings(config, built),
        "steps": trainer.step_count,
        "seconds": trainer.seconds,
    }
    del summary["step"]
    folder.write_json(SUMMARY, summary)
    return summary


def model_bytes(model: "LeakyResNet", config: RunConfig, step: int) -> bytes:
    """Weights, step-sizes and end maps under their own names; in the metadata what rebuilds the network."""
    rebuild = {"config": config.model_dump(mode="json"), "step": step}
    return save_state({**model.state_dict(), "rebuild": rebuild}, "model")


def history_frame(history: Sequence[Mapping[str, Any]]) -> Any:
    """The training history as a polars frame with all its columns, even where there are no rows yet."""
    import polars as pl

    extra = sorted({name for row in history for name in row} - set(HISTORY_COLUMNS))
    kinds: dict[str, Any] = {name: pl.Float64 for name in (*HISTORY_COLUMNS, *extra)}
    kinds |= {"step": pl.Int64, "stage": pl.String}
    columns = {name: [_cell(row.get(name), kind is pl.Float64) for row in history] for name, kind in kinds.items()}
    return pl.DataFrame(columns, schema=kinds)


def _cell(value: Any, number: bool) -> Any:
    return float(value) if number and value is not None else value


def projection(geodesic: "Geodesic") -> dict[str, list[Any]]:
    """The path of up to 200 samples on the two principal axes of all their states, long.

    Columns layer, p, sample, pc1, pc2, colour (the class, or the first output coordinate). Each axis points
    so that its largest entry is positive: the picture does not flip from one machine to another.
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
    names = ("layer", "p", "sample", "pc1", "pc2", "colour")
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


def _reading_summary(reading: "Bottleneck") -> dict[str, Any]:
    return {
        "rank_estimate": reading.rank,
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
