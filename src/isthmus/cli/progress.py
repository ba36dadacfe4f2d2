"""Progress of a training: a bar where the standard error is a terminal, else a line now and then."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isthmus.cli.failures import say

if TYPE_CHECKING:
    from rich.console import Console

    from isthmus.runs.execution import Progress

LINES = 20
"""Lines of a whole training where there is no terminal."""
BAR_WIDTH = 20
"""Columns of the bar on a wide screen; half of it on others."""
WIDE = 100


class Reporter(ABC):
    """Told where a training starts, every row of its history, and that it ended."""

    def start(self, progress: "Progress") -> None:
        """Take down where the training starts."""
        self.first, self.total = progress.step, progress.total
        self._origin: tuple[float, float] | None = None

    @abstractmethod
    def record(self, row: dict[str, Any]) -> None:
        """Show a row of the history."""

    def close(self) -> None:  # noqa: B027 - most have nothing to put in order
        """Leave the screen in order."""

    def seconds_left(self, row: Mapping[str, Any]) -> float | None:
        """Seconds to go by the pace since the first row seen; None before the second, 0 where all is done."""
        step, seconds = row["step"], row.get("seconds")
        if is_last(row):
            return 0.0
        if seconds is None:
            return None
        if self._origin is None:
            self._origin = (step, seconds)
        first, began = self._origin
        return (self.total - step) * (seconds - began) / (step - first) if step > first else None


class Silent(Reporter):
    """Shows nothing."""

    def record(self, row: dict[str, Any]) -> None:
        """Show nothing."""


class Lines(Reporter):
    """About twenty plain lines a training, the first row and the last among them."""

    def start(self, progress: "Progress") -> None:
        """Begin; the first row is shown."""
        super().start(progress)
        self._next = self.first

    def record(self, row: dict[str, Any]) -> None:
        """Show the row if it is time for a line."""
        left = self.seconds_left(row)
        step = row["step"]
        if step < self._next and step < self.total and not is_last(row):
            return
        self._next = step + max(1, self.total // LINES)
        say(" ".join([f"step {step}/{self.total}", *describe(row), f"left {clock(left)}"]))


class Bar(Reporter):
    """A bar by rich, with the step, the time left, and as much of what `describe` says as the screen has room for.

    Args:
        console: where to draw; None for the standard error.
    """

    def __init__(self, console: "Console | None" = None) -> None:
        self._console = console

    def start(self, progress: "Progress") -> None:
        """Draw the bar."""
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        super().start(progress)
        self._width = BarColumn(bar_width=BAR_WIDTH)
        self._bar = RichProgress(
            TextColumn("{task.fields[text]}", markup=False),
            self._width,
            TextColumn("{task.fields[words]}", markup=False),
            console=self._console or Console(stderr=True),
        )
        text = self._fit(self.first, None, [])
        self._task = self._bar.add_task("", total=self.total, completed=self.first, **text)
        self._bar.start()

    def record(self, row: dict[str, Any]) -> None:
        """Move the bar."""
        text = self._fit(row["step"], self.seconds_left(row), describe(row))
        self._bar.update(self._task, completed=row["step"], **text)

    def _fit(self, step: int, left: float | None, words: list[str]) -> dict[str, Any]:
        """The texts around the bar: step and time left always, a narrower bar if need be, then whole words."""
        text = f"{step:>{len(str(self.total))}}/{self.total} left {clock(left)}"
        room = self._bar.console.width - len(text) - 1
        widest = BAR_WIDTH if self._bar.console.width >= WIDE else BAR_WIDTH // 2
        self._width.bar_width = max(1, min(widest, room - 1))
        room -= self._width.bar_width + 1
        shown = 0
        while shown < len(words) and len(" ".join(words[: shown + 1])) <= room:
            shown += 1
        return {"text": text, "words": " ".join(words[:shown])}

    def close(self) -> None:
        """Leave the bar as it is, and show the cursor again."""
        if hasattr(self, "_bar"):
            self._bar.stop()


def is_last(row: Mapping[str, Any]) -> bool:
    """Whether no stage is left, which may come before the last step of the recipe: stages may end early."""
    return row.get("stage") == "done"


def describe(row: Mapping[str, Any]) -> list[str]:
    """Stage, objective, largest residual, rate and test figures of a row, as far as it has them."""
    words = [str(row["stage"])] if row.get("stage") else []
    for key, name in (
        ("objective", "objective"),
        ("residual_max", "residual"),
        ("rate", "rate"),
        ("test_cost", "test cost"),
        ("test_accuracy", "test accuracy"),
    ):
        value = row.get(key)
        if value is not None:
            words.append(f"{name} {value:.4g}")
    return words


def clock(seconds: float | None) -> str:
    """Seconds as ``h:mm:ss`` or ``m:ss``."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def reporter(quiet: bool) -> Reporter:
    """The reporter that suits the standard error."""
    if quiet:
        return Silent()
    return Bar() if sys.stderr.isatty() else Lines()
