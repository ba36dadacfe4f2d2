"""The condition at p = 1: the data cost as a function of the end state, its gradient and its curvature."""

import torch
from torch import Tensor

from isthmus.problem import Problem
from isthmus.two_ended._types import Columns


class EndCost:
    """``C(A_1)`` through the fixed output map of a problem, in float64: (E3) and the end value of (E8).

    Args:
        problem: whose data, loss and end maps are used; learned maps are held at their values.

    Raises:
        ValueError: the problem does not lie on the CPU.
    """

    def __init__(self, problem: Problem) -> None:
        model = problem.model
        if problem.x.device.type != "cpu":
            raise ValueError(
                f"the two-ended problem is solved on the CPU, this one lies on {problem.x.device}: make a new Problem "
                "from model.cpu() and the data"
            )
        self.loss = problem.loss
        self.start: Tensor = (model.in_map.detach().double() @ problem.x.double().T).contiguous()
        self.out_map = model.out_map.detach().double()
        self._y = self.loss.convert(problem.y, torch.float64, problem.x.device)
        self.samples = problem.x.shape[0]

    def value(self, A: Columns) -> float:
        """The data cost."""
        return float(self.loss.evaluate(self.out_map @ A, self._y)[0])

    def gradient(self, A: Columns) -> Columns:
        """``∂C/∂A_1``."""
        return self.out_map.T @ self.loss.evaluate(self.out_map @ A, self._y)[1]

    def curvature(self, A: Columns, dA: Columns) -> Columns:
        """``∂²C/∂A_1² · dA``."""
        return self.out_map.T @ self.loss.curvature(self.out_map @ A, self.out_map @ dA)
