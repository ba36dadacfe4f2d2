"""What is wrong with a configuration, in words: dotted key, what was expected, what came, how to correct it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from isthmus._support import nearest


@dataclass(frozen=True)
class ConfigProblem:
    """One thing wrong.

    Args:
        key: dotted key, ``model.width``; empty for the whole configuration.
        text: what was expected and what came.
    """

    key: str
    text: str

    def __str__(self) -> str:
        return f"{self.key}: {self.text}" if self.key else self.text


class ConfigError(ValueError):
    """A configuration that cannot be used.

    Args:
        problems: everything that is wrong with it.
        source: what the configuration is or where it came from, as the message begins.
        advice: what to do, where it does not follow from the problems.
    """

    def __init__(self, problems: Iterable[ConfigProblem], source: str = "the configuration", advice: str = "") -> None:
        self.problems = tuple(problems)
        self.source, self.advice = source, advice
        count = "a problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "".join(f"\n  {line}" for line in (*self.problems, advice) if line)
        super().__init__(f"{source} has {count}:{lines}")


_TYPE_WORDS = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}
_SIGNS = {Ge: (">=", "ge"), Gt: (">", "gt"), Le: ("<=", "le"), Lt: ("<", "lt")}


def is_optional(field: FieldInfo) -> bool:
    """Whether a field may be none."""
    return type(None) in get_args(field.annotation)


def plain_type(field: FieldInfo) -> object:
    """The annotation of a field without its ``| None``: a type, a ``Literal`` or ``tuple[int, ...]``."""
    annotation = field.annotation
    parts = [part for part in get_args(annotation) if part is not type(None)]
    if get_origin(annotation) is Union or (is_optional(field) and len(parts) == 1):
        annotation = parts[0]
    # Annotated[int, ...] inside a union keeps its wrapper.
    return getattr(annotation, "__origin__", annotation) if hasattr(annotation, "__metadata__") else annotation


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The allowed words of a ``Literal`` field; empty for any other."""
    kind = plain_type(field)
    return get_args(kind) if get_origin(kind) is Literal else ()


def _bounds(field: FieldInfo) -> list[str]:
    """``>= 1``, ``< 1``, … of a field."""
    words = []
    for item in field.metadata:
        for sort, (sign, attribute) in _SIGNS.items():
            if isinstance(item, sort):
                words.append(f"{sign} {getattr(item, attribute)}")
    return words


def expectation(field: FieldInfo) -> str:
    """What a field takes, in words: ``a whole number >= 1``, ``one of fixed, learned``.

    A field whose type says too little gives its own words as ``json_schema_extra={"expected": ...}``.
    """
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "expected" in extra:
        words = str(extra["expected"])
    elif choices(field):
        words = f"one of {', '.join(choices(field))}"
    else:
        kind = plain_type(field)
        words = _TYPE_WORDS.get(kind, "a value") if isinstance(kind, type) else "a value"
        words = " ".join([words, " and ".join(_bounds(field))]).strip()
    return f"{words}, or none" if is_optional(field) else words


def keys_of(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """All fields of nested sections by dotted key, in order; sections themselves are left out."""
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        section = section_of(field)
        if section is None:
            found[prefix + name] = field
        else:
            found |= keys_of(section, f"{prefix}{name}.")
    return found


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a section; None for an ordinary field."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def show_value(value: object) -> str:
    """A value as it came, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def unknown_key(key: str, model: type[BaseModel]) -> ConfigProblem:
    """Name an unknown key and what was probably meant: the nearest name here, or one in another section."""
    section, _, leaf = key.rpartition(".")
    known = list(keys_of(model))
    here = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section]
    if not section:
        here += [name for name, field in model.model_fields.items() if section_of(field)]
    elsewhere = {name.rpartition(".")[2]: name for name in reversed(known)}
    close = nearest(leaf, here)
    best = f"{section}.{close}" if section and close else close
    best = best or elsewhere.get(leaf) or elsewhere.get(nearest(leaf, elsewhere) or "")
    if best is not None:
        return ConfigProblem(key, f"unknown key; the nearest valid name is {best}")
    return ConfigProblem(key, f"unknown key; valid names here: {', '.join(here)}")
