"""`EnsembleTrainer`: stages of first-order optimisers on all members at once; members that are finished drop out."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from isthmus.ensemble.problem import EnsembleProblem
from isthmus.ensemble.updates import BATCHED, update_for
from isthmus.solve import Record, Stage, TrainResult
from isthmus.status import ADVICE, Status

# every member's best objective of the stage, its step, and the parameters there: what a stage leaves, as in `Trainer`
_Best = tuple[Float[Tensor, "members"], Int[Tensor, "members"], list[Tensor]]


class EnsembleTrainer:
    """Run the stages of a recipe on every member of an ensemble, each as `isthmus.Trainer` would run it by itself.

    In float64 a member comes to its own run's weights to 1e-10; only the order of some roundings differs. All that the
    next step depends on is in `state_dict`: a run continued from it gives the same bits as one never interrupted.

    Args:
        problem: the members.
        stages: of Adam, SGD and Muon: ``recipe("paper")``, or ``recipe("default", full_batch=False)``.
        log_every: steps between history rows; members drop out at these only.
        tolerance: a member whose largest stationarity residual is at most this is finished; None: all stages are run.

    Attributes:
        histories: a list of rows for every member, in the order of the problems.
        results: how each member ended; None while it runs.

    Raises:
        ValueError: no stages, a stage that needs a line search, ``log_every`` below 1.
    """

    def __init__(
        self,
        problem: EnsembleProblem,
        stages: Sequence[Stage],
        *,
        log_every: int = 20,
        tolerance: float | None = None,
    ) -> None:
        if not stages:
            raise ValueError("a trainer needs at least one stage")
        for stage in stages:
            if not isinstance(stage.optimiser, BATCHED):
                raise ValueError(
                    f"members of an ensemble march in step, which {stage.optimiser.name} cannot: use stages of "
                    f"{', '.join(kind.name for kind in BATCHED)}, such as recipe('default', full_batch=False)"
                )
            if stage.conditioned:
                raise ValueError(
                    "stages of an ensemble take no conditions of their own (fraction, sharpness, mu_factor, "
                    f"leak_factor, tied), got {stage}: give the members problems of that kind, Problem.variant"
                )
        if log_every < 1:
            raise ValueError(f"log_every must be at least 1, got {log_every}")
        self.problem, self.stages = problem, tuple(stages)
        self.log_every, self.tolerance = log_every, tolerance
        members = len(problem.problems)
        self.histories: list[list[Record]] = [[] for _ in range(members)]
        self.results: list[TrainResult | None] = [None] * members
        self.step_count, self.seconds = 0, 0.0
        self._stage = self._stage_step = 0
        self._logged = -1  # the step of the newest rows
        self._good: list[Tensor] = []
        self._kept: dict[int, int] = {}  # the step of the iterate that the last stage left, where not its last
        self._enter()

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def done(self) -> bool:
        """Whether every stage has run, or every member is finished."""
        return self._stage >= len(self.stages) or not self.problem.members

    def _enter(self) -> None:
        problem = self.problem
        self._update = update_for(self.stages[self._stage].optimiser, problem.parameters, problem.group)
        self._best: _Best | None = None

    @torch.no_grad()
    def run(
        self,
        on_records: Callable[[dict[int, Record]], Any] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> list[TrainResult]:
        """Train until every member is finished; the models of the problems then hold the result.

        Args:
            on_records: is given the history rows of the members still training, by member.
            should_stop: asked after every step; call `run` again to go on.

        Returns:
            How each member ended, in the order of the problems. A member that diverged holds its last good state, that
            of its newest history row.
        """
        begun = time.perf_counter() - self.seconds
        while not self.done:
            if self.step_count % self.log_every == 0 and self._logged < self.step_count:
                self._log(on_records)
                continue
            self.problem.evaluate()
            stage = self.stages[self._stage]
            self._update.step(self.problem.parameters, stage.rate_at(self._stage_step) * self._units(stage))
            self._kept = {}
            self.step_count += 1
            self._stage_step += 1
            if self._stage_step == stage.steps:
                self._leave()
            self.seconds = time.perf_counter() - begun
            if should_stop is not None and not self.done and should_stop():
                self.problem.write_back()
                said = f"stopped after step {self.step_count} of {self.total_steps}"
                stopped = TrainResult(Status.INTERRUPTED, said, ADVICE[Status.INTERRUPTED], step=self.step_count)
                return [stopped if result is None else result for result in self.results]
        if self.problem.members and self._logged < self.step_count:
            self._log(on_records)
        self.problem.write_back()
        for member in self.problem.members:
            self.results[member] = TrainResult.done(self.step_count, self._kept.get(member))
        return [result for result in self.results if result is not None]

    def _units(self, stage: Stage) -> Float[Tensor, "members"]:
        """What each member's rate is a multiple of."""
        depths = [self.problem.problems[member].effective_depth for member in self.problem.members]
        units = [stage.optimiser.unit(depth) for depth in depths]
        return torch.tensor(units, dtype=torch.float64, device=self.problem.weight.device)

    def _leave(self) -> None:
        """Every member goes back to its best iterate of the stage, where its last is worse; then the next stage."""
        if self._best is not None:
            value, (least, steps, kept) = self.problem.evaluate().objective, self._best
            for position in (torch.isfinite(value) & (value > least)).nonzero()[:, 0].tolist():
                for parameter, best in zip(self.problem.parameters, kept, strict=True):
                    parameter[position].copy_(best[position])
                self._kept[self.problem.members[position]] = int(steps[position])
        self._stage, self._stage_step = self._stage + 1, 0
        if not self.done:
            self._enter()

    def _note(self, objective: Float[Tensor, "members"]) -> None:
        """Remember the members that have never been lower in this stage."""
        if self._best is None:
            steps = torch.full_like(objective, self.step_count, dtype=torch.int64)
            self._best = (objective.clone(), steps, [parameter.clone() for parameter in self.problem.parameters])
            return
        least, steps, kept = self._best
        lower = objective < least
        self._best = (torch.where(lower, objective, least), steps.masked_fill(lower, self.step_count), kept)
        for best, parameter in zip(kept, self.problem.parameters, strict=True):
            best[lower] = parameter[lower]

    def _log(self, on_records: Callable[[dict[int, Record]], Any] | None) -> None:
        """A row for every member; then those that are finished leave."""
        problem, running = self.problem, self._stage < len(self.stages)
        stage = self.stages[self._stage] if running else None
        evaluation, residual = problem.evaluate(), problem.residual().double()
        columns = {
            "objective": evaluation.objective,
            "data_cost": evaluation.data_cost,
            "penalty": evaluation.penalty,
            "residual_max": residual.amax(1),
            "residual_median": residual.quantile(0.5, dim=1),
        }
        units = self._units(stage).tolist() if stage is not None else []
        rows: dict[int, Record] = {}
        stay = []
        for position, values in enumerate(torch.stack(list(columns.values()), dim=1).tolist()):
            member = problem.members[position]
            if not all(math.isfinite(value) for value in values[:3]):
                self._diverged(position)
                continue
            rate = None if stage is None else stage.rate_at(self._stage_step) * units[position]
            name = "done" if stage is None else stage.optimiser.name
            rows[member] = {"step": self.step_count, "stage": name, **dict(zip(columns, values, strict=True))}
            rows[member] |= {"rate": rate, "kept_step": self._kept.get(member)}
            self.histories[member].append(rows[member])
            if self.tolerance is not None and values[3] <= self.tolerance and running:
                rows[member] |= {"stage": "done", "rate": None}
                self._converged(position, values[3])
            else:
                stay.append(position)
        objective = evaluation.objective
        if len(stay) < len(problem.members):
            kept = torch.tensor(stay, dtype=torch.int64, device=problem.weight.device)
            problem.keep(kept)
            self._update.keep(kept)
            objective = objective[kept]
            if self._best is not None:
                least, steps, parameters = self._best
                self._best = (least[kept], steps[kept], [best[kept] for best in parameters])
        if running:
            self._note(objective)
        self._logged = self.step_count
        self._good = [parameter.clone() for parameter in problem.parameters]
        if on_records is not None:
            on_records(rows)

    def _converged(self, position: int, residual: float) -> None:
        member = self.problem.members[position]
        self.problem.write_member(position, self.problem.problems[member])
        message = f"residual {residual:.3g} at most {self.tolerance:g} after {self.step_count} steps"
        self.results[member] = TrainResult(Status.DONE, message, step=self.step_count)

    def _diverged(self, position: int) -> None:
        member = self.problem.members[position]
        if self._good:
            self.problem.write_member(position, self.problem.problems[member], self._good)
        self.results[member] = TrainResult(
            Status.DIVERGED,
            f"NaN or Inf in the objective at step {self.step_count}",
            f"{ADVICE[Status.DIVERGED]}. Training this member by itself names the layer",
            step=self.step_count,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on, the histories, and the members that are finished.

        Nested plain values and tensors, as `isthmus.runs.state.save_state` takes them. The tensors are the live ones:
        save or copy them before the next step.
        """
        here, problem = set(self.problem.members), self.problem
        gone = [member for member in range(len(problem.problems)) if member not in here]
        return {
            "members": list(problem.members),
            "parameters": list(problem.parameters),
            "finished": [[member, [p.detach() for p in problem.problems[member].parameters]] for member in gone],
            "update": None if self.done else self._update.state_dict(),
            "best": None if self._best is None else list(self._best),
            "kept": list(map(list, self._kept.items())),
            "good": list(self._good),
            "stage": self._stage,
            "stage_step": self._stage_step,
            "step": self.step_count,
            "logged": self._logged,
            "seconds": self.seconds,
            "histories": [[dict(row) for row in history] for history in self.histories],
            "results": [
                None if result is None else asdict(result) | {"status": result.status.value} for result in self.results
            ],
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a state back; the trainer must be new, and made of the same problems and settings.

        Raises:
            ValueError: a state of another number of members, or a trainer whose members have left already.
        """
        problem, device = self.problem, self.problem.weight.device
        if len(state["results"]) != len(problem.problems) or len(problem.members) != len(problem.problems):
            raise ValueError(
                f"the state is of {len(state['results'])} members, this trainer has {len(problem.members)} of "
                f"{len(problem.problems)}: make it anew, of the same problems"
            )
        for member, parameters in state["finished"]:
            for parameter, saved in zip(problem.problems[member].parameters, parameters, strict=True):
                parameter.copy_(saved)
        problem.keep(torch.tensor(state["members"], dtype=torch.int64, device=device))
        for parameter, saved in zip(problem.parameters, state["parameters"], strict=True):
            parameter.copy_(saved)
        self._stage, self._stage_step, self._logged = state["stage"], state["stage_step"], state["logged"]
        self.step_count, self.seconds = state["step"], state["seconds"]
        if not self.done:
            self._enter()
            self._update.load_state_dict(state["update"])
        self._best = None if state["best"] is None else (*state["best"][:2], list(state["best"][2]))
        self._kept = dict(state["kept"])
        self._good = list(state["good"])
        self.histories = [[dict(row) for row in history] for history in state["histories"]]
        self.results = [
            None if result is None else TrainResult(**result | {"status": Status(result["status"])})
            for result in state["results"]
        ]
