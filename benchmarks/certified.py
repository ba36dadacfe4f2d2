"""Certified in the recipe's own time? The residual, and the spread of H, that each reaches.

A teacher task with smooth ReLU (β = 20) in two sizes: *small* (10→2→10, w = 40, N = 200, L = 20, L̃ = 4, μ = 0.01) and
*figure1* (30→3→30, w = 100, N = 1000, L = 20, L̃ = 7, μ = 0.001). For every seed of teacher and network, in turn in one
process: the paper's recipe (Adam 5000, SGD 1000, float32), and `solve` in float64: L-BFGS, then Newton's method in the
metric of all layers, until the largest residual is below the tolerance. Rules, written before measuring:

- certified: residual_max ≤ 1e-4 in the certificate, which is computed afresh in float64;
- in the recipe's own time: `solve` is given as many seconds as the recipe took on that seed (--times, times that);
- both are given for the clock and for the processor; set-up counts, making the data does not.

    python benchmarks/certified.py --size small --seeds 3 --threads 1 --json out.json
"""

import time
from typing import Any

import torch
from _common import options, write

from isthmus import LeakyResNet, Problem, SmoothReLU, Trainer, make_task, recipe
from isthmus.certificate import Certificate, certify
from isthmus.geodesic import Geodesic
from isthmus.optimise import LBFGS, Newton
from isthmus.solve import Stage, solve

SIZES: dict[str, dict[str, Any]] = {
    "small": {"dims": (10, 2, 10), "train": 200, "width": 40, "leak": 4.0, "mu": 1e-2, "lbfgs": (30, 120)},
    "figure1": {"dims": (30, 3, 30), "train": 1000, "width": 100, "leak": 7.0, "mu": 1e-3, "lbfgs": (80, 1200)},
}


def problem(size: dict[str, Any], seed: int, dtype: torch.dtype) -> Problem:
    """Task and network of one seed."""
    task = make_task("teacher", dims=size["dims"], train=size["train"], seed=seed)
    ends = size["dims"][0], size["dims"][-1]
    model = LeakyResNet(
        *ends, width=size["width"], depth=20, effective_depth=size["leak"], seed=seed,
        activation=SmoothReLU(sharpness=20.0), dtype=dtype,
    )  # fmt: skip
    return Problem(model, task.x_train.to(dtype), task.y_train.to(dtype), mu=size["mu"])


def theirs(size: dict[str, Any], seed: int, scale: float) -> dict[str, float]:
    """The paper's recipe, without history."""
    trainer = Trainer(problem(size, seed, torch.float32), recipe("paper", round(6000 * scale)), log_every=10**9)
    started, cpu = time.perf_counter(), time.process_time()
    trainer.run()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    geodesic = trainer.problem.geodesic()
    return {"seconds": seconds, "cpu_seconds": cpu_seconds} | summary(geodesic, certify(geodesic))


def summary(geodesic: Geodesic, found: Certificate) -> dict[str, float]:
    """What the certificate says."""
    return {
        "objective": geodesic.objective,
        "residual_max": found.residual_max,
        "residual_median": found.residual_median,
        "h_spread": found.h_spread,
        "h_predicted": found.h_predicted,
        "h_unexplained": found.h_unexplained,
    }


def ours(size: dict[str, Any], seed: int, seconds: float, tolerance: float) -> dict[str, Any]:
    """`solve` within a number of seconds."""
    part, whole = size["lbfgs"]
    stages = [Stage(LBFGS(), part, fraction=0.2), Stage(LBFGS(), whole), Stage(Newton(), 10_000)]
    started, cpu = time.perf_counter(), time.process_time()
    found = solve(problem(size, seed, torch.float64), stages, seconds=seconds, tolerance=tolerance)
    spent = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    counts = {"steps": found.statistics["steps"], "products": found.statistics["hessian_products"]}
    assert found.certificate is not None
    return spent | counts | {"status": found.status.value} | summary(found, found.certificate)


def main() -> None:
    """Run, print, write."""
    parser = options(__doc__)
    parser.set_defaults(threads=torch.get_num_threads())
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--times", type=float, default=1.0, help="time allowed, as a multiple of the recipe's")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--scale", type=float, default=1.0, help="times the recipe's 6000 steps (a quick look: 0.1)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    size, rows = SIZES[given.size], []
    for seed in range(given.seeds):
        row: dict[str, Any] = {"seed": seed, "recipe": theirs(size, seed, given.scale)}
        row["solve"] = ours(size, seed, given.times * row["recipe"]["seconds"], given.tolerance)
        rows.append(row)
        for name in ("recipe", "solve"):
            r = row[name]
            print(
                f"seed {seed}, {name}: objective {r['objective']:.6f}, residual {r['residual_max']:.2g}, spread of H "
                f"{r['h_spread']:.3g} (predicted {r['h_predicted']:.3g}, unexplained {r['h_unexplained']:.2g}), "
                f"{r['seconds']:.1f} s ({r['cpu_seconds']:.1f} CPU){', ' + r['status'] if 'status' in r else ''}",
                flush=True,
            )
    print(f"certified: {sum(row['solve']['residual_max'] <= 1e-4 for row in rows)} of {len(rows)}")
    write(given.json, {"threads": given.threads, "size": given.size, "rows": rows})


if __name__ == "__main__":
    main()
