"""Which initialisation neither collapses at large L̃ nor leaves a tail? Numbers for docs/notes/log/initialisation.md.

Rule, fixed before measuring: an initialisation qualifies if, over all seeds, (a) no run at L̃ = 7, 10, 20 ends in the
zero network, and (b) the least rank of an interior state (threshold 1e-2) is at most 8 at L̃ = 7 after the given number
of steps. Among those that qualify, the lowest median objective wins.

    python benchmarks/initialisation.py --steps 600 --seeds 3 --json out.json
"""

import argparse
import json
import statistics
import time

import torch

from isthmus import LeakyResNet, Problem, Trainer, make_task, recipe
from isthmus.bottleneck import bottleneck
from isthmus.initialise import INITIALISATIONS


def run(name: str, effective_depth: float, seed: int, steps: int) -> dict[str, object]:
    """Train one network on the task of Figure 1, and read it."""
    task = make_task("teacher", dims=(30, 3, 30), seed=seed)
    depth = 20 if effective_depth < 15 else 40
    model = LeakyResNet(30, 30, depth=depth, effective_depth=effective_depth, initialisation=name, seed=seed)
    problem = Problem(model, task.x_train, task.y_train)
    started = time.perf_counter()
    Trainer(problem, recipe("default", steps), log_every=steps).run()
    seconds = time.perf_counter() - started
    geodesic = problem.geodesic()
    found = bottleneck(geodesic)
    middle = torch.linalg.svdvals(geodesic.A[depth // 2])
    return {
        "initialisation": name,
        "effective_depth": effective_depth,
        "seed": seed,
        "objective": geodesic.objective,
        "collapsed": found.rank is None,
        "rank": found.rank,
        "tenth_singular_value": float(middle[9] / middle[0]),
        "residual_median": float(problem.residual().median()),
        "seconds": seconds,
    }


def main() -> None:
    """Run the grid and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--effective-depths", type=float, nargs="+", default=[7.0, 10.0, 20.0])
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", default=None, help="write all runs here")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = []
    print("L̃   initialisation  objective: median (min-max)      collapsed  rank     10th s.v. (median)")
    for effective_depth in arguments.effective_depths:
        for name in INITIALISATIONS:
            cell = [run(name, effective_depth, seed, arguments.steps) for seed in range(arguments.seeds)]
            rows += cell
            values = sorted(float(r["objective"]) for r in cell)  # type: ignore[arg-type]
            tail = statistics.median(float(r["tenth_singular_value"]) for r in cell)  # type: ignore[arg-type]
            collapsed = sum(bool(r["collapsed"]) for r in cell)
            ranks = [r["rank"] for r in cell]
            print(
                f"{effective_depth:<4g} {name:14}  {statistics.median(values):7.3f} ({values[0]:.3f}-{values[-1]:.3f})"
                f"        {collapsed}/{len(cell)}   {ranks}  {tail:.1e}",
                flush=True,
            )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
