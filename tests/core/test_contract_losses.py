"""One contract for every data cost, and a third one made here: it is one more class, and everything works with it."""

from dataclasses import dataclass

import pytest
import torch
from reference import F64, cost_of, equal, make_problem, slow_derivatives

from isthmus.certificate import certify
from isthmus.curvature import DualPreconditioner, Hessian
from isthmus.ensemble import EnsembleProblem
from isthmus.loss import LOSSES, Loss, loss_of
from isthmus.optimise import Newton
from isthmus.status import Status
from isthmus.two_ended import solve_on_mesh


@dataclass(frozen=True)
class Poisson(Loss):
    """``c = Σ_j exp(f_j) − exp(y_j) f_j``: counts ``exp(y)`` of mean ``exp(f)``, up to a constant."""

    name = "poisson"
    classes = False
    curvature_factor = 1.0

    @staticmethod
    def formula(outputs, y):
        return (outputs.exp() - y.exp() * outputs).sum() / len(y)

    def check(self, y, samples, out, part):
        if tuple(y.shape) != (samples, out):
            raise ValueError(f"{part} targets must be {(samples, out)} for {self.name}, got {tuple(y.shape)}")

    def convert(self, y, dtype, device):
        return y.to(dtype=dtype, device=device)

    def evaluate(self, outputs, y):
        samples, mean = outputs.shape[-1], outputs.exp()
        cost = (mean - y.mT.exp() * outputs).double().sum(dim=(-2, -1)) / samples
        return cost, (mean - y.mT.exp()) / samples

    def curvature(self, outputs, tangent):
        return outputs.exp() * tangent / outputs.shape[-1]

    def root(self, outputs):
        return torch.diag_embed((outputs.T.exp() / outputs.shape[-1]).sqrt())

    def sample(self, outputs, generator):
        return torch.randn(outputs.shape, generator=generator, dtype=outputs.dtype) * outputs.exp().sqrt()


@pytest.fixture(params=[*LOSSES, Poisson()], ids=lambda loss: loss if isinstance(loss, str) else loss.name)
def loss(request):
    return loss_of(request.param)


def data(loss, members=(), out=3, samples=5):
    outputs = torch.randn(*members, out, samples, dtype=F64)
    if loss.classes:
        return outputs, torch.randint(0, out, (*members, samples))
    return outputs, torch.randn(*members, samples, out, dtype=F64)


def dense(loss, outputs, y):
    """The Hessian of the cost in the outputs, ``(out, samples, out, samples)``, by autograd of the formula."""
    return torch.autograd.functional.hessian(lambda f: cost_of(loss, f.T, y), outputs)


def test_value_and_gradient_equal_autograd(loss):
    outputs, y = data(loss)
    leaf = outputs.clone().requires_grad_(True)
    expected = cost_of(loss, leaf.T, y)
    (gradient,) = torch.autograd.grad(expected, leaf)
    cost, found = loss.evaluate(outputs, loss.convert(y, F64, "cpu"))
    assert float(cost) == pytest.approx(float(expected.detach()), rel=1e-13)
    torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-14)


def test_curvature_and_its_root_equal_autograd(loss):
    outputs, y = data(loss)
    H, tangent = dense(loss, outputs, y), torch.randn(3, 5, dtype=F64)
    torch.testing.assert_close(
        loss.curvature(outputs, tangent), torch.einsum("isjt,jt->is", H, tangent), rtol=1e-11, atol=1e-13
    )
    R = loss.root(outputs)
    blocks = torch.stack([H[:, i, :, i] for i in range(5)])
    torch.testing.assert_close(R @ R.mT, blocks, rtol=1e-11, atol=1e-13)
    off = H.clone()
    off[:, range(5), :, range(5)] = 0
    assert float(off.abs().max()) == 0


def test_samples_have_the_curvature_as_covariance(loss):
    outputs, y = data(loss)
    generator, draws = torch.Generator().manual_seed(0), 20_000
    drawn = torch.stack([loss.sample(outputs, generator) for _ in range(draws)])
    covariance = loss.curvature_factor * torch.einsum("dis,djs->sij", drawn, drawn) / draws
    blocks = torch.stack([dense(loss, outputs, y)[:, i, :, i] for i in range(5)]) * 5  # of one sample's own cost
    torch.testing.assert_close(covariance, blocks, rtol=0, atol=0.05 * float(blocks.abs().max()))


def test_leading_axes_are_members(loss):
    outputs, y = data(loss, members=(4,))
    costs, gradients = loss.evaluate(outputs.clone(), loss.convert(y, F64, "cpu"))
    tangent = torch.randn_like(outputs)
    curved = loss.curvature(outputs, tangent)
    assert costs.shape == (4,) and costs.dtype == F64
    for i in range(4):
        cost, gradient = loss.evaluate(outputs[i].clone(), loss.convert(y[i], F64, "cpu"))
        assert float(cost) == pytest.approx(float(costs[i]), rel=1e-13)
        torch.testing.assert_close(gradients[i], gradient, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(curved[i], loss.curvature(outputs[i], tangent[i]), rtol=1e-13, atol=1e-15)


def test_floats_give_the_cost_in_double_and_the_gradient_in_float(loss):
    outputs, y = data(loss)
    fine, _ = loss.evaluate(outputs.clone(), loss.convert(y, F64, "cpu"))
    cost, gradient = loss.evaluate(outputs.float(), loss.convert(y, torch.float32, "cpu"))
    assert cost.dtype == F64 and gradient.dtype == torch.float32
    assert float(cost) == pytest.approx(float(fine), rel=1e-6)


# --- everything that takes a loss --------------------------------------------------------------------------------


def test_problem_hessian_and_ensemble_take_it(loss):
    p = make_problem(loss=loss, depth=4, rho=torch.full((4,), 0.25))
    W, v = p.model.weight.detach().clone(), torch.randn(p.model.weight.shape, dtype=F64)
    value, gradient, product = slow_derivatives(p, W, [0.25] * 4, 1, v)
    assert p.evaluate().objective == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(p.model.weight.grad, gradient, rtol=1e-10, atol=1e-13)
    hessian = Hessian(p)
    hessian.linearise()
    torch.testing.assert_close(hessian.product([v])[0], product, rtol=1e-9, atol=1e-12)
    both = EnsembleProblem([p, p.variant(mu=0.1)], group=2)
    assert float(both.evaluate().objective[0]) == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(both.weight.grad[0], gradient, rtol=1e-10, atol=1e-13)


def test_newton_and_the_certificate_take_it(loss):
    p = make_problem(loss=loss)
    newton = Newton(preconditioner=DualPreconditioner).start(p, tolerance=1e-8)
    for _ in range(200):
        newton.step(p.evaluate, 1.0)
        if newton.finished:
            break
    found = certify(p.geodesic())
    assert found.residual_max <= 1.01e-8


def test_the_two_ended_solver_takes_it(loss):
    p = make_problem(loss=loss)
    s = solve_on_mesh(p, None, equal(6), order=2)
    assert s.status is Status.CONVERGED and s.residual <= 1e-8
    leaf = s.A[-1].clone().requires_grad_(True)
    cost = cost_of(p.loss, leaf @ p.model.out_map.T, p.y)
    (G,) = torch.autograd.grad(cost, leaf)
    torch.testing.assert_close(s.M[-1], -G / p.mu, rtol=1e-9, atol=1e-11)
    assert s.data_cost == pytest.approx(float(cost.detach()), rel=1e-12)
