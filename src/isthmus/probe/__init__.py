"""The mechanics of anybody's trained PyTorch network: `probe` reads it, `simplify` drops what idles."""

from isthmus._rooms import callable_room
from isthmus.probe.compare import compare
from isthmus.probe.comparison import Comparison
from isthmus.probe.find import Site, Skipped, find_layers
from isthmus.probe.hamiltonian import HamiltonianEstimate
from isthmus.probe.linear_fit import LinearFit, linear_fit
from isthmus.probe.merge import merge_pair
from isthmus.probe.moments import LayerMoments
from isthmus.probe.pairs import PairMoments
from isthmus.probe.probe import probe
from isthmus.probe.profile import Profile
from isthmus.probe.quantities import distance_from_null, null_control, with_uncertainty
from isthmus.probe.ranking import rank_blocks
from isthmus.probe.records import EffectiveDepth
from isthmus.probe.removal import Candidate, Round, Simplified
from isthmus.probe.replace import Replaced, replace_run
from isthmus.probe.rows import Reading
from isthmus.probe.side_by_side import Rankings, rank_side_by_side
from isthmus.probe.simplify import simplify
from isthmus.probe.tsqr import StreamingQR

__all__ = [
    "Candidate",
    "Comparison",
    "EffectiveDepth",
    "HamiltonianEstimate",
    "LayerMoments",
    "LinearFit",
    "PairMoments",
    "Profile",
    "Rankings",
    "Reading",
    "Replaced",
    "Round",
    "Simplified",
    "Site",
    "Skipped",
    "StreamingQR",
    "compare",
    "distance_from_null",
    "find_layers",
    "linear_fit",
    "merge_pair",
    "null_control",
    "probe",
    "rank_blocks",
    "rank_side_by_side",
    "replace_run",
    "simplify",
    "with_uncertainty",
]

callable_room(__name__)
