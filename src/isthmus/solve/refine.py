"""Depth refinement: a network of more layers that follows the path of a converged one; and a start from a coarse one.

Copying ``W_p`` to new layers goes astray where ``ρ‖W‖`` is not small (from 10 to 20 layers on the network of Figure 1:
objective 28 after 0.64). So it is the path that is carried over: states between the old ones by linear interpolation in
p, and, layer by layer from the state that is really reached, the weights by ridge regression (E5) about the old ones,
``W = W_old + (T − W_oldS) Sᵀ(SSᵀ + γI)⁻¹`` (objective 1.6 there, and back at 0.68 after 60 steps).
"""

from collections.abc import Sequence

import torch

from isthmus.model import LeakyResNet
from isthmus.optimise import LBFGS
from isthmus.problem import Problem
from isthmus.solve.recipes import Stage
from isthmus.solve.trainer import Trainer


@torch.no_grad()
def carry_path(coarse: Problem, fine: Problem, ridge: float = 1e-3) -> None:
    """Set the weights of a network so that it follows the path of another one, of any depth and step-sizes.

    Args:
        coarse: whose path is followed.
        fine: whose model's weights are set; width, ends and rows must be the same, and are not compared but by shape.
        ridge: γ over ``‖SSᵀ‖_op``. Tuned: 1e-2 and 1e-4 are worse on Figure 1's network (1.8 and 1.7 for 1.6).

    Raises:
        ValueError: a ridge that is not positive, or networks of other widths or rows.
    """
    if not ridge > 0:
        raise ValueError(f"ridge must be positive, got {ridge}")
    old, new = coarse.model, fine.model
    if (old.width, coarse.x.shape) != (new.width, fine.x.shape) or coarse.activation.extra != fine.activation.extra:
        raise ValueError(
            f"paths are carried between networks of one width on the same rows: got width {old.width} on "
            f"{tuple(coarse.x.shape)} and width {new.width} on {tuple(fine.x.shape)}"
        )
    new.in_map.data.copy_(old.in_map)
    new.out_map.data.copy_(old.out_map)
    A = coarse.geodesic().A.mT  # columns
    at, leak = old.positions.double(), fine.effective_depth
    state, ends = A[0], new.positions.double()[1:]
    for layer, r in enumerate(new.rho.double().tolist()):
        k = int(torch.searchsorted(at, ends[layer] - 1e-9).clamp(1, old.depth))
        t = float(((ends[layer] - at[k - 1]) / (at[k] - at[k - 1])).clamp(0, 1))
        before = old.weight[k - 1].double()
        target = (torch.lerp(A[k - 1], A[k], t) - (1 - r * leak) * state) / r
        S = fine.activation.features(state.T).T
        gram = S @ S.T
        gram.diagonal().add_(ridge * float(torch.linalg.eigvalsh(gram)[-1]))
        W = before + torch.linalg.solve(gram, S @ (target - before @ S).T).T
        new.weight[layer].copy_(W)
        state = (1 - r * leak) * state + r * W @ S


def _network(old: LeakyResNet, depth: int, rho: torch.Tensor | None, seed: int) -> LeakyResNet:
    return LeakyResNet(
        old.in_features,
        old.out_features,
        width=old.width,
        depth=depth,
        effective_depth=old.effective_depth,
        activation=old.activation,
        ends=old.ends,
        rho=rho,
        initialisation=old.initialisation,
        seed=seed,
        dtype=old.weight.dtype,
        device=old.weight.device,
    )


def _with(problem: Problem, model: LeakyResNet) -> Problem:
    return Problem(
        model,
        problem.x,
        problem.y,
        loss=problem.loss,
        mu=problem.mu,
        x_test=problem.x_test,
        y_test=problem.y_test,
        memory=problem.memory,
        activation=problem.activation,
        effective_depth=problem.effective_depth,
    )


def refine_depth(problem: Problem, depth: int, ridge: float = 1e-3) -> Problem:
    """The same problem with a network of more layers, whose path is that of the present one, interpolated.

    Args:
        problem: trained.
        depth: number of layers, a multiple of the present one; new step-sizes divide the old ones evenly.
        ridge: see `carry_path`.

    Raises:
        ValueError: a depth that is no multiple, or a ridge that is not positive.
    """
    old = problem.model
    if depth < old.depth or depth % old.depth:
        raise ValueError(f"depth must be a multiple of the present {old.depth}, got {depth}")
    parts = depth // old.depth
    fine = _with(problem, _network(old, depth, (old.rho.double() / parts).repeat_interleave(parts), seed=0))
    carry_path(problem, fine, ridge)
    return fine


COARSE = (
    Stage(LBFGS(pairs=10), 70, fraction=0.3),
    Stage(LBFGS(pairs=10), 40),
)


def coarse_start(problem: Problem, depth: int, stages: Sequence[Stage] = COARSE, seed: int = 0) -> None:
    """Train a shallower network of equal steps first, and let the problem's model follow its path.

    Args:
        problem: its model's weights are set; its end maps stay.
        depth: of the shallower network; with ``depth > L̃`` its skips keep their signs.
        stages: how it is trained. Tuned: see docs/notes/solver.md.
        seed: of its initial weights.

    Raises:
        ValueError: a depth below 1 or not below the model's.
    """
    model = problem.model
    if not 1 <= depth < model.depth:
        raise ValueError(f"the depth of a coarse start must lie in 1..{model.depth - 1}, got {depth}")
    coarse = _with(problem, _network(model, depth, None, seed))
    coarse.model.in_map.data.copy_(model.in_map)
    coarse.model.out_map.data.copy_(model.out_map)
    Trainer(coarse, stages, log_every=10**9).run()
    carry_path(coarse, problem)
