"""Command-line options made from the fields of `RunConfig`, one each, so that the two never part."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from pydantic.fields import FieldInfo

from isthmus.runs.config import RunConfig
from isthmus.runs.problems import ConfigError, ConfigProblem, choices, keys_of, plain_type

_PANELS = {
    "": "Run",
    "task": "Task",
    "model": "Model",
    "mesh": "Mesh (step-sizes of the layers)",
    "train": "Training",
    "analysis": "Analysis",
}
_METAVARS = {
    int: "INTEGER",
    float: "NUMBER",
    str: "TEXT",
    tuple[int, ...]: "N,N,...",
    tuple[str, ...]: "NAME,...",
}


def option_name(key: str) -> str:
    """The option of a dotted key: ``--task`` for ``task.kind``, ``--batch-size`` for ``train.batch_size``."""
    section, _, leaf = key.rpartition(".")
    return "--" + (section if leaf == "kind" else leaf).replace("_", "-")


def _parameter_name(key: str) -> str:
    return key.replace(".", "__")


def _words(value: object) -> str:
    """A default as one would type it."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _spellings(key: str, field: FieldInfo) -> list[str]:
    """All names of a key's option."""
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    return [option_name(key), *([str(extra["alias"])] if "alias" in extra else [])]


def _option(key: str, field: FieldInfo) -> Any:
    """The typer option of one field; pydantic reads its text, so that every error looks the same."""
    (name, *aliases), kind = _spellings(key, field), plain_type(field)
    declarations = [f"{name}/--no-{name[2:]}" if kind is bool else name, *aliases]
    allowed = choices(field)
    what, _, source = (field.description or "").partition(" Default: ")
    default = ", ".join(filter(None, [_words(field.default), source.rstrip(".")]))
    metavar = None if kind is bool else "|".join(allowed) if allowed else _METAVARS[kind]  # type: ignore[index]
    return typer.Option(
        None,
        *declarations,
        metavar=metavar,
        help=f"{what} (default: {default})".replace("[", "\\["),
        show_default=False,
        rich_help_panel=_PANELS[key.rpartition(".")[0]],
    )


@contextmanager
def naming_options(flags: Mapping[str, Any]) -> Iterator[None]:
    """While this context is open, what is wrong with a value names the option by which it was given, beside its key."""
    try:
        yield
    except ConfigError as error:
        fields = keys_of(RunConfig)
        problems = [
            ConfigProblem(p.key, f"{p.text} ({', '.join(_spellings(p.key, fields[p.key]))})") if p.key in flags else p
            for p in error.problems
        ]
        raise ConfigError(problems, error.source, error.advice) from None


def with_config_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes ``**flags`` one option for every field of the configuration.

    The command gets those that were given, by dotted key, as ``flags={"model.width": "50"}``.
    """
    signature = inspect.signature(command)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "flags"]
    fields = keys_of(RunConfig)
    names = {_parameter_name(key): key for key in fields}
    made = [
        inspect.Parameter(
            _parameter_name(key),
            inspect.Parameter.KEYWORD_ONLY,
            default=_option(key, field),
            annotation=bool | None if plain_type(field) is bool else str | None,
        )
        for key, field in fields.items()
    ]

    def run(**given: Any) -> None:
        flags = {names[name]: value for name, value in given.items() if name in names and value is not None}
        command(**{name: value for name, value in given.items() if name not in names}, flags=flags)

    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature([*keyword_only, *made])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*keyword_only, *made]}
    return run
