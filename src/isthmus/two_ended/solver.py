"""`solve_two_ended`: Hamilton's equations (E9) with A given at p = 0 and ``B = −∇C/λ`` at p = 1.

Solve on a mesh and on its halves, take the difference for the error, move the nodes to where (E9) is missed most,
repeat.
"""

import math
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.activations import ReLU
from isthmus.geodesic import Geodesic
from isthmus.mesh import layer_midpoints, weights_at
from isthmus.problem import Problem
from isthmus.status import ADVICE, Status
from isthmus.two_ended._types import StageWeights, StepSizes
from isthmus.two_ended.interpolate import defects, equidistribute, stage_positions
from isthmus.two_ended.newton import minimise
from isthmus.two_ended.schemes import Scheme, scheme_of_order
from isthmus.two_ended.solution import TwoEnded, check_same_problem
from isthmus.two_ended.sweeps import Sweeps


def _start_weights(start: Geodesic | TwoEnded, steps: StepSizes, scheme: Scheme) -> StageWeights:
    p = stage_positions(steps, scheme)
    if isinstance(start, TwoEnded):
        return start.weights_at(p.clamp(0, 1)) if start.residual < 1e-3 else _between_stages(start, p)
    if scheme.order == 1 and len(steps) == len(start.rho) and torch.allclose(steps, start.rho.to(steps), rtol=1e-6):
        return start.W  # the network itself is this discretisation
    return weights_at(start.W, layer_midpoints(start.rho), p)


def _between_stages(start: TwoEnded, p: Tensor) -> StageWeights:
    """From the weights as they are, where they are not yet ``Mσ(A)ᵀ``: the mean of each step's, at its midpoint."""
    scheme = scheme_of_order(start.order)
    b = start.steps.new_tensor(scheme.b)
    W = start.stage_weights.unflatten(0, (len(start.steps), scheme.stages))
    return weights_at((W * b[:, None, None]).sum(1), layer_midpoints(start.steps), p)


def solve_on_mesh(
    problem: Problem,
    start: Geodesic | TwoEnded | None,
    steps: StepSizes,
    *,
    order: int = 2,
    residual_tol: float = 1e-8,
    budget: int = 20_000,
) -> TwoEnded:
    """One solve on one mesh, without an estimate of the error; the arguments are those of `solve_two_ended`.

    Args:
        problem: data, ends, L̃, μ, σ.
        start: where to start from; the problem's own weights by default.
        steps: step-sizes, positive, summing to 1.
        order: of the scheme.
        residual_tol: on the stationarity residual.
        budget: Hessian products.

    Raises:
        ValueError: see `solve_two_ended`; or steps that do not partition [0, 1].
    """
    scheme = scheme_of_order(order)
    if steps.ndim != 1 or not bool((steps > 0).all()) or abs(float(steps.sum()) - 1) > 1e-9:
        raise ValueError(f"steps must be positive and sum to 1, got {steps.tolist()}")
    start = problem.geodesic() if start is None else start
    sweeps = Sweeps(problem, scheme, steps)
    if isinstance(start, Geodesic):
        check_same_problem(start, problem.effective_depth, problem.mu, problem.activation, sweeps.start.T)
    same = isinstance(start, TwoEnded) and start.order == order and torch.equal(start.steps, steps)
    W = start.stage_weights if same and isinstance(start, TwoEnded) else _start_weights(start, sweeps.steps, scheme)
    sweeps.W.copy_(W)
    status, residual, products = minimise(sweeps, residual_tol, budget)
    return _solution(sweeps, order, status, residual, products)


def _solution(sweeps: Sweeps, order: int, status: Status, residual: float, products: int) -> TwoEnded:
    value = sweeps.evaluate()
    A, M = sweeps.A.mT.contiguous(), (sweeps.G / -sweeps.mu).mT.contiguous()
    nothing = torch.full_like(sweeps.steps, math.nan)
    return TwoEnded(
        A=A,
        M=M,
        steps=sweeps.steps,
        stage_weights=sweeps.W.detach(),
        order=order,
        effective_depth=sweeps.L,
        weight_decay=sweeps.mu,
        activation=sweeps.activation,
        objective=value.objective,
        data_cost=value.data_cost,
        status=status,
        residual=residual,
        error=math.nan,
        defect=nothing if status is Status.DIVERGED else defects(A, M, sweeps.steps, sweeps.L, sweeps.activation),
        products=products,
        message=_message(sweeps, status, residual, products),
    )


_HERE = {
    Status.CONVERGED: "solved on this mesh",
    Status.BUDGET_SPENT: "more Hessian products (budget), a better trained start, or a σ of smaller sharpness first",
    Status.DIVERGED: "the path from the start weights is not finite on this mesh; use more steps",
}
"""Advice where that of `isthmus.status` does not fit."""


def _message(sweeps: Sweeps, status: Status, residual: float, products: int) -> str:
    words = f"{status.value} at residual {residual:.2g} after {products} Hessian products: "
    words += _HERE.get(status, ADVICE[status])
    if isinstance(sweeps.activation, ReLU):
        words += (
            ". ReLU has kinks: (E9) need not hold at a minimum, and no order of accuracy is promised; "
            "SmoothReLU has none"
        )
    return words


