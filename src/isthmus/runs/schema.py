"""The run folder, described once: every file, every column with its type, unit and meaning.

Writers and readers take names and types from here; adding a table or a column is one entry (and the line that makes
its values).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isthmus.columns import LAYERS, STATES, Column

CONFIG = "config.yaml"
CHECKPOINT = "checkpoint.safetensors"
MODEL = "model.safetensors"
SUMMARY = "summary.json"
ENVIRONMENT = "environment.json"
REPORT = "report.html"
FIGURES = "figures"
LOCK = ".lock"

FILES = {
    CONFIG: "every value that decides the run, names that stand for others resolved; written before training",
    ENVIRONMENT: "versions, machine, threads, device, command and time of the start and of every resumption",
    CHECKPOINT: "the whole state of the training, by which it is resumed; written while training",
    MODEL: "weights, step-sizes and end maps; in the metadata the configuration and the step: the file to share",
    SUMMARY: "how the run ended, its key numbers and its verdict (`SUMMARY_VALUES`); written last",
    REPORT: "the page, with its figures beside it",
}
"""What each file holds; the tables are `TABLES`."""


@dataclass(frozen=True)
class Table:
    """A table of the run folder: ``<name>.parquet``, some also ``<name>.csv``.

    Args:
        name: of the file, without its ending.
        rows: what a row is.
        columns: by name, in order.
        csv: whether it is also written as CSV.
        required: whether a run without it cannot be shown.
    """

    name: str
    rows: str
    columns: Mapping[str, Column]
    csv: bool = False
    required: bool = False

    @property
    def parquet(self) -> str:
        """The name of its file."""
        return f"{self.name}.parquet"

    @property
    def files(self) -> tuple[str, ...]:
        """All its files."""
        return (self.parquet, f"{self.name}.csv") if self.csv else (self.parquet,)

    def frame(self, values: Mapping[str, Any]) -> Any:
        """A polars frame with the columns and types of the schema.

        Args:
            values: name to values; an optional column may be missing and is then null.

        Raises:
            ValueError: a column that is missing or unknown.
        """
        import polars as pl

        unknown = [name for name in values if name not in self.columns]
        lacking = [name for name, c in self.columns.items() if name not in values and c.presence != "optional"]
        if unknown or lacking:
            raise ValueError(f"columns of {self.name}: unknown {unknown}, lacking {lacking}; see isthmus.runs.schema")
        rows = max(map(len, values.values()), default=0)
        return pl.DataFrame({name: values.get(name, [None] * rows) for name in self.columns}, schema=self.types)

    @property
    def types(self) -> dict[str, Any]:
        """Every column's type in polars."""
        import polars as pl

        kinds = {"number": pl.Float64, "integer": pl.Int64, "flag": pl.Boolean, "text": pl.String}
        return {name: kinds[column.kind] for name, column in self.columns.items()}


def _required(head: str, meaning: str, unit: str = "", kind: Any = "number") -> Column:
    return Column(head, meaning, unit, kind, "required")


_HISTORY = {
    "step": _required("step", "optimiser steps made", "steps", "integer"),
    "stage": Column("stage", "the stage of the recipe that comes next; done at the end", kind="text"),
    "objective": Column("objective", "data cost and penalty (E3)", "that of the data cost"),
    "data_cost": Column("data cost", "over the training part", "that of the data cost"),
    "penalty": Column("penalty", "(μ/2)Σρ‖W‖², with learned ends theirs (E3)", "that of the data cost"),
    "residual_max": Column("residual, largest", "largest stationarity residual over the layers (E9)"),
    "residual_median": Column("residual, median", "median stationarity residual over the layers (E9)"),
    "test_cost": Column("test cost", "data cost of the test part", "that of the data cost", presence="optional"),
    "test_accuracy": Column("test accuracy", "share of test rows given their class", presence="optional"),
    "rate": Column("rate", "learning rate of the step; null for L-BFGS and Newton", presence="optional"),
    "seconds": Column("seconds", "time trained so far, all resumptions together", "s", presence="optional"),
    "kept_step": Column(
        "kept step",
        "the step whose network a stage left, where a later one was worse",
        "steps",
        "integer",
        "optional",
    ),
}
_SPECTRA = {
    "kind": _required("of", "A: of a state, W: of a layer's weights", kind="text"),
    "layer": _required("ℓ", "0..L for A, 1..L for W", "layers", "integer"),
    "p": _required("p", "p_ℓ for A, the layer's midpoint for W"),
    "index": _required("i", "number of the singular value, 0 the largest", kind="integer"),
    "value": _required("singular value", "the singular value"),
}
_PROJECTION = {
    "layer": _required("ℓ", "of the state, 0..L", "layers", "integer"),
    "p": _required("p", "of the state"),
    "sample": _required("sample", "row of the training part, from 0", "rows", "integer"),
    "pc1": _required("first axis", "coordinate on the first principal axis of all states", "that of the data"),
    "pc2": _required("second axis", "coordinate on the second principal axis of all states", "that of the data"),
    "colour": _required("colour", "the sample's class, or its first output coordinate"),
}

