"""Following against plain warm starts: the same certified points, in which time, and which jumps each names.

The small case (10→2→10, w = 40, N = 200, L = 20, smooth ReLU with β = 20, float64): μ from 0.06 to 0.01 at L̃ = 4
by factors 0.75, then L̃ from 4 to 10.2 in ten points. Every point to a residual of 1e-5. For every seed, in one run:

- *warm starts*: Newton's method at each point from the last one; along L̃ the weights are scaled by its ratio;
- *direct* (--direct): `solve` by the recipe ``geodesic`` at μ = 0.01 at once, which the branch should not lie above;
- *follow*: `isthmus.follow` with the same points as `at`, once as coarse as these points (``resolution`` as the first
  step, no eigenvalues), and with --fine as it comes.

Rules, written before measuring: follow's time, for the same points, is at most a third; every jump is an event.
Seconds are of the processor; both start from the same network, whose time is not counted.

    python benchmarks/branches.py --seeds 5 --threads 1 --json out.json
"""

import math
import time
from typing import Any

import torch
from _common import options, write

from isthmus import LeakyResNet, Problem, SmoothReLU, follow, make_task, solve
from isthmus.optimise import Newton

LEAKS = (4.4, 4.8, 5.3, 5.8, 6.4, 7.0, 7.7, 8.5, 9.3, 10.2)
DECAYS = tuple(max(0.06 * 0.75**i, 0.01) for i in range(1, 8))
TOLERANCE = 1e-5


def start(seed: int, sharpness: float) -> Problem:
    """The network at μ = 0.06, L̃ = 4, certified."""
    task = make_task("teacher", dims=(10, 2, 10), train=200, seed=seed)
    model = LeakyResNet(
        10, 10, width=40, depth=20, effective_depth=4.0, seed=seed,
        activation=SmoothReLU(sharpness=sharpness), dtype=torch.float64,
    )  # fmt: skip
    problem = Problem(model, task.x_train.double(), task.y_train.double(), mu=0.06)
    found = solve(problem, tolerance=TOLERANCE)
    assert found.certificate is not None
    if found.certificate.residual_max > TOLERANCE:
        raise SystemExit(f"seed {seed}: no start, residual {found.certificate.residual_max:.2g}")
    return problem


def warm(problem: Problem) -> dict[str, Any]:
    """Newton's method at every point from the last one."""
    cpu, products, points = time.process_time(), 0, []
    variants = [problem.variant(mu=mu) for mu in DECAYS]
    low = variants[-1]
    leak = 4.0
    for value in (*DECAYS, *LEAKS):
        if value in LEAKS:
            problem.model.weight.data.mul_(value / leak)
            leak = value
            target = low.variant(effective_depth=value)
        else:
            target = problem.variant(mu=value)
        run = Newton().start(target, TOLERANCE)
        steps = 0
        while not run.finished and steps < 400:
            run.step(target.evaluate, 1.0)
            steps += 1
        end = target.evaluate()
        points.append((value, end.objective, float(target.residual().max())))
        products += run.products
    return {"cpu_seconds": time.process_time() - cpu, "products": products, "points": points}


def followed(problem: Problem, fine: bool) -> dict[str, Any]:
    """The same points by `follow`."""
    cpu, points, events, products = time.process_time(), [], [], 0
    coarse: dict[str, Any] = {} if fine else {"eigenvalues": False}
    parts = (
        ("mu", DECAYS, math.log(1 / 0.75) * 1.01),
        ("effective_depth", LEAKS, 1.0),
    )
    for name, values, step in parts:
        if not fine:
            coarse |= {"step": step, "resolution": step}
        branch = follow(problem, name, values[-1], at=values[:-1], tolerance=TOLERANCE, **coarse)
        wanted = [min(branch.points, key=lambda p, v=value: abs(p.value - v)) for value in values]
        points += [(p.value, p.objective, p.residual) for p in wanted]
        events += [(e.kind.value, e.value) for e in branch.events]
        products += branch.products
        problem = branch.restore(-1)
    return {
        "cpu_seconds": time.process_time() - cpu,
        "products": products,
        "points": points,
        "events": events,
        "status": branch.status.value,
    }


def direct(problem: Problem, seed: int) -> dict[str, Any]:
    """Solved at μ = 0.01, L̃ = 4 at once, from the initial weights."""
    cpu = time.process_time()
    problem.model.reset_weights(seed)
    found = solve(problem.variant(mu=0.01), tolerance=TOLERANCE)
    assert found.certificate is not None
    point = (0.01, found.objective, found.certificate.residual_max)
    cpu = time.process_time() - cpu
    return {"cpu_seconds": cpu, "products": found.statistics["hessian_products"], "points": [point] * 7}


def main() -> None:
    """Run, print, write."""
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sharpness", type=float, default=20.0)
    parser.add_argument("--fine", action="store_true", help="also as `follow` comes")
    parser.add_argument("--direct", action="store_true", help="also solved at μ = 0.01 at once")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: dict[str, Any] = {}
    for seed in range(arguments.seeds):
        problem = start(seed, arguments.sharpness)
        W = problem.model.weight.detach().clone()
        ways = {"warm": lambda p: warm(p), "follow": lambda p: followed(p, False)}
        if arguments.fine:
            ways["fine"] = lambda p: followed(p, True)
        if arguments.direct:
            ways["direct"] = lambda p, seed=seed: direct(p, seed)
        row = rows[str(seed)] = {}
        for name, way in ways.items():
            problem.model.weight.data.copy_(W)
            found = row[name] = way(problem)
            jumps = sum(kind == "jump" for kind, _ in found.get("events", []))
            worst = max(residual for _, _, residual in found["points"])
            print(
                f"seed {seed} {name:<7}{found['cpu_seconds']:>8.1f} s {found['products']:>7} products, last objective "
                f"{found['points'][-1][1]:.6f}, at mu = 0.01 {found['points'][6][1]:.6f}, worst residual {worst:.1e}, "
                f"{jumps} jumps",
                flush=True,
            )
    write(arguments.json, {"threads": arguments.threads, "rows": rows})


if __name__ == "__main__":
    main()
