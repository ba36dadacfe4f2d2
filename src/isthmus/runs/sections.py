"""The sections of a run's configuration: types, bounds, and where each default comes from."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from isthmus.runs.problems import is_optional, plain_type, section_of
from isthmus.thresholds import GAMMA0, RANK


class Section(BaseModel):
    """One section: unknown keys are errors, nothing changes after construction, booleans are no numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)

    @field_validator("*", mode="before")
    @classmethod
    def _tidy(cls, value: object, info: Any) -> object:
        """Read ``none`` and ``30,3,30`` as text, an empty section as defaults; refuse booleans as numbers."""
        field = cls.model_fields[str(info.field_name)]
        if section_of(field) is not None:
            return {} if value is None else value
        kind = plain_type(field)
        if isinstance(value, str) and value.strip().lower() in ("none", "null"):
            if is_optional(field):
                return None
            if kind == tuple[int, ...]:
                return ()
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
    init_from: str | None = Field(
        default=None,
        description="A run's folder, or a model.safetensors: weights, ends and step-sizes start as they are there, and "
        "its configuration lies under what is given. Width, depth, bias and the data's dimensions must be the same.",
        json_schema_extra={"expected": "the folder of a run, or the path of a model.safetensors"},
    )


class MeshConfig(Section):
    """The step-sizes of the layers (docs/notes/mesh.md)."""

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
    extend: tuple[int, ...] = Field(
        default=(),
        description="Steps for which the recipe's last stage is run once more, with a new optimiser, after the end. "
        "With --resume they come after those that the run has made.",
        json_schema_extra={"expected": "whole numbers >= 1, as in 500"},
    )
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
    device: str = Field(
        default="cpu",
        pattern=r"^(cpu|auto|cuda(:\d+)?)$",
        description="Where to train: cpu, cuda, cuda:1 for the second GPU, or auto, a GPU where there is one.",
        json_schema_extra={"expected": "one of cpu, cuda, auto, cuda:N (N the number of a GPU)"},
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads of torch; none: torch's own choice.")
    log_every: int = Field(default=20, ge=1, description="Steps between two rows of the history.")
    checkpoint_every: int = Field(default=100, ge=1, description="Steps between two saved states.")


class AnalysisConfig(Section):
    """How the trained network is read."""

    gamma0: float = Field(
        default=GAMMA0, gt=0, description="Regularisation of the stable norms, relative to the norm of K (E7)."
    )
    rank_threshold: float = Field(
        default=RANK, gt=0, lt=1, description="Singular values below this part of the largest count as zero."
    )


class Sections(Section):
    """Everything that decides a run; `isthmus.runs.config.RunConfig` checks how the values go together."""

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
