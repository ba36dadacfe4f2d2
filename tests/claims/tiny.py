"""The smallest study that has everything: networks of a second or less."""

from dataclasses import replace

from isthmus.claims.sizes import QUICK

TINY = replace(
    QUICK,
    name="tiny",
    dims=(3, 1, 3),
    deep_dims=(3, 2, 1, 3),
    width=6,
    rows=20,
    depth=6,
    steps=30,
    leaks=(2.0, 3.0),
    shown=3.0,
    decays=(0.06, 0.04),
    mu=0.04,
    mesh_depths=(4, 5),
    mesh_shown=5,
)
