"""A branch followed into a folder: solved first where its start is no critical point, saved as it goes.

What the folder holds is in `isthmus.runs.branch_folder`, where it starts in `isthmus.runs.branch_start`.
"""

import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isthmus.branches import Branch, BranchPoint, follow
from isthmus.runs.branch_folder import (
    BRANCH,
    END,
    START,
    STATE,
    VERSION,
    check_startable,
    clear,
    is_branch,
    write_tables,
)
from isthmus.runs.branch_points import read_end
from isthmus.runs.branch_start import KEYS, SOLVER, Origin, Plan, begun, taken_up
from isthmus.runs.environment import changes, describe_environment, resumed
from isthmus.runs.execution import threads
from isthmus.runs.folder import RunFolder
from isthmus.runs.state import save_state
from isthmus.solve import Record, Solution, recipe, solve
from isthmus.status import ADVICE, Status
from isthmus.thresholds import BRANCH_START


class Watcher:
    """Is told what happens; this one does nothing with it."""

    def begin(self, folder: Path, data: Mapping[str, Any]) -> None:
        """The folder, and the content of branch.json, before anything is computed."""

    def solving(self, residual: float, steps: int) -> None:
        """The start's residual is too large: it is solved, in at most these steps."""

    def record(self, row: Record) -> None:
        """A row of that solution's history."""

    def solved(self, solution: Solution) -> None:
        """The start was solved, or not."""

    def point(self, point: BranchPoint) -> None:
        """A point was found."""

    def should_stop(self) -> bool:
        """Whether to stop, saved."""
        return False

    def close(self) -> None:
        """It is over, whatever happened."""


@dataclass(frozen=True)
class Followed:
    """How it ended.

    Args:
        status: of the branch, or of the solution of its start.
        advice: what to do about that; "" for nothing.
        folder: where everything is.
        branch: what was found; None where there was no start.
    """

    status: Status
    advice: str
    folder: Path
    branch: Branch | None


