"""How large the networks of a study are: a minute's check, half an hour's study, or the paper's own size."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """Networks and tasks of a study.

    Args:
        name: of the size.
        dims: teacher of Figures 1 and 3: inputs, k*, outputs; two random fully connected networks.
        deep_dims: teacher of Figure 2: three random ResNets through two inner dimensions.
        width: w.
        rows: N, of the training part and of the test part.
        depth: L of Figures 1 and 3.
        mu: weight decay μ.
        steps: of the paper's recipe; five sixths are Adam's, the rest SGD's.
        leaks: L̃ of Figures 1 and 3, ascending.
        shown: the L̃ of Figures 1b and 1c, one of `leaks`.
        sharpness: β of the smooth ReLU of critical points; the paper's recipe trains with ReLU itself.
        decays: μ at which critical points are read on the way down at the least L̃, the start's first, `mu` last.
        tolerance: residual of critical points.
        mesh_leak: L̃ of Figure 2.
        mesh_depths: numbers of layers of Figure 2a, ascending.
        mesh_shown: L of Figures 2b and 2c.
        starts: of the search for minima of the cost of identity, a seed.
    """

    name: str
    dims: tuple[int, int, int]
    deep_dims: tuple[int, int, int, int]
    width: int
    rows: int
    depth: int
    mu: float
    steps: int
    leaks: tuple[float, ...]
    shown: float
    sharpness: float
    decays: tuple[float, ...]
    tolerance: float
    mesh_leak: float
    mesh_depths: tuple[int, ...]
    mesh_shown: int
    starts: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


QUICK = Size(
    name="quick",
    dims=(4, 1, 4),
    deep_dims=(4, 2, 1, 4),
    width=8,
    rows=40,
    depth=10,
    mu=0.02,
    steps=300,
    leaks=(2.0, 3.0, 4.0, 5.0),
    shown=4.0,
    sharpness=3.0,
    decays=(0.06, 0.035, 0.02),
    tolerance=1e-5,
    mesh_leak=3.0,
    mesh_depths=(5, 8),
    mesh_shown=8,
    starts=2,
)
"""For a look, and for tests: seconds a network. Nothing is decided at this size with two seeds."""

SMALL = Size(
    name="small",
    dims=(10, 2, 10),
    deep_dims=(10, 4, 2, 10),
    width=40,
    rows=200,
    depth=20,
    mu=0.01,
    steps=6000,
    leaks=(4.0, 4.8, 5.8, 7.0, 8.5, 10.2),
    shown=7.0,
    sharpness=20.0,
    decays=(0.06, 0.034, 0.019, 0.01),
    tolerance=1e-5,
    mesh_leak=3.0,
    mesh_depths=(5, 8, 12, 18, 24),
    mesh_shown=18,
    starts=20,
)
"""A third of the paper's dimensions, where critical points are reached for every seed in a minute or two."""

PAPER = Size(
    name="paper",
    dims=(30, 3, 30),
    deep_dims=(30, 6, 3, 30),
    width=100,
    rows=1000,
    depth=20,
    mu=0.001,
    steps=6000,
    leaks=(3.0, 5.0, 7.0, 9.0, 11.0, 14.0),
    shown=7.0,
    sharpness=20.0,
    decays=(0.03, 0.01, 0.003, 0.001),
    tolerance=1e-4,
    mesh_leak=3.0,
    mesh_depths=(6, 9, 12, 18, 24),
    mesh_shown=18,
    starts=20,
)
"""The paper's own: minutes a network by its recipe; critical points at μ = 0.001 have not been reached here yet."""

SIZES = {size.name: size for size in (QUICK, SMALL, PAPER)}
"""By name."""
