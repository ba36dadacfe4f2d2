"""Configuration files: strict YAML, whose errors name the file and the line."""

from pathlib import Path
from typing import Any

import yaml

from isthmus.runs.problems import ConfigError, ConfigProblem, show_value


class _StrictLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` that refuses a key given twice, where PyYAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Check the keys as written, before ``<<`` merges others in."""
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} is given twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: str | Path) -> dict[Any, Any]:
    """The mapping in a YAML file; an empty file gives an empty mapping.

    Raises:
        ConfigError: no such file, not text, not YAML (with the line), a key given twice, no mapping.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise _error(path, "no such file; give the path of a YAML file, or leave it out to use the defaults") from None
    except IsADirectoryError:
        raise _error(path, "expected a YAML file, got a directory") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _error(path, f"cannot be read as text: {error}") from None
    try:
        content = yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise _error(path, f"{where}{error.problem or 'is not valid YAML'}") from None
    except yaml.YAMLError as error:
        raise _error(path, f"is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise _error(path, f"expected a mapping of sections (task:, model:, ...), got {show_value(content)}")
    return content


def dump_yaml(mapping: dict[str, Any]) -> str:
    """A mapping as YAML, keys in the order given, lists of numbers on one line."""
    return yaml.dump(mapping, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """`yaml.SafeDumper` that writes lists in one line."""


def _represent_list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)


_Dumper.add_representer(list, _represent_list)


def _error(path: Path, text: str) -> ConfigError:
    return ConfigError([ConfigProblem("", text)], str(path))
