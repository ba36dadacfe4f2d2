"""The typed configuration of a run: sections, bounds, and where each default comes from.

Values are taken in the order defaults, YAML file, flags. Everything wrong is reported at once: `ConfigError`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from isthmus._support import nearest
from isthmus.runs.checks import cross_problems, doubts
from isthmus.runs.problems import (
    ConfigError,
    Problem,
    choices,
    expectation,
    is_optional,
    keys_of,
    plain_type,
    section_of,
    show_value,
    unknown_key,
)
from isthmus.runs.yamlfile import dump_yaml, read_yaml


class Section(BaseModel):
    """One section: unknown keys are errors, nothing changes after construction, booleans are no numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)

    @field_validator("*", mode="before")
    @classmethod
    def _mend(cls, value: object, info: Any) -> object:
        """Read ``none`` and ``30,3,30`` as text, an empty section as defaults; refuse booleans as numbers."""
        field = cls.model_fields[str(info.field_name)]
        if section_of(field) is not None:
            return {} if value is None else value
        kind = plain_type(field)
        if isinstance(value, str) and is_optional(field) and value.strip().lower() in ("none", "null"):
            return None
        if isinstance(value, bool) and kind is not bool:
            raise PydanticCustomError("boolean", "a boolean where another value belongs")
        if getattr(kind, "__origin__", None) is tuple and isinstance(value, str | int):
            return [part.strip() for part in str(value).split(",") if part.strip()]
        return value


class TaskConfig(Section):
    """What to learn."""

    kind: Literal["teacher", "digits", "mnist", "mnist1d", "file"] = Field(
        default="teacher",
        description="The data: a random teacher network, a packaged data set, or a file of yours.",
    )
    teacher: Literal["fcnn", "resnet"] = Field(
        default="fcnn", description="Teacher: fully connected (the paper's Figure 1) or residual (Figure 2)."
    )
    dims: tuple[int, ...] = Field(
        default=(30, 3, 30),
        description="Teacher: dimensions from input to output. Default: the paper's Figure 1.",
        json_schema_extra={"expected": "two or more whole numbers >= 1, as in 30,3,30"},
    )
    hidden: int = Field(
        default=20,
        ge=1,
        description="Teacher: neurons in each of its hidden layers. Default: as in the project's trials.",
    )
    teacher_layers: int = Field(
        default=2,
        ge=1,
        description="Teacher: layers between two of its dimensions. Default: as in the project's trials.",
    )
    train: int | None = Field(
        default=None,
        ge=2,
        description="Training rows; none: 1000 for a teacher (the paper's), all there are for data.",
    )
    test: int | None = Field(
        default=None,
        ge=1,
        description="Test rows; none: 1000 for a teacher (the paper's), all there are for data.",
    )
    test_fraction: float | None = Field(
        default=None, ge=0, lt=1, description="Data: part of the rows held out; none: the data set's own."
    )
    normalise: Literal["default", "coordinate", "global", "none"] = Field(
        default="default",
        description="Scaling after centring: every coordinate by its own deviation, all by one number, or "
        "not at all. default: coordinate for a teacher (the paper's), the data set's own otherwise.",
    )
    path: str | None = Field(default=None, description="File: the .npz, .csv or .parquet to read.")
    target: tuple[str, ...] | None = Field(
        default=None,
        description="File: columns to predict, by name, else by number (0 is the first, -1 the last), or the array of "
        "an .npz; none: the column target, label or y.",
        json_schema_extra={"expected": "one or more names or numbers of columns, as in y1,y2"},
    )
    drop: tuple[str, ...] = Field(
        default=(),
        description="File: columns to leave out.",
        json_schema_extra={"expected": "names of columns, as in id,date"},
    )
    centre: bool = Field(default=True, description="File: subtract the means of the training part.")
    task_type: Literal["auto", "regression", "classification"] = Field(
        default="auto", description="File: what the targets are; auto decides by their type."
    )
    constant: Literal["error", "drop"] = Field(
        default="error", description="File: what to do with columns that never change."
    )


