"""What is read from the path of every point of a branch."""

from isthmus.bottleneck import bottleneck, collapsed
from isthmus.certificate import hamiltonian_drift
from isthmus.geodesic import Geodesic
from isthmus.mechanics import mechanics


def readings(geodesic: Geodesic) -> dict[str, float]:
    """Numbers of a path: −2H/L̃ (median over layers, the layers' first-order error removed), its spread, and so on.

    Args:
        geodesic: of a critical point.

    Returns:
        ``minus_2h_over_l`` and ``h_spread`` (L̃ > 0 only), ``coi_least`` (least stable cost of identity), ``rank`` of
        the bottleneck, ``rank_about_mean``, ``collapsed`` (0 or 1).
    """
    if collapsed(geodesic):
        return {"collapsed": 1.0}
    table = mechanics(geodesic)
    found = bottleneck(geodesic, table)
    values = {"collapsed": 0.0, "coi_least": min(float(v) for v in table["coi_stable"])}
    if geodesic.effective_depth > 0:
        H = geodesic.rho.new_tensor([float(v) for v in table["minus_2h_over_l"]]) - hamiltonian_drift(geodesic)
        values |= {"minus_2h_over_l": float(H.quantile(0.5)), "h_spread": float(H.max() - H.min())}
    if found.rank is not None:
        values["rank"] = float(found.rank)
    return values
