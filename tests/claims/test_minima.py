"""The search for minima of the cost of identity, on representations whose answer is known."""

import pytest
import torch

from isthmus.activations import ReLU
from isthmus.claims.minima import cost, descend, search
from isthmus.mechanics import cost_of_identity


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(5))
def test_its_cost_is_the_stable_one_of_the_mechanics(seed):
    A = normal(5, 4, seed=seed)
    assert float(cost(A)) == pytest.approx(cost_of_identity(A.T, ReLU(append_one=False), 1e-6), rel=1e-8)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_cost_of_a_non_negative_representation_is_its_rank(rank):
    A = normal(6, rank).abs() @ normal(rank, 4, seed=1).abs()
    assert float(cost(A)) == pytest.approx(rank, abs=5e-3)
    end, value, gradient = descend(A)  # which may find a lower rank: every rank is a minimum of its own
    singular = torch.linalg.svdvals(end)
    assert value == pytest.approx(int((singular > 1e-3 * singular[0]).sum()), abs=5e-3)
    assert gradient < 1e-3 and value <= float(cost(A))


def test_descent_lowers_the_cost_and_a_search_counts_every_start():
    A = normal(3, 4, seed=3)
    assert descend(A)[1] < float(cost(A)) - 0.1
    found = search(3, 4, 3, 0)
    assert found["minima"] + found["open"] == 3 and len(found["ranks"]) == found["minima"]
    assert found["against"] <= found["negative"] + found["off_rank"]
    assert found == search(3, 4, 3, 0) != search(3, 4, 3, 1)


def test_what_contradicts_the_claim_would_be_counted(monkeypatch):
    """A descent that stops where it stands leaves negative entries, and a search says so."""
    monkeypatch.setattr("isthmus.claims.minima.descend", lambda A: (A, float(cost(A)), 0.0))
    monkeypatch.setattr("isthmus.claims.minima.LOWER", 1e9)
    found = search(3, 4, 4, 0)
    assert found["minima"] == found["negative"] == found["against"] == 4
