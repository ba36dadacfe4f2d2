"""The command `isthmus probe`: the mechanics of anybody's trained network, as a table, a page and files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isthmus.cli.choices import Choices, by_pattern, listed
from isthmus.cli.failures import DONE, FAILED, exit_codes, say

if TYPE_CHECKING:
    import torch

    from isthmus.cli.loading import Data, Network
    from isthmus.report import ProfileData

TABLES = ("profile.parquet", "profile.csv", "profile.pt")


class _Positions(StrEnum):
    samples = "samples"
    mean = "mean"


class _Method(StrEnum):
    auto = "auto"
    qr = "qr"
    gram = "gram"


class _Null(StrEnum):
    shuffled = "shuffled"
    gaussian = "gaussian"
    none = "none"


class _Autocast(StrEnum):
    bfloat16 = "bfloat16"
    float16 = "float16"


def _panel(name: str) -> Callable[..., Any]:
    def option(*declarations: str, **settings: Any) -> Any:
        return typer.Option(*declarations, rich_help_panel=name, **settings)

    return option


_data, _read, _measure, _write = map(_panel, ("Data", "What is read", "What is measured", "Output"))


def probe(
    network: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FACTORY|RUN",
            help="PACKAGE.MODULE:FACTORY, a function without arguments that returns the trained torch.nn.Module, or "
            "the module itself; the current directory is importable. Or the folder of a run of isthmus train.",
        ),
    ],
    data: Annotated[
        str | None,
        _data(
            "--data",
            metavar="FILE|MODULE:FACTORY",
            help="Inputs: a .npz (its array x), .csv or .parquet file (labels are left out), or a function that "
            "returns a DataLoader, a tensor or batches. A run has its own.",
        ),
    ] = None,
    target: Annotated[
        str | None,
        _data("--target", metavar="NAME,...", help="Label columns of a table, left out (default: target, label or y)."),
    ] = None,
    drop: Annotated[
        str | None, _data("--drop", metavar="NAME,...", help="Further columns of a table to leave out.")
    ] = None,
    batch_size: Annotated[int, _data("--batch-size", min=1, help="Rows of a batch, where a tensor is cut.")] = 256,
    max_batches: Annotated[
        int | None, _data("--max-batches", min=1, help="Read no more than these (default: all).", show_default=False)
    ] = None,
    device: Annotated[
        str | None,
        _data("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, ... (default: where the network lies)."),
    ] = None,
    autocast: Annotated[
        _Autocast | None, _data("--autocast", help="Run the network in mixed precision (default: in its own).")
    ] = None,
    layers: Annotated[
        str | None,
        _read(
            "--layers",
            metavar="PATTERN,...",
            help="Names or patterns: * within one part of a dotted name, ** across dots, NAME:input for what goes in "
            "(default: streams, blocks, linear and convolutional layers are found).",
        ),
    ] = None,
    kinds: Annotated[
        str | None,
        _read(
            "--kinds", metavar="KIND,...", help="What is looked for: stream, block, linear, conv (default: all four)."
        ),
    ] = None,
    positions: Annotated[
        _Positions, _read("--positions", help="Every token or pixel is a row, or the mean over a sample's.")
    ] = _Positions.samples,
    channels: Annotated[
        str,
        _read("--channels", metavar="RULE", help="Where the width lies: auto, first, last, or PATTERN=RULE,..."),
    ] = "auto",
    sequence_first: Annotated[
        bool, _read("--sequence-first", help="Tokens come as (tokens, samples, width): batch_first=False.")
    ] = False,
    max_width: Annotated[int, _read("--max-width", min=1, help="Wider layers are skipped, with the reason.")] = 8192,
    activation: Annotated[
        str | None,
        _measure(
            "--activation",
            metavar="NAME",
            help="The next layer's nonlinearity: relu, smooth_relu, identity, or PATTERN=NAME,... "
            "(default: read off the network; of a run its own).",
        ),
    ] = None,
    append_one: Annotated[
        bool, _measure("--append-one/--no-append-one", help="Whether the features carry a constant 1 (a bias).")
    ] = True,
    gamma0: Annotated[float, _measure("--gamma0", help="Of the stable norms (E7), above 0.")] = 1e-3,
    neighbours: Annotated[
        int | None,
        _measure("--neighbours", min=3, help="Rows kept of each layer for dimensions by neighbours; 2000 is good."),
    ] = None,
    method: Annotated[
        _Method,
        _measure(
            "--method",
            help="qr: all digits. gram: 4 to 8 times faster, half the digits. auto: qr for float64 states, else gram.",
        ),
    ] = _Method.auto,
    shards: Annotated[
        int | None,
        _measure(
            "--shards",
            min=1,
            help="Parts of the samples for standard errors (default: 8, fewer for widths above 256).",
            show_default=False,
        ),
    ] = None,
    loss: Annotated[
        str | None,
        _measure(
            "--loss",
            metavar="NAME|MODULE:FUNCTION",
            help="What the network was trained on, for momenta and -2H/L: cross_entropy, mse, or a function (output, "
            "target). It needs --weight-decay, and labels in the data.",
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        _measure("--weight-decay", help="With --loss: trained on loss + weight_decay/2 times the squared weights."),
    ] = None,
    null: Annotated[
        _Null, _measure("--null", help="Control: neurons made independent, Gaussian data of the same covariance, none.")
    ] = _Null.shuffled,
    out: Annotated[
        Path | None, _write("--out", metavar="DIR", help="Folder for the page, figures and tables (default: none).")
    ] = None,
    overwrite: Annotated[bool, _write("--overwrite", help="Replace the profile in the folder.")] = False,
    quiet: Annotated[bool, _write("--quiet", help="Print nothing but the folder, warnings and errors.")] = False,
    debug: Annotated[bool, _write("--debug", help="Show the traceback of errors (also by ISTHMUS_DEBUG=1).")] = False,
) -> None:
    """Read the mechanics of a trained PyTorch network: dimension, spectra, idle layers.

    --out DIR writes profile.html, its figures, profile.parquet and .csv, and profile.pt, which can be merged with
    those of other parts of the data (isthmus.probe.Profile.load).
    """
    with exit_codes(debug):
        choices = Choices(
            layers=listed(layers),
            kinds=listed(kinds),
            positions=positions.value,
            channels=by_pattern("--channels", channels, ("auto", "first", "last")),
            sequence_first=sequence_first,
            max_width=max_width,
            activation=by_pattern("--activation", activation, ("relu", "smooth_relu", "identity")),
            append_one=append_one,
            gamma0=gamma0,
            neighbours=neighbours,
            method=method.value,
            shards=shards,
            batch_size=batch_size,
            max_batches=max_batches,
            autocast=None if autocast is None else autocast.value,
            loss=loss,
            weight_decay=weight_decay,
        )
        if out is not None:
            _check_folder(out, overwrite)
        raise typer.Exit(_run(network, data, (target, listed(drop)), device, choices, null.value, out, quiet))


def _check_folder(out: Path, overwrite: bool) -> None:
    """Refuse a file, and a folder that holds a profile already."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, expected a folder for the profile; choose another with --out")
    held = [name for name in (*TABLES, "profile.html") if (out / name).exists()]
    if held and not overwrite:
        raise ValueError(
            f"{out} already holds {held[0]}; replace it with --overwrite, or choose another folder by --out"
        )


