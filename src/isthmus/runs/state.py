"""Nested training state to and from safetensors: nothing pickled is ever written or read.

Tensors lie in the file under the path of their place (``optimiser/0/momentum``); everything else is JSON in
the metadata, with what JSON cannot say (tuples, keys that are no strings, infinities) tagged. A digest over
both tells a damaged file from a sound one.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

FORMAT = "isthmus-state"
VERSION = 2
"""Of what is written. 1: what optimisers saved, and the digest, were others."""
READABLE = (1, 2)
"""Versions whose weights can be read; a training goes on from `VERSION` alone, products are written anew
from all."""
# safetensors refuses to read headers over 100 MB; longer trees (a history of a million rows) become a tensor.
_LONGEST_HEADER = 16 * 2**20
_TREE_TENSOR = "//tree"

State = Any
"""Nested dict, list, tuple, str, int, float, bool, None and Tensor."""


class StateError(ValueError):
    """A file that is not a sound state file of this package."""


class VersionError(StateError):
    """A file of another version of the format."""


def save_state(state: State, kind: str) -> bytes:
    """The bytes of a safetensors file that holds a nested state.

    Args:
        state: nested dict (keys scalars or tuples of them), list, tuple, scalars, tensors.
        kind: what the state is of, checked by `load_state`: ``checkpoint``, ``model``.

    Raises:
        TypeError: something else in the state; the message names its place.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "", tensors)
    text = _dump(tree)
    about = {"version": VERSION, "kind": kind}
    if len(text) > _LONGEST_HEADER:
        tensors[_TREE_TENSOR] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    else:
        about["tree"] = tree
    # One key only: safetensors writes several in random order, and equal states should give equal bytes.
    return save(tensors, {FORMAT: _dump({**about, "digest": digest(text, tensors)})})


def _dump(tree: Any) -> str:
    """JSON without spaces; strict, since what it cannot hold is tagged."""
    return json.dumps(tree, allow_nan=False, separators=(",", ":"))


def load_state(path: str | Path, kind: str, versions: tuple[int, ...] = (VERSION,)) -> State:
    """The nested state in a file that `save_state` made, tensors on the CPU.

    Args:
        path: the file.
        kind: see `save_state`.
        versions: of the format that are taken.

    Raises:
        FileNotFoundError: no such file.
        VersionError: another version of the format.
        StateError: not safetensors, not by this package, another kind, cut short, damaged.
    """
    path = Path(path)
    data = path.read_bytes()
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        about = json.loads(header.get("__metadata__", {}).get(FORMAT, "null"))
    except (SafetensorError, ValueError) as error:
        # A header's length may begin with the same bytes, but a brace follows it, also where the file is cut short.
        if (data[:2] == b"PK" or data[:1] == b"\x80") and data[8:9] != b"{":
            text = f"{path} looks like a pickle (torch.save); only safetensors files are read here"
            raise StateError(text) from None
        raise StateError(f"{path} is damaged or cut short, or no safetensors file ({error})") from None
    if not isinstance(about, dict):
        raise StateError(f"{path} is a safetensors file, but isthmus did not write it")
    version = about.get("version")
    if version not in versions:
        raise VersionError(
            f"{path} has version {version} of the format, this isthmus reads version "
            f"{' and '.join(map(str, versions))}; use the isthmus that wrote it"
        )
    if about.get("kind") != kind:
        raise StateError(f"{path} holds a {about.get('kind')}, expected a {kind}")
    if "tree" in about:
        text = _dump(about["tree"])
    else:
        text = bytes(tensors.get(_TREE_TENSOR, torch.empty(0, dtype=torch.uint8)).tolist()).decode("utf-8", "replace")
    if about.get("digest") != digest(text, tensors, version):
        raise StateError(f"{path} is damaged: its contents do not match its digest")
    return _decode(json.loads(text), tensors)


def version_of(path: Path) -> int | None:
    """The version of the format of a state file; None where it does not say."""
    try:
        with safe_open(path, "pt") as file:
            about: Any = json.loads((file.metadata() or {}).get(FORMAT, "null"))
    except (SafetensorError, ValueError):
        return None
    return about.get("version") if isinstance(about, dict) else None


def digest(tree: str, tensors: Mapping[str, Tensor], version: int = VERSION) -> str:
    """SHA-256 over the tree and every tensor's name, type, shape (not in version 1) and bytes."""
    found = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        about = "" if version == 1 else f"{tensor.dtype}{tuple(tensor.shape)}\0"
        found.update(f"\0{name}\0{about}".encode())
        found.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _encode(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for a value: plain where JSON keeps it exactly, else an object with one tag."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        value = float(value)
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Tensor):
        return {"tensor": _store(value, place, tensors)}
    if type(value) is list:
        return [_encode(item, f"{place}/{index}", tensors) for index, item in enumerate(value)]
    if type(value) is tuple:
        return {"tuple": [_encode(item, f"{place}/{index}", tensors) for index, item in enumerate(value)]}
    if isinstance(value, Mapping):
        return {"dict": [[_key(key, place), _encode(item, f"{place}/{key}", tensors)] for key, item in value.items()]}
    raise TypeError(
        f"the state holds a {type(value).__name__} at {place.strip('/') or 'its top'}: expected dict, list, "
        "tuple, str, int, float, bool, None or Tensor"
    )


def _key(key: Any, place: str) -> Any:
    """A dictionary's key, encoded; tensors and lists are none."""
    if isinstance(key, Tensor | list | Mapping):
        raise TypeError(f"the state has a {type(key).__name__} as a key at {place.strip('/') or 'its top'}")
    return _encode(key, place, {})


def _store(tensor: Tensor, place: str, tensors: dict[str, Tensor]) -> str:
    """Put a copy of a tensor in the file under the path of its place; returns the name."""
    if tensor.layout != torch.strided:
        raise TypeError(f"the state holds a sparse tensor at {place.strip('/')}: expected a dense one")
    name = stem = place.strip("/") or "tensor"
    number = 1
    while name in tensors or name == _TREE_TENSOR:  # keys 1 and "1" make the same path
        number += 1
        name = f"{stem}#{number}"
    # A copy of its own: safetensors refuses views, shared memory and gaps.
    tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return name


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_encode`."""
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    [(tag, content)] = value.items()
    if tag == "float":
        return float(content)
    if tag == "tensor":
        return tensors[content]
    if tag == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    assert tag == "dict", tag
    return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
