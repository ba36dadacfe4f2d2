"""Throughput of an ensemble against as many runs in turn: steps of Adam and of Muon, members per second.

    python benchmarks/ensemble.py --json ensemble.json
    python benchmarks/ensemble.py --device cuda --members 64 --shapes 100,1000,20 --dtype float32

Shapes are width,samples,layers. Both train the same members for a few steps, one after the other in each round; ratios
above 1 say that the ensemble is faster. Some share of what a large matrix product reaches on the same device is given
as well. With --groups, members evaluated at a time are varied: what `CPU_GROUP_BYTES` was chosen by.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _common import options, write

from isthmus import LeakyResNet, Problem, Trainer
from isthmus.ensemble import EnsembleProblem, EnsembleTrainer
from isthmus.solve import Stage

SHAPES = ("100,1000,20", "32,200,10", "16,64,8")


def problems(shape: tuple[int, int, int], members: int, dtype: torch.dtype, device: str) -> list[Problem]:
    """Members that differ in seed, data, L̃ and μ."""
    width, samples, layers = shape
    ends, found = min(30, width // 2), []
    for seed in range(members):
        model = LeakyResNet(
            ends, ends, width=width, depth=layers, effective_depth=3.0 + seed % 4, seed=seed, dtype=dtype, device=device
        )
        x, y = torch.randn(2, samples, ends, generator=torch.Generator().manual_seed(seed)).unbind()
        found.append(Problem(model, x, y, mu=1e-3 * (1 + seed % 3)))
    return found


def seconds(call: Callable[[], object], device: str) -> float:
    """Wall time, or on a CPU with one thread that of the process alone."""
    alone = device == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    if device != "cpu":
        torch.cuda.synchronize()
    started = clock()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - started


def peak(dtype: torch.dtype, device: str) -> float:
    """Operations a second of a product of large square matrices."""
    size = 1024 if device == "cpu" else 8192
    a, b = torch.randn(2, size, size, dtype=dtype, device=device).unbind()
    return 2 * size**3 / min(seconds(lambda: torch.mm(a, b), device) for _ in range(5))


def main() -> None:
    """Measure all shapes and print a table."""
    parser = options(__doc__)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="WIDTH,SAMPLES,LAYERS")
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--groups", type=int, nargs="*", default=[0], help="members at a time; 0: the default")
    parser.add_argument("--optimisers", nargs="+", default=["adam", "muon"])
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype, device, members = getattr(torch, arguments.dtype), arguments.device, arguments.members
    results: list[dict[str, Any]] = []
    for text in arguments.shapes:
        width, samples, layers = (int(n) for n in text.split(","))
        made = problems((width, samples, layers), members, dtype, device)
        flops = 2 * width * (width + 1) * samples * layers * 3 * members * arguments.steps
        for optimiser in arguments.optimisers:
            stages = (Stage(optimiser, arguments.steps, 1e-4, cosine=False),)
            # a log row only at both ends: what is timed are steps
            each = [Trainer(p, stages, log_every=10**9) for p in made]
            ensembles = {group: EnsembleProblem(made, group or None) for group in arguments.groups}
            times: dict[str, list[float]] = {"in turn": [], **{f"group {e.group}": [] for e in ensembles.values()}}
            for _ in range(arguments.rounds):
                times["in turn"].append(
                    seconds(lambda e=each: [[t.step() for _ in range(arguments.steps)] for t in e], device)
                )
                each = [Trainer(p, stages, log_every=10**9) for p in made]
                for ensemble in ensembles.values():
                    trainer = EnsembleTrainer(ensemble, stages, log_every=10**9)
                    # two log rows are two evaluations that the runs in turn do not make
                    extra = seconds(lambda e=ensemble: (e.evaluate(), e.evaluate()), device)
                    times[f"group {ensemble.group}"].append(seconds(trainer.run, device) - extra)
            best = peak(dtype, device)
            for name, values in times.items():
                ratios = [a / b for a, b in zip(times["in turn"], values, strict=True)]
                row = {
                    "width": width, "samples": samples, "layers": layers, "members": members, "optimiser": optimiser,
                    "contestant": name, "seconds": statistics.median(values), "faster": statistics.median(ratios),
                    "member_steps_per_second": members * arguments.steps / statistics.median(values),
                    "share_of_large_product": flops / statistics.median(values) / best,
                }  # fmt: skip
                results.append(row)
                print(
                    f"{text:14} {optimiser:5} {name:10} {row['member_steps_per_second']:9.1f} member steps/s   "
                    f"{row['faster']:6.2f} x in turn   {100 * row['share_of_large_product']:5.1f} % of a large product",
                    flush=True,
                )
    settings = {"dtype": arguments.dtype, "device": device, "steps": arguments.steps, "rounds": arguments.rounds}
    write(arguments.json, {"benchmark": "ensemble", **settings, "rows": results})


if __name__ == "__main__":
    main()
