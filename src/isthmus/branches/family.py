"""What is followed: a smooth objective with one parameter, and the parameters of a problem by name."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus._support import hint
from isthmus.activations import Identity, SmoothReLU
from isthmus.curvature import DualPreconditioner, Hessian, ScaledParameters
from isthmus.curvature.base import Preconditioner, SecondOrder, Target
from isthmus.geodesic import Geodesic
from isthmus.problem import Problem

# Step of the differences in the parameter, in the coordinate that is followed; their error is of its square.
_DIFFERENCE = 1e-4


class Unconditioned(Preconditioner):
    """The unit matrix: for families so small that conjugate residuals end by themselves."""

    @property
    def ready(self) -> bool:
        """True."""
        return True

    def refresh(self) -> None:
        """Nothing to measure."""

    def apply(self, v: Float[Tensor, "variables"]) -> Float[Tensor, "variables"]:
        """The vector itself."""
        return v.clone()

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take."""


class Family(ABC):
    """A smooth objective ``E(x; t)`` whose critical points are followed in t.

    Every target of a family trains the same tensors.

    Attributes:
        name: of t.
        logarithmic: whether steps are taken in log t; t must be positive then.
        least, greatest: the range of t, ends included where t is not logarithmic.
    """

    name: str = "parameter"
    logarithmic: bool = False
    least: float = -math.inf
    greatest: float = math.inf

    @abstractmethod
    def at(self, value: float) -> Target:
        """The target at a value of t."""

    @abstractmethod
    def hessian(self, target: Target, dtype: torch.dtype) -> SecondOrder:
        """Of a target of this family, with sweeps in a dtype."""

    def preconditioner(self, target: Target) -> Preconditioner:
        """Of a target of this family; none by default."""
        return Unconditioned()

    def geodesic(self, value: float) -> Geodesic | None:
        """The path of the present parameters, where there is one."""
        return None

    def check(self, value: float, what: str) -> float:
        """A value of t in its range.

        Raises:
            TypeError: no number.
            ValueError: out of range.
        """
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{what} of {self.name} must be a number, got {value!r}")
        if not math.isfinite(value) or not self.least <= value <= self.greatest or (self.logarithmic and value <= 0):
            low = "> 0" if self.logarithmic else f">= {self.least:g}" if self.least > -math.inf else "finite"
            high = f" and <= {self.greatest:g}" if self.greatest < math.inf else ""
            raise ValueError(f"{what} of {self.name} must be {low}{high}, got {value:g}")
        return float(value)

    def coordinate(self, value: float) -> float:
        """``log t``, or t itself."""
        return math.log(value) if self.logarithmic else value

    def value(self, coordinate: float) -> float:
        """The inverse of `coordinate`."""
        return math.exp(coordinate) if self.logarithmic else coordinate

    def error(self, coordinate: float, error: float) -> float:
        """An error of the coordinate as one of t."""
        return error * (self.value(coordinate) if self.logarithmic else 1.0)

    @torch.no_grad()
    def drift(
        self, value: float, x: Float[Tensor, "variables"]
    ) -> tuple[Float[Tensor, "variables"], Float[Tensor, "out samples"]]:
        """Derivatives of the gradient and of the outputs in the coordinate, at fixed scaled parameters.

        By central differences, one-sided at the end of the range. The parameters are left as they were found only if
        scales do not depend on t: write them again.
        """
        tau, h = self.coordinate(value), _DIFFERENCE * max(1.0, abs(value) if not self.logarithmic else 1.0)
        inside = [self.logarithmic or self.least <= tau + s * h <= self.greatest for s in (-1, 1)]
        if all(inside):
            weights: dict[int, float] = {-1: -0.5, 1: 0.5}
        else:
            side = 1 if inside[1] else -1
            weights = {0: -1.5 * side, side: 2.0 * side, 2 * side: -0.5 * side}
        gradient: Tensor | None = None
        outputs: Tensor | None = None
        for steps, weight in weights.items():
            target = self.at(self.value(tau + steps * h))
            scaled = ScaledParameters(target)
            scaled.write(x)
            target.evaluate()
            g, f = scaled.gradient() * (weight / h), target.last_outputs() * (weight / h)
            gradient, outputs = (g, f) if gradient is None or outputs is None else (gradient + g, outputs + f)
        assert gradient is not None and outputs is not None
        return gradient, outputs


@dataclass(frozen=True)
class _Named:
    """A parameter of a problem: how it is set, and its range."""

    set: Callable[[Problem, float], Problem]
    get: Callable[[Problem], float]
    logarithmic: bool
    least: float


