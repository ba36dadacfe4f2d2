"""The command `isthmus`. Torch is loaded when a command needs it, not for ``--help``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isthmus import __version__
from isthmus._support import command
from isthmus.cli.certify import certify
from isthmus.cli.failures import DONE, FAILED, INTERRUPTED, exit_codes, say
from isthmus.cli.flags import naming_options, with_config_flags
from isthmus.cli.follow import follow
from isthmus.cli.probe import probe
from isthmus.cli.reproduce import claims, reproduce
from isthmus.cli.shown import page_of, show_folder, write_page
from isthmus.runs.config import RunConfig, apply_overrides, merge_sections
from isthmus.runs.folder import RunFolder, free_folder, latest_folder
from isthmus.runs.schema import CONFIG
from isthmus.runs.yamlfile import read_yaml
from isthmus.status import Status

if TYPE_CHECKING:
    from isthmus.runs.execution import Outcome, Progress

app = typer.Typer(
    name="isthmus",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Leaky ResNets as Hamiltonian mechanics: train them, read their mechanics, see their bottleneck.",
    epilog="Exit codes: 0 done, 1 the run failed, 2 misuse, 130 interrupted and saved.",
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of errors (also by ISTHMUS_DEBUG=1).")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, a branch or a study.")]


def _version(wanted: bool) -> bool:
    if wanted:
        print(f"isthmus {__version__}")
        raise typer.Exit(DONE)
    return wanted


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
@with_config_flags
def train(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="YAML file with any of the values below.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Run folder (default: runs/NAME, or runs/NAME-2, ...)."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in the folder (without --out: the latest of its name)."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.html and no figures.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print nothing but the run folder, warnings and errors.")
    ] = False,
    debug: Debug = False,
    flags: Any = None,
) -> None:
    """Train a Leaky ResNet, read its mechanics, and leave everything in a run folder.

    Values are taken in the order defaults, --config, options. The default is the network of the paper's
    Figure 1.

    A run that was interrupted goes on with --resume. One that has ended is trained further with --resume --extend
    STEPS: the recipe's last stage is run once more, with a new optimiser. A new run starts from the network of
    another with --init-from.
    """
    with exit_codes(debug), naming_options(flags):
        settings, folder = _settle(config, out, resume, overwrite, flags)
        outcome = _train(settings, folder, resume, overwrite, quiet)
        code = _finish(outcome, report=not no_report, quiet=quiet)
        raise typer.Exit(code)


@app.command()
def show(run: Run, debug: Debug = False) -> None:
    """Print the tables and the verdict of a run or a branch, or the claims of a study."""
    with exit_codes(debug):
        show_folder(run)


@app.command()
def report(run: Run, debug: Debug = False) -> None:
    """Write the page and the figures of a run, a branch or a study from its data, and say where they are."""
    with exit_codes(debug):
        print(page_of(run))


app.command()(certify)
app.command()(probe)
app.command()(follow)
app.command()(reproduce)
app.command()(claims)


def _settle(
    file: Path | None, out: Path | None, resume: bool, overwrite: bool, flags: dict[str, Any]
) -> tuple[RunConfig, Path]:
    """The configuration and the folder; under what was given lies that of the run to resume, or to start from."""
    given = read_yaml(file) if file is not None else {}
    source = f"the configuration ({file} and options)" if file is not None else "the configuration"
    if out is None and (resume or overwrite):
        out = latest_folder(str(flags.get("name", given.get("name", RunConfig().name))))
    origin = _origin(given, flags)
    if resume and out is not None and RunFolder(out).has_config:
        stored = RunConfig.from_yaml(out / CONFIG)
        if "train.extend" in flags:
            flags["train.extend"] = ",".join([*map(str, stored.train.extend), flags["train.extend"]])
        given = merge_sections(stored.model_dump(), given)
    elif origin is not None:
        from isthmus.runs.saved import read_saved

        given = merge_sections(read_saved(origin).config.merge({"train.extend": ()}).model_dump(), given)
    settings = RunConfig.from_mapping(apply_overrides(given, flags), source)
    return settings, out if out is not None else free_folder(settings.name)


def _origin(given: Mapping[Any, Any], flags: Mapping[str, Any]) -> str | None:
    """The run or file to start from, by an option or else by the configuration's file."""
    model = given.get("model")
    origin = flags.get("model.init_from", model.get("init_from") if isinstance(model, Mapping) else None)
    return None if origin is None or str(origin).lower() == "none" else str(origin)


def _train(settings: RunConfig, folder: Path, resume: bool, overwrite: bool, quiet: bool) -> "Outcome":
    """Run, with the progress on the screen and the signals taken over."""
    from isthmus.cli.interrupts import Interrupts
    from isthmus.cli.progress import reporter

    screen = reporter(quiet)

    def begin(progress: "Progress") -> None:
        if not quiet:
            say(f"run folder: {progress.folder}")
        screen.start(progress)

    with Interrupts() as interrupts:
        from isthmus.runs.execution import execute

        try:
            return execute(
                settings,
                folder,
                resume=resume,
                overwrite=overwrite,
                on_start=begin,
                on_record=screen.record,
                should_stop=interrupts,
            )
        finally:
            screen.close()


def _finish(outcome: "Outcome", *, report: bool, quiet: bool) -> int:
    """Say how the run ended, show its tables, write its report; returns the exit code."""
    folder = outcome.folder
    if outcome.status == Status.INTERRUPTED:
        again = command("train", "--resume", "--out", folder)
        say(f"interrupted at step {outcome.step}, saved; continue with: {again}")
        return INTERRUPTED
    if not quiet:
        show_folder(folder)
    page, written = None, True
    if report:
        page, written = write_page(folder)
    if outcome.status == Status.DIVERGED:
        say(f"the run failed: {outcome.message}")
        if outcome.advice:
            say(f"advice: {outcome.advice}")
    print(folder if quiet else f"\nrun folder: {folder}" + (f"\nreport:     {page}" if page else ""))
    return DONE if outcome.status != Status.DIVERGED and written else FAILED


def main() -> None:
    """The entry point of the command `isthmus`."""
    app(prog_name="isthmus")
