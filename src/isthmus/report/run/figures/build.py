"""All figures of a run, in the order of the page, with the caveats that its residual asks for."""

from dataclasses import replace

from isthmus.report.run.figures.mechanics import bounds_figure, energies_figure, rank_figure, ranks_figure
from isthmus.report.run.figures.path import mesh_figure, path_figure
from isthmus.report.run.figures.spectra import spectra_figure
from isthmus.report.run.figures.training import objective_figure, residual_figure
from isthmus.report.run.words import momenta_caveat
from isthmus.report.spec import Figure, count_unloggable
from isthmus.runs.reader import RunData

KEYS = ("objective", "residual", "spectra", "energies", "rank", "mesh", "path", "ranks", "bounds")


def build_figures(run: RunData) -> tuple[Figure, ...]:
    """Every figure that the run has data for; those that use B or H carry the caveat of the residual."""
    made = (
        objective_figure(run),
        residual_figure(run),
        spectra_figure(run),
        energies_figure(run),
        rank_figure(run),
        mesh_figure(run),
        path_figure(run),
        ranks_figure(run),
        bounds_figure(run),
    )
    return tuple(_finished(figure, run) for figure in made if figure is not None)


def _finished(figure: Figure, run: RunData) -> Figure:
    """The figure with its caveat, and a note on what its logarithmic axes leave out."""
    lost = sum(map(count_unloggable, figure.panels))
    notes = figure.notes
    if lost:
        notes = (*notes, f"{lost} zero or negative numbers have no place on the logarithmic axis.")
    caveat = momenta_caveat(run) if figure.needs_momenta else ""
    return replace(figure, notes=notes, caveat=caveat)
