"""How anything that iterates may end: one vocabulary for training, `solve`, the two-ended solver and run folders."""

from enum import StrEnum


class Status(StrEnum):
    """How a computation ended; `ADVICE` says what to do about it. Equal to its text: ``status == "converged"``."""

    UNKNOWN = "unknown"
    """Read from weights alone: nobody said how they came about."""

    CONVERGED = "converged"
    """At the tolerance that was asked for."""
    DONE = "done"
    """All steps made. Nothing is claimed of the result: read the residual."""
    STALLED_AT_KINKS = "stalled at kinks"
    """Critical up to the choice of derivatives at ReLU's kinks."""
    STALLED = "stalled"
    """No step decreases the objective any more."""
    BUDGET_SPENT = "budget spent"
    """Out of steps, seconds or Hessian products before the tolerance."""
    COLLAPSED = "collapsed to zero"
    """At the zero network, whose outputs do not depend on the inputs."""
    DIVERGED = "diverged"
    """A state, a weight or the objective stopped being finite."""
    INTERRUPTED = "interrupted"
    """Somebody asked to stop."""


ADVICE: dict[Status, str] = {
    Status.UNKNOWN: "",
    Status.CONVERGED: "",
    Status.DONE: "",
    Status.STALLED_AT_KINKS: "critical up to the choice of derivatives at ReLU's kinks, where the gradient of a "
    "minimum need not vanish: SmoothReLU has none",
    Status.STALLED: "no step decreases the objective any more; start from a better trained network, or raise the "
    "tolerance if the residual is small enough for you",
    Status.BUDGET_SPENT: "give it more steps, float64, or a smooth activation (SmoothReLU), and read energies "
    "and H with the residual beside them",
    Status.COLLAPSED: "the zero network is a local minimum: take the default initialisation, a smaller L̃ or "
    "weight decay, or raise them in stages (Stage(leak_factor=…, mu_factor=…))",
    Status.DIVERGED: "try a smaller rate, float64, or the default initialisation; the last good state is kept",
    Status.INTERRUPTED: "resume, or call solve again: it goes on from the parameters as they are",
}