def _halved(steps: StepSizes) -> Float[Tensor, "twice_the_steps"]:
    return (steps / 2).repeat_interleave(2)


def _error(coarse: TwoEnded, fine: TwoEnded) -> float:
    """Richardson's estimate for the fine solution: the larger of A's and M's, at the worst common node."""
    gap = 0.0
    for c, f in ((coarse.A, fine.A[::2]), (coarse.M, fine.M[::2])):
        size = float(f.norm(dim=(1, 2)).max())
        if size > 0:
            gap = max(gap, float((c - f).norm(dim=(1, 2)).max()) / size)
    return gap / (2**fine.order - 1)


def solve_two_ended(
    problem: Problem,
    start: Geodesic | TwoEnded | None = None,
    *,
    order: int = 2,
    steps: int | StepSizes | None = None,
    tol: float = 1e-3,
    residual_tol: float = 1e-8,
    max_steps: int = 160,
    adapt: bool = True,
    budget: int = 20_000,
) -> TwoEnded:
    """Solve (E9), arXiv:2405.17573, between its two ends: ``A_0`` given, ``M_1 = −(1/μ)∂C/∂A_1``.

    The unknowns are the weights at the stages of a Runge–Kutta scheme; their critical points solve (E9) to the
    scheme's order (`isthmus.two_ended.schemes`). Which of many critical points is found is decided by the start.
    Learned end maps are held at their values.

    Args:
        problem: data, end maps, L̃, μ and a smooth σ (ReLU is accepted; the message says what it costs).
        start: a trained network's geodesic, or an earlier solution; the problem's own weights by default.
        order: 1 (Euler: the Leaky ResNet itself), 2 (Heun), 4 (RK4): 1, 2 and 4 weight matrices a step.
        steps: number of equal steps of the first mesh, or the step-sizes; half the start's layers by default.
        tol: on the estimated relative error of A and M.
        residual_tol: on the relative stationarity residual of every stage. Must lie well below ``tol``.
        max_steps: no mesh has more.
        adapt: move the nodes between meshes; else only halve the steps.
        budget: Hessian products in all; each costs about three evaluations of objective and gradient.

    Returns:
        The finest solution. Its status is CONVERGED only where ``error <= tol`` as well.

    Raises:
        TypeError: not a Problem; a start that is neither Geodesic nor TwoEnded.
        ValueError: an unknown order, steps that do not partition [0, 1], tolerances that are not positive or in
            the wrong order, a start of another problem.
    """
    _check(problem, start, tol, residual_tol, max_steps, budget)
    start = problem.geodesic() if start is None else start
    if steps is None:
        steps = max(2, len(start.steps if isinstance(start, TwoEnded) else start.rho) // 2)
    if isinstance(steps, int):
        if steps < 1:
            raise ValueError(f"a mesh needs at least one step, got steps={steps}")
        steps = torch.full((steps,), 1 / steps, dtype=torch.float64, device=problem.x.device)
    spent = 0
    mesh = steps.double()
    while True:
        coarse = solve_on_mesh(
            problem, start, mesh, order=order, residual_tol=residual_tol, budget=max(1, budget - spent)
        )
        spent += coarse.products
        if coarse.status in (Status.DIVERGED, Status.BUDGET_SPENT):
            return _with(coarse, spent, math.nan, coarse.status, coarse.message)
        fine = solve_on_mesh(
            problem, coarse, _halved(mesh), order=order, residual_tol=residual_tol, budget=max(1, budget - spent)
        )
        spent += fine.products
        error = _error(coarse, fine)
        if fine.status is not Status.CONVERGED:
            return _with(fine, spent, error, fine.status, fine.message)
        if error <= tol:
            return _with(fine, spent, error, fine.status, f"{fine.message}; estimated error {error:.2g}")
        count = min(2 * len(mesh), math.ceil(len(mesh) * min(2.0, (1.2 * error / tol) ** (1 / order))))
        if count <= len(mesh):
            count = len(mesh) + 1
        if 2 * count > max_steps:
            words = (
                f"estimated error {error:.2g} > tol {tol:g} on {len(fine.steps)} steps, and max_steps={max_steps} "
                "allows no finer mesh: raise it, or the order"
            )
            return _with(fine, spent, error, Status.BUDGET_SPENT, words)
        mesh = equidistribute(fine.steps, fine.defect, order, count) if adapt else _halved(mesh)
        start = fine


def _with(solution: TwoEnded, products: int, error: float, status: Status, message: str) -> TwoEnded:
    return replace(solution, products=products, error=error, status=status, message=message)


def _check(problem: Problem, start: object, tol: float, residual_tol: float, max_steps: int, budget: int) -> None:
    if not isinstance(problem, Problem):
        raise TypeError(f"problem must be a Problem, got {type(problem).__name__}")
    if start is not None and not isinstance(start, Geodesic | TwoEnded):
        raise TypeError(f"start must be a Geodesic or a TwoEnded, got {type(start).__name__}")
    if not 0 < residual_tol < tol:
        raise ValueError(f"tolerances must satisfy 0 < residual_tol < tol, got {residual_tol:g} and {tol:g}")
    if max_steps < 2 or budget < 1:
        raise ValueError(f"max_steps must be at least 2 and budget at least 1, got {max_steps} and {budget}")
