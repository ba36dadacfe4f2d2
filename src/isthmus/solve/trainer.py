"""`Trainer`: stages of optimisers on a problem, with history, checkpoints and a watch for NaN."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isthmus.mesh import MeshScheduler
from isthmus.problem import Evaluation, Problem
from isthmus.solve.recipes import Stage
from isthmus.solve.result import TrainResult, saddles
from isthmus.status import ADVICE, Status

_GAIN_OVER = 100  # steps over which `Stage.gain` is meant
Record = dict[str, float | int | str | None]


class _Kept(NamedTuple):
    """The best iterate of a stage so far: its value, its step, the model's state."""

    value: float
    step: int
    model: dict[str, Tensor]


class Trainer:
    """Run the stages of a recipe on a problem.

    A stage whose optimiser can go up again (`isthmus.optimise.Optimiser.rises`) leaves its best iterate of those at
    history rows and its last: by the largest residual after `Settle`, which is there to lower it, else by the
    objective. It costs a copy of the parameters a row. Minibatches, a mesh that still moves and stages on another
    problem than the given one leave their last.

    All that the next step depends on is in `state_dict`, so that a run continued from it gives the same bits as one
    never interrupted, on the same machine with the same number of threads.

    Args:
        problem: model and data.
        stages: see `isthmus.solve.recipe`.
        scheduler: moves the step-sizes, or None.
        batch_size: rows of a minibatch, drawn without replacement in epochs; None for the full batch.
        seed: of the minibatches.
        log_every: steps between history rows.
        tolerance: on the largest stationarity residual: training is done when a history row of a stage on the problem
            itself is below; where the last stage leaves saddles, it goes on with that one. 0: the stages run to their
            ends.

    Raises:
        ValueError: no stages; L-BFGS with minibatches, or without the features in memory; minibatches of part of the
            rows; sizes out of range.
    """

    def __init__(
        self,
        problem: Problem,
        stages: Sequence[Stage],
        scheduler: MeshScheduler | None = None,
        *,
        batch_size: int | None = None,
        seed: int = 0,
        log_every: int = 20,
        tolerance: float = 0.0,
    ) -> None:
        if not isinstance(problem, Problem):
            raise TypeError(
                f"problem must be a Problem, the model with its data, got {type(problem).__name__}: "
                "Problem(model, x, y, mu=…)"
            )
        if isinstance(stages, Stage) or not all(isinstance(stage, Stage) for stage in stages):
            raise TypeError(f"stages must be a sequence of Stage, as recipe() returns it, got {stages!r}")
        if not stages:
            raise ValueError("a trainer needs at least one stage")
        samples = problem.x.shape[0]
        if batch_size is not None:
            if not 1 <= batch_size <= samples:
                raise ValueError(f"batch_size must lie in 1..{samples} (the training rows), got {batch_size}")
            if whole := [stage.optimiser.name for stage in stages if stage.optimiser.full_batch]:
                raise ValueError(
                    f"{' and '.join(dict.fromkeys(whole))} need the full batch: leave batch_size out, or take a "
                    "recipe for minibatches, recipe(name, full_batch=False)"
                )
            if any(stage.fraction < 1 for stage in stages):
                raise ValueError("a stage on a fraction of the rows takes no minibatches: leave batch_size out")
        if problem.memory != "store" and any(stage.optimiser.needs_features for stage in stages):
            raise ValueError(
                f"L-BFGS's metric needs the features of all layers, which memory={problem.memory!r} does not keep: "
                "make the Problem with memory='store', or take other stages"
            )
        if log_every < 1:
            raise ValueError(f"log_every must be at least 1, got {log_every}")
        if not 0 <= tolerance < math.inf:
            raise ValueError(f"tolerance must be finite and not negative, got {tolerance}")
        self.tolerance = tolerance
        self.problem, self.stages, self.scheduler = problem, tuple(stages), scheduler
        if scheduler is not None:
            adapts = problem.memory == "store" and not scheduler.frozen
            problem.keep_path = problem.keep_path or adapts
            if scheduler.x is None:
                scheduler.x = problem.x
        self.batch_size, self.log_every = batch_size, log_every
        self.history: list[Record] = []
        self.step_count = 0
        self.seconds = 0.0
        self.diverged: TrainResult | None = None
        self._generator = torch.Generator().manual_seed(seed)
        self._order: torch.Tensor | None = None
        self._cursor = 0
        self._stage = 0
        self._stage_step = 0
        self._good: dict[str, Any] | None = None  # what a divergence goes back to: the newest history row
        self._kept_step: int | None = None  # the iterate that the last stage left, where it was not its last
        self._enter(self.stages[0])

    def __repr__(self) -> str:
        names = ", ".join(f"{stage.optimiser.name} {stage.steps}" for stage in self.stages)
        return f"Trainer({self.problem!r}, stages=[{names}], step={self.step_count} of {self.total_steps})"

    # --- stages -----------------------------------------------------------------------------------------------

    def _enter(self, stage: Stage) -> None:
        """Make the stage's problem and its optimiser."""
        self._current = stage.of(self.problem)
        self._current.keep_path = self._current.keep_path or self.problem.keep_path
        self._run = stage.optimiser.start(self._current, self.tolerance)
        self._earlier = math.inf  # the stage's objective at the last multiple of a hundred steps
        self._best: _Kept | None = None

    def _rate(self) -> float:
        stage = self.stages[self._stage]
        return stage.rate_at(self._stage_step) * stage.optimiser.unit(self._current.effective_depth)

    @property
    def total_steps(self) -> int:
        """Steps of all stages (which may end early)."""
        return sum(stage.steps for stage in self.stages)

    @property
    def stage(self) -> str:
        """Name of the running stage's optimiser, with the saddles it has left; ``done`` after the last."""
        if self.done:
            return "done"
        name = self.stages[self._stage].optimiser.name
        return f"{name} past {saddles(self.saddles_left)}" if self.saddles_left else name

    @property
    def _whole(self) -> bool:
        """Whether the running stage minimises the problem's own objective."""
        return self._current is self.problem or not self.stages[self._stage].conditioned

    @property
    def hessian_products(self) -> int:
        """Products that the present stage has spent; 0 where its optimiser needs none."""
        return self._run.products

    @property
    def saddles_left(self) -> int:
        """Saddles that the present stage has come to, and left: see `isthmus.optimise.Newton`."""
        return self._run.left

    @property
    def least_direction(self) -> Tensor | None:
        """Eigenvector of the Hessian's least eigenvalue, where the last stage looked for it: in scaled variables."""
        return self._run.least

    @property
    def done(self) -> bool:
        """Whether every stage has run."""
        return self._stage >= len(self.stages)

    def _batch(self) -> torch.Tensor | None:
        if self.batch_size is None:
            return None
        samples = self.problem.x.shape[0]
        if self._order is None or self._cursor + self.batch_size > samples:
            self._order = torch.randperm(samples, generator=self._generator)
            self._cursor = 0
        batch = self._order[self._cursor : self._cursor + self.batch_size]
        self._cursor += self.batch_size
        return batch

    def step(self) -> Evaluation:
        """One iteration of the running stage, then the mesh; returns the optimiser's evaluation.

        The mesh stays as it is in stages that need one objective throughout (L-BFGS, settling).
        """
        if self.done:
            raise RuntimeError("every stage has run: make a new Trainer for more steps")
        batch, rate = self._batch(), self._rate()
        optimiser = self.stages[self._stage].optimiser
        moves_mesh = self.scheduler is not None and not optimiser.full_batch
        evaluation = self._run.step(lambda: self._current.evaluate(batch), rate)
        self._kept_step = None
        self.step_count += 1
        self._stage_step += 1
        if moves_mesh and self.scheduler is not None and math.isfinite(evaluation.objective):
            path = self._current.last_path() if batch is None and self._current.keep_path else None
            if self.scheduler.step(path):
                self._run.parameters_moved()
        if self._stage_step >= self.stages[self._stage].steps or self._run.finished or self._slow(evaluation):
            self._leave()
            self._stage += 1
            self._stage_step = 0
            if not self.done:
                self._enter(self.stages[self._stage])
        return evaluation

    def _note(self, model: dict[str, Tensor]) -> None:
        """Keep this copy of the parameters, those of the newest history row, where they are the stage's best so far."""
        if self.done or not self._whole or self.batch_size is not None:
            return
        optimiser = self.stages[self._stage].optimiser
        still = optimiser.full_batch or self.scheduler is None or self.scheduler.frozen
        if optimiser.rises is None or not still:
            return
        value = float(self.history[-1][optimiser.rises] or 0.0)
        if self._best is None or value < self._best.value:
            self._best = _Kept(value, self.step_count, model)

    def _leave(self) -> None:
        """Go back to the best iterate of the stage that ends, where the last is worse."""
        best, rises = self._best, self.stages[self._stage].optimiser.rises
        if best is None:
            return
        value = self.problem.evaluate().objective
        if rises == "residual_max":
            value = float(self.problem.residual().max())
        if math.isfinite(value) and value > best.value:
            self.problem.model.load_state_dict(best.model)
            self._kept_step = best.step

    def _slow(self, evaluation: Evaluation) -> bool:
        """Whether the last hundred steps gained less than the stage asks for."""
        gain = self.stages[self._stage].gain
        if gain == 0 or self._stage_step % _GAIN_OVER != 0:
            return False
        before, self._earlier = self._earlier, evaluation.objective
        return before - evaluation.objective < gain * abs(evaluation.objective)

    # --- history ----------------------------------------------------------------------------------------------

    def record(self) -> Record:
        """A full evaluation of the present parameters as a history row (not stored)."""
        evaluation = self.problem.evaluate()
        residual = self.problem.residual().double()
        test_cost, test_accuracy = self.problem.test()
        return {
            "step": self.step_count,
            "stage": self.stage,
            "objective": evaluation.objective,
            "data_cost": evaluation.data_cost,
            "penalty": evaluation.penalty,
            "residual_max": float(residual.max()),
            "residual_median": float(residual.quantile(0.5)),
            "test_cost": test_cost,
            "test_accuracy": test_accuracy,
            "rate": None if self.done or self.stages[self._stage].optimiser.full_batch else self._rate(),
            "seconds": self.seconds,
            "kept_step": self._kept_step,
        }

    def run(
        self,
        on_record: Callable[[Record], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        on_checkpoint: Callable[["Trainer"], None] | None = None,
        checkpoint_every: int = 100,
    ) -> TrainResult:
        """Train until the stages are done, somebody asks to stop, or numbers stop being finite.

        After a divergence the model holds the last good state: that of the newest history row.

        Args:
            on_record: is given every history row.
            should_stop: asked after every step.
            on_checkpoint: called every ``checkpoint_every`` steps and at a clean end; save `state_dict` there.
            checkpoint_every: steps.
        """
        if checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1 step, got {checkpoint_every}")
        if self.diverged is not None:
            return self.diverged
        good = self._good = self._good or self._snapshot()
        started = time.perf_counter() - self.seconds
        if self.step_count == 0 and not self.history:
            failure = self._log(on_record)
            if failure is not None:
                return failure
            self._note(good["model"])
        while not self.done:
            evaluation = self.step()
            self.seconds = time.perf_counter() - started
            if not math.isfinite(evaluation.objective):
                return self._diverged(good)
            if self.step_count % self.log_every == 0 or self.done:
                failure = self._log(on_record)
                if failure is not None:
                    self._restore(good)
                    return failure
                good = self._good = self._snapshot()
                self._note(good["model"])
            if on_checkpoint is not None and self.step_count % checkpoint_every == 0 and not self.done:
                on_checkpoint(self)
            if should_stop is not None and not self.done and should_stop():
                if on_checkpoint is not None:
                    on_checkpoint(self)
                return TrainResult(
                    Status.INTERRUPTED,
                    f"stopped after step {self.step_count} of {self.total_steps}",
                    ADVICE[Status.INTERRUPTED],
                    step=self.step_count,
                )
        if on_checkpoint is not None:
            on_checkpoint(self)
        return TrainResult.done(self.step_count, self._kept_step, self.saddles_left)

    def _log(self, on_record: Callable[[Record], None] | None) -> TrainResult | None:
        row = self.record()
        if not math.isfinite(float(row["objective"] or 0.0)):
            self.diverged = TrainResult.diverged(self.problem, self.step_count)
            return self.diverged
        if not self.done and self._whole and float(row["residual_max"] or 0.0) <= self.tolerance:
            self._at_the_tolerance()
            row |= {"stage": self.stage, "rate": None}
        self.history.append(row)
        if on_record is not None:
            on_record(row)
        return None

    def _at_the_tolerance(self) -> None:
        """Be done; but a last stage that leaves saddles decides for itself whether this is one."""
        last = len(self.stages) - 1
        if not self.stages[last].optimiser.leaves_saddles:
            self._stage, self._stage_step = len(self.stages), 0
        elif self._stage < last:
            self._stage, self._stage_step = last, 0
            self._enter(self.stages[last])

    # --- divergence -------------------------------------------------------------------------------------------

    def _snapshot(self) -> dict[str, Any]:
        model = {name: value.detach().clone() for name, value in self.problem.model.state_dict().items()}
        return {"model": model, "mesh": None if self.scheduler is None else self.scheduler.state_dict()}

    def _restore(self, good: dict[str, Any]) -> None:
        if self.scheduler is not None:
            self.scheduler.load_state_dict(good["mesh"])
        self.problem.model.load_state_dict(good["model"])

    def _diverged(self, good: dict[str, Any]) -> TrainResult:
        self.diverged = TrainResult.diverged(self.problem, self.step_count)
        self._restore(good)
        return self.diverged

    # --- state ------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on, and the history: nested plain values and tensors.

        The tensors are the live ones: save or copy them before the next step.
        """
        return {
            "model": dict(self.problem.model.state_dict()),
            "optimiser": None if self.done else self._run.state_dict(),
            "stage": self._stage,
            "stage_step": self._stage_step,
            "step": self.step_count,
            "seconds": self.seconds,
            "generator": self._generator.get_state(),
            "earlier": self._earlier,
            "best": None if self._best is None else self._best._asdict(),
            "kept_step": self._kept_step,
            "good": self._good,
            "order": self._order,
            "cursor": self._cursor,
            "mesh": None if self.scheduler is None else self.scheduler.state_dict(),
            "history": [dict(row) for row in self.history],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take such a state back; the trainer must have been made with the same settings."""
        if self.scheduler is not None and state["mesh"] is not None:
            self.scheduler.load_state_dict(state["mesh"])
        self.problem.model.load_state_dict(state["model"])
        ended = (
            state["optimiser"] is None
        )  # should there be more stages now, they begin, with this network's step-sizes
        self._stage, self._stage_step = int(state["stage"]), 0 if ended else int(state["stage_step"])
        if ended and self.scheduler is not None:
            self.scheduler.freeze()
        self.step_count, self.seconds = int(state["step"]), float(state["seconds"])
        if not self.done:
            self._enter(self.stages[self._stage])
            if not ended:
                self._run.load_state_dict(state["optimiser"])
                self._earlier = float(state["earlier"])
                self._best = None if state["best"] is None else _Kept(**state["best"])
        self._kept_step, self._good = state["kept_step"], state["good"]
        self._generator.set_state(state["generator"])
        self._order = None if state["order"] is None else state["order"].clone()
        self._cursor = int(state["cursor"])
        self.history = [dict(row) for row in state["history"]]
