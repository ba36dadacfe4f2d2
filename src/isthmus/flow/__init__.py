"""States, adjoints and tangents of the discretised flow behind one contract, stored or recomputed."""

from isthmus.flow.functions import momenta, path
from isthmus.flow.recompute import RecomputeWorkspace, segment_for
from isthmus.flow.workspace import FlowWorkspace

__all__ = ["FlowWorkspace", "RecomputeWorkspace", "momenta", "path", "segment_for"]
