"""Families with one or two unknowns, whose branches are known."""

import torch

from isthmus.branches import Family
from isthmus.loss import loss_of
from isthmus.problem import Evaluation

F64 = torch.float64


class Polynomial:
    """A target of one unknown from its energy's first three derivatives; outputs are the unknown itself."""

    mu, loss = 1.0, loss_of("mse")

    def __init__(self, x, energy, slope, curvature):
        self.x, self.energy, self.slope, self.curvature = x, energy, slope, curvature

    @property
    def parameters(self):
        return [self.x]

    @property
    def scales(self):
        return [1.0]

    def last_outputs(self):
        return self.x.reshape(1, 1).clone()

    def evaluate(self, batch=None, gradient=True):
        x = float(self.x)
        if gradient:
            self.x.grad = torch.full_like(self.x, self.slope(x))
        return Evaluation(self.energy(x), self.energy(x), 0.0)

    def residual(self):
        return self.x.grad.abs()


class Curved:
    """Its Hessian."""

    def __init__(self, target):
        self.target = target

    @property
    def outputs(self):
        return self.point.reshape(1, 1)

    def linearise(self):
        self.point = self.target.x.clone()

    def product(self, direction):
        return [self.target.curvature(float(self.point)) * direction[0]]

    def tangent(self, direction):
        return direction[0].reshape(1, 1).clone()


class Cusp(Family):
    """``E = x⁴/4 − a x²/2 − b x``: critical where ``x³ − a x = b``; folds at ``b = ±2 (a/3)^{3/2}``.

    Followed in b at fixed a, or in a at fixed b.
    """

    def __init__(self, x, a=None, b=None):
        self.name = "b" if b is None else "a"
        self.a, self.b, self.x = a, b, torch.tensor([x], dtype=F64)

    def at(self, value):
        a, b = (self.a, value) if self.b is None else (value, self.b)
        return Polynomial(
            self.x, lambda x: x**4 / 4 - a * x * x / 2 - b * x, lambda x: x**3 - a * x - b, lambda x: 3 * x * x - a
        )

    def hessian(self, target, dtype):
        return Curved(target)
