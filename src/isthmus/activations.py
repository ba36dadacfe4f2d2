"""Nonlinearities σ, with or without the appended constant 1 (arXiv:2405.17573, section 1).

In the paper σ acts entrywise and appends a 1, so that the last column of ``W`` is the bias. Each class here says by
``append_one`` whether it does. The derivative is always that of the entrywise part.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Activation(ABC):
    """An entrywise nonlinearity, and whether the features carry a constant 1.

    Args:
        append_one: append the constant 1 to the features (the paper's convention).
    """

    append_one: bool = True

    @property
    @abstractmethod
    def name(self) -> str:
        """The name used in configs and tables."""

    @property
    @abstractmethod
    def homogeneous(self) -> bool:
        """Whether ``σ(c z) = c σ(z)`` for c > 0 (entrywise part): the balance law (E4) needs it."""

    @abstractmethod
    def value(self, z: Float[Tensor, "..."], out: Tensor | None = None) -> Float[Tensor, "..."]:
        """``σ(z)`` entrywise, same shape as ``z``; written to ``out`` where given."""

    @abstractmethod
    def derivative(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """``σ̇(z)`` entrywise, same shape as ``z``."""

    def bend(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."] | None:
        """``σ̈(z)/σ̇(z)``, what second derivatives need; None where σ is piecewise linear."""
        return None

    @abstractmethod
    def pullback_(
        self, v: Float[Tensor, "..."], z: Float[Tensor, "..."], s: Float[Tensor, "..."]
    ) -> Float[Tensor, "..."]:
        """``v ← σ̇(z) ⊙ v`` in place, given ``s = σ(z)`` as well; returns ``v``."""

    @property
    def pullback_needs_state(self) -> bool:
        """Whether `pullback_` reads ``z``; where not, training need not keep the path."""
        return True

    @property
    def extra(self) -> int:
        """Number of appended features: 1 or 0."""
        return int(self.append_one)

    def features(self, A: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width_in"]:
        """The features ``σ(A)`` of batch-first states, with the appended 1 as last column where there is one.

        >>> import torch
        >>> ReLU().features(torch.tensor([[-1.0, 2.0]]))
        tensor([[0., 2., 1.]])
        """
        s = self.value(A)
        return torch.cat((s, s.new_ones((*s.shape[:-1], 1))), dim=-1) if self.append_one else s


@dataclass(frozen=True)
class ReLU(Activation):
    """``max(z, 0)``; the derivative at 0 is 0, as in PyTorch.

    Args:
        append_one: append the constant 1 to the features (the paper's convention).
    """

    @property
    def name(self) -> str:
        """The name used in configs and tables."""
        return "relu"

    @property
    def homogeneous(self) -> bool:
        """True."""
        return True

    @property
    def pullback_needs_state(self) -> bool:
        """False: ``z > 0`` where ``s > 0``."""
        return False

    def value(self, z: Float[Tensor, "..."], out: Tensor | None = None) -> Float[Tensor, "..."]:
        """``max(z, 0)``; under autograd with derivative 0 at 0, as `derivative` has it (`clamp_min` has 1 there)."""
        return torch.relu(z) if out is None else torch.clamp_min(z, 0, out=out)

    def derivative(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """1 where ``z > 0``, else 0."""
        return (z > 0).to(z.dtype)

    def pullback_(
        self, v: Float[Tensor, "..."], z: Float[Tensor, "..."], s: Float[Tensor, "..."]
    ) -> Float[Tensor, "..."]:
        """``v ← 1[z > 0] ⊙ v`` in one pass."""
        return torch.ops.aten.threshold_backward.grad_input(v, s, 0, grad_input=v)


@dataclass(frozen=True)
class SmoothReLU(Activation):
    """Softplus of sharpness β, ``log(1 + e^{βz})/β``: the limit β → ∞ is ReLU, at distance ``log 2/β`` at most.

    Args:
        append_one: append the constant 1 to the features.
        sharpness: β > 0, in units of one over the state's. 20 is where the trials ended (docs/notes/log/solver.md).

    Raises:
        ValueError: the sharpness is not positive and finite.
    """

    sharpness: float = 20.0

    def __post_init__(self) -> None:
        if not (0 < self.sharpness < float("inf")):
            raise ValueError(
                f"SmoothReLU: sharpness must be positive and finite, got {self.sharpness}; for the limit "
                "of infinite sharpness use ReLU()"
            )

    # Beyond this value of βz, log1p(exp(-βz)) is below float64's resolution of βz. PyTorch's own default, 20, is not.
    _LINEAR_FROM = 40.0

    @property
    def name(self) -> str:
        """The name used in configs and tables."""
        return "smooth_relu"

    @property
    def homogeneous(self) -> bool:
        """False."""
        return False

    def value(self, z: Float[Tensor, "..."], out: Tensor | None = None) -> Float[Tensor, "..."]:
        """``log(1 + e^{βz})/β``, without overflow."""
        if out is None:
            return torch.nn.functional.softplus(z, self.sharpness, self._LINEAR_FROM)
        return torch.ops.aten.softplus.out(z, self.sharpness, self._LINEAR_FROM, out=out)

    def derivative(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The logistic function of ``βz``."""
        return torch.sigmoid(self.sharpness * z)

    def bend(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """``β(1 − σ̇) = β · logistic(−βz)``."""
        return torch.sigmoid(-self.sharpness * z).mul_(self.sharpness)

    def pullback_(
        self, v: Float[Tensor, "..."], z: Float[Tensor, "..."], s: Float[Tensor, "..."]
    ) -> Float[Tensor, "..."]:
        """``v ← sigmoid(βz) ⊙ v`` in one pass."""
        return torch.ops.aten.softplus_backward.grad_input(v, z, self.sharpness, self._LINEAR_FROM, grad_input=v)


@dataclass(frozen=True)
class Identity(Activation):
    """``σ(z) = z``: linear networks, where closed forms exist.

    Args:
        append_one: append the constant 1 to the features.
    """

    @property
    def name(self) -> str:
        """The name used in configs and tables."""
        return "identity"

    @property
    def homogeneous(self) -> bool:
        """True."""
        return True

    @property
    def pullback_needs_state(self) -> bool:
        """False."""
        return False

    def value(self, z: Float[Tensor, "..."], out: Tensor | None = None) -> Float[Tensor, "..."]:
        """``z`` (the same tensor where no ``out`` is given)."""
        return z if out is None else out.copy_(z)

    def derivative(self, z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Ones."""
        return torch.ones_like(z)

    def pullback_(
        self, v: Float[Tensor, "..."], z: Float[Tensor, "..."], s: Float[Tensor, "..."]
    ) -> Float[Tensor, "..."]:
        """``v`` unchanged."""
        return v


ACTIVATIONS: dict[str, type[Activation]] = {"relu": ReLU, "smooth_relu": SmoothReLU, "identity": Identity}
