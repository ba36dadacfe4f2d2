"""`LayerMoments`: everything the quantities of one layer need, in one pass over samples and memory O(width²)."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.activations import Activation, Identity, ReLU
from isthmus.probe.fourth import MOST_ROUNDING, FourthMoments, unbiased_dimensions
from isthmus.probe.gram import GramSums
from isthmus.probe.perturb import Nearby, leave_out, small_parts
from isthmus.probe.projection import Projection, spectral_quantities
from isthmus.probe.sums import STATES, FactorSums, Sums

METHODS = ("qr", "gram")


def checked_rows(rows: Tensor, width: int, name: str = "rows") -> Tensor:
    """The same rows without gradients, if they can be summed.

    Raises:
        TypeError: no floating point.
        ValueError: not ``(n, width)``, or rows with NaN or infinity.
    """
    if not rows.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {rows.dtype}; convert with rows.float()")
    if rows.ndim != 2 or rows.shape[1] != width:
        raise ValueError(f"{name} must be (n, {width}), one row per sample, got {tuple(rows.shape)}")
    rows = rows.detach()
    # a sum is one cheap pass, and never finite where an entry is not; it may overflow, hence the second look
    if len(rows) and not bool(torch.isfinite(rows.sum(dtype=torch.float32 if rows.itemsize < 4 else None))):
        bad = ~torch.isfinite(rows).all(dim=1)
        if bool(bad.any()):
            raise ValueError(
                f"{int(bad.sum())} of {len(rows)} {name} have NaN or infinite entries (the first is row "
                f"{int(bad.nonzero()[0])}); nothing was added. Mask them, or mend the model or its precision"
            )
    return rows


def make_sums(
    widths: Sequence[int],
    activation: Activation,
    dtype: torch.dtype,
    device: torch.device | str,
    method: str,
    block_rows: int | None,
    spectra: bool,
) -> Sums:
    """The sums that a method asks for.

    Raises:
        ValueError: an unknown method, a dtype that it does not have, or a width that is not positive.
    """
    if min(widths) < 1:
        raise ValueError(f"width must be positive, got {min(widths)}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "qr":
        if dtype != torch.float64:
            raise ValueError(f"method 'qr' works in float64, got {dtype}; method 'gram' takes torch.float32")
        return FactorSums(widths, activation.append_one, device=device, block_rows=block_rows)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float64 or torch.float32, got {dtype}")
    return GramSums(
        widths,
        activation.append_one,
        dtype=dtype,
        device=device,
        block_rows=block_rows,
        spectra=spectra,
        itself=isinstance(activation, Identity) and not activation.append_one,
    )


class Moments:
    """What accumulators have in common: which sums they hold and how these merge and travel."""

    _blocks: int

    def __init__(
        self,
        width: int,
        activation: Activation | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        method: str = "qr",
        block_rows: int | None = None,
        spectra: bool = True,
    ) -> None:
        self.width, self.activation = width, ReLU() if activation is None else activation
        self.dtype, self.method, self.spectra, self.block_rows = dtype, method, spectra or method == "qr", block_rows
        widths = (width,) * self._blocks
        self._sums = make_sums(widths, self.activation, dtype, device, method, block_rows, spectra)

    @property
    def count(self) -> int:
        """Rows seen."""
        return self._sums.count

    @property
    def device(self) -> torch.device:
        """Where the sums live."""
        return self._sums.device

    def _empty(self) -> "Moments":
        return type(self)(
            self.width,
            self.activation,
            dtype=self.dtype,
            device=self.device,
            method=self.method,
            block_rows=self.block_rows,
            spectra=self.spectra,
        )

    def _signature(self) -> str:
        return f"{type(self).__name__} {self.method} {self.dtype} {self.width} {self.spectra} {self.activation}"

    def _merged(self, other: "Moments") -> Sums:
        if self._signature() != other._signature():
            raise ValueError(
                f"only accumulators made alike merge: here {self._signature()}, there {other._signature()}"
            )
        return self._sums.merge(other._sums)

    def _some(self) -> None:
        if not self.count:
            raise ValueError("no rows were added yet: there is nothing to compute quantities from")

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that hold everything, to be saved or sent; O(width²) of them whatever the count."""
        made_as = torch.tensor(list(self._signature().encode()), dtype=torch.uint8)
        return self._sums.state_dict() | {"made_as": made_as}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state of an accumulator made with the same arguments, in place of what is here.

        Raises:
            ValueError: it was made with others.
        """
        made_as = bytes(state["made_as"].tolist()).decode()
        if made_as != self._signature():
            raise ValueError(f"the state was made as {made_as}, this accumulator as {self._signature()}")
        self._sums.load_state_dict(state)


class LayerMoments(Moments):
    """Sums over samples of one layer's states A and features σ(A), from which all its quantities come.

    One pass; memory O(width²), flat in the number of rows. Rows are worked on in blocks that do not depend on how they
    were cut into batches; cuts, another order, or merged parts change rounding at most.

    Args:
        width: number of neurons.
        activation: σ, a choice of the caller's: a network's cost of identity takes the *next* layer's. ReLU with
            appended 1, the paper's, by default.
        dtype: of the products of method "gram"; sums are float64 always.
        device: where the sums live; rows are brought there.
        method: "qr" holds a triangular factor, and gives what `isthmus.mechanics` gives to 1e-8. "gram" holds sums of
            squares: 4 to 8 times faster, more on a GPU, with half the digits of small directions; ``coi_error`` and
            ``coi_stable_error`` say how many are left. Measured in docs/notes/log/probe.md.
        block_rows: rows worked on at once; tuned: see benchmarks/streaming_coi.py.
        spectra: method "gram" alone: False leaves out AAᵀ, a quarter of the work, and with it the ranks of A.

    Raises:
        ValueError: a width, method or dtype that is none.

    >>> import torch
    >>> moments = LayerMoments(8, ReLU(append_one=False))
    >>> for _ in range(10):
    ...     moments.update(torch.rand(50, 3).double() @ torch.eye(3, 8).double())
    >>> round(moments.quantities()["coi"], 9), moments.count
    (3.0, 500)
    """

    _blocks = 2

    def __init__(self, *args, **options) -> None:  # type: ignore[no-untyped-def]  # those of Moments
        super().__init__(*args, **options)
        self._fourth = FourthMoments(self.width, self.device) if self.spectra else None

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Add rows ``(n, width)`` of any floating dtype and device; n may be 0.

        Raises:
            TypeError: rows that are not floating point.
            ValueError: another shape, or NaN or infinite rows, of which none is then added.
        """
        rows = checked_rows(rows, self.width)
        for piece in rows.split(self._sums.chunk):
            states = piece.to(self.device, self.dtype)
            self._sums.update((self.activation.value(states), states))
            if self._fourth is not None:
                self._fourth.add(states)

    def merge(self, other: "LayerMoments") -> "LayerMoments":
        """The moments of both's rows, on this one's device; neither changes. Associative to about 1e-12.

        Raises:
            ValueError: the other was made with other arguments.
        """
        made = self._empty()
        assert isinstance(made, LayerMoments)
        made._sums = self._merged(other)
        if self._fourth is not None and other._fourth is not None:
            made._fourth = self._fourth.combined(self._sums, other._fourth, other._sums)
        return made

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that hold everything, to be saved or sent."""
        powers = {} if self._fourth is None else self._fourth.state_dict()
        return super().state_dict() | {f"fourth_{name}": value for name, value in powers.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state of an accumulator made with the same arguments, in place of what is here.

        Raises:
            ValueError: it was made with others.
        """
        super().load_state_dict(state)
        powers = {name.removeprefix("fourth_"): x for name, x in state.items() if name.startswith("fourth_")}
        self._fourth = FourthMoments(self.width, self.device) if powers else None
        if self._fourth is not None:
            self._fourth.load_state_dict(powers)

    def mean(self) -> Float[Tensor, "width"]:
        """Mean state."""
        self._some()
        return self._sums.mean(STATES)

    @torch.no_grad()
    def spectrum(self, centred: bool = False) -> Float[Tensor, "modes"]:
        """Singular values of A, descending, ``min(count, width)`` of them; of ``A − mean`` if centred.

        Raises:
            ValueError: no rows yet, or made with ``spectra=False``.
        """
        self._some()
        return self._sums.spectrum(STATES, centred)

    @torch.no_grad()
    def quantities(self, gamma0: float = 1e-3) -> dict[str, float]:
        """The numbers of the layer; names with ``_centred`` are of states and features about their means.

        - coi, coi_stable: cost of identity ``‖A‖_K²`` (E6) on K's image, and with ``γ = γ_0‖K‖_op`` (E7),
          arXiv:2405.17573; coi_off_image: relative size of what coi drops (the strict value is infinite unless 0).
        - coi_error, coi_stable_error: relative error by rounding, estimated.
        - stable_rank, nuclear_rank, participation_ratio, effective_rank, rank_1e-2 of A: see
          `isthmus.probe.projection.spectral_quantities`. About the mean NaN where rounding, of states with a far
          greater mean, is more than a thousandth of what is left.
        - participation_ratio_rows, participation_ratio_both: about the mean, without the bias of finite rows, and of
          finite neurons as well; NaN where they cannot be had: see `isthmus.probe.fourth.unbiased_dimensions`.
        - norm ``‖A‖_F``, rms_norm of a row, mean_norm of the mean row; condition and feature_rank of the features;
          count.

        Args:
            gamma0: γ_0 of (E7). 1e-3 worked in the project's trials (docs/theory.md).

        Raises:
            ValueError: no rows yet, or γ_0 not positive.
        """
        self._some()
        checked_gamma0(gamma0)
        projections = {centred: self._sums.project((STATES,), centred) for centred in (False, True)}
        spectra = {centred: self.spectrum(centred) for centred in (False, True)} if self.spectra else {}
        return _quantities(self._sums, projections, spectra, self._fourth, gamma0)

    @torch.no_grad()
    def without_each(self, shards: Sequence["LayerMoments"], gamma0: float) -> list[dict[str, float]] | None:
        """The quantities without each of the parts, to first order; None where they have to be computed anew."""
        small = small_parts(self._sums, [shard._sums for shard in shards], self.width) if self.spectra else None
        if small is None:
            return None
        found = []
        for shard, left in zip(shards, leave_out(*small, (STATES,), gamma0, True, STATES), strict=True):
            fourth = self._fourth
            if fourth is not None and shard._fourth is not None:
                fourth = fourth.combined(self._sums, shard._fourth, shard._sums, -1)
            found.append(_quantities(left.sums, left.projections, left.spectra, fourth, gamma0))
        return found


