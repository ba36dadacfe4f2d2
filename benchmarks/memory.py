"""What recomputing costs: time of a step and peak memory, for each choice of ``Problem(memory=...)``.

    python benchmarks/memory.py --json memory.json
    python benchmarks/memory.py --shape 256,10000,1000 --choices recompute 4000000000 --steps 2

Shape is width,samples,layers. Every choice runs in a process of its own, since peak memory (ru_maxrss) is a process's;
with several rounds they take turns. What the parameters, their gradients and Adam's memory take is in it.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from _common import options, write


def one(shape: str, choice: str, steps: int, threads: int) -> None:
    """Train for `steps` steps, and print what they took."""
    import torch

    from isthmus import LeakyResNet, Problem, Trainer
    from isthmus.optimise import Adam
    from isthmus.solve import Stage

    torch.set_num_threads(threads)
    width, samples, layers = (int(n) for n in shape.split(","))
    empty = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = LeakyResNet(30, 30, width=width, depth=layers, effective_depth=7.0)
    torch.manual_seed(0)
    memory: Any = int(choice) if choice.isdigit() else choice
    problem = Problem(model, torch.randn(samples, 30), torch.randn(samples, 30), memory=memory)
    trainer = Trainer(problem, (Stage(Adam(), steps + 1, 1e-3, cosine=False),), log_every=10**9)
    walls, cpus, objectives = [], [], []
    for step in range(steps + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        objectives.append(trainer.step().objective)
        if step > 0:  # the first touches every page of the buffers
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    flow = next(iter(problem._workspaces.values()))
    print(
        json.dumps(
            {
                "segment": getattr(flow, "segment", None),
                "wall_seconds": walls,
                "cpu_seconds": cpus,
                "objectives": objectives,
                "peak_bytes": peak * 1024,
                "bytes_before": empty * 1024,
                "parameter_bytes": model.weight.nbytes,
            }
        )
    )


def main() -> None:
    """Run every choice in turn and print a table."""
    parser = options(__doc__)
    parser.add_argument("--shape", default="100,1000,200", metavar="WIDTH,SAMPLES,LAYERS")
    parser.add_argument("--choices", nargs="+", default=["store", "recompute", "40000000"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", default=None, help="(for the script itself: run this choice here)")
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.shape, arguments.one, arguments.steps, arguments.threads)
        return
    runs: dict[str, list[dict[str, Any]]] = {choice: [] for choice in arguments.choices}
    for _ in range(arguments.rounds):
        for choice, found in runs.items():
            command = [sys.executable, __file__, "--one", choice, "--shape", arguments.shape]
            command += ["--steps", str(arguments.steps), "--threads", str(arguments.threads)]
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    clock = "cpu_seconds" if arguments.threads == 1 else "wall_seconds"
    medians = {choice: statistics.median(t for run in found for t in run[clock]) for choice, found in runs.items()}
    rows = []
    for choice, found in runs.items():
        row = {
            "choice": choice,
            "segment": found[0]["segment"],
            "seconds": medians[choice],
            "ratio": medians[choice] / next(iter(medians.values())),
            "peak_gigabytes": max(run["peak_bytes"] for run in found) / 1e9,
            "parameter_gigabytes": found[0]["parameter_bytes"] / 1e9,
            "objectives": found[0]["objectives"],
            "runs": found,
        }
        rows.append(row)
        print(
            f"{choice:12} segment {row['segment'] or '-':>5}   {row['seconds']:9.3f} s a step, {row['ratio']:.2f} x "
            f"the first   peak {row['peak_gigabytes']:.2f} GB, parameters {row['parameter_gigabytes']:.3f} GB"
        )
    settings = {"shape": arguments.shape, "steps": arguments.steps, "rounds": arguments.rounds, "clock": clock}
    write(arguments.json, {"benchmark": "memory", **settings, "rows": rows})


if __name__ == "__main__":
    main()
