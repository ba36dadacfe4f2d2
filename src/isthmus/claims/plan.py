"""Which jobs each figure and the claims need."""

from collections.abc import Iterable, Sequence
from typing import Any

from isthmus.claims.sizes import Size
from isthmus.claims.work import RULES, VERSIONS
from isthmus.sweeps import Job

FIGURES = ("figure1", "figure2", "figure3")
"""Of the paper."""


def trained_job(size: Size, seed: int, effective_depth: float) -> Job:
    """Figures 1 and 3, by the paper's recipe."""
    return _job(
        "trained",
        size,
        seed,
        dims=list(size.dims),
        teacher="fcnn",
        depth=size.depth,
        effective_depth=effective_depth,
        steps=size.steps,
        mu=size.mu,
        rule="equidistant",
        spectra=effective_depth == size.shown,
    )


def branch_job(size: Size, seed: int) -> Job:
    """Figures 1 and 3, at critical points."""
    return _job(
        "branch",
        size,
        seed,
        dims=list(size.dims),
        teacher="fcnn",
        depth=size.depth,
        leaks=list(size.leaks),
        shown=size.shown,
        decays=list(size.decays),
        sharpness=size.sharpness,
        tolerance=size.tolerance,
    )


def mesh_job(size: Size, seed: int, depth: int, rule: str) -> Job:
    """Figure 2a: one choice of step-sizes at one number of layers."""
    return _job(
        "trained",
        size,
        seed,
        dims=list(size.deep_dims),
        teacher="resnet",
        depth=depth,
        effective_depth=size.mesh_leak,
        steps=size.steps,
        mu=size.mu,
        rule=rule,
        spectra=False,
    )


def ways_job(size: Size, seed: int) -> Job:
    """Figures 2b and 2c."""
    return _job(
        "ways",
        size,
        seed,
        dims=list(size.deep_dims),
        teacher="resnet",
        depth=size.mesh_shown,
        effective_depth=size.mesh_leak,
        steps=size.steps,
        mu=size.mu,
    )


def minima_job(size: Size, seed: int) -> Job:
    """The search for minima of the cost of identity."""
    return Job("minima", {"width": 3, "rows": 4, "starts": size.starts, "seed": seed}, VERSIONS["minima"])


def plan(figures: Iterable[str], size: Size, seeds: int, claims: bool = False) -> list[Job]:
    """The jobs of figures: seed by seed, so that a study that was cut off has whole seeds.

    Args:
        figures: of `FIGURES`.
        size: of the networks.
        seeds: 0 … seeds − 1.
        claims: with what only claims need.

    Raises:
        ValueError: seeds below 1, or another figure.
    """
    wanted = tuple(figures)
    check(wanted, seeds)
    jobs: list[Job] = []
    for seed in range(seeds):
        if {"figure1", "figure3"} & set(wanted):
            jobs.append(branch_job(size, seed))
            jobs += [trained_job(size, seed, leak) for leak in size.leaks]
        if "figure2" in wanted:
            if seed == 0:
                jobs.append(ways_job(size, seed))
            jobs += [mesh_job(size, seed, depth, rule) for depth in size.mesh_depths for rule in RULES]
        if claims and "figure1" in wanted:
            jobs.append(minima_job(size, seed))
    return jobs


def check(figures: Sequence[str], seeds: int) -> None:
    """Refuse what cannot be planned.

    Raises:
        ValueError: see `plan`.
    """
    for name in figures:
        if name not in FIGURES:
            raise ValueError(f"unknown figure {name!r}: expected one of {', '.join(FIGURES)}, or all")
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")


def _job(kind: str, size: Size, seed: int, **settings: Any) -> Job:
    return Job(kind, {"width": size.width, "rows": size.rows, "seed": seed, **settings}, VERSIONS[kind])
