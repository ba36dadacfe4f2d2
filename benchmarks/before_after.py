"""Two versions of isthmus against each other, interleaved in one run: is anything slower than it was?

    git worktree add ../before d94e4f8
    python benchmarks/before_after.py --before ../before/src --threads 1 --json before_after.json

Each version is loaded by a process of its own. The two take turns, case by case and round by round, so that both see
the same load; ratios are after over before, round by round. On one thread of CPU time, else of wall time.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from _common import options, write

HERE = Path(__file__).resolve().parent.parent / "src"


def step(width: int, samples: int, depth: int, memory: str = "store", calls: int = 1) -> Callable[[], object]:
    """Objective and gradient on the full batch."""
    import torch

    from isthmus import LeakyResNet, Problem

    torch.manual_seed(0)
    model = LeakyResNet(30, 30, width=width, depth=depth, effective_depth=7.0)
    problem = Problem(model, torch.randn(samples, 30), torch.randn(samples, 30), memory=memory)
    return lambda: [problem.evaluate() for _ in range(calls)]


def products(width: int, samples: int, depth: int, calls: int = 1) -> Callable[[], object]:
    """The matrix products of `step` alone."""
    import torch

    torch.manual_seed(0)
    W, S = torch.randn(depth, width, width + 1), torch.randn(depth, width + 1, samples)
    G, pulled, gradient = torch.randn(width, samples), torch.empty(width, samples), torch.empty_like(W)

    def run() -> None:
        for _ in range(calls):
            for layer in range(depth):
                torch.mm(W[layer], S[layer], out=pulled)
            for layer in range(depth - 1, -1, -1):
                torch.mm(G, S[layer].T, out=gradient[layer])
                torch.mm(W[layer, :, :width].T, G, out=pulled)

    return run


def small(width: int = 40, samples: int = 200, seed: int = 0) -> Any:
    """The small case of docs/notes: 10→2→10, smooth, float64."""
    import torch

    from isthmus import LeakyResNet, Problem, SmoothReLU, make_task

    task = make_task("teacher", dims=(10, 2, 10), train=samples, test=10, seed=seed)
    activation = SmoothReLU(sharpness=20.0)
    model = LeakyResNet(10, 10, width=width, depth=20, effective_depth=4.0, activation=activation, seed=seed)
    model = model.to(torch.float64)
    return Problem(model, task.x_train.double(), task.y_train.double(), mu=0.01)


def newton(width: int, samples: int) -> Callable[[], object]:
    """`solve` to 1e-4 from a fresh network: L-BFGS, then Newton."""
    from isthmus.solve import solve

    def run() -> dict[str, float]:
        solution = solve(small(width, samples), "geodesic", steps=1500, tolerance=1e-4)
        return {
            "residual": solution.certificate.residual_max,
            "products": solution.statistics["hessian_products"],
            "objective": solution.objective,
        }

    return run


def ensemble(members: int) -> Callable[[], object]:
    """Objective and gradient of networks of width 16."""
    import torch

    from isthmus import LeakyResNet, Problem
    from isthmus.ensemble import EnsembleProblem

    torch.manual_seed(0)
    x, y = torch.randn(200, 8), torch.randn(200, 8)
    models = [LeakyResNet(8, 8, width=16, depth=20, effective_depth=5.0, seed=seed) for seed in range(members)]
    problem = EnsembleProblem([Problem(model, x, y) for model in models])
    return lambda: [problem.evaluate() for _ in range(5)]


def probe(width: int, samples: int) -> Callable[[], object]:
    """`probe` of a plain network, every column read."""
    import torch

    from isthmus.probe import probe as run_probe

    torch.manual_seed(0)
    layers = [part for _ in range(6) for part in (torch.nn.Linear(width, width), torch.nn.ReLU())]
    net, x = torch.nn.Sequential(*layers), torch.randn(samples, width)
    return lambda: str(run_probe(net, x))


def two_ended(steps: int, order: int) -> Callable[[], object]:
    """The two-ended equations on one mesh, from a trained network."""
    import torch

    from isthmus import Trainer, recipe
    from isthmus.two_ended import solve_on_mesh

    problem = small(24, 60)
    Trainer(problem, recipe("fast", steps=100)).run()
    start, mesh = problem.geodesic(), torch.full((steps,), 1 / steps, dtype=torch.float64)

    def run() -> dict[str, float]:
        solution = solve_on_mesh(problem, start, mesh, order=order)
        return {"residual": solution.residual, "products": solution.products, "objective": solution.objective}

    return run


CASES: dict[str, tuple[Callable[..., Callable[[], object]], tuple[Any, ...], int]] = {
    "products, w 100, L 20": (products, (100, 1000, 20, 5), 30),
    "step, w 100, L 20": (step, (100, 1000, 20, "store", 5), 30),
    "step, w 100, L 200": (step, (100, 1000, 200), 15),
    "step, w 512, N 4096": (step, (512, 4096, 20), 5),
    "step in less memory, L 200": (step, (100, 1000, 200, "recompute"), 10),
    "ensemble of 64, w 16": (ensemble, (64,), 15),
    "solve, 10-2-10, w 40": (newton, (40, 200), 3),
    "two-ended, Euler, 20": (two_ended, (20, 1), 3),
    "two-ended, Heun, 20": (two_ended, (20, 2), 3),
    "probe, w 128": (probe, (128, 2000), 5),
}
"""Name: factory, its arguments, rounds."""


def work(threads: int) -> None:
    """The worker: makes the cases it is named on standard input, runs each once a line, answers with seconds."""
    import torch

    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    made: dict[str, Callable[[], object]] = {}
    for line in sys.stdin:
        name = json.loads(line)
        if name not in made:
            made.clear()
            factory, arguments, _ = CASES[name]
            made[name] = factory(*arguments)
            if CASES[name][2] > 3:
                made[name]()  # the first call fills caches and buffers
        begun = clock()
        said = made[name]()
        print(json.dumps({"seconds": clock() - begun, "said": said if isinstance(said, dict) else {}}), flush=True)


def start(source: str, threads: int) -> "subprocess.Popen[str]":
    """A worker that imports isthmus from a folder."""
    import os

    environment = os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--work", "--threads", str(threads)]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker: "subprocess.Popen[str]", name: str) -> dict[str, Any]:
    """One run of one case."""
    assert worker.stdin is not None and worker.stdout is not None
    print(json.dumps(name), file=worker.stdin, flush=True)
    answer = worker.stdout.readline()
    if not answer:
        raise SystemExit(f"a worker ended in {name!r}: see its error above")
    found: dict[str, Any] = json.loads(answer)
    return found


def main() -> None:
    """Time all cases and print a table."""
    parser = options(__doc__)
    parser.add_argument("--before", help="folder src of the older version")
    parser.add_argument("--after", default=str(HERE), help="folder src of the newer one; this checkout's by default")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--rounds", type=float, default=1.0, help="factor on the rounds of every case")
    parser.add_argument("--work", action="store_true", help="be a worker (used by the benchmark itself)")
    arguments = parser.parse_args()
    if arguments.work:
        return work(arguments.threads)
    if arguments.before is None:
        parser.error("name the older version: --before ../before/src")
    workers = [start(source, arguments.threads) for source in (arguments.before, arguments.after)]
    rows = []
    print(f"{'case':28s} {'before':>10s} {'after':>10s} {'ratio':>7s}   quartiles")
    for name in arguments.cases:
        times: list[list[float]] = [[], []]
        said: list[dict[str, Any]] = [{}, {}]
        for turn in range(max(3, round(CASES[name][2] * arguments.rounds))):
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                answer = ask(workers[side], name)
                times[side].append(answer["seconds"])
                said[side] = answer["said"]
        ratios = sorted(after / before for before, after in zip(*times, strict=True))
        low, high = ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]
        row = {"case": name, "before": median(times[0]), "after": median(times[1]), "ratio": median(ratios)}
        rows.append(row | {"quartiles": [low, high], "said": said, "least": [min(times[0]), min(times[1])]})
        before, after = (f"{1e3 * row[side]:8.1f}ms" for side in ("before", "after"))  # type: ignore[operator]
        extra = "" if not said[0] else f"   {said[0]} -> {said[1]}"
        print(f"{name:28s} {before} {after} {row['ratio']:7.3f}   {low:.3f}-{high:.3f}{extra}", flush=True)
    for worker in workers:
        worker.kill()
    write(arguments.json, {"benchmark": "before_after", "threads": arguments.threads, "rows": rows})


if __name__ == "__main__":
    main()
