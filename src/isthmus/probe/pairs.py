"""`PairMoments`: two consecutive states of a stack: how far the step goes, in which direction, at what kinetic cost."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from isthmus.probe.moments import STATES, LayerMoments, Moments, checked_gamma0, checked_rows
from isthmus.probe.perturb import Nearby, leave_out, small_parts
from isthmus.probe.projection import Projection

STEP = 2  # block of the differences
# Below this share of the state off the features' span, what the skip carries cannot be told from rounding.
LEAST_OFF_SPAN = 1e-6


class PairMoments(Moments):
    """Sums over samples of states A before a step, their features σ(A), and the step ΔA = after − before.

    The difference is taken in float64, row by row, so that a small step loses nothing to cancellation. The moments of
    the layer before come along, at no cost: `before`.

    Args:
        width: number of neurons, the same before and after.
        activation: σ of the metric; see `LayerMoments`, also for the other arguments.

    >>> import torch
    >>> pair = PairMoments(3)
    >>> A = torch.rand(20, 3)
    >>> pair.update(A, 1.5 * A)
    >>> q = pair.quantities()
    >>> round(q["step_change"], 6), round(q["cosine_mean"], 6)
    (0.333333, 1.0)
    """

    _blocks = 3

    def __init__(self, *args, **options) -> None:  # type: ignore[no-untyped-def]  # those of Moments
        super().__init__(*args, **options)
        # sum of squares after, sum and sum of squares of cosines, rows with a cosine
        self._rows = torch.zeros(4, dtype=torch.float64, device=self.device)

    @torch.no_grad()
    def update(self, before: Tensor, after: Tensor) -> None:
        """Add rows of both states, ``(n, width)`` each, row i of one belonging to row i of the other.

        Raises:
            TypeError: rows that are not floating point.
            ValueError: another shape, unequal numbers of rows, or NaN or infinite rows, of which none is then added.
        """
        before, after = checked_rows(before, self.width, "before"), checked_rows(after, self.width, "after")
        if len(before) != len(after):
            raise ValueError(f"before and after must have the same rows, got {len(before)} and {len(after)}")
        size = self._sums.chunk
        for first, second in zip(before.split(size), after.split(size), strict=True):
            A, B = first.to(self.device, torch.float64), second.to(self.device, torch.float64)
            states = A.to(self.dtype)
            self._sums.update((self.activation.value(states), states, (B - A).to(self.dtype)))
            squares = B.square().sum(1)
            scale = A.norm(dim=1) * squares.sqrt()
            cosines = (A * B).sum(1)[scale > 0] / scale[scale > 0]
            entries = (squares.sum(), cosines.sum(), cosines.square().sum(), squares.new_tensor(len(cosines)))
            self._rows += torch.stack(entries)

    def merge(self, other: "PairMoments") -> "PairMoments":
        """The moments of both's rows; neither changes.

        Raises:
            ValueError: the other was made with other arguments.
        """
        sums = self._merged(other)
        made = self._empty()
        assert isinstance(made, PairMoments)
        made._sums, made._rows = sums, self._rows + other._rows.to(self.device)
        return made

    def before(self) -> LayerMoments:
        """The moments of the layer before the step."""
        made = LayerMoments(
            self.width,
            self.activation,
            dtype=self.dtype,
            device=self.device,
            method=self.method,
            spectra=self.spectra,
        )
        made._sums, made._fourth = self._sums.leading(STATES + 1), None
        return made

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that hold everything, to be saved or sent."""
        return super().state_dict() | {"rows": self._rows.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state of an accumulator made with the same arguments, in place of what is here.

        Raises:
            ValueError: it was made with others.
        """
        super().load_state_dict(state)
        self._rows = state["rows"].to(self.device, copy=True)

    @torch.no_grad()
    def quantities(self, gamma0: float = 1e-3) -> dict[str, float]:
        """The numbers of the step.

        - step_change ``‖ΔA‖_F/‖A_after‖_F`` as in `isthmus.mechanics`, step_change_before the same over
          ``‖A_before‖_F``; norm_before, norm_after, norm_step.
        - cosine_mean over rows of before and after (cosine_rows of them; rows where one is zero have none), cosine_std
          of rows, and block_influence ``1 − cosine_mean``.
        - kinetic_k ``‖ΔA‖_K²`` and cross_k ``⟨ΔA, A⟩_K`` with the metric of σ(A) before, on K's image, and their
          stable versions (E6), (E7), arXiv:2405.17573: a layer of step-size ρ in an effective depth L̃ has kinetic
          energy ``kinetic_k/(2L̃ρ²)``; step_off_image: relative size of what kinetic_k drops.
        - coi, coi_stable before, and speed_ratio ``√(kinetic_k_stable/coi_stable)``, which needs no ρ: 1 for a
          step that doubles the state.
        - kinetic_k_error, kinetic_k_stable_error: relative error by rounding, estimated.
        - skip ``⟨A_after, A_before⟩_⊥/‖A_before‖²_⊥`` off the span of the features (NaN where it cannot be told), and
          growth ``‖A_after‖/‖A_before‖``: see `Profile.effective_depth`.

        Args:
            gamma0: γ_0 of (E7).

        Raises:
            ValueError: no rows yet, or γ_0 not positive.
        """
        self._some()
        checked_gamma0(gamma0)
        return _quantities(self.count, self._sums.project((STATES, STEP)), self._rows, gamma0)

    @torch.no_grad()
    def without_each(self, shards: Sequence["PairMoments"], gamma0: float) -> list[dict[str, float]] | None:
        """The quantities without each of the parts, to first order; None where they have to be computed anew."""
        small = small_parts(self._sums, [shard._sums for shard in shards], self.width)
        if small is None:
            return None
        left = leave_out(*small, (STATES, STEP), gamma0, False, None)
        return [
            _quantities(one.sums.count, one.projections[False], self._rows - shard._rows.to(self.device), gamma0)
            for shard, one in zip(shards, left, strict=True)
        ]


def _quantities(count: int, metric: Projection | Nearby, sums: Tensor, gamma0: float) -> dict[str, float]:
    """The numbers of a step from norms in the metric of the state before, and sums over rows."""
    after, cosine, cosine_2, rows = sums.tolist()
    before, step = metric.energy(0) ** 0.5, metric.energy(1) ** 0.5
    mean = cosine / rows if rows else 0.0
    coi, kinetic = metric.stable(gamma0=gamma0), metric.stable(1, 1, gamma0=gamma0)
    return {
        "count": float(count),
        "norm_before": before,
        "norm_after": after**0.5,
        "norm_step": step,
        "step_change": step / after**0.5 if after else 0.0,
        "step_change_before": step / before if before else 0.0,
        "cosine_mean": mean,
        "cosine_std": max(cosine_2 / rows - mean**2, 0.0) ** 0.5 if rows else 0.0,
        "cosine_rows": rows,
        "block_influence": 1 - mean,
        "kinetic_k": metric.inner(1, 1),
        "kinetic_k_stable": kinetic,
        "cross_k": metric.inner(1, 0),
        "cross_k_stable": metric.stable(1, 0, gamma0=gamma0),
        "step_off_image": metric.outside(1),
        "coi": metric.inner(),
        "coi_stable": coi,
        "speed_ratio": (kinetic / coi) ** 0.5 if coi > 0 else 0.0,
        "kinetic_k_error": metric.error(),
        "kinetic_k_stable_error": metric.stable_error(1, gamma0),
        "skip": skip_of(metric),
        "growth": after**0.5 / before if before else math.nan,
    }


def skip_of(metric: Projection | Nearby) -> float:
    """``1 + ⟨ΔA, A⟩_⊥/‖A‖²_⊥`` off the span of the features; NaN where it cannot be told from rounding."""
    told = metric.outside(0) > LEAST_OFF_SPAN * (1e3 if metric.squared else 1)
    return 1 + metric.off_span(0, 1) / metric.off_span(0, 0) if told else math.nan
