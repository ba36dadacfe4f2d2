"""Optional packages of the report, asked for when they are first used."""

from importlib import import_module
from types import ModuleType


def require(name: str) -> ModuleType:
    """Import module `name`, or say how to install what the report needs.

    Raises:
        ImportError: the package is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise ImportError(
            f"the report needs {package}, which cannot be imported ({error}): pip install 'isthmus[report]'"
        ) from error
