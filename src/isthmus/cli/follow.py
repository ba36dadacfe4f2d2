"""The command `isthmus follow`: a critical point followed as a parameter changes, into a folder that resumes."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isthmus.cli.failures import DONE, FAILED, INTERRUPTED, exit_codes, say
from isthmus.runs.config import RunConfig
from isthmus.runs.folder import free_folder
from isthmus.status import Status

if TYPE_CHECKING:
    from isthmus.runs.branch import Followed

_FAILED = (Status.STALLED, Status.DIVERGED)


class _AtFold(StrEnum):
    jump = "jump"
    locate = "locate"
    turn = "turn"
    stop = "stop"


def follow(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN|FILE]",
            help="The folder of a run to start from, or the model.safetensors of one.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Instead: a YAML file, as for train; it is solved first."),
    ] = None,
    parameter: Annotated[
        str | None,
        typer.Option(
            "--parameter",
            metavar="NAME",
            help="What changes: effective_depth (at fixed weight decay), mu or sharpness.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        float | None,
        typer.Option("--to", metavar="NUMBER", help="Its value at the end; the start has its own.", show_default=False),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option("--at", metavar="X,...", help="Values between that must have a point.", show_default=False),
    ] = None,
    sharpness: Annotated[
        float | None,
        typer.Option(
            "--sharpness",
            metavar="NUMBER",
            help="Put a smooth ReLU of this sharpness in place of the network's ReLU (20 will do).",
            show_default=False,
        ),
    ] = None,
    step: Annotated[
        float | None,
        typer.Option(
            "--step",
            metavar="NUMBER",
            help="First step: of log mu or log sharpness, or of effective_depth (default: 0.15, or 0.15 of the way).",
            show_default=False,
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="NUMBER",
            help="Largest stationarity residual of a point (default: 1e-5).",
            show_default=False,
        ),
    ] = None,
    at_fold: Annotated[
        _AtFold | None,
        typer.Option(
            "--at-fold",
            help="Where a branch of minima ends: jump to the next minimum, locate the fold first, turn round with the "
            "branch, or stop (default: jump).",
            show_default=False,
        ),
    ] = None,
    eigenvalues: Annotated[
        bool | None,
        typer.Option(
            "--eigenvalues/--no-eigenvalues",
            help="Compute the least eigenvalue of the Hessian at every point; without, losses of stability may be "
            "missed, and a third of the time is saved (default: eigenvalues).",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        bool | None,
        typer.Option(
            "--weights/--no-weights",
            help="Keep the weights of every point, which the spectra on the page are made from (default: weights).",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option("--seconds", metavar="NUMBER", help="Stop after this time, saved.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder (default: runs/branch, or runs/branch-2, ...)."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the branch in the folder.")] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.html and no figures.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but the folder, warnings and errors.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of errors (also by ISTHMUS_DEBUG=1).")
    ] = False,
) -> None:
    """Follow a critical point as a parameter changes: the curves of the paper's Figure 1a, every point certified.

    A start that is no critical point is solved first. What happens on the way is named: jumps to another branch,
    folds, losses of stability, changes of rank. A branch that was cut off goes on where --out names its folder, with
    the same command or with --out alone; a larger --to extends one that has ended.
    """
    given: dict[str, Any] = {
        "parameter": parameter,
        "to": to,
        "step": step,
        "tolerance": tolerance,
        "at_fold": None if at_fold is None else at_fold.value,
        "eigenvalues": eigenvalues,
        "weights": weights,
    }
    with exit_codes(debug):
        options = {name: value for name, value in given.items() if value is not None}
        if at is not None:
            options["at"] = _numbers(at)
        if run is not None and config is not None:
            raise ValueError("a branch starts from RUN or from --config FILE: give one of the two")
        settings = None if config is None else RunConfig.from_yaml(config)
        folder = out if out is not None else free_folder("branch")
        outcome = _follow(folder, run, settings, sharpness, options, seconds, overwrite, quiet)
        raise typer.Exit(_finish(outcome, report=not no_report, quiet=quiet))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(f"--at: expected numbers, as in 6,8,10, got {text!r}") from None


def _follow(
    folder: Path,
    run: Path | None,
    config: RunConfig | None,
    sharpness: float | None,
    options: Mapping[str, Any],
    seconds: float | None,
    overwrite: bool,
    quiet: bool,
) -> "Followed":
    """Follow, with the progress on the screen and the signals taken over."""
    from isthmus.cli.interrupts import Interrupts

    with Interrupts() as interrupts:
        from isthmus.cli.points import Points
        from isthmus.runs.branch import execute_branch
        from isthmus.runs.branch_start import Origin

        return execute_branch(
            folder,
            Origin(run, config, sharpness),
            options,
            seconds=seconds,
            overwrite=overwrite,
            watcher=Points(quiet, interrupts),
        )


def _finish(outcome: "Followed", *, report: bool, quiet: bool) -> int:
    """Say how it ended, show the table, write the page; returns the exit code."""
    from isthmus.cli.shown import show_folder, write_page
    from isthmus.runs.branch_folder import load_branch

    folder = outcome.folder
    if outcome.status is Status.INTERRUPTED:
        say(f"interrupted, saved; continue with: {load_branch(folder).again()}")
        return INTERRUPTED
    if outcome.branch is None:
        say(f"error: {outcome.advice}")
        return FAILED
    if not quiet:
        show_folder(folder)
    page, written = write_page(folder) if report else (None, True)
    if outcome.status is not Status.CONVERGED:
        say(f"the branch ended as {outcome.status.value!r}" + (f": {outcome.advice}" if outcome.advice else ""))
    print(folder if quiet else f"\nfolder: {folder}" + (f"\nreport: {page}" if page else ""))
    return DONE if outcome.status not in _FAILED and written else FAILED