class ModelConfig(Section):
    """The Leaky ResNet."""

    width: int = Field(
        default=100, ge=1, description="w, neurons per layer, at least the larger end. Default: the paper's."
    )
    depth: int = Field(default=20, ge=1, description="L, number of layers. Default: the paper's Figure 1.")
    effective_depth: float = Field(
        default=7.0,
        ge=0,
        description="L-tilde, the strength of the leak; 0 is a ResNet. Default: the paper's Figure 1.",
    )
    ends: Literal["fixed", "learned"] = Field(
        default="fixed",
        description="Input and output maps: fixed orthonormal ones, or learned and penalised.",
    )
    activation: Literal["relu", "smooth_relu", "identity"] = Field(
        default="relu", description="The nonlinearity. Default: the paper's."
    )
    sharpness: float = Field(
        default=20.0,
        gt=0,
        description="smooth_relu: sharpness of the softplus. Default: as in the project's trials.",
    )
    append_one: bool = Field(
        default=True,
        description="Append a constant 1 to the features, which makes biases. Default: the paper's.",
    )
    initialisation: Literal["default", "small", "kaiming", "carrier"] = Field(
        default="default",
        description="How the weights start; default is the one that isthmus.initialise recommends.",
    )


class MeshConfig(Section):
    """The step-sizes of the layers (section 5 of the theory file)."""

    kind: Literal["equidistant", "irregular", "adaptive"] = Field(
        default="equidistant",
        description="Step-sizes of the layers: equal, small at both ends, or moved while training.",
    )
    irregularity: float = Field(
        default=0.5,
        ge=0,
        lt=1,
        description="Irregular: a in [0, 1); 0 gives equal steps, towards 1 small ends.",
    )
    every: int = Field(
        default=10,
        ge=1,
        description="Adaptive: steps of training between two moves. Default: docs/notes/mesh.md.",
    )
    floor: float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Adaptive: floor on the speeds, relative to their mean; 0 switches it off.",
    )
    smoothing: int = Field(
        default=1, ge=0, description="Adaptive: passes of smoothing between neighbours; 0 switches it off."
    )
    relaxation: float = Field(
        default=0.5, gt=0, le=1, description="Adaptive: part of the way to the new steps; 1 goes all the way."
    )
    cap: float = Field(default=1.0, gt=0, description="Adaptive: largest rho times L-tilde of fast layers.")
    slow_cap: float = Field(
        default=1.0,
        gt=0,
        description="Adaptive: largest rho times L-tilde of slow layers, the bottleneck; at least cap.",
    )
    freeze_fraction: float = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Adaptive: part of the first-order training after which the steps stay; they also stay "
        "while L-BFGS and the last stage of the default recipe run.",
    )


