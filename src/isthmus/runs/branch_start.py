"""Where a branch starts: from a run, from a configuration, or where the branch in a folder has come to."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from isthmus.branches import PARAMETERS, ProblemFamily
from isthmus.branches.settings import AtFold, Settings
from isthmus.problem import Problem
from isthmus.runs.branch_folder import START, load_branch, read_branch
from isthmus.runs.build import build, restore_problem
from isthmus.runs.config import RunConfig
from isthmus.runs.folder import RunFolder
from isthmus.runs.saved import read_saved

SOLVER = "geodesic"
"""The recipe that makes a critical point of a start that is none."""
KEYS = {"mu": "train.mu", "effective_depth": "model.effective_depth", "sharpness": "model.sharpness"}
"""Where the configuration has each parameter."""


@dataclass(frozen=True)
class Following:
    """What is followed, and how; see `isthmus.branches.follow`.

    Args:
        parameter: ``mu``, ``effective_depth`` or ``sharpness``.
        to: its value at the end.
        at: values between that must have a point.
        step: the first step.
        tolerance: on the residual of every point.
        at_fold: what to do where a branch of minima ends.
        eigenvalues: compute the least eigenvalue at every point.
        weights: keep every point's weights.
    """

    parameter: str
    to: float
    at: tuple[float, ...] = ()
    step: float | None = None
    tolerance: float = 1e-5
    at_fold: AtFold = "jump"
    eigenvalues: bool = True
    weights: bool = True

    @classmethod
    def given(cls, values: Mapping[str, Any]) -> "Following":
        """From those that were given; the others take their defaults.

        Raises:
            ValueError: no parameter, or no end.
        """
        if "parameter" not in values:
            raise ValueError(f"--parameter is missing: give one of {', '.join(PARAMETERS)}")
        if "to" not in values:
            raise ValueError(f"--to is missing: the value of {values['parameter']} at which to end")
        return cls(**values)

    def check(self, family: ProblemFamily) -> None:
        """Whether the numbers fit the start.

        Raises:
            ValueError: they do not; the message names the option.
        """
        start, name = family.present(), self.parameter
        family.check(self.to, "--to")
        for value in self.at:
            family.check(value, "--at")
        if self.to == start:
            raise ValueError(f"--to must differ from where the branch starts, {name} = {start:g}")
        low, high = sorted((start, self.to))
        outside = [value for value in self.at if not low <= value <= high]
        if outside:
            raise ValueError(f"--at must lie between the start and --to, {low:g} and {high:g}; got {outside[0]:g}")
        settings = Settings(start, self.to, self.at, self.step, self.tolerance, self.at_fold)
        settings.checked(family)


@dataclass(frozen=True)
class Origin:
    """Where the first network comes from, as it was given.

    Args:
        run: the folder of a run, or its model.safetensors.
        config: a configuration to solve from its initial weights.
        sharpness: of a smooth ReLU that replaces the network's own ReLU.
    """

    run: Path | None = None
    config: RunConfig | None = None
    sharpness: float | None = None


@dataclass
class Plan:
    """A start, and what to do with it.

    Args:
        following: what is followed.
        config: of the first network.
        problem: with the first network.
        fingerprint: a digest of the data; None where the start does not say.
        start: where the first network came from, for branch.json.
        before: the content of branch.json; empty for a new branch.
    """

    following: Following
    config: RunConfig
    problem: Problem
    fingerprint: str | None
    start: dict[str, Any]
    before: dict[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> ProblemFamily:
        """The problem and its parameter."""
        return ProblemFamily(self.problem, self.following.parameter)


def begun(origin: Origin, given: Mapping[str, Any]) -> Plan:
    """From a run, or from a configuration."""
    following = Following.given(given)
    notes: list[str] = []
    if origin.run is not None:
        saved = read_saved(origin.run)
        if saved.config.train.dtype != "float64":
            notes.append(f"weights of {saved.config.train.dtype}, taken to float64")
        config = _suited(saved.config, origin.sharpness, str(origin.run), notes)
        problem, digest = restore_problem(replace(saved, config=config)), saved.fingerprint
        start: dict[str, Any] = {"run": str(origin.run.resolve()), "step": saved.step}
    elif origin.config is not None:
        config = _suited(origin.config, origin.sharpness, "the configuration", notes).resolved()
        built = build(config, None if config.model.init_from is None else read_saved(config.model.init_from))
        problem, digest, start = built.trainer.problem, built.fingerprint, {"run": None}
    else:
        raise ValueError("there is nothing to start from: give the folder of a run, or --config FILE")
    plan = Plan(following, config.merge({"model.init_from": None}), problem, digest, start | {"notes": notes})
    following.check(plan.family)
    return plan


def _suited(config: RunConfig, sharpness: float | None, where: str, notes: list[str]) -> RunConfig:
    """A configuration with a smooth σ, in float64 on the CPU; what was changed is noted.

    Raises:
        ValueError: a ReLU, and no sharpness for a smooth one; a sharpness of the identity.
    """
    model = config.model
    values: dict[str, Any] = {"train.dtype": "float64", "train.device": "cpu", "train.extend": ()}
    values |= {"train.recipe": SOLVER, "train.steps": None, "train.rate": None, "train.batch_size": None}
    if model.activation == "relu" and sharpness is None:
        raise ValueError(
            f"{where} has a ReLU, and a branch needs a smooth σ: at ReLU's kinks a minimum is no root of the gradient. "
            "--sharpness 20 puts a smooth ReLU of that sharpness in its place, and solves again from the same weights"
        )
    if sharpness is not None:
        if model.activation == "identity":
            raise ValueError(f"--sharpness is for networks with a ReLU or a smooth one; {where} has the identity")
        if (model.activation, model.sharpness) != ("smooth_relu", sharpness):
            notes.append(f"{model.activation} replaced by a smooth ReLU of sharpness {sharpness:g}")
        values |= {"model.activation": "smooth_relu", "model.sharpness": sharpness}
    return config.merge(values)


def taken_up(place: RunFolder, origin: Origin, given: Mapping[str, Any]) -> Plan:
    """The branch in a folder, taken up.

    Raises:
        ValueError: options that differ from those of the branch, or an end that lies behind.
    """
    data = load_branch(place.path)
    stored = data.settings | {"at": tuple(data.settings["at"])}
    names = {f.name for f in fields(Following)}
    following = Following(**{name: value for name, value in stored.items() if name in names})
    saved = read_saved(place / START)
    differing = [
        f"{_typed(name, value)}, and not {_typed(name, stored[name])}"
        for name, value in given.items()
        if name not in ("to", "at") and value != stored[name]
    ]
    if origin.run is not None and str(origin.run.resolve()) != data.start.get("run"):
        differing.append(f"the start {origin.run}, and not {data.start.get('run') or 'a configuration'}")
    if origin.config is not None:
        theirs = _suited(origin.config, origin.sharpness, "the configuration", []).resolved()
        keys = theirs.merge({"model.init_from": None}).differences(saved.config)
        differing += [f"another {key}" for key in keys if key not in ("name", "train.threads")]
    elif origin.sharpness is not None and origin.sharpness != saved.config.model.sharpness:
        differing.append(f"--sharpness {origin.sharpness:g}, and not {saved.config.model.sharpness:g}")
    if differing:
        raise ValueError(
            f"{place.path} holds another branch than the one asked for: {'; '.join(differing)}. Leave that out to go "
            "on with it, choose another --out, or replace it with --overwrite"
        )
    following = replace(following, **{name: value for name, value in given.items() if name in ("to", "at")})
    plan = Plan(following, saved.config, restore_problem(saved), saved.fingerprint, data.start)
    plan.before = read_branch(place.path)
    following.check(plan.family)
    _check_ahead(plan, stored["to"], data.values)
    return plan


def _typed(name: str, value: Any) -> str:
    """A setting as its option is typed."""
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{option}" if value else f"--no-{option}"
    return f"--{option} {value:g}" if isinstance(value, float) else f"--{option} {value}".lower()


def _check_ahead(plan: Plan, before: float, values: list[float]) -> None:
    """The end may move ahead, not back."""
    start, to = plan.family.present(), plan.following.to
    way = before - start
    if (to - start) * way < 0:
        raise ValueError(
            f"--to {to:g} lies on the other side of the start, {start:g}: follow that way into another folder by --out"
        )
    if to != before and values and (to - values[-1]) * way <= 0:
        raise ValueError(f"--to {to:g} lies behind the last point of the branch, {values[-1]:g}: nothing is left to do")
