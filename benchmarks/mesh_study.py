"""How fast do L layers approach the continuous flow? Numbers for docs/notes/log/two_ended.md.

One problem, one basin: a reference solution of fourth order is found first, and every other discretisation starts from
it. For the Euler network (a Leaky ResNet trained to its end), for Heun's scheme and for RK4, at L = 10, 20, 40, 80:
the spread of L̃H over nodes and over the staggered pairs, the distance of the path to the reference, the difference of
the objectives, the Hessian products, and the slopes fitted to each. Only Euler's pairs are staggered: for the other
schemes that column shows what the wrong pairing costs.

    python benchmarks/mesh_study.py --json out.json
"""

import argparse
import json
import math
import platform
import time

import torch

from isthmus import LeakyResNet, Problem, SmoothReLU, make_task
from isthmus.mechanics import scaled_hamiltonian
from isthmus.two_ended import TwoEnded, solve_on_mesh

MEASURES = ("spread", "spread_staggered", "path", "objective")


def equal(steps: int) -> torch.Tensor:
    """Equal steps."""
    return torch.full((steps,), 1 / steps, dtype=torch.float64)


def make_problem(arguments: argparse.Namespace) -> Problem:
    """A small teacher of hidden dimension k, seen through a smooth σ."""
    n = arguments.ends
    task = make_task("teacher", dims=(n, arguments.rank, n), train=arguments.samples, seed=arguments.seed)
    model = LeakyResNet(
        n,
        n,
        width=arguments.width,
        depth=10,
        effective_depth=arguments.effective_depth,
        activation=SmoothReLU(sharpness=arguments.sharpness),
        dtype=torch.float64,
    )
    return Problem(model, task.x_train, task.y_train, mu=arguments.mu)


def staggered_spread(solution: TwoEnded) -> float:
    """``max − min`` of L̃H over the pairs ``(A_{ℓ−1}, M_ℓ)``: what a table of mechanics shows of a network."""
    values = [
        scaled_hamiltonian(A, M, solution.effective_depth, solution.activation)
        for A, M in zip(solution.A[:-1], solution.M[1:], strict=True)
    ]
    return max(values) - min(values)


def measure(solution: TwoEnded, reference: TwoEnded, seconds: float) -> dict[str, object]:
    """One row."""
    A, _ = reference.at(solution.positions.clamp(max=1))
    return {
        "order": solution.order,
        "steps": len(solution.steps),
        "status": solution.status.value,
        "residual": solution.residual,
        "spread": solution.hamiltonian_spread,
        "spread_staggered": staggered_spread(solution),
        "path": float(((solution.A - A).norm(dim=(1, 2)) / A.norm(dim=(1, 2))).max()),
        "objective": abs(solution.objective - reference.objective),
        "defect": float(solution.defect.max()),
        "products": solution.products,
        "seconds": seconds,
    }


def slope(rows: list[dict[str, object]], name: str) -> float:
    """Least-squares slope of the last three rows, in logarithms."""
    x = torch.tensor([math.log(float(r["steps"])) for r in rows[-3:]])  # type: ignore[arg-type]
    y = torch.tensor([math.log(float(r[name])) for r in rows[-3:]])  # type: ignore[arg-type]
    return -float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def main() -> None:
    """Solve, print a table, fit slopes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ends", type=int, default=4)
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--effective-depth", type=float, default=3.0)
    parser.add_argument("--mu", type=float, default=0.02)
    parser.add_argument("--sharpness", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", type=int, default=80, help="steps of the reference, of order 4")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 40, 80])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default=None, help="write all rows here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    problem = make_problem(arguments)
    started = time.perf_counter()
    first = solve_on_mesh(problem, None, equal(10), order=4, residual_tol=1e-9, budget=100_000)
    reference = solve_on_mesh(problem, first, equal(arguments.reference), order=4, residual_tol=1e-11)
    print(
        f"reference: {reference.message}; {first.products} products before it, {time.perf_counter() - started:.0f} s; "
        f"L̃H = {float(reference.scaled_hamiltonian.median()):.6f} ± {reference.hamiltonian_spread:.1e}, "
        f"objective {reference.objective:.9f}",
        flush=True,
    )
    print("order steps  spread L̃H  staggered  path       objective  products  seconds")
    rows, slopes = [], {}
    for order in (1, 2, 4):
        own = []
        for steps in arguments.steps:
            if order == 4 and 2 * steps > arguments.reference:
                continue  # the reference itself would be measured
            began = time.perf_counter()
            solution = solve_on_mesh(problem, reference, equal(steps), order=order, residual_tol=1e-10)
            row = measure(solution, reference, time.perf_counter() - began)
            own.append(row)
            print(
                f"{order:<5} {steps:<5}  {row['spread']:.2e}   {row['spread_staggered']:.2e}   {row['path']:.2e}   "
                f"{row['objective']:.2e}   {row['products']:<8}  {row['seconds']:.1f}  {row['status']}",
                flush=True,
            )
        slopes[order] = {name: slope(own, name) for name in MEASURES}
        print(f"      slopes {', '.join(f'{k} {v:.2f}' for k, v in slopes[order].items())}", flush=True)
        rows += own
    if arguments.json:
        about = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
        settings = {k: v for k, v in vars(arguments).items() if k != "json"}
        result = {
            **about,
            "settings": settings,
            "reference_objective": reference.objective,
            "rows": rows,
            "slopes": slopes,
        }
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
