"""Branches of critical points: followed as a parameter changes, with what happens on the way."""

from isthmus._rooms import callable_room
from isthmus.branches.branch import Branch, BranchPoint, Event, EventKind
from isthmus.branches.family import PARAMETERS, Family, ProblemFamily, Unconditioned
from isthmus.branches.follow import follow
from isthmus.branches.readings import readings
from isthmus.branches.saved import points_of
from isthmus.branches.starts import Found, Minima, branches

__all__ = [
    "PARAMETERS",
    "Branch",
    "BranchPoint",
    "Event",
    "EventKind",
    "Family",
    "Found",
    "Minima",
    "ProblemFamily",
    "Unconditioned",
    "branches",
    "follow",
    "points_of",
    "readings",
]

callable_room(__name__)
