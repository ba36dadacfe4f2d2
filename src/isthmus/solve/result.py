"""`TrainResult`: how training ended, in words as well."""

from dataclasses import dataclass

import torch

from isthmus.problem import Problem
from isthmus.status import ADVICE, Status


@dataclass(frozen=True)
class TrainResult:
    """How training ended, in words as well.

    Args:
        status: done, interrupted or diverged.
        message: what happened.
        advice: what to try; empty where nothing is wrong.
        layer: of a divergence, the first layer whose state was not finite (None: only the objective was not).
        step: the number of steps made; of a divergence, the step at which it began.
    """

    status: Status
    message: str
    advice: str = ""
    layer: int | None = None
    step: int = 0

    @classmethod
    def done(cls, step: int, kept_step: int | None, left: int = 0) -> "TrainResult":
        """All steps made; ``kept_step`` is that of the iterate that the last stage left, None where it is its last."""
        kept = "" if kept_step is None else f"; step {kept_step}, the best of the last stage, was kept"
        passed = "" if left == 0 else f"; {saddles(left)} left along a direction of negative curvature"
        return cls(Status.DONE, f"{step} steps done{kept}{passed}", step=step)

    @classmethod
    def diverged(cls, problem: Problem, step: int) -> "TrainResult":
        """Where the path stopped being finite, from the parameters as they are; ``step`` is that from which on."""
        model = problem.model
        layer = None
        with torch.no_grad():
            finite = torch.isfinite(model.trajectory(problem.x)).all(dim=2).all(dim=1).tolist()
            weights = torch.isfinite(model.weight).all(dim=2).all(dim=1).tolist()
        if not all(finite):
            layer = finite.index(False)
        elif not all(weights):
            layer = weights.index(False) + 1
        where = f"at layer {layer}" if layer is not None else "in the data cost"
        if not bool(torch.isfinite(problem.x).all() and torch.isfinite(problem.y).all()):
            advice = "the data themselves hold NaN or Inf: clean them"
        else:
            advice = ADVICE[Status.DIVERGED]
            if float(model.rho.max()) * model.effective_depth > 2:
                advice = "rho * effective_depth exceeds 2, where the skip expands: use more layers. Or " + advice
        return cls(Status.DIVERGED, f"NaN or Inf {where}, from step {step} on", advice, layer, step)


def saddles(count: int) -> str:
    """``1 saddle``, ``2 saddles``."""
    return f"{count} saddle{'' if count == 1 else 's'}"