def execute_branch(
    folder: str | Path,
    origin: Origin,
    given: Mapping[str, Any],
    *,
    seconds: float | None = None,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> Followed:
    """Follow a critical point into a folder; a branch that is there already is taken up.

    A start whose residual is beyond `isthmus.thresholds.BRANCH_START` is solved first. A branch that was cut off goes
    on to the same points as one that was not; one that has ended goes on to a further ``to``.

    Args:
        folder: absent or empty, or that of a branch.
        origin: where the first network comes from; may be left out where the folder holds a branch.
        given: fields of `Following`, as far as they are not to be the defaults or those of the branch in the folder.
        seconds: wall-clock budget of this call; what was reached is saved.
        overwrite: delete the branch in the folder first.
        watcher: is told what happens.

    Raises:
        ValueError: options that are missing, out of range, or other than those of the branch in the folder; nothing to
            start from; an activation with kinks (see `Origin`).
        FolderError: the folder is busy, or holds something else.
        StateError, ConfigError: a start that cannot be read; see `isthmus.runs.saved.read_saved`.
    """
    place, watcher = RunFolder(folder), watcher or Watcher()
    if seconds is not None and not seconds > 0:
        raise ValueError(f"--seconds must be positive, got {seconds:g}")
    there = is_branch(place.path) and not overwrite
    if not there:
        check_startable(place, overwrite=overwrite)
    plan = taken_up(place, origin, given) if there else begun(origin, given)
    with threads(plan.config.train.threads), place.lock():
        if not there:
            check_startable(place, overwrite=overwrite)  # again: another process may have been faster
            clear(place)
        try:
            return _Session(place, plan, watcher, seconds).run()
        finally:
            watcher.close()


class _Session:
    """One call of `execute_branch`, under the folder's lock."""

    def __init__(self, place: RunFolder, plan: Plan, watcher: Watcher, seconds: float | None) -> None:
        self.place, self.plan, self.watcher, self.seconds = place, plan, watcher, seconds
        self.began = time.monotonic()
        before = plan.before
        now = describe_environment(device="cpu", dtype="float64", seed=plan.config.seed)
        for change in changes(before.get("environment", {}), now):
            warnings.warn(f"{change}: the branch may go on in other bits than an uninterrupted one", stacklevel=4)
        self.content: dict[str, Any] = {
            "version": VERSION,
            "settings": asdict(plan.following) | {"start": plan.family.present()},
            "start": plan.start,
            "config": plan.config.model_dump(mode="json"),
            "environment": resumed(before.get("environment", {}), now),
            "points": before.get("points", []),
            "events": before.get("events", []),
            "status": Status.UNKNOWN.value,
            "advice": "",
            "reading": before.get("reading", {}),
            "seconds": before.get("seconds", 0.0),
        }
        self.spent = float(self.content["seconds"])

    def run(self) -> Followed:
        """To the end, or as far as it goes."""
        if not (self.place / START).is_file():
            self._write_network(START, self.plan.family.present())
        self._write()
        self.watcher.begin(self.place.path, self.content)
        if not (self.place / STATE).is_file():
            failed = self._solve()
            if failed is not None:
                return failed
        left = self._left()
        if left is not None and left <= 0:
            advice = "the time was spent on the start, which is solved: give the same command again to follow it"
            return self._ended(Status.BUDGET_SPENT, advice, None)
        following = self.plan.following
        branch = follow(
            self.plan.family,
            stop=following.to,
            at=following.at,
            step=following.step,
            tolerance=following.tolerance,
            at_fold=following.at_fold,
            eigenvalues=following.eigenvalues,
            keep=following.weights,
            seconds=left,
            should_stop=self.watcher.should_stop,
            on_point=self._point,
            checkpoint=self.place / STATE,
        )
        return self._finish(branch)

    def _left(self) -> float | None:
        return None if self.seconds is None else self.seconds - (time.monotonic() - self.began)

    def _write(self, **values: Any) -> None:
        self.content |= values | {"seconds": self.spent + time.monotonic() - self.began}
        self.place.write_json(BRANCH, self.content)

    def _write_network(self, name: str, value: float) -> None:
        """The model's present parameters, with the configuration that has this value of the parameter."""
        config = self.plan.config.merge({KEYS[self.plan.following.parameter]: value})
        rebuild = {"config": config.model_dump(mode="json"), "step": 0, "fingerprint": self.plan.fingerprint}
        state = {**self.plan.problem.model.state_dict(), "rebuild": rebuild}
        self.place.write_bytes(name, save_state(state, "model"))

    def _solve(self) -> Followed | None:
        """Make a critical point of the start where it is none; how it ended where that failed."""
        problem, tolerance = self.plan.problem, self.plan.following.tolerance
        problem.evaluate()
        residual = float(problem.residual().max())
        if residual <= BRANCH_START:
            return None
        self.watcher.solving(residual, sum(stage.steps for stage in recipe(SOLVER)))
        left = self._left()
        solution = solve(
            problem,
            SOLVER,
            tolerance=tolerance,
            seconds=None if left is None else max(left, 1e-3),
            on_record=self.watcher.record,
            should_stop=self.watcher.should_stop,
        )
        assert solution.certificate is not None
        reached = solution.certificate.residual_max
        self._write_network(START, self.plan.family.present())
        about: dict[str, Any] = {"residual_before": residual, "residual": reached, "objective": solution.objective}
        about |= {"status": solution.status.value, "seconds": solution.statistics["seconds"]}
        self.plan.start["solved"] = about
        self._write(start=self.plan.start)
        self.watcher.solved(solution)
        if solution.status is Status.INTERRUPTED:
            return self._ended(solution.status, ADVICE[solution.status], None)
        if not reached <= BRANCH_START:
            name, value = self.plan.following.parameter, self.plan.family.present()
            advice = (
                f"no critical point was found at the start, {name} = {value:g}: the residual is {reached:.2g} after "
                f"{self.plan.start['solved']['seconds']:.0f} s of solving, and must come below {BRANCH_START:g}. Give "
                "the same command again to solve on from there, or start where it is easier: with a larger train.mu, a "
                "smaller model.effective_depth, or a lower sharpness"
            )
            status = solution.status if solution.status is not Status.CONVERGED else Status.STALLED
            return self._ended(status, advice, None)
        return None

    def _point(self, point: BranchPoint) -> None:
        row = Branch(self.plan.family, (point,), (), Status.UNKNOWN).rows()[0]
        self._write(points=[*self.content["points"], row])
        self.watcher.point(point)

    def _finish(self, branch: Branch) -> Followed:
        """The tables, the last network and what it shows; branch.json last."""
        rows = branch.rows()
        reading: dict[str, Any] = {}
        if rows:
            write_tables(self.place, list(rows))
            self._write_network(END, branch.values[-1])
            if branch.status is not Status.INTERRUPTED:
                reading = read_end(self.place.path)
        events = [asdict(event) | {"kind": event.kind.value} for event in branch.events]
        self._write(points=rows, events=events, reading=reading)
        return self._ended(branch.status, branch.advice, branch)

    def _ended(self, status: Status, advice: str, branch: Branch | None) -> Followed:
        self._write(status=status.value, advice=advice)
        return Followed(status, advice, self.place.path, branch)
