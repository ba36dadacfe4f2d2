"""One small problem, and (E3) of any discretised flow by plain operations and autograd: what fast paths must equal."""

import torch

from isthmus import LeakyResNet, Problem, SmoothReLU
from isthmus.loss import loss_of
from isthmus.two_ended import scheme_of_order

F64 = torch.float64


def equal(count):
    return torch.full((count,), 1 / count, dtype=F64)


def make_problem(
    activation=None, loss="mse", *, L_tilde=2.0, depth=8, width=5, samples=12, mu=0.05, ends="fixed", rho=None, seed=1,
    dtype=F64, **options,
):  # fmt: skip
    """Three inputs, two outputs of a tanh; targets as the loss takes them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 3, dtype=F64, generator=generator)
    y = torch.tanh(x @ torch.randn(3, 2, dtype=F64, generator=generator))
    model = LeakyResNet(
        3, 2, width=width, depth=depth, effective_depth=L_tilde, ends=ends, rho=rho, dtype=dtype,
        activation=SmoothReLU(sharpness=2.0) if activation is None else activation,
    )  # fmt: skip
    return Problem(model, x, y.argmax(1) if loss_of(loss).classes else y, loss=loss, mu=mu, **options)


def cost_of(loss, outputs, y):
    """The data cost of batch-first outputs, from its formula."""
    if loss.name == "mse":
        return (outputs - y).square().sum() / len(y)
    if loss.name == "cross_entropy":
        return torch.nn.functional.cross_entropy(outputs, y)
    return loss.formula(outputs, y)


def slow_outputs(p, W, steps, order=1):
    """Batch-first outputs, written from the tableau; order 1 is the network itself."""
    scheme, L = scheme_of_order(order), p.effective_depth
    A = p.x.to(W.dtype) @ p.model.in_map.detach().to(W.dtype).T
    for n, h in enumerate(steps):
        F = []
        for i in range(scheme.stages):
            X = A
            for j in range(i):
                X = X + h * scheme.a[i][j] * F[j]
            F.append(p.activation.features(X) @ W[n * scheme.stages + i].T - L * X)
        # the skip as one factor where there is one stage, so that it is exactly 0 at ρL̃ = 1
        if scheme.stages == 1:
            A = (1 - h * L) * A + h * (F[0] + L * X)
        else:
            for b, f in zip(scheme.b, F, strict=True):
                A = A + h * b * f
    return A @ p.model.out_map.detach().to(W.dtype).T


def slow_objective(p, W, steps, order=1):
    """The discrete (E3) of weights, by plain differentiable operations."""
    scheme = scheme_of_order(order)
    quadrature = torch.tensor([h * b for h in steps for b in scheme.b], dtype=W.dtype)
    y = p.y if p.loss.classes else p.y.to(W.dtype)
    penalty = (quadrature * W.square().sum(dim=(1, 2))).sum()
    return cost_of(p.loss, slow_outputs(p, W, steps, order), y) + 0.5 * p.mu * penalty


def slow_derivatives(p, W, steps, order, direction):
    """Value, gradient, and Hessian times a direction."""
    leaf = W.clone().requires_grad_(True)
    value = slow_objective(p, leaf, steps, order)
    (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
    (product,) = torch.autograd.grad((gradient * direction).sum(), leaf)
    return float(value.detach()), gradient.detach(), product
