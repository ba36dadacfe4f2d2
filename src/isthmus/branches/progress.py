"""Where a branch is: its points and events so far, and all that the next step depends on."""

import math
import time
from collections.abc import Callable

from torch import Tensor

from isthmus.branches.branch import Branch, BranchPoint, Event, EventKind, copied
from isthmus.branches.correct import Corrected, Direction, Here, Local, Tangent, minimise
from isthmus.branches.family import Family
from isthmus.branches.locate import least_eigenvalue, seen
from isthmus.branches.readings import readings
from isthmus.branches.settings import Settings
from isthmus.curvature import Lowest, ScaledParameters, Target
from isthmus.status import ADVICE, Status
from isthmus.thresholds import BRANCH_START, FLAT

LANDING = 400
"""Steps of Newton's method to the first point of a branch, at most."""
_OFF = 100.0  # by how much an eigenvalue that is 0 by a symmetry may be off, in units of μ, for each of the residual


class Progress:
    """Where a branch is, with all that the next step depends on.

    Args:
        family: what is followed.
        settings: of `follow`.
        keep: keep every point's parameters.
        should_stop: asked after every step of Newton's method; the step at hand is then given up.
    """

    def __init__(
        self, family: Family, settings: Settings, keep: bool = True, should_stop: Callable[[], bool] | None = None
    ) -> None:
        self.family, self.settings, self.keep, self.should_stop = family, settings, keep, should_stop
        self.sign = 1 if family.coordinate(settings.stop) > family.coordinate(settings.start) else -1
        self.first, self.shortest = settings.first(family), settings.shortest(family)
        # asked of the family here alone: a function may set the model's step-sizes whenever it is called
        self.shapes = [tuple(p.shape) for p in family.at(settings.start).parameters]
        ways = {family.coordinate(v) for v in (*settings.at, settings.stop)}
        self.ways = sorted(ways, key=lambda tau: self.sign * tau)
        self.points: list[BranchPoint] = []
        self.events: list[Event] = []
        self.status: Status | None = None
        self.advice = ""
        self.step = self.first
        self.along: Direction | None = None  # set while steps are taken along the branch
        self.taken = 0  # such steps, since the last at a fixed value
        self.number = 0
        self.leaving = False  # the start was a saddle, which is still to be left
        self.products = 0
        self.size = 0.0  # the largest norm of the parameters so far
        self.changed = False
        self.here: Here | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []  # the parameters and their values at the last point
        self._local: Local | None = None
        self._tangent: Tangent | None = None
        self.least: Lowest | None = None
        self.spent = 0  # products since the last point
        self.steps = 0
        self._clock = time.perf_counter()

    # --- beginning and end -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Bring the start to the tolerance, and make it the first point.

        Raises:
            ValueError: it is no critical point.
        """
        tau = self.family.coordinate(self.settings.start)
        target = self.family.at(self.settings.start)
        before = ScaledParameters(target).values()
        target.evaluate()
        residual = float(target.residual().max())
        if not residual <= BRANCH_START:
            raise ValueError(
                f"the start is no critical point: its residual is {residual:.2g}, beyond {BRANCH_START:g}. "
                'Solve there first: solve(problem, "geodesic"), with a larger μ where that does not converge'
            )
        found = minimise(self.family, tau, self.settings.tolerance, LANDING, should_stop=self.should_stop)
        self._count(found)
        if found.here is None:
            ScaledParameters(target).write(before)
            return self.end(Status.INTERRUPTED if self._stopped() else Status.STALLED)
        local, tangent, least = self._look(found.here)
        self._arrive(found.here, local, tangent, least)
        self.leaving = self._negative(least, found.here)

    def end(self, status: Status, advice: str | None = None) -> None:
        """No further steps; the parameters are those of the last point."""
        self.status, self.advice, self.changed = status, ADVICE[status] if advice is None else advice, True
        if self.here is not None:
            self._write(self.here)

    def put_back(self) -> None:
        """Set the parameters to those of the last point, without asking the family: it may be what failed."""
        for p, kept in self._kept:
            p.data.copy_(kept)

    def branch(self) -> Branch:
        """What was found so far."""
        status = Status.UNKNOWN if self.status is None else self.status
        return Branch(self.family, tuple(self.points), tuple(self.events), status, self.advice)

    def take_up(self) -> None:
        """Measure again what is not in a saved state: it follows from the point."""
        if self.here is None:
            return
        self._write(self.here)
        self._local = Local(self.family, self.here)
        if self.along is None:
            self._tangent = self._local.tangent()

    # --- what happens to it ---------------------------------------------------------------------------------------

    def _negative(self, least: Lowest, here: Here) -> bool:
        """Whether an eigenvalue is negative beyond its error, and beyond what a symmetry's 0 is off the exact point."""
        margin = max(FLAT, _OFF * here.residual) * least.unit
        return float(least.values[0]) + float(least.errors[0]) < -margin

    def _stopped(self) -> bool:
        return self.should_stop is not None and self.should_stop()

    def _write(self, here: Here) -> Target:
        """Set the parameters to those of a point; returns its target."""
        target = self.family.at(self.family.value(here.tau))
        ScaledParameters(target).write(here.x)
        return target

    def _count(self, found: Corrected) -> None:
        self.spent += found.products
        self.steps += found.steps

    def _look(self, here: Here) -> tuple[Local, Tangent, Lowest]:
        """The tangent at a point, and the least eigenvalue as far as its sign."""
        local = Local(self.family, here)
        tangent = local.tangent()
        self.spent += tangent.products
        if not self.settings.eigenvalues and tangent.least > 0 and tangent.products > 3:
            return local, tangent, seen(tangent.least, local)
        return local, tangent, self._least_at(local)

    def _least_at(self, local: Local) -> Lowest:
        """The least eigenvalue at a point, looked for near that of the last one."""
        least = least_eigenvalue(local, None if self.least is None else self.least.vectors[0])
        self.spent += least.products
        return least

    def _arrive(self, here: Here, local: Local, tangent: Tangent | None, least: Lowest, direction: int = 0) -> None:
        """Make a point of where we are."""
        self.here, self._local, self._tangent, self.least = here, local, tangent, least
        self.size = max(self.size, float(here.x.norm()))
        value = self.family.value(here.tau)
        parameters = self._write(here).parameters
        kept = copied(parameters)
        path = self.family.geodesic(value)
        along = self.along
        if along is not None:
            speed = float(along.x.norm()) / max(abs(along.tau), 1e-300) / self._norm()
        else:
            speed = 0.0 if tangent is None else float(tangent.x.norm()) / self._norm()
        now = time.perf_counter()
        point = BranchPoint(
            branch=self.number,
            value=value,
            objective=here.evaluation.objective,
            data_cost=here.evaluation.data_cost,
            penalty=here.evaluation.penalty,
            residual=here.residual,
            stable=not self._negative(least, here),
            least=float(least.relative[0]),
            speed=speed,
            direction=direction or self.sign,
            steps=self.steps,
            products=self.spent,
            seconds=now - self._clock,
            readings={} if path is None else readings(path),
            parameters=kept if self.keep else None,
        )
        self.products += self.spent
        self.spent, self.steps, self._clock, self.changed = 0, 0, now, True
        self.points.append(point)
        self._kept = list(zip(parameters, kept, strict=True))
        self._compare(point)

    def _compare(self, point: BranchPoint) -> None:
        """Rank and collapse, against the point before."""
        if len(self.points) < 2:
            return
        last, index = self.points[-2], len(self.points) - 2
        if point.readings.get("collapsed") == 1 and last.readings.get("collapsed") == 0:
            self._event(EventKind.COLLAPSE, point.value, "the outputs no longer depend on the inputs", index)
        a, b = last.readings.get("k_star"), point.readings.get("k_star")
        if a is not None and b is not None and a != b:
            self._event(
                EventKind.RANK, point.value, f"the bottleneck's rank about its mean goes from {a:.0f} to {b:.0f}", index
            )

    def _event(
        self, kind: EventKind, value: float, message: str, after: int | None = None, error: float = math.nan
    ) -> None:
        self.events.append(Event(kind, value, len(self.points) - 1 if after is None else after, message, error))

    def _norm(self) -> float:
        """What changes of the parameters are compared with."""
        return self.size if self.size > 0 else 1.0

    def _arrived(self) -> bool:
        """End at the stop; where all points are collapsed, say so."""
        assert self.here is not None
        if self.sign * (self.here.tau - self.ways[-1]) < -1e-12 * max(1.0, abs(self.ways[-1])):
            return False
        gone = all(p.readings.get("collapsed") == 1 for p in self.points)
        self.end(Status.COLLAPSED if gone else Status.CONVERGED)
        return True
