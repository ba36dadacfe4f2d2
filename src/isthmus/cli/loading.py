"""What `isthmus probe` is given: a network from a module or a run folder, and data from a file, a module or the run."""

import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from isthmus._support import hint
from isthmus.model import LeakyResNet
from isthmus.probe.batches import batches
from isthmus.runs.branch_folder import is_branch
from isthmus.runs.folder import RunFolder
from isthmus.tasks.files import EXTENSIONS
from isthmus.tasks.inputs import inputs_from_file


@dataclass(frozen=True)
class Network:
    """A network to probe.

    Attributes:
        model: the module.
        name: as the user gave it.
        run: the folder, where it is a run of isthmus.
    """

    model: nn.Module
    name: str
    run: Path | None = None


def load_network(given: str) -> Network:
    """The network of a run folder, or the one that ``MODULE:FACTORY`` names.

    Raises:
        ValueError: neither; a module or name that is not there; a factory that fails or returns no `torch.nn.Module`.
    """
    folder = Path(given)
    if folder.is_dir() or (folder.suffix == ".safetensors" and folder.is_file()):
        from isthmus.runs.build import load_run_model

        if folder.is_dir() and not RunFolder(folder).is_run and not is_branch(folder):
            raise ValueError(
                f"{given} is a folder, but of no run of isthmus; give one that `isthmus train` wrote, or "
                "PACKAGE.MODULE:FACTORY"
            )
        return Network(load_run_model(folder), given, folder)
    value = called(given, "the network")
    if not isinstance(value, nn.Module):
        tuples = " (return the network alone)" if isinstance(value, tuple | list | Mapping) else ""
        raise ValueError(f"{given} gave {_kind(value)}, expected a torch.nn.Module{tuples}")
    return Network(value, given)


def called(given: str, role: str) -> Any:
    """What ``MODULE:NAME`` names; what it returns, where that is a function or a class, which is then called.

    Raises:
        ValueError: no such module or name; one that fails on import or when called, or that needs arguments.
    """
    what = "a run folder or PACKAGE.MODULE:FACTORY" if role == "the network" else "a file or MODULE:FACTORY"
    value = found(given, role, what)
    if isinstance(value, nn.Module) or not callable(value):
        return value
    _needs_nothing(given, value)
    with _theirs(f"{given} raised"):
        return value()


def found(given: str, role: str, what: str) -> Any:
    """What ``MODULE:NAME`` names.

    Raises:
        ValueError: no such module or name, or a module that fails on import.
    """
    module_name, colon, path = given.partition(":")
    if not colon or not module_name or not path:
        there = f"; there is no file {given}" if role == "the data" and not Path(given).exists() else ""
        raise ValueError(f"{role}: expected {what}, such as nets.resnet:make, got {given!r}{there}")
    value: Any = _module(module_name, path)
    for part in path.split("."):
        if not hasattr(value, part):
            raise ValueError(f"{module_name} has no attribute {path!r}{hint(part, _public(dir(value)), 2)}")
        value = getattr(value, part)
    return value


