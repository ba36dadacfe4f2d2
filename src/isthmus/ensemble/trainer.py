"""`EnsembleTrainer`: stages of first-order optimisers on all members at once; members that are finished drop out."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from isthmus.ensemble.problem import EnsembleProblem
from isthmus.ensemble.updates import Update, update_for
from isthmus.solve.recipes import Stage
from isthmus.solve.trainer import Record, TrainResult, TrainStatus

OPTIMISERS = ("adam", "sgd", "muon")


class EnsembleTrainer:
    """Run the stages of a recipe on every member of an ensemble, each as `isthmus.Trainer` would run it by itself.

    In float64 a member comes to its own run's weights to 1e-10; only the order of some roundings differs.

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
            if stage.optimiser not in OPTIMISERS:
                raise ValueError(
                    f"members of an ensemble march in step, which {stage.optimiser} cannot: use stages of "
                    f"{', '.join(OPTIMISERS)}, such as recipe('default', full_batch=False)"
                )
            if stage.conditioned:
                raise ValueError(
                    "stages of an ensemble take no conditions of their own (fraction, sharpness, mu_factor, "
                    f"leak_factor), got {stage}: give the members problems of that kind, Problem.variant"
                )
        if log_every < 1:
            raise ValueError(f"log_every must be at least 1, got {log_every}")
        self.problem, self.stages = problem, tuple(stages)
        self.log_every, self.tolerance = log_every, tolerance
        members = len(problem.problems)
        self.histories: list[list[Record]] = [[] for _ in range(members)]
        self.results: list[TrainResult | None] = [None] * members
        self.step_count, self.seconds = 0, 0.0
        self._good: list[Tensor] = []

    @property
    def total_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @torch.no_grad()
    def run(self, on_records: Callable[[dict[int, Record]], Any] | None = None) -> list[TrainResult]:
        """Train until every member is finished; the models of the problems then hold the result.

        Args:
            on_records: is given the history rows of the members still training, by member.

        Returns:
            How each member ended, in the order of the problems. A member that diverged holds its last good state, that
            of its newest history row.
        """
        started = time.perf_counter()
        for stage in self.stages:
            update = update_for(stage.optimiser, self.problem.parameters, self.problem.group)
            for step in range(stage.steps):
                if self.step_count % self.log_every == 0:
                    self._log(stage.optimiser, stage.rate_at(step), update, on_records)
                if not self.problem.members:
                    return self._ended()
                self.problem.evaluate()
                update.step(self.problem.parameters, stage.rate_at(step) * self._scales(stage.optimiser))
                self.step_count += 1
                self.seconds = time.perf_counter() - started
        self._log("done", None, None, on_records)
        for position, member in enumerate(self.problem.members):
            self.problem.write_member(position, self.problem.problems[member])
            self.results[member] = TrainResult(TrainStatus.DONE, f"{self.step_count} steps done", step=self.step_count)
        return self._ended()

    def _ended(self) -> list[TrainResult]:
        assert all(result is not None for result in self.results)
        return [result for result in self.results if result is not None]

    def _scales(self, optimiser: str) -> Tensor:
        """Factor on each member's rate; Muon's is in units of ``max(L̃, 1)``."""
        depths = [self.problem.problems[member].model.effective_depth for member in self.problem.members]
        scales = [max(L, 1.0) if optimiser == "muon" else 1.0 for L in depths]
        return torch.tensor(scales, dtype=torch.float64, device=self.problem.weight.device)

    def _log(
        self,
        stage: str,
        rate: float | None,
        update: Update | None,
        on_records: Callable[[dict[int, Record]], Any] | None,
    ) -> None:
        """A row for every member; then those that are finished leave."""
        problem = self.problem
        if not problem.members:
            return
        evaluation, residual = problem.evaluate(), problem.residual().double()
        columns = (
            evaluation.objective,
            evaluation.data_cost,
            evaluation.penalty,
            residual.amax(1),
            residual.quantile(0.5, dim=1),
        )
        rows: dict[int, Record] = {}
        stay = []
        for position, values in enumerate(torch.stack(columns, dim=1).tolist()):
            member = problem.members[position]
            model = problem.problems[member].model
            names = ("objective", "data_cost", "penalty", "residual_max", "residual_median")
            own = None if rate is None else rate * (max(model.effective_depth, 1.0) if stage == "muon" else 1.0)
            row: Record = {
                "step": self.step_count,
                "stage": stage,
                **dict(zip(names, values, strict=True)),
                "rate": own,
            }
            if not all(value - value == 0 for value in values[:3]):
                self._diverged(position)
                continue
            self.histories[member].append(row)
            rows[member] = row
            if self.tolerance is not None and values[3] <= self.tolerance and stage != "done":
                self._converged(position, values[3])
            else:
                stay.append(position)
        if len(stay) < len(problem.members):
            kept = torch.tensor(stay, dtype=torch.int64, device=problem.weight.device)
            problem.keep(kept)
            if update is not None:
                update.keep(kept)
        self._good = [parameter.clone() for parameter in problem.parameters]
        if on_records is not None:
            on_records(rows)

    def _converged(self, position: int, residual: float) -> None:
        member = self.problem.members[position]
        self.problem.write_member(position, self.problem.problems[member])
        message = f"residual {residual:.3g} at most {self.tolerance:g} after {self.step_count} steps"
        self.results[member] = TrainResult(TrainStatus.DONE, message, step=self.step_count)

    def _diverged(self, position: int) -> None:
        member = self.problem.members[position]
        if self._good:
            self.problem.write_member(position, self.problem.problems[member], self._good)
        self.results[member] = TrainResult(
            TrainStatus.DIVERGED,
            f"NaN or Inf in the objective at step {self.step_count}",
            "try a smaller rate, float64, or the default initialisation; the last good state is kept. Training this "
            "member by itself names the layer",
            step=self.step_count,
        )
