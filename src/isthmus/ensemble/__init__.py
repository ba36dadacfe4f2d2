"""Many networks of one shape trained as one: batched over a leading member axis."""

from isthmus.ensemble.flow import EnsembleFlow
from isthmus.ensemble.problem import EnsembleEvaluation, EnsembleProblem
from isthmus.ensemble.trainer import EnsembleTrainer

__all__ = ["EnsembleEvaluation", "EnsembleFlow", "EnsembleProblem", "EnsembleTrainer"]
