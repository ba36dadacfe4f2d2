"""One step of a branch at a time: at fixed values of the parameter, or along the branch."""

import math

from torch import Tensor

from isthmus.branches.branch import EventKind
from isthmus.branches.correct import Direction, Here, Local, Tangent, beside, minimise, restored, unit
from isthmus.branches.locate import bifurcation, fold
from isthmus.branches.progress import LANDING, Progress
from isthmus.curvature import Lowest, ScaledParameters
from isthmus.status import Status
from isthmus.thresholds import FLAT

_ROLLED_BACK = ("step", "along", "taken", "number", "least", "spent", "steps", "leaving", "_tangent", "_local")

_RELATIVE = 0.5  # most that a prediction may change the parameters, relative to their size
_AGREES = 0.4  # most that a step may differ from the trapezoid of its tangents, relative to its length
_BRANCH = 0.5  # the same for the shortest step, beyond which it is a jump; and most that its tangents may differ
_WANTED = 6  # steps of Newton's method at which a step has the right length
_MOST = 12  # of a step before it is refused for a shorter one
_ALONG = 0.15  # longest step along the branch
_VANISHING = 1e-5  # shortest
_FLAT = 2e-2  # of the direction's part in the coordinate: a vanishing eigenvalue there is that of a fold
_NUDGE = 1e-3  # how far along an eigenvector a new branch is looked for, relative to the parameters' size


