"""Third and fourth powers of a layer's rows, summed: what takes the bias of finite rows and neurons off a dimension."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.probe.gram import dots
from isthmus.probe.sums import STATES, Sums
from isthmus.probe.tsqr import pieces

NAMES = ("size", "along", "cubes", "fourths")  # of what is summed
# Rows worked on at once.
BLOCK_ROWS = 256
# Relative rounding of a dimension's numerator or denominator above which it is not given.
MOST_ROUNDING = 1e-3


class FourthMoments:
    """``Σ|y|⁴``, ``Σ|y|²y``, ``Σy³`` and ``Σy⁴`` (the last two of each neuron) of ``y = x − shift``.

    The shift is near the mean, that large means cost no digits; another shift is reached exactly with the second
    moments that `Sums` hold.

    Args:
        width: number of neurons.
        device: where the sums live.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        to: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self.shift: Tensor | None = None
        self.size = torch.zeros((), **to)
        self.along, self.cubes, self.fourths = (torch.zeros(width, **to) for _ in range(3))
        self._waiting = torch.empty(0, width, **to)
        self._filled = 0

    def add(self, rows: Float[Tensor, "n width"]) -> None:
        """Add rows; they wait for a full block, so that sums do not depend on the cut of batches."""
        for start, stop in pieces(len(rows), BLOCK_ROWS - self._filled, BLOCK_ROWS):
            if stop - start == BLOCK_ROWS:
                self._take(rows[start:stop].double())
                continue
            if not len(self._waiting):
                self._waiting = self._waiting.new_empty(BLOCK_ROWS, rows.shape[1])
            end = self._filled + stop - start
            self._waiting[self._filled : end] = rows[start:stop]
            self._filled = end
            if end == BLOCK_ROWS:
                self._take(self._waiting)
                self._filled = 0

    def _take(self, rows: Tensor) -> None:
        if self.shift is None:
            self.shift = rows.mean(0)
        y = rows - self.shift
        squares = y.square()
        length = squares.sum(1)
        self.size = self.size + length @ length
        self.along = self.along + length @ y
        self.cubes = self.cubes + dots(squares, y)
        self.fourths = self.fourths + dots(squares, squares)

    def flushed(self) -> "FourthMoments":
        """With the waiting rows, which go on waiting here."""
        if not self._filled:
            return self
        made = FourthMoments(len(self.along), self.along.device)
        made.shift, made.size = self.shift, self.size
        made.along, made.cubes, made.fourths = self.along, self.cubes, self.fourths
        made._take(self._waiting[: self._filled])
        return made

    def about(self, shift: Tensor, sums: Sums) -> "FourthMoments":
        """The same of the same rows about another point, given their other sums; none of them may wait."""
        made = FourthMoments(len(shift), shift.device)
        made.shift = shift
        if self.shift is None:
            return made
        d, n = self.shift - shift, sums.count
        mean = sums.mean(STATES) - self.shift
        first = n * mean
        second = sums.products(STATES, STATES) + n * mean.square()
        turned = sums.along(STATES, d) + n * mean * (mean @ d)
        power, length = second.sum(), d @ d
        side = first @ d
        made.size = (
            self.size + 4 * (turned @ d) + n * length**2 + 4 * (self.along @ d) + 2 * length * (power + 2 * side)
        )
        made.along = self.along + d * power + 2 * turned + 2 * d * side + length * (first + n * d)
        made.cubes = self.cubes + 3 * d * second + 3 * d**2 * first + n * d**3
        made.fourths = self.fourths + 4 * d * self.cubes + 6 * d**2 * second + 4 * d**3 * first + n * d**4
        return made

    def combined(self, own: Sums, other: "FourthMoments", others: Sums, sign: int = 1) -> "FourthMoments":
        """The moments of both's rows (sign −1: of the rows not among the other's), about this one's shift."""
        self, other = self.flushed(), other.flushed()
        if other.shift is None:
            return self
        if self.shift is None:
            return other
        moved = other.about(self.shift.to(other.along.device), others)
        made = FourthMoments(len(self.along), self.along.device)
        made.shift = self.shift
        for name in NAMES:
            setattr(made, name, getattr(self, name).add(getattr(moved, name).to(self.along.device), alpha=sign))
        return made

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that hold everything."""
        whole = self.flushed()
        shift = whole.along.new_zeros(0) if whole.shift is None else whole.shift.clone()
        return {"shift": shift} | {name: getattr(whole, name).clone() for name in NAMES}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take such a state."""
        device, self._filled = self.along.device, 0
        self.shift = state["shift"].to(device) if len(state["shift"]) else None
        for name in NAMES:
            setattr(self, name, state[name].to(device, copy=True))


def unbiased_dimensions(sums: Sums, fourth: FourthMoments) -> dict[str, float]:
    """The participation ratio about the mean without the bias of finite rows, and of finite neurons as well.

    ``(Tr C)²/Tr C²`` with both parts estimated without bias over rows that are independent draws (sums over four
    different rows; closed forms: Himeno and Yamada 2014), and, for neurons that are draws from many, over pairs of
    different neurons: ``γ_row`` and ``γ_both`` of Chun, Canatar, Chung and Lee (arXiv:2509.26560). NaN where a part is
    not positive, is lost in rounding, or there are fewer than four rows.

    Args:
        sums: of the rows.
        fourth: of the same rows.
    """
    n, fourth = sums.count, fourth.flushed()
    undefined = {"participation_ratio_rows": math.nan, "participation_ratio_both": math.nan}
    if n < 4 or fourth.shift is None:
        return undefined
    centred = fourth.about(sums.mean(STATES), sums)
    each = sums.products(STATES, STATES)
    trace, power = sums.traces(STATES)
    # in units of (n − 1)²: S = C/(n − 1), Q = Σ|y|⁴/(n − 1)
    quartic, m = float(centred.size) * (n - 1), n - 1
    top = 2 * power + (n * n - 3 * n + 1) * trace**2 - n * quartic
    bottom = m * (n - 2) * power + trace**2 - n * quartic
    own = (n * n - 3 * n + 3) * each.square() - n * m * centred.fourths
    diagonal = float(own.sum())
    shift = float((fourth.shift - sums.mean(STATES)).square().sum()) * n / trace if trace > 0 else 0.0
    eps = 64 * torch.finfo(torch.float64).eps * (1 + shift) ** 2
    eps += 4 * sums.rounding(STATES)
    lost_up, lost_down = eps * n * n * trace**2, eps * (n * n * power + trace**2 + n * quartic)
    found = dict(undefined)
    for name, taken in (("participation_ratio_rows", 0.0), ("participation_ratio_both", diagonal)):
        up, down = top - taken, bottom - taken
        if up > 0 and down > 0 and lost_up < MOST_ROUNDING * up and lost_down < MOST_ROUNDING * down:
            found[name] = up / down
    return found
