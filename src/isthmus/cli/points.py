"""Progress of a branch: how its start is solved, and a line for every point that is found. Loads torch."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from isthmus.branches import BranchPoint
from isthmus.cli.failures import say
from isthmus.cli.progress import reporter
from isthmus.runs.branch import Watcher
from isthmus.runs.execution import Progress
from isthmus.solve import Record, Solution


class Points(Watcher):
    """Lines on the standard error; the solution of the start has the bar of a training.

    Args:
        quiet: say nothing.
        interrupted: whether somebody wants to stop.
    """

    def __init__(self, quiet: bool, interrupted: Callable[[], bool]) -> None:
        self.quiet, self.interrupted = quiet, interrupted
        self.bar = reporter(quiet)
        self.folder, self.parameter = Path(), ""
        self.branch: int | None = None

    def begin(self, folder: Path, data: Mapping[str, Any]) -> None:
        """Say where it goes, and what was changed of the start."""
        self.folder, self.parameter = folder, data["settings"]["parameter"]
        self._say(f"folder: {folder}")
        for note in data["start"].get("notes", ()):
            self._say(f"the start: {note}")
        if data["points"]:
            self.branch = data["points"][-1]["branch"]
            self._say(f"going on from {self.parameter} {data['points'][-1]['value']:.6g}")

    def solving(self, residual: float, steps: int) -> None:
        """Say so, and begin the bar."""
        self._say(f"the start is no critical point (residual {residual:.2g}): it is solved first")
        self.bar.start(Progress(0, steps, self.folder))

    def record(self, row: Record) -> None:
        """Move the bar."""
        self.bar.record(dict(row))

    def solved(self, solution: Solution) -> None:
        """Say how critical the start has become."""
        self.bar.close()
        assert solution.certificate is not None
        reached, taken = solution.certificate.residual_max, solution.statistics["seconds"]
        self._say(f"the start: {solution.status.value}, residual {reached:.2g} after {taken:.0f} s")

    def point(self, point: BranchPoint) -> None:
        """A line, after a word where another branch has begun."""
        if self.branch is not None and point.branch != self.branch:
            self._say(f"a new branch begins between the last point and {self.parameter} {point.value:.6g}")
        self.branch = point.branch
        self._say(" ".join(described(self.parameter, point)))

    def should_stop(self) -> bool:
        """Whether a signal came."""
        return self.interrupted()

    def close(self) -> None:
        """Leave the screen in order."""
        self.bar.close()

    def _say(self, text: str) -> None:
        if not self.quiet:
            say(text)


def described(parameter: str, point: BranchPoint) -> list[str]:
    """The words of a point's line."""
    words = [f"{parameter} {point.value:.6g}", f"objective {point.objective:.6g}", f"residual {point.residual:.1e}"]
    for key, name in (("minus_2h_over_l", "-2H/L"), ("coi_least", "COI"), ("k_star", "k*")):
        if key in point.readings:
            words.append(f"{name} {point.readings[key]:.4g}")
    return [*words, "minimum" if point.stable else "saddle", f"{point.seconds:.1f} s"]
