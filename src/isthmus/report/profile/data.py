"""What the page and the terminal show of a `Profile`: which layers form the depth, and what is read against what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from isthmus.report._numbers import number

if TYPE_CHECKING:
    import polars

    from isthmus.probe import Profile

STATES = ("stream", "block", "state")
NULL_QUANTITIES = (
    "participation_ratio_rows",
    "coi_stable",
    "participation_ratio_centred",
    "participation_ratio",
    "effective_rank_centred",
)
FEW_DRAWS_FROM = 256
"""Width from which a null control is drawn twice and not four times: the draws vary little, and take seconds."""

Nulls = Mapping[str, Mapping[str, tuple[float, float]]]
Null = Literal["shuffled", "gaussian", "none"]


@dataclass(frozen=True)
class Layer:
    """A row of the profile.

    Attributes:
        place: its number in order of execution, from 1.
        name: of the module.
        main: whether it lies on the depth that figures follow: a state of a stream, or any layer where there is none.
        stack: the run it belongs to.
        row: every column.
        null: quantities of the null control, mean and standard deviation.
    """

    place: int
    name: str
    main: bool
    stack: str | None
    row: Mapping[str, Any]
    null: Mapping[str, tuple[float, float]]

    def value(self, key: str) -> float | None:
        """A quantity; None where it is not defined."""
        return number(self.row.get(key))

    def error(self, key: str) -> float | None:
        """Its standard error; None where there is none."""
        return number(self.row.get(f"{key}_se"))

    def below_null(self, key: str) -> float | None:
        """How many standard errors it lies below the null control (negative: below)."""
        value, null = self.value(key), self.null.get(key)
        if value is None or null is None:
            return None
        scale = ((self.error(key) or 0.0) ** 2 + null[1] ** 2) ** 0.5
        return (value - null[0]) / scale if scale > 0 else None


@dataclass(frozen=True)
class ProfileData:
    """A profile with its null control and what is known of where it came from.

    Attributes:
        profile: what `isthmus.probe.probe` returned.
        name: of the network.
        data: what it was probed on.
        nulls: layer → quantity → mean and standard deviation of the null control; empty for none.
        null_kind: which control.
        notes: further remarks, in words.
        whole: whether all of the data was read; False where a limit of batches may have cut them.
    """

    profile: "Profile"
    name: str = "network"
    data: str = ""
    nulls: Nulls = field(default_factory=dict)
    null_kind: Null = "none"
    notes: tuple[str, ...] = ()
    whole: bool = True

    @cached_property
    def layers(self) -> list[Layer]:
        """The rows, in order of execution."""
        columns = self.profile.columns
        states = any(kind in STATES for kind in columns["kind"])
        return [
            Layer(
                place + 1,
                name,
                columns["kind"][place] in STATES if states else True,
                columns["stack"][place],
                {key: values[place] for key, values in columns.items()},
                self.nulls.get(name, {}),
            )
            for place, name in enumerate(columns["layer"])
        ]

    @property
    def main(self) -> list[Layer]:
        """The layers that the depth is made of."""
        return [layer for layer in self.layers if layer.main]

    @property
    def others(self) -> list[Layer]:
        """Layers inside blocks or beside the stream."""
        return [layer for layer in self.layers if not layer.main]

    @property
    def steps(self) -> list[Layer]:
        """Layers with a state before them to be compared with."""
        return [layer for layer in self.layers if layer.value("step_change") is not None]

    @cached_property
    def skipped(self) -> list[tuple[str, list[str], bool]]:
        """Reasons, the layers that share each, and whether these had been chosen; the chosen ones first."""
        found: dict[tuple[str, bool], list[str]] = {}
        for one in self.profile.skipped:
            found.setdefault((one.reason, one.chosen), []).append(f"{one.name} ({one.type})")
        rows = [(reason, names, chosen) for (reason, chosen), names in found.items()]
        return sorted(rows, key=lambda row: not row[2])

    def frame(self) -> "polars.DataFrame":
        """The profile's table with the null control's columns, ``null_…`` and ``null_…_sd``."""
        import polars

        made: dict[str, list[float | None]] = {}
        if self.nulls:
            for key in NULL_QUANTITIES:
                pairs = [layer.null.get(key) for layer in self.layers]
                made[f"null_{key}"] = [None if pair is None else pair[0] for pair in pairs]
                made[f"null_{key}_sd"] = [None if pair is None else pair[1] for pair in pairs]
        schema = {name: polars.Float64 for name in made}
        return self.profile.to_dataframe().hstack(polars.DataFrame(made, schema=schema).get_columns())

    def spectra(self, layers: Sequence[Layer]) -> dict[str, list[float]]:
        """Singular values of each layer's state about its mean, over the largest; empty where they were not summed."""
        found = {}
        for layer in layers:
            moments = self.profile.moments(layer.name)
            if not moments.spectra:
                continue
            values = moments.spectrum(centred=True).tolist()
            found[layer.name] = [v / values[0] for v in values] if values and values[0] > 0 else []
        return found


def null_controls(profile: "Profile", kind: Null, seed: int = 0) -> Nulls:
    """The null control of every layer with at least two rows and spectra; empty for "none"."""
    if kind == "none":
        return {}
    found = {}
    for name in profile.layers:
        moments = profile.moments(name)
        if moments.count < 2 or not moments.spectra:
            continue
        draws = 2 if moments.width >= FEW_DRAWS_FROM else 4
        numbers = profile.null(name, kind, draws=draws, gamma0=profile.gamma0, seed=seed)
        found[name] = {key: numbers[key] for key in NULL_QUANTITIES if key in numbers}
    return found
