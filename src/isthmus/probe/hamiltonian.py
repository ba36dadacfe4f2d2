"""−2H/L̃ of somebody's network, from its momenta (E10): an estimate, with what it takes for granted."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isthmus.probe.records import LayerRecord, Step

if TYPE_CHECKING:
    from isthmus.probe.profile import Profile

# A stack whose layers leak less than this each is a ResNet, whose −2H/L̃ is not defined.
LEAST_LEAK = 1e-3


@dataclass(frozen=True)
class HamiltonianEstimate:
    """The Hamiltonian along one stack.

    Args:
        layers: names of the steps.
        effective_depth: the L̃ that was used.
        scaled: ``L̃H`` at every step; finite at L̃ = 0.
        minus_2h_over_l: ``−2H/L̃``, an estimate of the bottleneck rank from below; None where L̃ is not positive.
        standard_errors: of ``minus_2h_over_l``, by jackknife over shards; None without shards.
        stationarity: ``‖V − Mσ(A)ᵀ‖_F/‖V‖_F`` at every step: H means nothing where this is of order 1.
    """

    layers: tuple[str, ...]
    effective_depth: float
    scaled: tuple[float, ...]
    minus_2h_over_l: tuple[float, ...] | None
    standard_errors: tuple[float, ...] | None
    stationarity: tuple[float, ...]

    @property
    def median(self) -> float | None:
        """Median of ``−2H/L̃`` over the steps."""
        return statistics.median(self.minus_2h_over_l) if self.minus_2h_over_l else None

    def __str__(self) -> str:
        worst = max(self.stationarity)
        doubt = "" if worst < 0.1 else "; not stationary, so not to be read"
        off = f"stationarity {min(self.stationarity):.2g} to {worst:.2g}{doubt}"
        if self.minus_2h_over_l is None:
            values = f"L*H {min(self.scaled):.4g} to {max(self.scaled):.4g} (no leak, so no -2H/L)"
        else:
            values = (
                f"-2H/L median {self.median:.4g}, {min(self.minus_2h_over_l):.4g} to {max(self.minus_2h_over_l):.4g}, "
                f"at L = {self.effective_depth:.3g}"
            )
        return f"{values} over {len(self.layers)} steps; {off}"


def estimates(profile: "Profile", effective_depth: float | str) -> dict[str, HamiltonianEstimate]:
    """See `isthmus.probe.profile.Profile.hamiltonian`."""
    if isinstance(effective_depth, str) and effective_depth not in ("implied", "normalised"):
        raise ValueError(
            f"effective_depth: expected a number, 'implied' or 'normalised', got {effective_depth!r}; see Profile."
            "effective_depth for the two"
        )
    stacks: dict[str, list[tuple[str, LayerRecord]]] = {}
    steps = dict.fromkeys(record.stack for record in profile.records if record.stack)
    for name, record in zip(profile.layers, profile.records, strict=True):
        if record.stack and record.momenta:
            stacks.setdefault(record.stack, []).append((name, record))
    if not stacks:
        raise ValueError(
            "no momenta: probe(…, loss=…, weight_decay=…) reads them, at the steps of stacks of blocks and chains of "
            f"linear layers; stacks here: {', '.join(steps) or 'none'}"
        )
    return {
        stack: _estimate(members, _depth(profile, stack, members, effective_depth), _steps(profile, stack))
        for stack, members in stacks.items()
    }


def _steps(profile: "Profile", stack: str) -> int:
    return sum(record.stack == stack and bool(record.pairs) for record in profile.records)


def _depth(profile: "Profile", stack: str, members: Sequence[tuple[str, LayerRecord]], wanted: float | str) -> float:
    if not isinstance(wanted, str):
        return float(wanted)
    extra = members[0][1].extra
    if "rho_effective_depth" in extra:
        return extra["rho_effective_depth"] / extra["rho"]
    implied = profile.effective_depth.get(stack)
    if implied is None:
        raise ValueError(f"{stack}: no effective depth is implied where σ loses nothing; pass effective_depth=…")
    # steps whose leak cannot be told count as the others do
    leak = (implied.value if wanted == "implied" else implied.normalised) / implied.layers
    return leak * _steps(profile, stack) if leak > LEAST_LEAK else 0.0


def _estimate(members: Sequence[tuple[str, LayerRecord]], L_tilde: float, steps: int) -> HamiltonianEstimate:
    found = []
    for _, record in members:
        # the paper's momenta are ours over ρ; without a ρ of its own a step is one of equal ones
        rho = record.extra.get("rho", 1 / steps)

        def quantities(step: Step, rho: float = rho) -> dict[str, float]:
            q = step.quantities()
            scaled = 0.5 * (q["momentum_features"] / rho) ** 2 - L_tilde * q["momentum_state"] / rho
            minus = -2 * scaled / L_tilde**2 if L_tilde > 0 else 0.0
            return {"scaled": scaled, "minus": minus, "stationarity": q["stationarity"]}

        found.append(record.of_momenta(quantities))
    errors = [one["minus"][1] for one in found]
    known = tuple(error for error in errors if error is not None)
    return HamiltonianEstimate(
        layers=tuple(name for name, _ in members),
        effective_depth=L_tilde,
        scaled=tuple(one["scaled"][0] for one in found),
        minus_2h_over_l=tuple(one["minus"][0] for one in found) if L_tilde > 0 else None,
        standard_errors=known if L_tilde > 0 and len(known) == len(found) else None,
        stationarity=tuple(one["stationarity"][0] for one in found),
    )
