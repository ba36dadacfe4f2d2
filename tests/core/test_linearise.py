"""The outputs to first order in the parameters, and the transpose."""

import pytest
import torch

from isthmus import LeakyResNet, Problem, ReLU, SmoothReLU
from isthmus.curvature.linearise import Linearisation

RHO = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15])


def make(ends, activation):
    model = LeakyResNet(
        4, 3, width=8, depth=5, effective_depth=3.0, ends=ends, activation=activation, rho=RHO, dtype=torch.float64,
        initialisation="kaiming",
    )  # fmt: skip
    return Problem(model, torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64), mu=0.03)


def point(problem):
    return [p.detach().clone() for p in problem.parameters]


CASES = pytest.mark.parametrize(
    ("ends", "activation", "keep"),
    [
        ("fixed", SmoothReLU(sharpness=5.0), False),
        ("learned", SmoothReLU(sharpness=5.0), True),
        ("fixed", ReLU(append_one=False), True),
        ("learned", ReLU(), False),
    ],
    ids=str,
)


@CASES
def test_tangents_are_those_of_autograd(ends, activation, keep):
    problem = make(ends, activation)
    net, v = Linearisation(problem, keep=keep), [torch.randn_like(p) for p in problem.parameters]
    net.at(point(problem))
    names = ["weight", "in_map", "out_map"][: len(v)]

    def outputs(*parameters):
        state = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(problem.model, state, (problem.x,)).T

    # the double-backward trick: `torch.func.jvp` imports what is deprecated
    _, expected = torch.autograd.functional.jvp(outputs, tuple(point(problem)), tuple(v))
    torch.testing.assert_close(net.tangent(v), expected)
    torch.testing.assert_close(net.outputs, outputs(*point(problem)).detach())


@CASES
def test_the_transpose_is_one(ends, activation, keep):
    problem = make(ends, activation)
    net = Linearisation(problem, keep=keep)
    net.at(point(problem))
    v, u = [torch.randn_like(p) for p in problem.parameters], torch.randn(3, 7, dtype=torch.float64)
    for _ in range(2):  # the sweeps share buffers: neither spoils the other
        forward = float((net.tangent(v) * u).sum())
        back = sum(float((a * b).sum()) for a, b in zip(net.transposed(u), v, strict=True))
        assert forward == pytest.approx(back, rel=1e-12)


def test_it_is_of_the_point_it_was_given_and_in_the_dtype_asked_for():
    problem = make("fixed", SmoothReLU(sharpness=5.0))
    net, fine = Linearisation(problem, torch.float32), Linearisation(problem)
    there = [1.1 * p for p in point(problem)]
    net.at(there)
    problem.model.weight.data.copy_(there[0])
    fine.at(point(problem))
    problem.model.weight.data.zero_()
    v = [torch.randn_like(p) for p in problem.parameters]
    found = net.tangent([t.float() for t in v])
    assert found.dtype == net.outputs.dtype == torch.float32
    torch.testing.assert_close(found.double(), fine.tangent(v), rtol=1e-4, atol=1e-4)
    assert torch.equal(net.out_map, problem.model.out_map.float())
