"""Seeded, stratified parts of a data set."""

import torch
from jaxtyping import Int64
from torch import Tensor


def generator(seed: int) -> torch.Generator:
    """Return a CPU generator of its own: the global random state is neither read nor moved."""
    return torch.Generator().manual_seed(seed)


def stratified_order(labels: Int64[Tensor, " rows"], seed: int) -> Int64[Tensor, " rows"]:
    """Return the rows in a random order in which each class is spread evenly from the first row to the last.

    The r-th of the n rows of a class stands at `r/(n − 1)` of the way. So every head and every tail of the
    order holds each class in proportion (within one row), and each class at least once where it is as long as
    there are classes.
    """
    random = generator(seed)
    rows = len(labels)
    shuffled = torch.randperm(rows, generator=random)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    sizes = torch.bincount(labels, minlength=1)
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(rows) - starts[labels[by_class]]
    place = rank.double() / (sizes[labels[by_class]] - 1).clamp(min=1)
    ties = torch.randperm(rows, generator=random)
    return by_class[ties[torch.argsort(place[ties], stable=True)]]


def split_rows(
    rows: int,
    labels: Int64[Tensor, " rows"] | None,
    test_fraction: float | int,
    seed: int,
    train: int | None = None,
    test: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the row numbers of the training and of the test part.

    Parts are stratified where `labels` are given. `train` and `test` limit the parts; a smaller limit takes a
    subset of what a larger one takes, and neither moves the other part.

    Raises:
        ValueError: where a limit exceeds its part, or nothing would be left to train on.
    """
    if labels is None:
        order = torch.randperm(rows, generator=generator(seed))
    else:
        order = stratified_order(labels, seed)
    held_out = max(1, round(test_fraction * rows)) if test_fraction > 0 else 0
    if held_out >= rows:
        raise ValueError(f"test_fraction={test_fraction} of {rows} rows leaves none to train on: lower it or add rows")
    train_rows = limit("train", order[: rows - held_out], train)
    test_rows = limit("test", order.flip(0)[:held_out], test)
    return train_rows, test_rows


def limit(part: str, rows: Tensor, size: int | None) -> Tensor:
    """Return the first `size` of `rows`, all of them for None.

    Raises:
        ValueError: where there are fewer, or `size` is not positive.
    """
    if size is None:
        return rows
    if not 1 <= size <= len(rows):
        raise ValueError(
            f"{part}={size} rows were asked for, but the {part} part has {len(rows)}: give 1 to {len(rows)}, "
            "or None for all (test_fraction moves the border)"
        )
    return rows[:size]
