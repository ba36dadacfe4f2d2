"""A profile as plain text: the table, what it stands on, and what was not read and why."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from isthmus.probe.find import Skipped

if TYPE_CHECKING:
    from isthmus.probe.profile import Profile

SHOWN = {
    "rows": "rows",
    "width": "width",
    "participation_ratio_rows": "dimension",
    "participation_ratio_rows_se": "± s.e.",
    "two_nn": "TwoNN",
    "two_nn_se": "± s.e.",
    "coi_stable": "stable COI",
    "coi": "exact COI",
    "stable_rank": "stable rk",
    "rank_1e-2": "rank 1e-2",
    "step_change": "|dA|/|A|",
    "cosine_mean": "cosine",
}


def _cell(value: Any) -> str:
    if value is None:
        return f"{'':>11}"
    return f"{value:>11}" if isinstance(value, int) else f"{value:>11.4g}"


def printed(profile: "Profile") -> str:
    """The whole profile as text."""
    shown = [n for n in SHOWN if n in profile.columns]
    width = max([len(n) for n in profile.layers] + [5])
    lines = [f"{'layer':<{width}}" + "".join(f"{SHOWN[n]:>11}" for n in shown)]
    for row, layer in enumerate(profile.layers):
        lines.append(f"{layer:<{width}}" + "".join(_cell(profile.columns[n][row]) for n in shown))
    sigmas = ", ".join(dict.fromkeys(str(r.activation) for r in profile.records))
    lines.append(
        f"{profile.samples} samples; dimension: participation ratio about the mean, without the bias of finite rows"
    )
    lines.append(f"cost of identity (COI) with {sigmas}, gamma0 = {profile.gamma0:g}")
    lines += cost_lines(profile)
    lines += neighbour_lines(profile)
    lines += [f"effective depth of {name}: {depth}" for name, depth in profile.effective_depth.items()]
    lines += [f"path along {name}: {path}" for name, path in profile.paths.items()]
    if any(record.stack and record.momenta for record in profile.records):
        lines += _hamiltonian_lines(profile)
    lines += [f"note: {note}" for note in profile.notes]
    lines += [f"doubt: {doubt}" for doubt in profile.doubts]
    if profile.skipped:
        lines.append(f"not read ({len(profile.skipped)}):")
    lines += [f"  {listed(names)}: {reason}" for reason, names in by_reason(profile.skipped).items()]
    return "\n".join(lines)


def neighbour_lines(profile: "Profile") -> list[str]:
    """Why layers have no dimension by neighbours, grouped."""
    reasons: dict[str, list[str]] = {}
    changes = []
    for layer, record in zip(profile.layers, profile.records, strict=True):
        found = record.neighbours
        if found is not None and not found.trusted:
            reasons.setdefault(found.doubts[0] if found.doubts else "not to be trusted", []).append(layer)
        elif found is not None and found.doubts:
            changes.append(layer)
    lines = [f"no TwoNN of {listed(names)}: {reason}" for reason, names in reasons.items()]
    if changes:
        lines.append(
            f"TwoNN of {listed(changes)} is in doubt (of copies, or it changes with scale): "
            "Profile.neighbour_dimension(layer).doubts, Profile.dimension_by_scale(layer)"
        )
    return lines


def cost_lines(profile: "Profile") -> list[str]:
    """Where the cost of identity is no dimension."""
    costs, widths = profile.columns.get("coi_stable", []), profile.columns["width"]
    above = [n for n, cost, width in zip(profile.layers, costs, widths, strict=True) if cost and cost > width]
    return [f"COI above the width, so no dimension: {listed(above)}; quote the column dimension"] if above else []


def _hamiltonian_lines(profile: "Profile") -> list[str]:
    try:
        return [f"Hamiltonian of {name}: {estimate}" for name, estimate in profile.hamiltonian().items()]
    except ValueError as error:
        return [f"Hamiltonian: {error}"]


def listed(names: Sequence[str], most: int = 6) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def by_reason(skipped: Sequence[Skipped]) -> dict[str, list[str]]:
    """Reason to the names of the layers that it holds for."""
    out: dict[str, list[str]] = {}
    for one in skipped:
        out.setdefault(one.reason, []).append(one.name)
    return out
