"""Depth refinement: a network of more layers that follows the path of a converged one."""

import torch

from isthmus.model import LeakyResNet
from isthmus.solve.objective import Problem


@torch.no_grad()
def refine_depth(problem: Problem, depth: int, ridge: float = 1e-3) -> Problem:
    """The same problem with a network of more layers, whose path is that of the present one, interpolated.

    Copying ``W_p`` to the new layers goes astray where ``ρ‖W‖`` is not small (from 10 to 20 layers on the network of
    Figure 1: objective 28 after 0.64). So it is the path that is carried over: states between the old ones by linear
    interpolation in p, and, layer by layer from the state that is really reached, the weights by ridge regression (E5)
    about the old ones, ``W = W_old + (T − W_oldS) Sᵀ(SSᵀ + γI)⁻¹`` (1.6 there, and back at 0.68 after 60 steps). New
    step-sizes divide the old ones evenly.

    Args:
        problem: trained, with ``memory="store"``.
        depth: number of layers, a multiple of the present one.
        ridge: γ over ``‖SSᵀ‖_op``. Tuned: 1e-2 and 1e-4 are worse on that network (1.8 and 1.7 for 1.6).

    Raises:
        ValueError: a depth that is no multiple, or a ridge that is not positive.
    """
    old = problem.model
    if depth < old.depth or depth % old.depth:
        raise ValueError(f"depth must be a multiple of the present {old.depth}, got {depth}")
    if not ridge > 0:
        raise ValueError(f"ridge must be positive, got {ridge}")
    parts = depth // old.depth
    rho = (old.rho.double() / parts).repeat_interleave(parts)
    new = LeakyResNet(
        old.in_features,
        old.out_features,
        width=old.width,
        depth=depth,
        effective_depth=old.effective_depth,
        activation=old.activation,
        ends=old.ends,
        rho=rho,
        initialisation=old.initialisation,
        dtype=old.weight.dtype,
        device=old.weight.device,
    )
    new.in_map.data.copy_(old.in_map)
    new.out_map.data.copy_(old.out_map)
    A = problem.geodesic().A.mT  # columns
    state, leak = A[0], problem.effective_depth
    for layer in range(depth):
        k, part = divmod(layer, parts)
        r, before = float(rho[layer]), old.weight[k].double()
        target = (torch.lerp(A[k], A[k + 1], (part + 1) / parts) - (1 - r * leak) * state) / r
        S = problem.activation.features(state.T).T
        gram = S @ S.T
        gram.diagonal().add_(ridge * float(torch.linalg.eigvalsh(gram)[-1]))
        W = before + torch.linalg.solve(gram, S @ (target - before @ S).T).T
        new.weight[layer].copy_(W)
        state = (1 - r * leak) * state + r * W @ S
    return Problem(
        new,
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
