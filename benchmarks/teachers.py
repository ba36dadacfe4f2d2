"""Is the headline k*? Teachers with a bottleneck of 1, 2 and 3, solved to critical points, and their verdicts.

Teacher tasks (10→k*→10, N = 200), networks of width 40, 20 layers, a smooth ReLU (β = 20), float64, at several L̃.
For every seed of teacher and network: `solve`, then the verdict with the optimiser's errors and the kind of the point.
Rules, written before measuring:

- where the verdict is trusted, k* is the teacher's: one exception is a failure;
- it is trusted in at least half of the cases;
- the test part is left out of the verdict: overfitting is a doubt about the task, and 200 rows have it often. How often
  it would have been doubted is counted.

    python benchmarks/teachers.py --seeds 5 --threads 1 --json out.json
"""

import time
from typing import Any

import torch
from _common import options, write

from isthmus import LeakyResNet, Problem, SmoothReLU, make_task, solve
from isthmus.bottleneck import bottleneck, interval_readings
from isthmus.certificate import optimiser_error

DIRECTIONS, DEPTHS, MU = (1, 2, 3), (8.0, 12.0), 0.01


def case(directions: int, effective_depth: float, seed: int, mu: float = MU) -> dict[str, Any]:
    """One teacher and its network."""
    task = make_task("teacher", dims=(10, directions, 10), train=200, test=200, seed=seed)
    model = LeakyResNet(
        10, 10, width=40, depth=20, effective_depth=effective_depth, seed=seed,
        activation=SmoothReLU(sharpness=20.0), dtype=torch.float64,
    )  # fmt: skip
    problem = Problem(
        model, task.x_train.double(), task.y_train.double(), mu=mu,
        x_test=task.x_test.double(), y_test=task.y_test.double(),
    )  # fmt: skip
    cpu = time.process_time()
    found = solve(problem, tolerance=1e-5)
    cpu = time.process_time() - cpu
    certificate = found.certificate
    assert certificate is not None and certificate.kind is not None
    zero = float(problem.y.square().sum() / len(problem.y))
    errors = optimiser_error(problem, interval_readings())
    arguments: dict[str, Any] = {"zero_cost": zero, "errors": errors, "kind": certificate.kind.kind.value}
    said = bottleneck(found, **arguments)
    test_cost = problem.test()[0]
    return {
        "directions": directions,
        "effective_depth": effective_depth,
        "seed": seed,
        "k_star": said.k_star,
        "rank": said.rank,
        "interval": said.interval,
        "errors": said.interval_error,
        "trusted": said.trusted,
        "trusted_with_test": bottleneck(found, test_cost=test_cost, **arguments).trusted,
        "doubts": said.doubts,
        "residual": certificate.residual_max,
        "kind": certificate.kind.kind.value,
        "fit": found.data_cost / zero,
        "cpu_seconds": cpu,
    }


def main() -> None:
    """Run, print, write."""
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--mu", type=float, default=MU)
    parser.add_argument("--depths", type=float, nargs="+", default=list(DEPTHS))
    parser.add_argument("--directions", type=int, nargs="+", default=list(DIRECTIONS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for seed in range(arguments.seeds):
        for directions in arguments.directions:
            for depth in arguments.depths:
                row = case(directions, depth, seed, arguments.mu)
                rows.append(row)
                low, high = row["interval"]
                print(
                    f"k* {directions}  L̃ {depth:g}  seed {seed}: {row['k_star']} in [{low:.3f}, {high:.3f}], rank "
                    f"{row['rank']}, residual {row['residual']:.1e}, fit {row['fit']:.1%}, "
                    f"{'trusted' if row['trusted'] else 'not trusted: ' + '; '.join(row['doubts'])}",
                    flush=True,
                )
    trusted = [row for row in rows if row["trusted"]]
    right = [row for row in trusted if row["k_star"] == row["directions"]]
    print(f"{len(trusted)} of {len(rows)} trusted, of these {len(right)} right")
    write(arguments.json, {"threads": arguments.threads, "rows": rows})


if __name__ == "__main__":
    main()