def _module(name: str, path: str) -> ModuleType:
    """Import a module, the current directory first."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    if name.endswith(".py") or "/" in name:
        dotted = ".".join(Path(name).with_suffix("").parts).lstrip("./")
        raise ValueError(
            f"{name!r} is a path, expected the dotted name of a module that can be imported from the current "
            f"directory: {dotted}:{path}"
        )
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise _failed(f"module {name} could not be imported: it needs", str(error.name), error) from error
        stems = [p.stem for p in Path.cwd().glob("*.py")] + [p.parent.name for p in Path.cwd().glob("*/__init__.py")]
        raise ValueError(
            f"there is no module {error.name!r} in the current directory or among the installed packages"
            f"{hint(error.name, _public(stems), 2)}; change to the directory that holds it, or install its package"
        ) from error
    except (Exception, SystemExit) as error:
        raise _failed(f"module {name} could not be imported: it raised", _said(error), error) from error


def _needs_nothing(given: str, function: Callable[..., Any]) -> None:
    """Refuse a factory that has to be given arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind()
    except TypeError:
        needed = [
            name
            for name, p in signature.parameters.items()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        raise ValueError(
            f"{given} needs arguments ({', '.join(needed)}); give a function that needs none, such as "
            f"def make(): return {function.__name__}({needed[0]}=…) in a file of yours"
        ) from None


def _kind(value: object) -> str:
    name = getattr(value, "__name__", None)
    return f"{type(value).__name__} {name}" if name else f"a value of type {type(value).__name__}"


def _public(names: Sequence[str]) -> list[str]:
    return [name for name in names if not name.startswith("_")]


def _said(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _failed(what: str, text: str, error: BaseException) -> ValueError:
    """The user's own code failed: theirs to correct, so no request to report it."""
    if isinstance(error, SystemExit):
        text += "; keep what is to run as a script under if __name__ == '__main__'"
    return ValueError(f"{what} {text} (--debug shows where)")


@contextmanager
def _theirs(what: str) -> Iterator[None]:
    """While this context is open, exceptions are of the user's code."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (Exception, SystemExit) as error:
        raise _failed(what, _said(error), error) from error


@dataclass
class Data:
    """Data to probe a network on.

    Attributes:
        value: what `isthmus.probe.probe` takes.
        name: as the user gave it.
        notes: what was done to it, in words.
        labelled: whether labels may be among them.
    """

    value: object
    name: str
    notes: tuple[str, ...] = ()
    labelled: bool = False

    def batches(self, size: int) -> Iterator[object]:
        """One batch after the other; what the user's own loader raises names it.

        Raises:
            ValueError: data of a type that cannot be read, or a loader that fails.
        """
        try:
            whole = batches(self.value, size)
        except TypeError as error:
            raise ValueError(f"{self.name}: {error}") from error
        number = 0
        while True:
            with _theirs(f"{self.name} raised, on batch {number},"):
                batch = next(whole, _END)
            if batch is _END:
                return
            yield batch
            number += 1


_END = object()


def load_data(given: str | None, network: Network, target: str | None, drop: Sequence[str]) -> Data:
    """The data that ``--data`` names, in the network's floating-point type; a run's own where nothing is given.

    Raises:
        ValueError: nothing given for a network that is no run; a file or factory that cannot be used; options for
            tables where there is none.
        FileNotFoundError: no such file.
    """
    if given is None:
        if network.run is None:
            raise ValueError(
                "--data is missing: give a .npz, .csv or .parquet file of inputs, or MODULE:FACTORY with a function "
                "that returns a DataLoader, a tensor or batches"
            )
        return _of_run(network.run)
    if Path(given).suffix.lower() in EXTENSIONS:
        return _of_file(given, network, target, drop)
    if target is not None or drop:
        raise ValueError("--target and --drop name columns of a table: they go with a .csv or .parquet file as --data")
    return Data(called(given, "the data"), given, labelled=True)


def _of_run(path: Path) -> Data:
    from isthmus.runs.build import build_task
    from isthmus.runs.saved import read_saved
    from isthmus.runs.schema import CONFIG

    if path.is_dir() and not (path / CONFIG).is_file():
        raise ValueError(f"{path} has no {CONFIG}, which says what data it was trained on: give some by --data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the network was read
        config = read_saved(path).config
    task = build_task(config)
    note = f"data: the training part of the run's own task, {task.name}, as the network saw it"
    return Data(task.x_train.to(getattr(torch, config.train.dtype)), f"{task.name} (training part)", (note,))


def _of_file(given: str, network: Network, target: str | None, drop: Sequence[str]) -> Data:
    names: Any = None if target is None else [name.strip() for name in target.split(",") if name.strip()]
    inputs = inputs_from_file(given, names, drop)
    x, note = _suited(inputs.x, network.model)
    notes = [f"data: {note}, as they stand in {Path(given).name}: not normalised", *inputs.notes]
    if network.run is not None:
        notes.append("the run's own data were normalised; these were not: compare with care")
    return Data(x, given, tuple(notes))


def _suited(x: Tensor, model: nn.Module) -> tuple[Tensor, str]:
    """Inputs in the model's floating-point type; integers stay where the model looks them up in an embedding."""
    shape = " × ".join(map(str, x.shape))
    if not x.is_floating_point() and any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in model.modules()):
        return x, f"{shape} integers, for the network's embedding"
    if isinstance(model, LeakyResNet):
        return x.to(torch.float64), f"{shape} numbers in float64"
    types = (t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point())
    dtype = next(types, torch.get_default_dtype())
    return x.to(dtype), f"{shape} numbers in the network's {str(dtype).removeprefix('torch.')}"
