"""The accumulators of one layer, and the columns that come of them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from isthmus.activations import ACTIVATIONS, Activation
from isthmus.probe.consumers import KNOWN
from isthmus.probe.dimensions import NeighbourDimension, two_nn
from isthmus.probe.kept import KeptRows
from isthmus.probe.momenta import MomentumMoments
from isthmus.probe.moments import STATES, LayerMoments
from isthmus.probe.pairs import STEP, PairMoments, skip_of
from isthmus.probe.quantities import jackknifed, with_uncertainty

# Exact or about rounding: no standard error of theirs is shown.
_WITHOUT_ERROR = ("condition", "feature_rank")
# Of the state before, which has a row of its own; or the same as the layer's.
_NOT_OF_THE_STEP = ("count", "coi", "coi_stable", "norm_after", "cosine_rows")


@dataclass
class LayerRecord:
    """The accumulators of one layer.

    Args:
        site: name of the place read.
        call: which call of the module in a pass, from 0.
        type: class of the module.
        kind: see `isthmus.probe.find.Site`.
        stack: run of blocks, or chain of linear layers.
        reading: how outputs became rows.
        dtype: of the states.
        activation: σ.
        moments: a `LayerMoments` a shard.
        pairs: a `PairMoments` a shard, or none.
        before: what the pairs compare this state with.
        extra: further columns, known from elsewhere (p, ρ of a LeakyResNet).
        momenta: a `MomentumMoments` a shard, where gradients were asked for.
        decay: of `isthmus.probe.momenta`: ``(decay/2)‖V‖²`` is the penalty on the step's weights.
        weight: V itself, where it is known.
        activation_before: σ of the state before, of which the step and its momenta are measured; None: the same.
        kept: some rows as they came, for dimensions by neighbours; None: none were asked for.
    """

    site: str
    call: int
    type: str
    kind: str
    stack: str | None
    reading: str
    dtype: str
    activation: Activation
    moments: list[LayerMoments]
    pairs: list[PairMoments] = field(default_factory=list)
    before: str | None = None
    extra: dict[str, float] = field(default_factory=dict)
    momenta: list[MomentumMoments] = field(default_factory=list)
    decay: float | None = None
    weight: Tensor | None = None
    activation_before: Activation | None = None
    kept: KeptRows | None = None

    @property
    def sigma_before(self) -> Activation:
        """σ of the state before the step."""
        return self.activation if self.activation_before is None else self.activation_before

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(m.count for m in self.moments)

    def merge(self, other: "LayerRecord") -> "LayerRecord":
        """The same layer over both parts of the data.

        Raises:
            ValueError: another width, activation, reading or number of shards.
        """
        for what, a, b in (
            ("width", self.moments[0].width, other.moments[0].width),
            ("activation", self.activation, other.activation),
            ("activation before", self.sigma_before, other.sigma_before if other.pairs else self.sigma_before),
            ("number of shards", len(self.moments), len(other.moments)),
            ("weight decay", self.decay, other.decay if other.pairs else self.decay),
            (
                "reading",
                self.reading.removesuffix(", padding left out"),
                other.reading.removesuffix(", padding left out"),
            ),
        ):
            if a != b:
                raise ValueError(f"only profiles of the same layers merge; {self.site}: {what} {a} here, {b} there")
        paired = bool(self.pairs and other.pairs)
        with_momenta = paired and bool(self.momenta and other.momenta)
        return replace(
            self,
            moments=[a.merge(b) for a, b in zip(self.moments, other.moments, strict=True)],
            pairs=[a.merge(b) for a, b in zip(self.pairs, other.pairs, strict=True)] if paired else [],
            before=self.before if paired else None,
            momenta=[a.merge(b) for a, b in zip(self.momenta, other.momenta, strict=True)] if with_momenta else [],
            kept=self.kept.merge(other.kept) if self.kept is not None and other.kept is not None else None,
        )

    @property
    def key(self) -> tuple[str, int]:
        """Site and call."""
        return self.site, self.call

    def columns(self, gamma0: float) -> dict[str, Any]:
        """Quantities with their standard errors (``_se``, where there are two shards with rows); None: not defined."""
        found = _numbers(self.moments, lambda m: m.quantities(gamma0), gamma0)
        found.pop("count", None)
        if self.pairs:
            found |= _numbers(self.pairs, lambda pair: step_quantities(pair, gamma0), gamma0)
        if self.momenta:
            found |= self.of_momenta(Step.quantities)
        out: dict[str, Any] = self._by_neighbours()
        for name, (value, error) in found.items():
            out[name] = None if math.isnan(value) else value
            if error is not None and not name.endswith("_error") and name not in _WITHOUT_ERROR:
                out[f"{name}_se"] = None if math.isnan(error) else error
        return out | self.extra | _kinetic(out, self.extra)

    @cached_property
    def neighbours(self) -> NeighbourDimension | None:
        """The intrinsic dimension of the rows that were kept; None: none, or fewer than three."""
        rows = None if self.kept is None else self.kept.rows
        return None if rows is None or len(rows) < 3 else two_nn(rows, max_rows=len(rows))

    def _by_neighbours(self) -> dict[str, Any]:
        if self.kept is None:
            return {}
        found = self.neighbours
        told = found is not None and found.trusted and math.isfinite(found.value)
        return {
            "two_nn": found.value if found is not None and told else None,
            "two_nn_se": found.error if found is not None and told else None,
        }

    def of_momenta(self, quantities: Callable[["Step"], dict[str, float]]) -> dict[str, tuple[float, float | None]]:
        """Quantities of the step with its momenta over all shards, with standard errors."""
        decay = self.decay
        assert decay is not None
        pairs = zip(self.pairs, self.momenta, strict=True)
        return _numbers([Step(pair, momenta, decay, self.weight) for pair, momenta in pairs], quantities)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data.

        Raises:
            TypeError: an activation that is not one of isthmus: it could not be made anew.
        """
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        first = self.moments[0]
        return plain | {
            "activation": _plain(self.activation),
            "activation_before": _plain(self.sigma_before),
            "width": first.width,
            "method": first.method,
            "moments": [m.state_dict() for m in self.moments],
            "pairs": [m.state_dict() for m in self.pairs],
            "momenta": [m.state_dict() for m in self.momenta],
            "weight": None if self.weight is None else self.weight.clone(),
            "kept": None if self.kept is None else self.kept.state_dict(),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "LayerRecord":
        """The record of which this is the `state_dict`; accumulators come to the CPU."""
        plain = dict(state)
        sigma, width, method = _made(plain.pop("activation")), plain.pop("width"), plain.pop("method")
        before = _made(plain.pop("activation_before")) if "activation_before" in plain else sigma
        if plain.get("kept") is not None:
            plain["kept"] = KeptRows.from_state_dict(plain["kept"])
        for part, kind in PARTS.items():
            options = {"method": method}
            if kind is PairMoments and method == "gram":
                options["spectra"] = False
            made: list[Any] = [kind(width, sigma if part == "moments" else before, **options) for _ in plain[part]]
            for one, saved in zip(made, plain[part], strict=True):
                one.load_state_dict(saved)
            plain[part] = made
        return cls(activation=sigma, activation_before=before, **plain)


def _plain(sigma: Activation) -> tuple[str, dict[str, Any]]:
    if KNOWN.get(sigma.name) is not type(sigma):
        raise TypeError(f"only activations of isthmus ({', '.join(ACTIVATIONS)}) travel and merge, got {sigma}")
    return sigma.name, {f.name: getattr(sigma, f.name) for f in fields(sigma)}


def _made(plain: tuple[str, dict[str, Any]]) -> Activation:
    return KNOWN[plain[0]](**plain[1])


PARTS: dict[str, type] = {"moments": LayerMoments, "pairs": PairMoments, "momenta": MomentumMoments}


@dataclass(frozen=True)
class Step:
    """A step and the momenta after it, over the same rows."""

    pair: PairMoments
    momenta: MomentumMoments
    decay: float
    weight: Tensor | None = None

    @property
    def count(self) -> int:
        """Rows."""
        return self.momenta.count

    def merge(self, other: "Step") -> "Step":
        """Over the rows of both."""
        return replace(self, pair=self.pair.merge(other.pair), momenta=self.momenta.merge(other.momenta))

    def quantities(self) -> dict[str, float]:
        """Those of `MomentumMoments`, and stationarity, ``‖V − Mσ(A)ᵀ‖_F/‖V‖_F``: 0 where the objective is stationary.

        Where V is not known, it is the least one that makes the step, ``(A_ℓ − skip·A_{ℓ−1})σ(A_{ℓ−1})⁺`` (E5); what of
        the step no V makes is left out (``step_off_image``).
        """
        found = self.momenta.quantities(self.decay)
        after = found.pop("momentum_after")
        if self.weight is not None:
            best = self.momenta.best_weights(self.decay)[:, : self.weight.shape[1]]
            size = float(self.weight.norm())
            off = float((self.weight.to(best) - best).norm())
        else:
            metric = self.pair._sums.project((STATES, STEP))
            skip = skip_of(metric)
            squares = metric.inner(1, 1) + 2 * (1 - skip) * metric.inner(1, 0) + (1 - skip) ** 2 * metric.inner()
            both = after - skip * found["momentum_state"]
            size = max(squares, 0.0) ** 0.5
            off = max(squares - 2 * both + found["momentum_features"] ** 2, 0.0) ** 0.5
        return found | {"stationarity": off / size if size else math.inf if off else 0.0}


def _numbers(
    shards: Sequence[Any], quantities: Any, gamma0: float | None = None
) -> dict[str, tuple[float, float | None]]:
    filled = [shard for shard in shards if shard.count]
    if not filled:
        return {}
    if len(filled) == 1:
        return {name: (value, None) for name, value in quantities(filled[0]).items()}
    without = None
    if gamma0 is not None and filled[0].method == "gram":  # a factor's shards are merged by the jackknife itself
        whole = merged(filled)
        without = whole.without_each(filled, gamma0)
    if without is None:
        return dict(with_uncertainty(filled, quantities=quantities))
    return dict(jackknifed(quantities(whole), without, [shard.count / whole.count for shard in filled]))


def step_quantities(pair: PairMoments, gamma0: float) -> dict[str, float]:
    """The quantities of a step that are not its state's own."""
    return {name: value for name, value in pair.quantities(gamma0).items() if name not in _NOT_OF_THE_STEP}


def merged(shards: Sequence[Any]) -> Any:
    """All shards as one."""
    whole = shards[0]
    for shard in shards[1:]:
        whole = whole.merge(shard)
    return whole


def _kinetic(row: dict[str, Any], extra: dict[str, float]) -> dict[str, float]:
    """Kinetic energy of the step, ``(1/2L̃)‖ΔA/ρ‖²_K`` (E6): here ρ and L̃ are known."""
    rho, leak = extra.get("rho", 0.0), extra.get("rho_effective_depth", 0.0)
    if not leak:
        return {}
    return {
        name: row[source] / (2 * leak * rho)
        for name, source in (("kinetic", "kinetic_k"), ("kinetic_stable", "kinetic_k_stable"))
        if source in row
    }


@dataclass(frozen=True)
class EffectiveDepth:
    """The implied effective depth of a stack, see `Profile.effective_depth`.

    Args:
        layers: number of steps.
        value: sum of the leaks ``1 − skip``.
        normalised: the same for states of norm 1.
    """

    layers: int
    value: float
    normalised: float

    def __str__(self) -> str:
        return f"{self.value:.3g} over {self.layers} steps ({self.normalised:.3g} for states of norm 1)"
