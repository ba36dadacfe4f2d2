"""A time grid for solvers of ordinary differential equations with fixed steps, such as torchdiffeq's."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.mesh.base import equal_steps
from isthmus.mesh.protocol import check_shares


class ODEMesh(nn.Module):
    """The times ``t_0 < … < t_L`` of a fixed number of steps, moved by `MeshScheduler`.

    Pass ``mesh.t`` to ``torchdiffeq.odeint(f, y0, mesh.t, method="euler" | "midpoint" | "rk4")``: without ``step_size``
    its grid is t. Its answer, ``(steps + 1, samples, …)``, is the path for `MeshScheduler.step`, at no further
    evaluation of f. The network ``f(t, y)`` is one for all times, so that nothing moves but t.

    Args:
        steps: how many.
        start: the first time.
        end: the last time; before ``start`` for an integration backwards.
        solve: ``solve(y0, t)`` gives the states at t; asked where the scheduler has an x and no path.

    Attributes:
        rho: steps as shares of ``end − start``, ``(steps,)``, a buffer in float64.

    Raises:
        ValueError: fewer than one step, or no time between start and end.
    """

    rho: Tensor

    def __init__(
        self,
        steps: int,
        start: float = 0.0,
        end: float = 1.0,
        *,
        solve: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not 0 < abs(end - start) < float("inf"):
            raise ValueError(f"start and end must be two different finite times, got {start} and {end}")
        self.start, self.end, self.solve = float(start), float(end), solve
        self.register_buffer("rho", equal_steps(steps))

    @property
    def t(self) -> Tensor:
        """The times, ``(steps + 1,)``; first and last exactly ``start`` and ``end``."""
        share = torch.cat((self.rho.new_zeros(1), self.rho.cumsum(0)[:-1], self.rho.new_ones(1)))
        return torch.lerp(torch.full_like(share, self.start), torch.full_like(share, self.end), share)

    def grid_constructor(self, func: Any, y0: Tensor, t: Tensor) -> Tensor:
        """For ``options={"grid_constructor": mesh.grid_constructor}`` where t asks for few times only.

        The solver then steps on this grid, and its answer has no states for the scheduler but those asked for.

        Raises:
            ValueError: t does not run from ``start`` to ``end``.
        """
        grid = self.t.to(t)
        if not torch.equal(grid[[0, -1]], t[[0, -1]]):
            raise ValueError(f"the mesh runs from {self.start} to {self.end}, the times asked for do not: {t.tolist()}")
        return grid

    def set_step_sizes(self, rho: Tensor) -> None:
        """Replace the shares.

        Raises:
            ValueError: not ``(steps,)``, not positive, or not summing to 1.
        """
        check_shares(rho, len(self.rho))
        self.rho.copy_(rho)

    @torch.no_grad()
    def trajectory(self, x: Tensor) -> Tensor:
        """The states from x by ``solve``, ``(steps + 1, samples, …)``.

        Raises:
            ValueError: no ``solve`` was given.
        """
        if self.solve is None:
            raise ValueError("ODEMesh has no solve: give it one, or give the trajectory of odeint to step()")
        return self.solve(x, self.t)
