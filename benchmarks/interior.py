"""Can the interior of a converged network be had below the dense floor? Numbers for docs/notes/log/solver.md.

Trains the network of the paper's Figure 1, then counts, state by state, the neurons that are dead on all samples (their
columns and rows drop out of a step exactly), alive on all samples (there ReLU is the identity, and layers compose), and
neither; and finds what the data cost loses where states are cut to rank r.

    python benchmarks/interior.py --initialisations small carrier --json interior.json
    python benchmarks/interior.py --weights fig1.pt        # a state_dict of that network instead
"""

from typing import Any

import torch
from _common import options, write
from torch import Tensor

from isthmus import LeakyResNet, Problem, Trainer, make_task, recipe

RANKS = (4, 6, 8, 12, 20, 30, 50)


def network(initialisation: str, dtype: torch.dtype) -> tuple[Problem, LeakyResNet]:
    """Figure 1's, on seed 0."""
    task = make_task("teacher", dims=(30, 3, 30), seed=0)
    model = LeakyResNet(
        30, 30, width=100, depth=20, effective_depth=7.0, initialisation=initialisation, seed=0, dtype=dtype
    )
    return Problem(model, task.x_train, task.y_train), model


@torch.no_grad()
def cost_when_cut(problem: Problem, rank: int, states: range) -> float:
    """The data cost where these states are replaced by their best approximation of a rank."""
    model = problem.model
    A: Tensor = model.in_map @ problem.x.T
    for layer, r in enumerate(model.rho.tolist()):
        if layer in states:
            U, s, V = torch.linalg.svd(A, full_matrices=False)
            A = (U[:, :rank] * s[:rank]) @ V[:rank]
        S = model.activation.features(A.T).T
        A = (1 - r * model.effective_depth) * A + r * model.weight[layer] @ S
    return float(problem.loss.evaluate(model.out_map @ A, problem.y)[0])


def look(problem: Problem) -> dict[str, Any]:
    """Counts of neurons, ranks, and what cutting costs, of a network in float64."""
    evaluation, A = problem.evaluate(), problem.last_path()
    w, L = problem.model.width, problem.model.depth
    dead, linear = (A.amax(2) <= 0).sum(1), (A.amin(2) > 0).sum(1)
    mixed = w - dead - linear
    spectra = torch.linalg.svdvals(A)
    middle = range(L // 2 - 1, L // 2 + 7)
    cut = {
        rank: {
            f"A_{L // 2}": cost_when_cut(problem, rank, range(L // 2, L // 2 + 1)) - evaluation.data_cost,
            f"A_{middle[0]}..A_{middle[-1]}": cost_when_cut(problem, rank, middle) - evaluation.data_cost,
            "all inner": cost_when_cut(problem, rank, range(1, L)) - evaluation.data_cost,
        }
        for rank in RANKS
    }
    return {
        "objective": evaluation.objective,
        "residual_max": float(problem.residual().max()),
        "dead": dead.tolist(),
        "linear": linear.tolist(),
        "mixed": mixed.tolist(),
        "negative_entries": [float((a < 0).double().mean()) for a in A],
        "ranks": {f"{t:g}": (spectra > t * spectra[:, :1]).sum(1).tolist() for t in (1e-2, 1e-3, 1e-5)},
        "cost_change_when_cut": cut,
        # of a layer's products, those with features that are not dead; and if linear neurons cost nothing either
        "share_without_dead": 1 - float(dead[:-1].double().mean()) / w,
        "share_of_mixed": float(mixed[:-1].double().mean()) / w,
    }


def main() -> None:
    """Train, look, print."""
    parser = options(__doc__)
    parser.add_argument("--initialisations", nargs="+", default=["small", "carrier"])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--weights", nargs="+", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    states: dict[str, dict[str, Tensor]] = {file: torch.load(file) for file in arguments.weights}
    for name in [] if arguments.weights else arguments.initialisations:
        problem, model = network(name, torch.float32)
        Trainer(problem, recipe("default", arguments.steps), log_every=arguments.steps).run()
        states[name] = model.state_dict()
    results = {}
    for name, state in states.items():
        problem, model = network("small", torch.float64)
        model.load_state_dict(state)
        results[name] = found = look(problem)
        print(name)
        for key, value in found.items():
            print(f"  {key}: {value}")
    write(arguments.json, {"benchmark": "interior", "networks": results})


if __name__ == "__main__":
    main()
