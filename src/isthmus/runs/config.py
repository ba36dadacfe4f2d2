"""The typed configuration of a run: read, checked as a whole, merged and written.

Values are taken in the order defaults, YAML file, flags. Everything wrong is reported at once: `ConfigError`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from isthmus._support import nearest
from isthmus.runs.checks import cross_problems, doubts
from isthmus.runs.problems import (
    ConfigError,
    ConfigProblem,
    choices,
    expectation,
    keys_of,
    show_value,
    unknown_key,
)
from isthmus.runs.sections import Sections
from isthmus.runs.yamlfile import dump_yaml, read_yaml


class RunConfig(Sections):
    """Everything that decides a run, checked as a whole."""

    @model_validator(mode="after")
    def _check_together(self) -> "RunConfig":
        problems = cross_problems(self)
        if problems:
            raise ConfigError(problems)
        return self

    @classmethod
    def from_mapping(cls, mapping: object, source: str = "the configuration") -> "RunConfig":
        """A configuration from nested plain values; what is not given takes its default.

        Raises:
            ConfigError: everything that is wrong, each with its dotted key.
        """
        try:
            return cls.model_validate(mapping)
        except ValidationError as error:
            raise ConfigError(_problems(error, mapping), source) from None

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> "RunConfig":
        """A configuration from a YAML file, then ``overrides`` by dotted key (``{"model.width": 50}``).

        Raises:
            ConfigError: a missing or malformed file (with the line), or anything wrong in it.
        """
        return cls.from_mapping(apply_overrides(read_yaml(path), overrides or {}), str(path))

    def merge(self, overrides: Mapping[str, Any]) -> "RunConfig":
        """The same configuration with some values replaced, by dotted key.

        Raises:
            ConfigError: as `from_mapping`.
        """
        return self.from_mapping(apply_overrides(self.model_dump(), overrides))

    def to_yaml(self) -> str:
        """The whole configuration as YAML, which `from_yaml` reads back to an equal one."""
        return dump_yaml(self.model_dump(mode="json"))

    def resolved(self) -> "RunConfig":
        """As a run stores it, saying what it did: paths absolute, names that stand for others replaced."""
        from isthmus.initialise import DEFAULT_INITIALISATION

        task: dict[str, Any] = {}
        model: dict[str, Any] = {}
        if self.task.path is not None:
            task["path"] = os.path.abspath(self.task.path)
        if self.model.init_from is not None:
            model["init_from"] = os.path.abspath(self.model.init_from)
        if self.model.initialisation == "default":
            model["initialisation"] = DEFAULT_INITIALISATION
        sections = {"task": self.task.model_copy(update=task), "model": self.model.model_copy(update=model)}
        return self.model_copy(update=sections)

    def flat(self) -> dict[str, Any]:
        """All values by dotted key."""
        values: dict[str, Any] = {}
        for key in keys_of(type(self)):
            section, _, leaf = key.rpartition(".")
            values[key] = getattr(getattr(self, section) if section else self, leaf)
        return values

    def differences(self, other: "RunConfig") -> dict[str, tuple[Any, Any]]:
        """The dotted keys in which two configurations differ, with both values."""
        mine, theirs = self.flat(), other.flat()
        return {key: (mine[key], theirs[key]) for key in mine if mine[key] != theirs[key]}

    def warnings(self) -> tuple[str, ...]:
        """What is allowed but probably not meant: values without effect, layers whose skip changes sign."""
        defaults, values = keys_of(type(self)), self.flat()
        return doubts(self, values, {key for key, value in values.items() if value != defaults[key].default})


def apply_overrides(base: Mapping[Any, Any], overrides: Mapping[str, Any]) -> dict[Any, Any]:
    """Nested plain values with some replaced by dotted key; a bad section is left to validation."""
    merged: dict[Any, Any] = dict(base)
    for key, value in overrides.items():
        *sections, leaf = key.split(".")
        place = merged
        for name in sections:
            inner = place.get(name)
            if inner is not None and not isinstance(inner, Mapping):
                break
            place[name] = dict(inner or {})
            place = place[name]
        else:
            place[leaf] = value
    return merged


def merge_sections(base: Mapping[Any, Any], layer: Mapping[Any, Any]) -> dict[Any, Any]:
    """Nested plain values with those of another layer over them, key by key within sections."""
    merged = dict(base)
    for key, value in layer.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and (value is None or isinstance(value, Mapping)):
            merged[key] = {**below, **(value or {})}
        else:
            merged[key] = value
    return merged


def _problems(error: ValidationError, given: object) -> list[ConfigProblem]:
    """Every error of pydantic in this package's words, one a key."""
    found: dict[str, ConfigProblem] = {}
    for item in error.errors(include_url=False):
        together = item.get("ctx", {}).get("error")
        if isinstance(together, ConfigError):
            found |= {problem.key: problem for problem in together.problems}
        else:
            problem = _problem(item["type"], item["loc"], given)
            found.setdefault(problem.key, problem)
    return list(found.values())


def _problem(kind: str, location: tuple[int | str, ...], given: object) -> ConfigProblem:
    """One error of pydantic, by its kind and place, in words."""
    path = list(map(str, location))
    if kind == "invalid_key":
        return ConfigProblem(".".join(path), "expected text as a key, not a number")
    if kind == "extra_forbidden":
        return unknown_key(".".join(path), RunConfig)
    known = keys_of(RunConfig)
    # Errors inside lists and unions have longer locations than the field.
    while ".".join(path) not in known and len(path) > 1:
        path.pop()
    key = ".".join(path)
    value = given
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else value
    if key not in known:
        what = "a section, that is a mapping of keys to values" if key else "a mapping of sections"
        return ConfigProblem(key, f"expected {what}, got {show_value(value)}")
    text = f"expected {expectation(known[key])}, got {show_value(value)}"
    close = nearest(value, choices(known[key])) if isinstance(value, str) else None
    return ConfigProblem(key, f"{text}; did you mean {close}?" if close else text)
