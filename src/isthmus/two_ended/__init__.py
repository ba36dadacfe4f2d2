"""The two-ended problem: Hamilton's equations with A given at p = 0 and B at p = 1, solved as such."""

from isthmus.two_ended.schemes import SCHEMES, Scheme, scheme_of_order
from isthmus.two_ended.solution import Gap, TwoEnded
from isthmus.two_ended.solver import solve_on_mesh, solve_two_ended

__all__ = [
    "SCHEMES",
    "Gap",
    "Scheme",
    "TwoEnded",
    "scheme_of_order",
    "solve_on_mesh",
    "solve_two_ended",
]