def _sharpened(problem: Problem, value: float) -> Problem:
    return problem.variant(activation=SmoothReLU(append_one=problem.activation.append_one, sharpness=value))


def _sharpness(problem: Problem) -> float:
    if not isinstance(problem.activation, SmoothReLU):
        raise ValueError(f"sharpness is for networks with a SmoothReLU, not {problem.activation}")
    return problem.activation.sharpness


PARAMETERS: dict[str, _Named] = {
    "mu": _Named(lambda p, v: p.variant(mu=v), lambda p: p.mu, True, 0.0),
    "effective_depth": _Named(lambda p, v: p.variant(effective_depth=v), lambda p: p.effective_depth, False, 0.0),
    "sharpness": _Named(_sharpened, _sharpness, True, 0.0),
}
"""Parameters of a problem that can be followed by name."""


class ProblemFamily(Family):
    """A problem, and one of its parameters; or any map from a number to problems of one model.

    Args:
        problem: where to start; its model's parameters are written in place.
        parameter: ``mu``, ``effective_depth`` (at fixed μ), ``sharpness``, or a function that makes a `Problem` of the
            same model from a number: a homotopy between data sets, meshes, anything smooth. It is called with every
            value that is tried, may set ``model.rho``, and must give the same problem for the same number.

    Raises:
        ValueError: an unknown name; sharpness of another activation; a problem that recomputes its features; a function
            that changes the model or its tensors.
        TypeError: neither a name nor a function; an activation with kinks; float32 parameters.
    """

    def __init__(self, problem: Problem, parameter: str | Callable[[float], Problem]) -> None:
        if not isinstance(problem.activation, SmoothReLU | Identity):
            raise TypeError(
                f"branches need a smooth activation, got {problem.activation}: at kinks a minimum is no root of the "
                "gradient. Take SmoothReLU(sharpness=20), and follow its sharpness upwards if ReLU is what you want"
            )
        if problem.memory != "store":
            raise ValueError(
                f"branches need the features of every layer at hand, and memory={problem.memory!r} keeps none: make "
                "the Problem with memory='store'"
            )
        if problem.model.weight.dtype != torch.float64:
            raise TypeError(
                f"branches need float64 parameters, got {problem.model.weight.dtype}: in less the gradient's rounding "
                "hides the critical point. Make the model with dtype=torch.float64"
            )
        self.problem = problem
        self._map: Callable[[float], Problem]
        if callable(parameter):
            self.name, self._map = "parameter", parameter
        elif isinstance(parameter, str):
            if parameter not in PARAMETERS:
                raise ValueError(
                    f"unknown parameter {parameter!r}: expected one of {', '.join(PARAMETERS)}, or a function from a "
                    f"number to problems{hint(parameter, PARAMETERS)}"
                )
            named = PARAMETERS[parameter]
            named.get(problem)  # sharpness of another activation
            self.name, self.logarithmic, self.least = parameter, named.logarithmic, named.least
            self._map = lambda value: named.set(problem, value)
        else:
            raise TypeError(f"parameter must be a name or a function, got {type(parameter).__name__}")
        self._cached: tuple[float, Problem] | None = None

    def present(self) -> float:
        """The problem's own value of the parameter.

        Raises:
            ValueError: the parameter is a function: give ``start``.
        """
        if self.name not in PARAMETERS:
            raise ValueError(
                "where the parameter is a function, give start: the number whose problem is the present one"
            )
        return PARAMETERS[self.name].get(self.problem)

    def at(self, value: float) -> Problem:
        """The problem at a value; the last one is kept with its buffers."""
        if self._cached is not None and self._cached[0] == value and self.name in PARAMETERS:
            return self._cached[1]
        found = self._map(value)
        if not isinstance(found, Problem):
            raise TypeError(f"the function must return a Problem, got {type(found).__name__} at {value:g}")
        if found.model is not self.problem.model:
            raise ValueError(
                f"the function must return problems of one model, whose weights are followed; at {value:g} it made "
                "another"
            )
        self._cached = value, found
        return found

    def hessian(self, target: Target, dtype: torch.dtype) -> SecondOrder:
        """Exact products, `isthmus.curvature.Hessian`."""
        assert isinstance(target, Problem)
        return Hessian(target, dtype=dtype)

    def preconditioner(self, target: Target) -> Preconditioner:
        """The metric of all layers, `isthmus.curvature.DualPreconditioner`."""
        return DualPreconditioner(target)

    def geodesic(self, value: float) -> Geodesic:
        """The path of the present parameters."""
        return self.at(value).geodesic()