def _run(
    given: str,
    data_given: str | None,
    columns: tuple[str | None, list[str] | None],
    device: str | None,
    choices: Choices,
    null: Any,
    out: Path | None,
    quiet: bool,
) -> int:
    """Load, read, show, write; the exit code."""
    from isthmus.cli.loading import load_data, load_network
    from isthmus.probe import probe as read
    from isthmus.report.profile.data import ProfileData, null_controls

    network = load_network(given)
    data = load_data(data_given, network, columns[0], columns[1] or ())
    if device is not None:
        network.model.to(_device(device))
    options = choices.options()
    if choices.loss is not None and not data.labelled:
        raise ValueError(
            f"--loss needs labels, and of {data.name} only inputs are read: give --data MODULE:FACTORY, with a "
            "function that returns batches (inputs, labels), such as a DataLoader"
        )
    with _explained(network, data), _status(quiet) as tell:
        profile = read(network.model, _counted(data.batches(choices.batch_size), tell), **options)
        tell(f"quantities of {len(profile.layers)} layers")
        _ = profile.columns
        tell("null control")
        nulls = null_controls(profile, null)
    whole = choices.max_batches is None
    shown = ProfileData(profile, network.name, data.name, nulls, null if nulls else "none", data.notes, whole)
    if not quiet:
        _show(shown)
    return DONE if out is None else _save(shown, out, quiet)


