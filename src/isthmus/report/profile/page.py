"""The page of a profile: one file that opens offline, its figures as SVG and PDF, and its tables."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.report._numbers import MISSING, number, show
from isthmus.report.document import Document
from isthmus.report.profile.data import Layer, ProfileData
from isthmus.report.profile.figures import KEYS, profile_figures
from isthmus.report.profile.words import account, profile_cards
from isthmus.report.spec import Figure
from isthmus.report.tables import HOW_TO_SORT, Cell, Column, Table
from isthmus.thresholds import IDLE

if TYPE_CHECKING:
    from isthmus.probe import Profile

COLUMNS = (
    Column("layer", "layer", "name of the module; @2 its second call in a pass, :input what goes into it"),
    Column("kind", "kind", "stream, block, linear, conv, module, or state"),
    Column("rows", "rows", "samples times positions, without padding"),
    Column("width", "width", "of the state"),
    Column(
        "participation_ratio_rows", "dimension", "participation ratio about the mean, without the bias of finite rows"
    ),
    Column("participation_ratio_rows_se", "± s.e.", "its standard error, jackknifed over shards"),
    Column("null_participation_ratio_rows", "null", "dimension of the null control"),
    Column("two_nn", "TwoNN", "intrinsic dimension by two neighbours; empty where it is not to be trusted"),
    Column("two_nn_se", "± s.e.", "its standard error over rows"),
    Column("coi_stable", "COI stable", "cost of identity with stable norms (E7)"),
    Column("coi_stable_se", "± s.e.", "its standard error, jackknifed over shards"),
    Column("null_coi_stable", "null", "COI stable of the null control"),
    Column("rank_1e-2_centred", "rank 1e-2, centred", "singular values about the mean above 1e-2 of the largest"),
    Column("step_change", "step", "‖ΔA‖/‖A‖ against the state before"),
    Column("step_change_se", "± s.e.", "its standard error, jackknifed over shards"),
    Column("block_influence", "influence", "1 − mean cosine between the state before and this one"),
    Column("participation_ratio_centred", "part. ratio, centred", "(Σs²)²/Σs⁴ about the mean, as it is", extra=True),
    Column("participation_ratio_both", "of many neurons", "dimension, as if of infinitely many neurons", extra=True),
    Column("compared_with", "against", "the state before, for the columns that compare two states", extra=True),
    Column("type", "type", "class of the module", extra=True),
    Column("stack", "stack", "the run of blocks, or chain of linear layers", extra=True),
    Column("reading", "reading", "which dimension is the width, what a row is, padding", extra=True),
    Column("dtype", "dtype", "of the states as they came; sums are in float64", extra=True),
    Column("coi", "exact COI", "cost of identity, exact: discontinuous", extra=True),
    Column("coi_off_image", "off image", "part of A outside the image of K", extra=True),
    Column("coi_stable_error", "rounding", "estimated relative error of COI stable by rounding", extra=True),
    Column("participation_ratio", "part. ratio, raw", "not about the mean", extra=True),
    Column(
        "effective_rank_centred", "effective rank", "exponential of the entropy of s/Σs, about the mean", extra=True
    ),
    Column("stable_rank", "stable rank", "‖A‖²_F / ‖A‖²_op", extra=True),
    Column("nuclear_rank", "nuclear rank", "‖A‖²_* / ‖A‖²_F", extra=True),
    Column("rms_norm", "row norm", "root mean square of the rows' norms", extra=True),
    Column("mean_norm", "mean's norm", "norm of the mean row", extra=True),
    Column("growth", "growth", "‖A‖ over ‖A‖ before", extra=True),
    Column("skip", "skip", "what the step carries along of the state off σ's features; 1 − leak", extra=True),
    Column("kinetic_k_stable", "kinetic", "‖ΔA‖²_K in stable norms", extra=True),
)


def write_profile_page(data: "ProfileData | Profile", folder: str | Path) -> Path:
    """Write `profile.html` and `figures/profile-*.svg`, `.pdf` into a folder; earlier ones are replaced.

    Args:
        data: the profile, bare or with its null control and what is known of it.
        folder: made where it is missing.

    Returns:
        The path of the page.

    Raises:
        ImportError: plotly, matplotlib or jinja2 is not installed.
    """
    return ProfilePage(data if isinstance(data, ProfileData) else ProfileData(data)).write(Path(folder))


@dataclass(frozen=True)
class ProfilePage(Document):
    """The document of a profile.

    Args:
        data: the profile with its null control.
    """

    data: ProfileData
    file = "profile.html"
    template = "profile.html.j2"
    keys = KEYS

    @property
    def title(self) -> str:
        """The network's name."""
        return self.data.name

    def sections(self) -> Mapping[str, Any]:
        """Facts and notes, the reading, key numbers, what was not read."""
        data = self.data
        return {
            "facts": _facts(data),
            "notes": (*data.notes, *data.profile.notes),
            "said": account(data),
            "cards": profile_cards(data),
            "skipped": data.skipped,
            "skipped_count": len(data.profile.skipped),
        }

    def figures(self) -> tuple[Figure, ...]:
        """By layer."""
        return profile_figures(self.data)

    def tables(self) -> tuple[Table, ...]:
        """The layers, with the columns that have a value."""
        layers = self.data.layers
        columns = tuple(column for column in COLUMNS if any(_raw(layer, column.key) is not None for layer in layers))
        idle = {layer.name for layer in self.data.steps if (layer.value("step_change") or 0.0) < IDLE}
        rows = [(layer.name in idle, [_cell(layer, column) for column in columns]) for layer in layers]
        reading = f"In order of execution. Shaded rows move the state by less than {IDLE:.0%}. {HOW_TO_SORT}"
        return (Table("layers", "Layers", reading, columns, rows, named=True),)


def _facts(data: ProfileData) -> list[tuple[str, str]]:
    """What identifies the profile."""
    methods = dict.fromkeys(record.moments[0].method for record in data.profile.records)
    shards = dict.fromkeys(str(len(record.moments)) for record in data.profile.records)
    found = [
        ("data", data.data),
        ("samples", show(data.profile.samples)),
        ("γ₀", show(data.profile.gamma0)),
        ("method", ", ".join(methods)),
        ("shards", ", ".join(shards)),
        ("null control", data.null_kind),
    ]
    return [(label, value) for label, value in found if value]


def _raw(layer: Layer, key: str) -> Any:
    """A cell's value; columns of the null control are not in the profile."""
    if key.startswith("null_"):
        null = layer.null.get(key.removeprefix("null_"))
        return None if null is None else null[0]
    return layer.row.get(key)


def _cell(layer: Layer, column: Column) -> Cell:
    value = _raw(layer, column.key)
    if column.key == "layer":
        return Cell(layer.name, str(layer.place), column.extra)
    if isinstance(value, str):
        return Cell(value, "", column.extra)
    exact = number(value)
    return Cell(MISSING if value is None else show(value), "" if exact is None else repr(exact), column.extra)
