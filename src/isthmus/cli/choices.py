"""From the options of `isthmus probe` to the arguments of `isthmus.probe.probe`; torch loads only with them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isthmus.activations import Activation


@dataclass(frozen=True)
class Choices:
    """The options that `isthmus.probe.probe` takes, as they were given."""

    layers: list[str] | None
    kinds: list[str] | None
    positions: str
    channels: str | dict[str, str] | None
    sequence_first: bool
    max_width: int
    activation: str | dict[str, str] | None
    append_one: bool
    gamma0: float
    neighbours: int | None
    method: str
    shards: int | None
    batch_size: int
    max_batches: int | None
    autocast: str | None
    loss: str | None
    weight_decay: float | None

    def options(self) -> dict[str, Any]:
        """Keyword arguments for `isthmus.probe.probe`; what is to keep its default is left out."""
        import torch

        named = self.activation
        if named is None and not self.append_one:
            raise ValueError("--no-append-one: says how the features of --activation are; expected that as well")
        sigma = (
            {p: self._sigma(n) for p, n in named.items()} if isinstance(named, dict) else named and self._sigma(named)
        )
        found = {
            "layers": self.layers,
            "positions": self.positions,
            "channels": self.channels,
            "sequence_first": self.sequence_first,
            "max_width": self.max_width,
            "activation": sigma,
            "gamma0": self.gamma0,
            "neighbours": self.neighbours,
            "method": self.method,
            "shards": self.shards,
            "max_batches": self.max_batches,
            "autocast": None if self.autocast is None else getattr(torch, self.autocast),
            "loss": None if self.loss is None else _loss(self.loss),
            "weight_decay": self.weight_decay,
        }
        return found | ({} if self.kinds is None else {"kinds": self.kinds})

    def _sigma(self, name: str) -> "Activation":
        from isthmus.activations import ACTIVATIONS

        return ACTIVATIONS[name](append_one=self.append_one)


def _loss(given: str) -> Callable[..., Any]:
    """A loss by its name, or the function that MODULE:FUNCTION names."""
    from torch.nn import functional

    from isthmus.cli.loading import found

    known: dict[str, Callable[..., Any]] = {"cross_entropy": functional.cross_entropy, "mse": functional.mse_loss}
    if given in known:
        return known[given]
    function = found(given, "the loss", "cross_entropy, mse or MODULE:FUNCTION")
    if not callable(function):
        raise ValueError(f"--loss: expected a function (output, target) -> scalar tensor, {given} is {function!r:.60}")
    return function


def listed(text: str | None) -> list[str] | None:
    """The parts between commas; None for nothing given."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def by_pattern(option: str, text: str | None, words: tuple[str, ...]) -> str | dict[str, str] | None:
    """One word, or ``PATTERN=word`` parts, each of the words allowed."""
    parts = listed(text) or []
    split = [part.rpartition("=") for part in parts]
    wrong = [word for _, _, word in split if word not in words]
    if text is not None and (wrong or not parts or (len(parts) > 1 and not all(eq for _, eq, _ in split))):
        raise ValueError(f"{option}: expected one of {', '.join(words)}, or PATTERN=WORD,..., got {text!r}")
    if not parts:
        return None
    return {pattern: word for pattern, _, word in split} if split[0][1] else parts[0]
