"""The `Task`: training and test data, the loss they are meant for, and what was done to them."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

Notes = dict[str, str | int | float | list]
"""What was done to the data: source, seeds, normalisation, dropped columns."""

LOSSES = ("mse", "cross_entropy")


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """Training and test data for one loss.

    Attributes:
        name: a short name for tables and titles.
        x_train: inputs, `(N, in)`, float64 unless moved by `to`.
        y_train: `(N, out)` of the dtype of the inputs for "mse"; `(N,)` int64 class indices for
            "cross_entropy".
        x_test: like `x_train`; may have no rows.
        y_test: like `y_train`; as many rows as `x_test`.
        loss: "mse" or "cross_entropy".
        classes: the number of classes for "cross_entropy", None for "mse".
        notes: what was done: source, seeds, normalisation (`x_mean`, `x_scale`, ...), dropped columns.

    Raises:
        ValueError: where shapes, dtypes, labels, loss and classes do not fit together.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    loss: str
    classes: int | None = None
    notes: Notes = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {self.loss!r}")
        if (self.classes is None) != (self.loss == "mse"):
            raise ValueError(
                f"loss {self.loss!r} came with classes={self.classes}: give classes for 'cross_entropy' and "
                "None for 'mse'"
            )
        if self.classes is not None and self.classes < 2:
            raise ValueError(f"a classification task needs at least 2 classes, got classes={self.classes}")
        for part in ("train", "test"):
            self._check_part(part)
        if len(self.x_train) == 0:
            raise ValueError("x_train has no rows: a task needs training data")
        if self.x_test.shape[1] != self.x_train.shape[1]:
            raise ValueError(
                f"x_train has {self.x_train.shape[1]} columns and x_test {self.x_test.shape[1]}: they must "
                "be the same columns"
            )
        if self.classes is None and self.y_test.shape[1] != self.y_train.shape[1]:
            raise ValueError(
                f"y_train has {self.y_train.shape[1]} columns and y_test {self.y_test.shape[1]}: they must "
                "be the same columns"
            )

    def _check_part(self, part: str) -> None:
        x, y = (self.x_train, self.y_train) if part == "train" else (self.x_test, self.y_test)
        if x.ndim != 2 or not x.is_floating_point():
            raise ValueError(
                f"x_{part} must be a floating-point (N, in) tensor, got {x.dtype} of shape {tuple(x.shape)}"
            )
        if x.dtype != self.x_train.dtype:
            raise ValueError(
                f"x_{part} is {x.dtype} and x_train {self.x_train.dtype}: use one dtype, e.g. task.to(torch.float64)"
            )
        if self.classes is None:
            if y.ndim != 2 or y.dtype != self.x_train.dtype:
                raise ValueError(
                    f"y_{part} must be an (N, out) tensor of the inputs' {self.x_train.dtype} for 'mse', got "
                    f"{y.dtype} of shape {tuple(y.shape)}"
                )
        elif y.ndim != 1 or y.dtype != torch.int64:
            raise ValueError(
                f"y_{part} must be an (N,) tensor of int64 class indices for 'cross_entropy', got {y.dtype} "
                f"of shape {tuple(y.shape)}"
            )
        elif len(y) and (int(y.min()) < 0 or int(y.max()) >= self.classes):
            raise ValueError(
                f"y_{part} holds class indices from {int(y.min())} to {int(y.max())}: with "
                f"classes={self.classes} they must lie in 0..{self.classes - 1}"
            )
        if len(x) != len(y):
            raise ValueError(
                f"x_{part} has {len(x)} rows and y_{part} {len(y)}: they must have the same number of rows"
            )

    @property
    def inputs(self) -> int:
        """The number of input coordinates."""
        return self.x_train.shape[1]

    @property
    def outputs(self) -> int:
        """The number of outputs a model needs: target coordinates, or classes."""
        return self.y_train.shape[1] if self.classes is None else self.classes

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Task":
        """Return the task in another floating-point type or on another device; class indices stay int64.

        Raises:
            ValueError: where `dtype` is not a floating-point type.
        """
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating-point type such as torch.float32, got {dtype}")
        label_dtype = dtype if self.classes is None else None
        return replace(
            self,
            x_train=self.x_train.to(device=device, dtype=dtype),
            y_train=self.y_train.to(device=device, dtype=label_dtype),
            x_test=self.x_test.to(device=device, dtype=dtype),
            y_test=self.y_test.to(device=device, dtype=label_dtype),
        )

    def __repr__(self) -> str:
        """Sizes, not numbers: the tensors are too long to print."""
        return (
            f"Task({self.name!r}, inputs={self.inputs}, outputs={self.outputs}, train={len(self.x_train)}, "
            f"test={len(self.x_test)}, loss={self.loss!r})"
        )
