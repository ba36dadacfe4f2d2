"""Step-size rules and the safeguards of the adaptive one, each switched off in turn: the table of docs/notes/mesh.md.

One task, one optimiser (Muon), one number of layers; only the mesh differs. Seeds move the teacher and the network.
"""

import argparse
import statistics
import warnings
from dataclasses import replace

import torch
from _common import write

from isthmus import LeakyResNet, Problem, Trainer, make_task, recipe
from isthmus.mesh import Adaptive, Equidistant, Irregular, MeshScheduler, StepSizeRule, relative_changes

DEFAULT = Adaptive()
RULES: dict[str, tuple[StepSizeRule, int, float | None]] = {  # rule, steps between moves, transfer
    "equidistant": (Equidistant(), 10, None),
    "irregular, a = 0.5": (Irregular(), 10, None),
    "adaptive, as by default": (DEFAULT, 10, 0.5),
    "floor 0": (replace(DEFAULT, floor=0.0), 10, 0.5),
    "floor 0.2": (replace(DEFAULT, floor=0.2), 10, 0.5),
    "no smoothing": (replace(DEFAULT, smoothing=0), 10, 0.5),
    "no relaxation": (replace(DEFAULT, relaxation=1.0), 10, 0.5),
    "no caps": (replace(DEFAULT, cap=1e6, slow_cap=1e6), 10, 0.5),
    "slow cap 2": (replace(DEFAULT, slow_cap=2.0), 10, 0.5),
    "no transfer of weights": (DEFAULT, 10, None),
    "a move every step": (DEFAULT, 1, 0.5),
    "a move every 50 steps": (DEFAULT, 50, 0.5),
    "the paper's update, every step": (Adaptive(0.0, 0, 1.0, 1e6, 1e6), 1, None),
}


def train(name: str, seed: int, steps: int, depth: int, effective_depth: float) -> dict[str, float]:
    """Train one network under one rule; the objective, the test cost and what the mesh came to."""
    rule, every, transfer = RULES[name]
    task = make_task("teacher", dims=(10, 2, 10), train=200, test=200, seed=seed)
    model = LeakyResNet(10, 10, width=30, depth=depth, effective_depth=effective_depth, seed=seed)
    problem = Problem(model, task.x_train, task.y_train, mu=0.01, x_test=task.x_test, y_test=task.y_test)
    scheduler = MeshScheduler(model, rule, every=every, freeze_after=int(0.8 * steps), transfer=transfer)
    Trainer(problem, [replace(recipe("default")[0], steps=steps)], scheduler=scheduler).run()
    with torch.no_grad():
        changes = relative_changes(model.trajectory(problem.x))
    return {
        "objective": float(problem.evaluate().objective),
        "test": float(problem.test()[0] or 0.0),
        "unevenness": float(changes.std() / changes.mean()),
        "largest_rho_L_tilde": float(model.rho.max()) * model.effective_depth,
        "largest_over_smallest_rho": float(model.rho.max() / model.rho.min()),
    }


def main() -> None:
    """Print a row a rule: the median over seeds, the least and the largest objective."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--effective-depth", type=float, default=6.0)
    parser.add_argument("--json", help="write all runs to this file")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="rho \\* effective_depth")  # rules without caps
    size = (chosen.steps, chosen.depth, chosen.effective_depth)
    runs = {name: [train(name, seed, *size) for seed in range(chosen.seeds)] for name in RULES}
    print("| rule | objective: median (least to largest) | test cost | unevenness | largest ρL̃ | largest/smallest ρ |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, results in runs.items():
        median = {key: statistics.median(run[key] for run in results) for key in results[0]}
        values = [run["objective"] for run in results]
        print(
            f"| {name} | {median['objective']:.3f} ({min(values):.3f} to {max(values):.3f}) | {median['test']:.3f} | "
            f"{median['unevenness']:.2f} | {median['largest_rho_L_tilde']:.2f} | "
            f"{median['largest_over_smallest_rho']:.1f} |"
        )
    write(chosen.json, {"options": vars(chosen), "runs": runs})


if __name__ == "__main__":
    main()
