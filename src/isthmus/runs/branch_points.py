"""What the points of a branch show, from their weights: the verdict on the last one, spectra of the states."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isthmus.branches import Branch, ProblemFamily, points_of
from isthmus.mechanics import mechanics, spectra
from isthmus.problem import Problem
from isthmus.runs.branch_folder import END, START, STATE, load_branch
from isthmus.runs.build import build_task, restore_model, restore_problem
from isthmus.runs.folder import RunFolder
from isthmus.runs.products import read_network
from isthmus.runs.saved import read_saved
from isthmus.status import Status


def read_end(folder: Path) -> dict[str, Any]:
    """What the network of the last point shows: costs, residual, minimum or saddle, verdict.

    Args:
        folder: of a branch.
    """
    saved = read_saved(folder / END)
    config = saved.config
    task = build_task(config)
    tested = len(task.x_test) > 0
    problem = Problem(
        restore_model(saved),
        task.x_train,
        task.y_train,
        loss=task.loss,
        mu=config.train.mu,
        x_test=task.x_test if tested else None,
        y_test=task.y_test if tested else None,
    )
    geodesic = problem.geodesic(Status.CONVERGED)
    table = mechanics(geodesic, gamma0=config.analysis.gamma0, rank_threshold=config.analysis.rank_threshold)
    return read_network(problem, geodesic, table, config.analysis.rank_threshold)


@dataclass(frozen=True)
class PointSpectra:
    """Singular values of the states of one point.

    Args:
        index: of the point.
        value: of the parameter.
        p: of the states ``A_0 … A_L``.
        values: those of each state, in falling order.
    """

    index: int
    value: float
    p: list[float]
    values: list[list[float]]


def branch_spectra(folder: str | Path, most: int = 40) -> list[PointSpectra]:
    """Spectra of the states of a branch's points, from the weights that were kept; empty where they were not.

    Args:
        folder: of a branch.
        most: points at most, at even distances, the first and the last among them.

    Raises:
        RunFolderError, StateError, ValueError: files that are missing or cannot be read.
    """
    data, place = load_branch(folder), RunFolder(folder)
    if not data.settings["weights"] or not (place / STATE).is_file():
        return []
    points = points_of(place / STATE)
    kept = [i for i, point in enumerate(points) if point.parameters is not None]
    if not kept:
        return []
    number = min(most, len(kept))
    chosen = sorted({kept[round(k * (len(kept) - 1) / max(number - 1, 1))] for k in range(number)})
    family = ProblemFamily(restore_problem(read_saved(place / START)), data.parameter)
    branch = Branch(family, tuple(points), (), Status.UNKNOWN)
    found = []
    for index in chosen:
        geodesic = branch.geodesic(index)
        values = [spectra(state).tolist() for state in geodesic.A]
        found.append(PointSpectra(index, points[index].value, geodesic.positions.tolist(), values))
    return found