def _counted(batches: Iterator[object], tell: Callable[[str], None]) -> Iterator[object]:
    for number, batch in enumerate(batches, start=1):
        tell(f"reading: batch {number}")
        yield batch


@contextmanager
def _status(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Something to tell what goes on: a line that changes on a terminal, nothing elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda text: None
        return
    with console.status("reading") as status:
        yield status.update


def _device(name: str) -> "torch.device":
    """A device that is there."""
    import torch

    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"--device: {name!r} cannot be used here ({reason}); try cpu") from error
    return device


@contextmanager
def _explained(network: "Network", data: "Data") -> Iterator[None]:
    """Say whose fault it was that the network could not be read, and what to do."""
    import torch

    from isthmus.probe.batches import CHECK, misfit

    try:
        yield
    except torch.OutOfMemoryError as error:
        from isthmus.runs.execution import RunError

        raise RunError(
            f"out of memory: {(str(error).splitlines() or [''])[0]} Give a smaller --batch-size, fewer --shards, "
            "a --max-width, or --device cpu"
        ) from error
    except Exception as error:
        ran = [note for note in getattr(error, "__notes__", ()) if note.startswith("isthmus.probe: while ")]
        if ran:
            what = ran[0].removeprefix("isthmus.probe: ")
            theirs = error.__cause__ or error
            text = misfit(f"{network.name} and {data.name}", f"{type(theirs).__name__} {what}: {theirs}")
            raise ValueError(f"{text}. {CHECK.format('what --data gives')}") from theirs
        if isinstance(error, TypeError):  # of the arguments, see `isthmus.probe.probe`
            raise ValueError(str(error)) from error
        raise


def _show(shown: "ProfileData") -> None:
    from rich.console import Console

    from isthmus.report.profile.terminal import render_profile

    render_profile(shown, Console())


def _save(shown: "ProfileData", out: Path, quiet: bool) -> int:
    """Write the tables and, where its packages are there, the page."""
    from isthmus.report.profile.page import write_profile_page

    out.mkdir(parents=True, exist_ok=True)
    frame = shown.frame()
    _written(out / "profile.parquet", frame.write_parquet)
    _written(out / "profile.csv", frame.write_csv)
    shown.profile.save(out / "profile.pt")
    page, code = None, DONE
    try:
        page = write_profile_page(shown, out)
    except ImportError as error:
        say(f"warning: no page was written: {error}; the tables are in {out}")
    except OSError as error:
        say(f"error: no page was written: {error}; free space or mend permissions, then give the command again")
        code = FAILED
    print(out if quiet else f"\nprofile: {out}" + (f"\npage:    {page}" if page else ""))
    return code


def _written(file: Path, write: Callable[[Any], object]) -> None:
    """By way of memory, and whole or not at all: what polars raises on a full disk is no OSError."""
    from io import BytesIO

    from isthmus._support import write_bytes

    buffer = BytesIO()
    write(buffer)
    write_bytes(file, buffer.getvalue())