class TrainConfig(Section):
    """How to train."""

    recipe: Literal["default", "paper", "fast", "geodesic", "kinks"] = Field(
        default="default",
        description="Optimisers: paper is Adam then SGD; default converges much further; fast stops early; geodesic "
        "goes on with Newton's method; kinks passes through smooth ReLUs to a critical point of a ReLU network.",
        json_schema_extra={"alias": "--solver"},
    )
    tolerance: float = Field(
        default=0.0,
        ge=0,
        description="Stop when the largest stationarity residual is at most this; 0: after the recipe's steps.",
    )
    steps: int | None = Field(default=None, ge=3, description="Steps of the whole recipe; none: the recipe's own.")
    rate: float | None = Field(
        default=None, gt=0, description="Peak learning rate of the first stage; none: the recipe's own."
    )
    mu: float = Field(
        default=1e-3,
        gt=0,
        description="Weight decay, lambda / L-tilde, biases included. Default: the paper's.",
    )
    batch_size: int | None = Field(
        default=None, ge=1, description="Rows per step; none: the full batch, as in the paper."
    )
    dtype: Literal["float32", "float64"] = Field(default="float32", description="Precision of the training.")
    device: Literal["cpu", "cuda", "auto"] = Field(
        default="cpu", description="Where to train; auto takes a GPU where there is one."
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads of torch; none: torch's own choice.")
    log_every: int = Field(default=20, ge=1, description="Steps between two rows of the history.")
    checkpoint_every: int = Field(default=100, ge=1, description="Steps between two saved states.")


class AnalysisConfig(Section):
    """How the trained network is read."""

    gamma0: float = Field(
        default=1e-3, gt=0, description="Regularisation of the stable norms, relative to the norm of K (E7)."
    )
    rank_threshold: float = Field(
        default=1e-2, gt=0, lt=1, description="Singular values below this part of the largest count as zero."
    )


class RunConfig(Section):
    """Everything that decides a run."""

    name: str = Field(
        default="run",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="Name of the run, used for its folder and its page.",
        json_schema_extra={"expected": "a name of letters, digits, '.', '_' and '-'"},
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of the data, the initial weights and the batches.")
    task: TaskConfig = TaskConfig()
    model: ModelConfig = ModelConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()
    analysis: AnalysisConfig = AnalysisConfig()

    @model_validator(mode="after")
    def _check_together(self) -> "RunConfig":
        problems = cross_problems(self)
        if problems:
            raise ConfigError(problems)
        return self

    @classmethod
    def from_mapping(cls, mapping: object, source: str = "the configuration") -> "RunConfig":
        """A configuration from nested plain values; what is not given takes its default.

        Raises:
            ConfigError: everything that is wrong, each with its dotted key.
        """
        try:
            return cls.model_validate(mapping)
        except ValidationError as error:
            raise ConfigError(_problems(error, mapping), source) from None

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> "RunConfig":
        """A configuration from a YAML file, then ``overrides`` by dotted key (``{"model.width": 50}``).

        Raises:
            ConfigError: a missing or malformed file (with the line), or anything wrong in it.
        """
        return cls.from_mapping(apply_overrides(read_yaml(path), overrides or {}), str(path))

    def merge(self, overrides: Mapping[str, Any]) -> "RunConfig":
        """The same configuration with some values replaced, by dotted key.

        Raises:
            ConfigError: as `from_mapping`.
        """
        return self.from_mapping(apply_overrides(self.model_dump(), overrides))

    def to_yaml(self) -> str:
        """The whole configuration as YAML, which `from_yaml` reads back to an equal one."""
        return dump_yaml(self.model_dump(mode="json"))

    def flat(self) -> dict[str, Any]:
        """All values by dotted key."""
        values: dict[str, Any] = {}
        for key in keys_of(type(self)):
            section, _, leaf = key.rpartition(".")
            values[key] = getattr(getattr(self, section) if section else self, leaf)
        return values

    def differences(self, other: "RunConfig") -> dict[str, tuple[Any, Any]]:
        """The dotted keys in which two configurations differ, with both values."""
        mine, theirs = self.flat(), other.flat()
        return {key: (mine[key], theirs[key]) for key in mine if mine[key] != theirs[key]}

    def warnings(self) -> tuple[str, ...]:
        """What is allowed but probably not meant: values without effect, layers whose skip changes sign."""
        defaults = {key: field.default for key, field in keys_of(type(self)).items()}
        return doubts(self, {key for key, value in self.flat().items() if value != defaults[key]})


def apply_overrides(base: Mapping[Any, Any], overrides: Mapping[str, Any]) -> dict[Any, Any]:
    """Nested plain values with some replaced by dotted key; a bad section is left to validation."""
    merged: dict[Any, Any] = dict(base)
    for key, value in overrides.items():
        *sections, leaf = key.split(".")
        place = merged
        for name in sections:
            inner = place.get(name)
            if inner is not None and not isinstance(inner, Mapping):
                break
            place[name] = dict(inner or {})
            place = place[name]
        else:
            place[leaf] = value
    return merged


def merge_sections(base: Mapping[Any, Any], layer: Mapping[Any, Any]) -> dict[Any, Any]:
    """Nested plain values with those of another layer over them, key by key within sections."""
    merged = dict(base)
    for key, value in layer.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and (value is None or isinstance(value, Mapping)):
            merged[key] = {**below, **(value or {})}
        else:
            merged[key] = value
    return merged


def _problems(error: ValidationError, given: object) -> list[Problem]:
    """Every error of pydantic in this package's words, one a key."""
    found: dict[str, Problem] = {}
    for item in error.errors(include_url=False):
        together = item.get("ctx", {}).get("error")
        if isinstance(together, ConfigError):
            found |= {problem.key: problem for problem in together.problems}
        else:
            problem = _problem(item["type"], item["loc"], given)
            found.setdefault(problem.key, problem)
    return list(found.values())


def _problem(kind: str, location: tuple[int | str, ...], given: object) -> Problem:
    """One error of pydantic, by its kind and place, in words."""
    path = list(map(str, location))
    if kind == "invalid_key":
        return Problem(".".join(path), "expected text as a key, not a number")
    if kind == "extra_forbidden":
        return unknown_key(".".join(path), RunConfig)
    known = keys_of(RunConfig)
    # Errors inside lists and unions have longer locations than the field.
    while ".".join(path) not in known and len(path) > 1:
        path.pop()
    key = ".".join(path)
    value = given
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else value
    if key not in known:
        what = "a section, that is a mapping of keys to values" if key else "a mapping of sections"
        return Problem(key, f"expected {what}, got {show_value(value)}")
    text = f"expected {expectation(known[key])}, got {show_value(value)}"
    close = nearest(value, choices(known[key])) if isinstance(value, str) else None
    return Problem(key, f"{text}; did you mean {close}?" if close else text)
