"""The way of a representation along depth: how long, how straight, and how much each step turns, with a control.

A residual stack moves each row through ``A_0, A_1, …, A_L``. Its length against the straight line from end to end, and
the angles between consecutive steps, say whether layers carry on what those before began. Angles between steps that do
not follow each other are the control: of the same steps in a shuffled order.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.probe.quantities import with_uncertainty
from isthmus.probe.rows import Positions, shards_for

# Rows of a batch and layer that are kept until the stack is through. Of more, positions are thinned evenly, down to
# these of a sample.
MOST_ROWS, LEAST_POSITIONS = 1024, 8


class PathMoments:
    """Sums over rows of a stack's way.

    Args:
        steps: number of steps L, two or more.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.count = steps, 0
        f64 = torch.float64
        # Σ‖Δ_k‖, Σ of the angle that step k turns the state by; Σ of angles between steps i and k, and of their number
        self.lengths, self.turns = torch.zeros(steps, dtype=f64), torch.zeros(steps, dtype=f64)
        self.angles, self.pairs = torch.zeros(steps, steps, dtype=f64), torch.zeros(steps, steps, dtype=f64)
        # Σ‖A_L − A_0‖, Σ‖A_L − A_0‖/length over rows that move, their number, Σ of the angle between A_0 and A_L
        self.ends = torch.zeros(4, dtype=f64)

    @torch.no_grad()
    def update(self, states: Float[Tensor, "steps_plus_1 rows width"]) -> None:
        """Add rows with all their states."""
        if not states.shape[1]:
            return
        A = states.to(torch.float64 if states.device.type != "mps" else torch.float32)
        D = A[1:] - A[:-1]
        sizes, norms = D.norm(dim=2), A.norm(dim=2)
        chord, length = (A[-1] - A[0]).norm(dim=1), sizes.sum(0)
        moves = length > 0
        unit = D / sizes.clamp_min(torch.finfo(A.dtype).tiny)[:, :, None]
        cosines = torch.einsum("inw,knw->ikn", unit, unit).clamp(-1, 1)
        real = (sizes > 0)[:, None] & (sizes > 0)[None]
        self.angles += torch.where(real, cosines.acos(), 0.0).sum(2).double().cpu()
        self.pairs += real.sum(2).double().cpu()
        self.lengths += sizes.sum(1).double().cpu()
        self.turns += _angles(A[:-1], A[1:], norms[:-1], norms[1:]).sum(1).double().cpu()
        whole = _angles(A[:1], A[-1:], norms[:1], norms[-1:]).sum()
        straight = (chord[moves] / length[moves]).sum()
        self.ends += torch.stack((chord.sum(), straight, moves.sum().to(chord), whole)).double().cpu()
        self.count += A.shape[1]

    def merge(self, other: "PathMoments") -> "PathMoments":
        """Sums of both's rows; neither changes.

        Raises:
            ValueError: another number of steps.
        """
        if other.steps != self.steps:
            raise ValueError(f"only ways of the same steps merge: {self.steps} here, {other.steps} there")
        made = PathMoments(self.steps)
        for name in NAMES:
            setattr(made, name, getattr(self, name) + getattr(other, name))
        made.count = self.count + other.count
        return made

    def quantities(self) -> dict[str, float]:
        """See `PathEstimate`; NaN where nothing moves."""
        moving = float(self.ends[2])
        i = torch.arange(self.steps - 1)
        next_to, other = self.angles[i, i + 1], self.angles.triu(2)
        joints, others = float(self.pairs[i, i + 1].sum()), float(self.pairs.triu(2).sum())
        return {
            "length": float(self.lengths.sum()) / self.count,
            "chord": float(self.ends[0]) / self.count,
            "straightness": float(self.ends[1]) / moving if moving else math.nan,
            "turning": math.degrees(float(next_to.sum()) / joints) if joints else math.nan,
            "turning_shuffled": math.degrees(float(other.sum() + next_to.sum()) / (others + joints))
            if others
            else math.nan,
            "turning_excess": math.degrees(float(next_to.sum()) / joints - float(other.sum()) / others)
            if joints and others
            else math.nan,
            "angular_length": math.degrees(float(self.turns.sum()) / self.count),
            "angular_chord": math.degrees(float(self.ends[3]) / self.count),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that hold everything."""
        return {name: getattr(self, name).clone() for name in NAMES} | {"count": torch.tensor(self.count)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> "PathMoments":
        """The sums of which this is the `state_dict`."""
        made = cls(len(state["lengths"]))
        for name in NAMES:
            setattr(made, name, state[name].clone())
        made.count = int(state["count"])
        return made


NAMES = ("lengths", "turns", "angles", "pairs", "ends")


def _angles(a: Tensor, b: Tensor, norm_a: Tensor, norm_b: Tensor) -> Tensor:
    """Angles between rows, accurate where they are small as well (Kahan); 0 where one is zero."""
    x, y = a * norm_b[..., None], b * norm_a[..., None]
    return 2 * torch.atan2((x - y).norm(dim=-1), (x + y).norm(dim=-1))


@dataclass
class Walks:
    """The ways along all stacks, gathered batch by batch.

    Args:
        of: by stack, sums of a shard each; none where its steps do not follow each other.
        notes: which stacks have no way, and why.
    """

    of: dict[str, list[PathMoments]] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    _steps: dict[str, list[tuple[Positions, Positions]]] = field(default_factory=dict)

    def begin(self) -> None:
        """A batch starts."""
        self._steps = {}

    def step(self, stack: str | None, before: Positions, after: Positions) -> None:
        """Keep the states of a step until its stack is through."""
        if stack is None:
            return
        samples, positions = after.values.shape[:2]
        every = max(1, min(samples * positions // MOST_ROWS, positions // LEAST_POSITIONS))

        def thin(state: Positions) -> Positions:
            keep = None if state.keep is None else state.keep[:, ::every]
            return Positions(state.values[:, ::every].clone(), keep, "")

        self._steps.setdefault(stack, []).append((thin(before), thin(after)))

    def through(self, offset: int, shards: int | None) -> None:
        """A batch is through, `offset` samples having come before it: add the ways whose steps follow each other."""
        for stack, steps in self._steps.items():
            if len(steps) < 2 or self.of.get(stack) == []:
                continue
            joined = all(torch.equal(one[1].values, two[0].values) for one, two in pairwise(steps))
            width = steps[0][0].width
            made = [PathMoments(len(steps)) for _ in range(shards or shards_for(width))]
            known = self.of.setdefault(stack, made)
            if not joined or known[0].steps != len(steps):
                self.notes[f"{stack}: no path along depth, its steps do not follow each other in every batch"] = None
                self.of[stack] = []
                continue
            states = [steps[0][0], *(after for _, after in steps)]
            for k, path in enumerate(known):
                path.update(torch.stack([state.shard(k, len(known), offset) for state in states]))
        self._steps = {}

    def drop(self, stacks: Iterable[str]) -> None:
        """Forget what turned out to be no stack."""
        for stack in stacks:
            self.of.pop(stack, None)


@dataclass(frozen=True)
class PathEstimate:
    """The way of a stack's rows, a mean over rows each, with standard errors over shards (None: one shard).

    Args:
        steps: number of steps L.
        rows: number of rows read; of large batches a part.
        values: ``length`` Σ‖ΔA‖ and ``chord`` ‖A_L − A_0‖ in units of the states; ``straightness`` their ratio, 1 on
            a line; ``turning`` the angle between consecutive steps, in degrees: 0 goes straight on, 90 is unrelated,
            above it turns back; ``turning_shuffled`` the same of these steps in random order; ``turning_excess``
            consecutive steps less those that do not follow each other: below 0, neighbours in depth go the same way
            more than layers far apart do; ``angular_length`` and ``angular_chord`` of the states' directions, in
            degrees, whatever their size.
        joints: mean angle between step k and the next, in degrees; NaN where one does not move.
    """

    steps: int
    rows: int
    values: dict[str, tuple[float, float | None]]
    joints: tuple[float, ...]

    def __getitem__(self, name: str) -> tuple[float, float | None]:
        return self.values[name]

    def __str__(self) -> str:
        def told(name: str, digits: int = 3) -> str:
            value, error = self.values[name]
            return f"{value:.{digits}g}" + (f" ± {error:.2g}" if error is not None and math.isfinite(error) else "")

        text = f"straightness {told('straightness')}, turning {told('turning')}°"
        if not math.isnan(self.values["turning_shuffled"][0]):
            text += f" (in shuffled order {told('turning_shuffled')}°)"
        return f"{text} over {self.steps} steps"


def estimate(shards: Sequence[PathMoments]) -> PathEstimate | None:
    """The way over all shards; None where no row came."""
    filled = [shard for shard in shards if shard.count]
    if not filled:
        return None
    whole = filled[0]
    for shard in filled[1:]:
        whole = whole.merge(shard)
    if len(filled) > 1:
        values: dict[str, tuple[float, float | None]] = dict(
            with_uncertainty(filled, quantities=PathMoments.quantities)
        )
    else:
        values = {name: (value, None) for name, value in whole.quantities().items()}
    i = torch.arange(whole.steps - 1)
    joints = torch.rad2deg(whole.angles[i, i + 1] / whole.pairs[i, i + 1])
    return PathEstimate(whole.steps, whole.count, values, tuple(joints.tolist()))
