"""Which σ takes a state in: read off the network while it runs, not guessed.

While the first batch passes without hooks, the tensors that entrywise nonlinearities are given are noted. A state that
is one of them, bit for bit, is consumed by that nonlinearity, be it a module or a function. A state that none takes as
it is (a norm or a linear map comes first, as in transformers) is its own feature: σ is the identity.
"""

import difflib
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from isthmus.activations import ACTIVATIONS, Activation, Identity, ReLU

# Entrywise functions without a class of their own among `isthmus.activations`, by the name of torch's operator.
ENTRYWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hardswish": F.hardswish,
    "mish": F.mish,
    "elu": F.elu,
    "softplus": F.softplus,
    "leaky_relu": F.leaky_relu,
    "hardtanh_0_6": F.relu6,
}
# Entries of a tensor that, with its sum, tell it from others of its shape; where they lie follows no row or column.
SAMPLED, GOLDEN = 64, 0.6180339887498949
WITHOUT = Identity(append_one=False)


@dataclass(frozen=True)
class Entrywise(Activation):
    """An entrywise nonlinearity that a network was seen to use.

    Args:
        append_one: append the constant 1 to the features.
        function: a key of `ENTRYWISE`.

    Raises:
        ValueError: no such function.
    """

    function: str = "gelu"

    def __post_init__(self) -> None:
        if self.function not in ENTRYWISE:
            raise ValueError(f"function: expected one of {', '.join(ENTRYWISE)}, got {self.function!r}")

    @property
    def name(self) -> str:
        """``entrywise``."""
        return "entrywise"

    @property
    def homogeneous(self) -> bool:
        """Only the leaky ReLU is."""
        return self.function == "leaky_relu"

    def value(self, z: Float[Tensor, "..."], out: Tensor | None = None) -> Float[Tensor, "..."]:
        """The function."""
        found = ENTRYWISE[self.function](z)
        return found if out is None else out.copy_(found)

    def derivative(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Its derivative, by autograd."""
        with torch.enable_grad():
            x = z.detach().requires_grad_()
            (found,) = torch.autograd.grad(ENTRYWISE[self.function](x).sum(), x)
        return found

    def pullback_(
        self, v: Float[Tensor, "..."], z: Float[Tensor, "..."], s: Float[Tensor, "..."]
    ) -> Float[Tensor, "..."]:
        """``v ← σ̇(z) ⊙ v`` in place."""
        return v.mul_(self.derivative(z))

    def __str__(self) -> str:
        return f"{self.function}(append_one={self.append_one})"


KNOWN: dict[str, type[Activation]] = ACTIVATIONS | {"entrywise": Entrywise}

# Entrywise operators that are none of these functions, or depend on numbers of their own, and how many of their first
# arguments may be states: what they take is in doubt.
OTHER = dict.fromkeys(
    (
        "leaky_relu elu celu softplus hardtanh hardsigmoid clamp clamp_min clamp_max threshold _prelu_kernel "
        "sin cos sign abs exp softshrink hardshrink log_sigmoid log_sigmoid_forward rrelu_with_noise relu6"
    ).split(),
    1,
) | {"maximum": 2, "minimum": 2, "where": 3}
Mark = tuple[tuple[int, ...], torch.dtype, bytes, bytes]


def mark_of(x: Tensor) -> Mark:
    """Shape, type, sum and some entries: what tells a state from all others of a pass."""
    x = x.detach()
    flat = x.flatten()
    if not len(flat):
        return tuple(x.shape), x.dtype, b"", b""
    places = torch.arange(1, SAMPLED + 1, dtype=torch.float64).mul_(GOLDEN).frac_().mul_(len(flat)).long()
    some = flat[places.to(x.device)].cpu()
    total = float(x.sum(dtype=torch.float64 if x.device.type != "mps" else torch.float32))
    return tuple(x.shape), x.dtype, struct.pack("d", total), some.view(torch.uint8).numpy().tobytes()


def _sigma(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Activation | None:
    """What an operator of torch is, by its bare name; None: no nonlinearity of those known."""
    given = args[1:]
    bound = (*given, kwargs.get("min", kwargs.get("other")))[0]
    floor = name in ("clamp_min", "clamp") and isinstance(bound, int | float) and bound == 0
    if name == "relu" or (name == "threshold" and given[:2] == (0, 0)):
        return ReLU()
    if floor and not any(x is not None for x in (*given[1:], kwargs.get("max"))):
        return ReLU()
    if name == "gelu":
        return Entrywise(function="gelu_tanh" if kwargs.get("approximate") == "tanh" else "gelu")
    if name == "hardtanh":
        return Entrywise(function="hardtanh_0_6") if given[:2] in ((0, 6), (0.0, 6.0)) else None
    usual = {"leaky_relu": ((), (0.01,)), "elu": ((), (1.0,), (1,), (1, 1, 1)), "softplus": ((), (1, 20), (1.0, 20.0))}
    if name in usual:
        return Entrywise(function=name) if given in usual[name] else None
    return Entrywise(function=name) if name in ENTRYWISE else None


@dataclass
class Consumers:
    """Tensors that nonlinearities took in a pass, and which; None where two different ones took the same."""

    taken: dict[Mark, Activation | None] = field(default_factory=dict)
    # why the network could not be watched
    unwatched: str | None = None

    def of(self, x: Tensor) -> Activation | None:
        """σ of a state: what took it, else the identity without an appended 1; None: several, or one not known."""
        return self.taken.get(mark_of(x), WITHOUT)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """While it lasts, note what nonlinearities are given; a network with scripted parts is not watched."""
        if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
            self.unwatched = "parts of the network are scripted"
            yield
            return
        with _Watch(self.taken):
            yield


class _Watch(TorchDispatchMode):
    """Notes the inputs of nonlinearities, before they run: some work in place."""

    def __init__(self, taken: dict[Mark, Activation | None]) -> None:
        super().__init__()
        self.taken = taken

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        sigma = _sigma(name, args, kwargs)
        if sigma is not None or name in OTHER:
            for x in args[: OTHER.get(name, 1)]:
                if readable(x):
                    mark = mark_of(x)
                    self.taken[mark] = sigma if self.taken.get(mark, sigma) == sigma else None
        elif name == "mul" and len(args) > 1 and all(readable(x) for x in args[:2]) and args[0].shape == args[1].shape:
            # a state times a function of itself (a swish by hand): what takes it is the product, which is not known
            for x in args[:2]:
                mark = mark_of(x)
                if mark in self.taken:
                    self.taken[mark] = None
        return func(*args, **kwargs)


def readable(x: object) -> bool:
    """Whether a tensor has values that can be noted."""
    if not isinstance(x, Tensor) or type(x) not in (Tensor, nn.Parameter):
        return False
    strided = x.layout == torch.strided and x.device.type != "meta"
    return strided and x.is_floating_point() and x.ndim > 1 and x.numel() > 0


def activations_of(
    given: Activation | str | Mapping[str, Activation | str] | None,
) -> Activation | dict[str, Activation] | None:
    """σ by name or as it is, for all layers or by pattern of names.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor an `Activation`.
    """
    if isinstance(given, Mapping):
        return {pattern: _activation(one) for pattern, one in given.items()}
    return None if given is None else _activation(given)


def _activation(given: object) -> Activation:
    if isinstance(given, Activation):
        return given
    if not isinstance(given, str):
        raise TypeError(
            f"activation: expected a name ({', '.join(ACTIVATIONS)}) or an isthmus.activations.Activation, for all "
            f"layers or by pattern, got {given!r:.60}"
        )
    if given not in ACTIVATIONS:
        near = difflib.get_close_matches(given, ACTIVATIONS, n=1)
        advice = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {given!r}{advice}")
    return ACTIVATIONS[given]()
