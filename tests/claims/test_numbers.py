"""The numbers that claims read, against dense matrices, and on networks whose answer is known."""

import math

import numpy as np
import pytest
import torch

from isthmus import LeakyResNet, Problem, SmoothReLU, make_task, solve
from isthmus.claims.numbers import GAMMAS, bounds, network_numbers


@pytest.fixture(scope="module")
def critical():
    """A critical point, small enough for dense matrices."""
    task = make_task("teacher", dims=(3, 1, 3), train=15, seed=0)
    model = LeakyResNet(
        3, 3, width=5, depth=8, effective_depth=2.0, activation=SmoothReLU(sharpness=3.0), dtype=torch.float64
    )
    found = solve(Problem(model, task.x_train.double(), task.y_train.double(), mu=0.05), tolerance=1e-9)
    assert found.status == "converged"
    return found


def norm(M, S, gamma):
    """``Tr[M (K + γI)⁻¹ Mᵀ]`` with an N×N matrix; rows are samples, as everywhere."""
    return float(np.trace(M.T @ np.linalg.solve(S @ S.T + gamma * np.eye(len(S)), M)))


def test_bounds_are_those_of_dense_matrices(critical):
    A, M, rho = critical.A.numpy(), critical.M.numpy(), critical.rho.numpy()
    leak, layers = critical.effective_depth, len(rho)
    S = critical.activation.features(critical.A).numpy()[:-1]
    V, B = (A[1:] - A[:-1]) / rho[:, None, None], M[1:] / leak
    H = [leak / 2 * np.sum((B[i].T @ S[i]) ** 2) - leak * np.sum(A[i] * B[i]) for i in range(layers)]
    H = sorted(H)[(layers - 1) // 2]  # torch's median
    sizes = [np.linalg.norm(s, 2) ** 2 for s in S]
    found = bounds(critical)
    assert [b["gamma0"] for b in found] == [*GAMMAS, None]
    for bound in found:
        gamma = 1 / leak if bound["gamma0"] is None else bound["gamma0"] * float(np.median(sizes))
        assert bound["gamma"] == pytest.approx(gamma)
        costs = [norm(A[i], S[i], gamma) for i in range(layers)]
        speeds = [norm(V[i], S[i], gamma) ** 0.5 for i in range(layers)]
        c = max(np.sum(b**2) for b in B)
        length = float(np.sum(rho * speeds))
        assert bound["length"] == pytest.approx(length, rel=1e-8)
        assert bound["value"] == pytest.approx(-2 * H / leak - min(costs), rel=1e-7)
        assert bound["lower"] == pytest.approx(-((length / leak + math.sqrt(gamma * c)) ** 2), rel=1e-7)
        assert bound["upper"] == pytest.approx(gamma * c, rel=1e-9)
        own = [gamma] * layers if bound["gamma0"] is None else [bound["gamma0"] * s for s in sizes]
        low, high = [], []
        for i in range(layers):
            cost, spill = norm(A[i], S[i], own[i]), own[i] * np.sum(B[i] ** 2)
            low.append(cost - (norm(V[i], S[i], own[i]) ** 0.5 / leak + math.sqrt(spill)) ** 2)
            high.append(cost + spill)
        assert bound["pointwise_lower"] == pytest.approx(max(low), rel=1e-7)
        assert bound["pointwise_upper"] == pytest.approx(min(high), rel=1e-7)


def test_at_a_critical_point_every_bound_holds_at_every_layer(critical):
    """(E13) is an identity where the velocity is that of (E9): the pointwise bounds hold for each layer's own H."""
    for bound in bounds(critical):
        assert bound["lower"] <= bound["value"] <= bound["upper"]
        assert bound["speed_share"] == 1.0


def test_a_network_far_from_critical_breaks_them_and_says_so(critical):
    from dataclasses import replace

    loud = replace(critical, M=0.02 * critical.M)  # momenta that do not belong to the weights
    assert min(bound["speed_share"] for bound in bounds(loud)) < 1
    values = network_numbers(loud, 3.0, None)["values"]
    assert values["certified"] is False and values["critical"] is False and values["test_cost"] is None


def test_numbers_are_plain_json_of_five_digits(critical):
    import json

    found = network_numbers(critical, 3.0, 0.5, "minimum", spectra=True)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["values"]["certified"] is True and found["values"]["kind"] == "minimum"
    assert len(found["layers"]["p"]) == 8 and len(found["states"]["coi"]) == 9
    assert len(found["spectra_a"]) == 9 and len(found["spectra_w"]) == 8
    assert found["values"]["residual_max"] < 1e-8
    shares = found["states"]["negative_share"]
    negative = (critical.A.clamp(max=0) ** 2).sum((1, 2)) / (critical.A**2).sum((1, 2))
    assert shares == pytest.approx(negative.tolist(), rel=1e-4)


def test_momenta_that_sit_on_few_samples_are_counted(critical):
    from dataclasses import replace

    M = torch.zeros_like(critical.M)
    M[0, 0], M[0, 1], M[0, 2] = 3.0, 3.0, 0.5  # two of fifteen hold 98 % of the square, one holds 49 %
    few = network_numbers(replace(critical, M=M), 3.0, None)["values"]["rows_of_momentum"]
    assert few == pytest.approx(2 / 15, rel=1e-4)
    M[0] = 1.0
    all_of_them = network_numbers(replace(critical, M=M), 3.0, None)["values"]["rows_of_momentum"]
    assert all_of_them == pytest.approx(14 / 15, rel=1e-4)  # 13.5 of 15


def test_a_collapsed_network_has_values_alone(critical):
    from dataclasses import replace

    leak = (1 - critical.rho * critical.effective_depth).cumprod(0)
    A = torch.cat((critical.A[:1], critical.A[:1] * leak[:, None, None]))
    found = network_numbers(replace(critical, A=A), 3.0, None)
    assert found["values"]["collapsed"] is True and "layers" not in found
