"""Rooms named after their one verb: ``from isthmus import probe`` gives the module, and ``probe(net, x)`` runs it.

Python sets a submodule as attribute of its package as soon as anybody imports it, so that a function of the same name
in ``isthmus`` would be there or not by the order of imports. A module that can be called is both, always.
"""

import inspect
import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A module that is called as the function of its own name."""

    @property
    def _verb(self) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._verb(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return import_module, (self.__name__,)  # pickled and copied as what it is, by name

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._verb)


def callable_room(name: str) -> None:
    """Let the module of this name be called as its function of the same name; for the last line of the module."""
    sys.modules[name].__class__ = _Callable
