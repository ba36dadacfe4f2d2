"""Branches of critical points: followed as a parameter changes, with what happens on the way."""

from isthmus.branches.branch import Branch, BranchPoint, Event, EventKind
from isthmus.branches.family import PARAMETERS, Family, ProblemFamily, Unconditioned
from isthmus.branches.follow import follow
from isthmus.branches.readings import readings
from isthmus.branches.saved import points_of

__all__ = [
    "PARAMETERS",
    "Branch",
    "BranchPoint",
    "Event",
    "EventKind",
    "Family",
    "ProblemFamily",
    "Unconditioned",
    "follow",
    "points_of",
    "readings",
]