TABLES = {
    table.name: table
    for table in (
        Table("history", "a log point of the training", _HISTORY, csv=True, required=True),
        Table("layers", "a layer", LAYERS, csv=True, required=True),
        Table("states", "a state, A_0 and A_L included", STATES, csv=True),
        Table("spectra", "a singular value of a state or of a layer's weights", _SPECTRA),
        Table("projection", "a sample's place in a state", _PROJECTION),
    )
}
"""The tables of a run folder by name, in the order in which they are written."""

PRODUCTS = (MODEL, *(file for table in TABLES.values() for file in table.files), SUMMARY)
"""What is made when training stops; the summary last, so that its presence says that the others are there."""

SUMMARY_VALUES = {
    "status": Column("status", "how the training ended: see isthmus.status", kind="text"),
    "message": Column("message", "what happened, in words", kind="text"),
    "advice": Column("advice", "what to try where it did not go well", kind="text"),
    "layer": Column("layer", "where a divergence began", "layers", "integer"),
    "steps": Column("steps", "optimiser steps made", "steps", "integer"),
    "seconds": Column("seconds", "time trained, all resumptions together", "s"),
    "objective": Column("objective", "data cost and penalty (E3)", "that of the data cost"),
    "data_cost": Column("data cost", "over the training part", "that of the data cost"),
    "penalty": Column("penalty", "objective without data cost (E3)", "that of the data cost"),
    "test_cost": Column("test cost", "data cost of the test part; null without one", "that of the data cost"),
    "train_accuracy": Column("training accuracy", "share of rows given their class", presence="optional"),
    "test_accuracy": Column("test accuracy", "share of test rows given their class", presence="optional"),
    "residual_max": Column("residual, largest", "over the layers (E9)"),
    "residual_median": Column("residual, median", "over the layers (E9)"),
    "kind": Column("kind", "minimum, saddle or undecided, by the Hessian", kind="text", presence="optional"),
    "kind_reason": Column("reason of the kind", "what the kind rests on", kind="text", presence="optional"),
    "least_eigenvalue": Column(
        "least eigenvalue", "of the Hessian in √ρ W; null where it was not looked for", "μ", presence="optional"
    ),
    "least_eigenvalue_error": Column(
        "error of the least eigenvalue", "an eigenvalue lies within this of it", "μ", presence="optional"
    ),
    "minus_2h_over_l_median": Column("−2H/L̃, median", "over the layers; null at L̃ = 0 (E11)", "dimensions"),
    "minus_2h_over_l_min": Column("−2H/L̃, least", "over the layers; null at L̃ = 0", "dimensions"),
    "minus_2h_over_l_max": Column("−2H/L̃, largest", "over the layers; null at L̃ = 0", "dimensions"),
    "minus_2h_over_l_stable_median": Column("−2H/L̃ stable, median", "from stable norms (E7)", "dimensions"),
    "minus_2h_over_l_order2_median": Column("−2H̃/L̃ of order 2, median", "over the layers (E15)", "dimensions"),
    "minus_2h_over_l_order3_median": Column("−2H̃/L̃ of order 3, median", "over the layers (E15)", "dimensions"),
    "min_coi": Column("smallest COI", "over all states, A_L included (E6)", "dimensions"),
    "min_coi_stable": Column("smallest stable COI", "over all states, A_L included (E7)", "dimensions"),
    "path_length": Column("path length", "∫ ‖∂_pA‖_{K+γI} dp over the whole path (E12)"),
    "rank_estimate": Column(
        "rank estimate", "of k*: directions of the plateau about its mean; null where collapsed", kind="integer"
    ),
    "rank_with_mean": Column("with the mean", "least rank of an interior state, its mean included", kind="integer"),
    "k_star_low": Column("k* from below", "−2H̃/L̃, median, of the order that leaves least spread (E11)", "dimensions"),
    "k_star_low_error": Column("± of it", "the optimiser's error; null where unknown", "dimensions"),
    "k_star_high": Column("k* from above", "least stable COI (E11)", "dimensions"),
    "k_star_high_error": Column("± of it", "the optimiser's error; null where unknown", "dimensions"),
    "trusted": Column("trusted", "whether nothing speaks against the estimate", kind="flag"),
    "method": Column("method", "how the estimate was made", kind="text"),
    "doubts": Column("doubts", "a list of sentences", kind="text"),
    "verdict": Column("verdict", "the estimate in a sentence", kind="text"),
    "effective_depth": Column("L̃", "of the model (E1)"),
    "depth": Column("L", "of the model", "layers", "integer"),
    "width": Column("width", "of the model", "neurons", "integer"),
    "seed": Column("seed", "of data, weights and batches", kind="integer"),
    "task": Column("task", "name of the data", kind="text"),
    "activation": Column("σ", "of the model", kind="text"),
    "mesh": Column("mesh", "rule of the step-sizes", kind="text"),
    "recipe": Column("recipe", "of the training", kind="text"),
    "mu": Column("μ", "weight decay λ/L̃ (E3)"),
    "rank_threshold": Column("rank threshold", "part of the largest singular value below which one counts as zero"),
}
"""The values of summary.json."""
