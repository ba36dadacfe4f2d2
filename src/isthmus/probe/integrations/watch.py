"""`Watch`: probe a network now and then while somebody else trains it, keep what was seen, and make scalars of it."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from isthmus.probe.batches import check_rereadable
from isthmus.probe.probe import probe
from isthmus.probe.profile import Profile

if TYPE_CHECKING:
    import polars

# What is logged of each layer: the stable dimensions, and how far and where a step goes. Exact ones jump.
SCALARS = ("participation_ratio_rows", "coi_stable", "stable_rank", "participation_ratio", "step_change", "cosine_mean")


def scalars_of(profile: Profile, columns: Sequence[str] = SCALARS, prefix: str = "isthmus/") -> dict[str, float]:
    """``{prefix}{column}/{layer}`` → value, for every layer that has one.

    Args:
        profile: of `isthmus.probe.probe`.
        columns: of its table; those of numbers.
        prefix: of the names.

    Raises:
        ValueError: a column of the profile that holds no numbers.

    >>> import torch
    >>> from isthmus.probe import probe
    >>> profile = probe(torch.nn.Sequential(torch.nn.Linear(3, 8)), torch.randn(40, 3))
    >>> list(scalars_of(profile, ["stable_rank"]))
    ['isthmus/stable_rank/0']
    """
    found: dict[str, float] = {}
    for column in columns:
        if column not in profile:
            continue  # of steps, say, where no two layers are compared
        for layer, value in zip(profile.layers, profile[column], strict=True):
            if isinstance(value, str):
                raise ValueError(f"columns: {column!r} holds no numbers ({value!r}) and cannot be logged as a scalar")
            if value is not None:
                found[f"{prefix}{column}/{layer}"] = float(value)
    return found


@dataclass
class Watch:
    """Probes a network whenever it is called, and keeps what it saw.

    Training is not disturbed: modes, buffers, gradients, hooks and generators are as they were (`probe`), a
    DataLoader's own generator included. A failure of the first probe is raised, for it is misuse most of the time; a
    later one (states that have become infinite, say) is a warning and an entry of ``failures``, and training goes on.

    Args:
        data: what to probe on, as for `probe`; readable more than once. A few hundred samples will do.
        columns: what becomes scalars; of the profile's table.
        prefix: of the scalars' names.
        keep: how many whole profiles are kept, the newest; None keeps all. A profile holds accumulators of
            ``O(width²)`` numbers a layer and shard. Of all others the table is kept.
        options: of `probe`: layers, activation, positions, ….
        profiles: step → whole profile.
        rows: the tables, a dict a layer and step.
        failures: step → what went wrong.

    Raises:
        TypeError: data that can be read only once.
        ValueError: ``keep`` below 1.
    """

    data: object
    columns: Sequence[str] = SCALARS
    prefix: str = "isthmus/"
    keep: int | None = 4
    options: dict[str, Any] = field(default_factory=dict)
    profiles: dict[int, Profile] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"keep: expected at least 1 profile, or None for all, got {self.keep}")
        check_rereadable(self.data)

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """Probe now; the scalars, empty where that failed."""
        try:
            with loader_restored(self.data):
                profile = probe(model, in_type_of(model, self.data), **self.options)
            columns = profile.columns
        except Exception as error:
            if not self.rows:
                raise
            self.failures[step] = f"{type(error).__name__}: {error}"
            warnings.warn(f"isthmus could not probe at step {step}: {self.failures[step]}", stacklevel=2)
            return {}
        self.rows = [row for row in self.rows if row["step"] != step]
        self.rows += [
            {"step": step} | {name: values[i] for name, values in columns.items()} for i in range(len(profile.layers))
        ]
        self.profiles[step] = profile
        while self.keep is not None and len(self.profiles) > self.keep:
            self.profiles.pop(next(iter(self.profiles)))
        return scalars_of(profile, self.columns, self.prefix)

    @property
    def last(self) -> Profile | None:
        """The newest profile."""
        return list(self.profiles.values())[-1] if self.profiles else None

    @property
    def steps(self) -> list[int]:
        """At which steps it was probed, with success."""
        return list(dict.fromkeys(row["step"] for row in self.rows))

    def to_dataframe(self) -> "polars.DataFrame":
        """All tables below one another, with a column ``step``."""
        import polars

        return polars.DataFrame(self.rows, infer_schema_length=None, strict=False)

    def state_dict(self) -> dict[str, Any]:
        """Tables and failures as plain data, for a checkpoint; whole profiles stay behind."""
        return {"rows": list(self.rows), "failures": dict(self.failures)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what another run had seen, in place of what is here."""
        self.rows, self.failures, self.profiles = list(state["rows"]), dict(state["failures"]), {}


def in_type_of(model: nn.Module, data: object) -> object:
    """A tensor of floating-point data in the type of the model's weights, to which a trainer may have brought them."""
    if not isinstance(data, torch.Tensor) or not data.is_floating_point():
        return data
    types = [p.dtype for p in model.parameters() if p.is_floating_point()]
    half = types and all(t in (torch.bfloat16, torch.float16) for t in types)
    return data.to(types[0]) if half else data


@contextmanager
def loader_restored(data: object) -> Iterator[None]:
    """Put back the generators that a DataLoader and its samplers were given: the same loader may serve the training."""
    places = [data, getattr(data, "sampler", None), getattr(getattr(data, "batch_sampler", None), "sampler", None)]
    generators = [getattr(place, "generator", None) for place in places]
    states = {id(g): (g, g.get_state()) for g in generators if isinstance(g, torch.Generator)}
    try:
        yield
    finally:
        for generator, state in states.values():
            generator.set_state(state)


def every(count: int | None, name: str) -> int | None:
    """A positive interval, or None.

    Raises:
        ValueError: below 1.
    """
    if count is not None and count < 1:
        raise ValueError(f"{name}: expected at least 1, or None for never, got {count}")
    return count
