"""Packages that only some need, asked for when they are first used."""

from importlib import import_module
from types import ModuleType


def require(name: str, what: str, package: str | None = None) -> ModuleType:
    """Import module ``name``, or say what needs it and how to install it.

    Args:
        name: of the module.
        what: needs it.
        package: what pip calls it, where that is another name.

    Raises:
        ImportError: the package is not installed, or fails at import.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = package or name.split(".")[0].replace("_", "-")
        raise ImportError(
            f"{what} needs {package}, which cannot be imported ({error}): pip install {package}, or all of them by "
            "pip install 'isthmus[integrations]'"
        ) from error