class Follower(Progress):
    """A branch that is followed, step by step; see `Progress`."""

    def advance(self) -> None:
        """One step, taken or refused; or cut off, and then as if it had not begun."""
        self.changed = False
        assert self.here is not None
        if len(self.points) >= self.settings.most:
            return self.end(Status.BUDGET_SPENT, f"{self.settings.most} points (most); give it more, or a longer step")
        kept = {name: getattr(self, name) for name in _ROLLED_BACK}
        events, points = list(self.events), len(self.points)
        if self.leaving:
            assert self.least is not None
            self._leave(self.here.x, self.here.tau, self.least.vectors[0], self.here)
        elif self.along is None:
            self._at_a_value()
        else:
            self._along()
        if self._stopped() and len(self.points) == points and self.status is None:
            # the step was cut off: it will be made again, and must find what this one found
            self.events = events
            for name, value in kept.items():
                setattr(self, name, value)
            self._write(self.here)

    # --- at fixed values ---------------------------------------------------------------------------------------------

    def _next(self, tangent: Tangent) -> float:
        """The next coordinate: a step, shared out evenly up to the next value that must have a point."""
        assert self.here is not None
        speed = float(tangent.x.norm()) / self._norm()
        self.step = min(self.step, _RELATIVE / speed if speed > 0 else math.inf)
        ahead = [tau for tau in self.ways if self.sign * (tau - self.here.tau) > 1e-12 * max(1.0, abs(tau))]
        distance = abs(ahead[0] - self.here.tau)
        parts = max(1, math.ceil(distance / self.step - 0.25))
        return ahead[0] if parts == 1 else self.here.tau + self.sign * distance / parts

    def _at_a_value(self) -> None:
        """Predict, correct, compare with the tangents; then take the step or refuse it."""
        here, local, tangent = self.here, self._local, self._tangent
        assert here is not None and local is not None and tangent is not None
        if self._arrived():
            return
        tau = self._next(tangent)
        delta = tau - here.tau
        jumps = self.settings.at_fold == "jump"
        finest = jumps and abs(delta) <= 1.5 * self.shortest
        if not jumps and self.step <= self.shortest:
            return self._go_along(tangent)
        self._predict(local, tangent, tau)
        found = minimise(
            self.family,
            tau,
            self.settings.tolerance,
            LANDING if finest else _MOST,
            radius=0.5 * abs(delta) * math.sqrt(max(tangent.energy, 0.0)),
            should_stop=self.should_stop,
        )
        self._count(found)
        if self._stopped():
            return
        if found.here is None:
            if finest:
                return self.end(Status.STALLED)
            return self._refuse(here, abs(delta))
        there, theirs, least = self._look(found.here)
        gap, turn = self._gap(here, tangent, found.here, theirs)
        if not (gap <= _BRANCH if finest else gap <= _AGREES and turn <= _BRANCH):
            if finest:
                return self._jump(here, found.here, there, theirs, least)
            return self._refuse(here, abs(delta), 0.5 if gap < 1.5 * _AGREES else 0.25)
        if self._negative(least, found.here):
            if self.points[-1].stable:
                return self._lost(here, tangent, found.here, least)
            return self._leave(found.here.x, tau, least.vectors[0], here)
        self._arrive(found.here, there, theirs, least)
        factor = min(_WANTED / max(found.steps, 1), math.sqrt(0.5 * _AGREES / max(gap, 1e-9)))
        self.step = max(1.01 * self.shortest, abs(delta) * min(2.0, max(0.5, factor)))

    def _gap(self, here: Here, tangent: Tangent, there: Here, theirs: Tangent) -> tuple[float, float]:
        """By how much the way between two points departs from the trapezoid of their tangents, relative to it; and by
        how much half of it would differ between the two: near folds the tangent is so long that a jump agrees with half
        of it, and nothing with the other.
        """
        way = there.x - here.x
        length = float(way.norm())
        if length <= 1e-9 * self._norm():
            return 0.0, 0.0
        half = (there.tau - here.tau) / 2
        away = float((way - (tangent.x + theirs.x) * half).norm()) / length
        return away, float((theirs.x - tangent.x).norm()) * abs(half) / length

    def _jump(self, here: Here, found: Here, there: Local, theirs: Tangent, least: Lowest) -> None:
        """The shortest step still disagrees with the tangents: the branch ends between the two points."""
        if self._negative(least, found):
            return self._leave(found.x, found.tau, least.vectors[0], here)
        self._new_branch(found, EventKind.JUMP, here)
        self._arrive(found, there, theirs, least)
        self.step = 2 * self.shortest

    def _predict(self, local: Local, tangent: Tangent, tau: float) -> None:
        """Set the parameters to a prediction, or to the point itself where that is better."""
        here, delta = local.here, tau - local.here.tau
        target = self.family.at(self.family.value(tau))
        scaled = ScaledParameters(target)
        scaled.write(here.x)
        plain = target.evaluate(gradient=False).objective
        aim = local.hessian.outputs.to(tangent.outputs.dtype) + delta * tangent.outputs
        if not restored(target, local.metric, here.x.add(tangent.x, alpha=delta), aim) < plain:
            scaled.write(here.x)

    def _refuse(self, here: Here, length: float, factor: float = 0.5) -> None:
        self.step, self.changed = factor * length, True
        self._write(here)

    def _lost(self, here: Here, tangent: Tangent, there: Here, least: Lowest) -> None:
        """The branch went on as a saddle: where it lost its stability, and which branch is stable beyond."""
        assert self.least is not None
        along = unit(self.sign * tangent.x, float(self.sign), self._norm())
        length = abs(there.tau - here.tau) / abs(along.tau)
        self._change_of_stability(here, along, length, float(self.least.values[0]), least, there)

    def _change_of_stability(
        self, here: Here, along: Direction, step: float, before: float, least: Lowest, there: Here, leave: bool = True
    ) -> bool:
        """Name a change of the least eigenvalue's sign between two points; then leave for the stable branch.

        False where it is that of a fold.
        """
        zero = FLAT * least.unit
        shift, before = (zero, max(before, 0.0)) if before < zero else (0.0, before)
        located = bifurcation(self.family, here, along, step, before, float(least.values[0]), shift)
        at, vector, error = there, least.vectors[0], math.nan
        how = " (not located: between here and the last point)"
        if located is not None and located.vector is not None:
            self.spent += located.products
            if abs(located.along.tau) < _FLAT and self.along is not None:
                return False  # that of a fold, which the next step meets
            at, vector, how = located.here, located.vector, ""
            error = self.family.error(at.tau, located.error)
        lost = float(least.values[0]) < before
        words = f"the branch is a {'saddle' if lost else 'minimum'}"
        self._event(
            EventKind.BIFURCATION,
            self.family.value(at.tau),
            f"the least eigenvalue of the Hessian changes its sign; beyond, {words}{how}",
            error=error,
        )
        if leave:
            tau = at.tau + self.sign * self.shortest
            beyond = located is not None and self.sign * (there.tau - tau) > 0 and self.sign * (tau - here.tau) > 0
            self._leave(at.x, tau if beyond else there.tau, vector, here)
        return True

    def _leave(self, x: Tensor, tau: float, vector: Tensor, origin: Here) -> None:
        """From a saddle down to the minimum on either side of it, the lower one: a new branch."""
        best: Here | None = None
        scaled = ScaledParameters(self.family.at(self.family.value(tau)))
        for side in (1.0, -1.0):
            scaled.write(x + side * _NUDGE * self._norm() * vector)
            found = minimise(self.family, tau, self.settings.tolerance, LANDING, should_stop=self.should_stop)
            self._count(found)
            if self._stopped():
                return
            if found.here is None:
                continue
            value = found.here.evaluation.objective
            if best is None or value < best.evaluation.objective - 1e-9 * abs(value):
                best = found.here
        if best is None:
            self._write(origin)
            return self.end(Status.STALLED, "no minimum was found beside the saddle; try another step or tolerance")
        self._land(best, EventKind.SWITCH, origin)

    def _land(self, found: Here, kind: EventKind, origin: Here) -> None:
        """A new branch begins, at a point that is still to be looked at."""
        self._new_branch(found, kind, origin)
        self.along, self.taken, self.least, self.leaving = None, 0, None, False
        local, tangent, least = self._look(found)
        self._arrive(found, local, tangent, least)
        self.step = 2 * self.shortest

    def _new_branch(self, found: Here, kind: EventKind, origin: Here) -> None:
        moved = float((found.x - origin.x).norm()) / self._norm()
        words = (
            f"a new branch begins, {moved:.2g} of the parameters' size away; its objective is "
            f"{found.evaluation.objective:.6g}, at the last point it was {origin.evaluation.objective:.6g}"
        )
        if kind is EventKind.JUMP and self.points:
            words = (
                f"the branch ends between {self.points[-1].value:.6g} and here, or turns more sharply than the "
                f"shortest step shows; {words}"
            )
        self._event(kind, self.family.value(found.tau), words)
        self.number += 1

    # --- along the branch --------------------------------------------------------------------------------------------

    def _go_along(self, tangent: Tangent) -> None:
        size = self._norm()
        self.along = unit(self.sign * tangent.x, float(self.sign), size)
        self.step = min(_ALONG, max(self.step / max(abs(self.along.tau), 1e-300), 100 * _VANISHING))
        self.taken, self.changed = 0, True

    def _along(self) -> None:
        """A step along the branch, taken or refused."""
        here, along = self.here, self.along
        assert here is not None and along is not None
        step = self._up_to_the_stop(here, along)
        found, direction = beside(self.family, here, along, step, self.settings.tolerance, should_stop=self.should_stop)
        self._count(found)
        if self._stopped():
            return
        turned = direction is not None and direction.times(along) < 0.5
        if found.here is None or direction is None or turned:
            self.step, self.changed = 0.5 * step, True
            self._write(here)
            if self.step < _VANISHING:
                self._beyond(here, "steps along the branch have become too short", here.tau)
            return
        self.taken += 1
        if direction.tau * along.tau < 0:
            return self._fold(here, along, step, found.here, direction)
        local = Local(self.family, found.here)
        least = self._least_at(local)
        negative = self._negative(least, found.here)
        stable_before = self.points[-1].stable
        if negative == stable_before and self.least is not None:
            leave = negative and direction.tau * self.sign > 0
            before = float(self.least.values[0])
            if self._change_of_stability(here, along, step, before, least, found.here, leave) and leave:
                return
        self.along = direction
        self._arrive(found.here, local, None, least, 1 if direction.tau > 0 else -1)
        self.step = min(_ALONG, step * (1.5 if found.steps <= 4 else 0.7 if found.steps > 7 else 1.0))
        if self._passed(found.here):
            return
        self._perhaps_at_values_again(direction, negative)

    def _up_to_the_stop(self, here: Here, along: Direction) -> float:
        """The step, not beyond the stop."""
        left = (self.ways[-1] - here.tau) * self.sign
        ahead = along.tau * self.sign
        return min(self.step, left / ahead) if ahead > 1e-6 and left > 0 else self.step

    def _passed(self, here: Here) -> bool:
        """End at the stop, or where the branch came back beyond its start."""
        left = (self.ways[-1] - here.tau) * self.sign
        if left <= 1e-9 * max(1.0, abs(self.ways[-1])):
            self._arrived() if left <= 0 else self.end(Status.CONVERGED)
            return True
        start = self.family.coordinate(self.settings.start)
        if (start - here.tau) * self.sign > abs(self.ways[-1] - start):
            self.end(Status.DONE, "the branch turned round and went back beyond its start")
            return True
        return False

    def _perhaps_at_values_again(self, direction: Direction, negative: bool) -> None:
        """Steps at fixed values, once the parameters change slowly with the coordinate again."""
        ahead = direction.tau * self.sign
        if negative or ahead <= 0 or self.taken < 3:
            return
        allowed = _RELATIVE * ahead * self._norm() / max(float(direction.x.norm()), 1e-300)
        if allowed < 4 * self.shortest:
            return
        assert self._local is not None
        self.along, self.taken = None, 0
        self._tangent = self._local.tangent()
        self.spent += self._tangent.products
        self.step = min(max(0.25 * self.first, 4 * self.shortest), allowed)

    def _fold(self, here: Here, along: Direction, step: float, there: Here, direction: Direction) -> None:
        """The branch turned back."""
        located = fold(self.family, here, along, step, direction)
        tau, error, how = here.tau, math.nan, " (not located: between here and the next point)"
        if located is not None:
            self.spent += located.products
            tau, how = located.here.tau, ""
            error = self.family.error(tau, located.error)
        self._event(
            EventKind.FOLD,
            self.family.value(tau),
            f"the branch turns back; beyond, it has no critical point{how}",
            error=error,
        )
        if self.settings.at_fold in ("jump", "locate") and along.tau * self.sign > 0:
            return self._beyond(here, "the branch has ended at a fold", tau)
        if self.settings.at_fold == "stop":
            self._write(here)
            return self.end(Status.DONE, "the branch turned back at a fold, where it was told to stop")
        local = Local(self.family, there)
        least = self._least_at(local)
        self.along = direction
        self._arrive(there, local, None, least, 1 if direction.tau > 0 else -1)
        self._passed(there)

    def _beyond(self, here: Here, why: str, tau: float) -> None:
        """The next minimum behind the end of a branch."""
        there = tau + self.sign * self.shortest
        if self.sign * (self.ways[-1] - there) < 0:
            there = self.ways[-1]
        ScaledParameters(self.family.at(self.family.value(there))).write(here.x)
        found = minimise(self.family, there, self.settings.tolerance, LANDING, should_stop=self.should_stop)
        self._count(found)
        if self._stopped():
            return
        if found.here is None:
            return self.end(
                Status.STALLED, f"{why}, and no minimum was found beyond; try another tolerance, or start elsewhere"
            )
        self._land(found.here, EventKind.JUMP, here)