def checked_gamma0(gamma0: float) -> None:
    """Refuse a γ_0 that is not positive.

    Raises:
        ValueError: it is not.
    """
    if not gamma0 > 0:
        raise ValueError(f"gamma0 must be positive, got {gamma0}")


def _quantities(
    sums: Sums,
    projections: Mapping[bool, Projection | Nearby],
    spectra: Mapping[bool, Tensor],
    fourth: FourthMoments | None,
    gamma0: float,
) -> dict[str, float]:
    """The numbers of a layer from norms and spectra, by whether about the mean."""
    found: dict[str, float] = {"count": float(sums.count)}
    for centred, suffix in ((False, ""), (True, "_centred")):
        projection = projections[centred]
        found |= {
            "coi" + suffix: projection.inner(),
            "coi_stable" + suffix: projection.stable(gamma0=gamma0),
            "coi_off_image" + suffix: projection.outside(),
            "coi_error" + suffix: projection.error(),
            "coi_stable_error" + suffix: projection.stable_error(gamma0=gamma0),
        }
        if centred in spectra:
            ranks = spectral_quantities(spectra[centred], suffix)
            lost = centred and sums.rounding(STATES) > MOST_ROUNDING
            found |= dict.fromkeys(ranks, math.nan) if lost else ranks
        if not centred:
            found |= {"norm": projection.energy() ** 0.5, "rms_norm": (projection.energy() / sums.count) ** 0.5}
            found |= {"condition": projection.condition, "feature_rank": float(projection.rank)}
    if fourth is not None:
        found |= unbiased_dimensions(sums, fourth)
    return found | {"mean_norm": float(sums.mean(STATES).norm())}
