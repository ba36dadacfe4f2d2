"""How long to the objective at which the paper's recipe ends; and how far in the recipe's own time.

Task of the paper's Figure 1: teacher 30→3→30, w = 100, L = 20, L̃ = 7, N = 1000, μ = 0.001, ReLU, float32. For every
seed (teacher and network) the contestants run in turn in one process: the recipe (Adam 5000, SGD 1000), ours, and what
a user would pick instead (`_peers.py`).
Rules, written before measuring:

- *time to objective*: ours runs the recipe `fast`; its clock stops at the first step whose full objective (over all
  rows; every step of its last stage evaluates it) is at or below where the recipe ended. Set-up and first stages, on
  part of the rows, count; making the data does not. Neither writes history. Ours runs three times; the median counts.
- *in the recipe's own time*: the same optimiser with its long memory runs for as many seconds as the recipe took.
- *peers*: the same network, initial weights and objective, full batch, by automatic differentiation of an eager loop;
  the clock stops where their objective is at or below the target, which every step evaluates. Rate, and steps over
  which it falls to 0 along a cosine, are chosen from a small grid by --tune, on seeds 0 and 1. A peer is stopped at
  --limit times our seconds: its ratio is then a lower bound. *With our step*: its seconds if its gradients cost what
  ours do. Those that cannot be imported are left out, and named.
- *ten times as long*: with --long the recipe runs with ten times the steps, on the first seed.

Seconds are given by the clock and of the processor; on a shared machine the second, on one thread, is the one to read.
Medians over seeds, with minimum and maximum; a seed that does not get there counts as infinite.

    pip install -c constraints.txt -r benchmarks/requirements-peers.txt                 # SOAP, Shampoo, K-FAC
    python benchmarks/time_to_objective.py --seeds 5 --threads 2 --json out.json
    python benchmarks/time_to_objective.py --first-seed 20 --own-time 0 --threads 1     # seeds nothing was tuned on
"""

import math
import statistics
import time
from typing import Any

import torch
from _common import options, write
from _peers import CHOSEN, PEERS, choose, missing, race

from isthmus import LeakyResNet, Problem, Trainer, make_task, recipe
from isthmus.optimise import LBFGS
from isthmus.solve import Stage, solve

REPEATS = 3  # runs of `fast` on a seed


def problem(seed: int) -> Problem:
    """The task and the network of one seed."""
    task = make_task("teacher", dims=(30, 3, 30), seed=seed)
    model = LeakyResNet(30, 30, width=100, depth=20, effective_depth=7.0, seed=seed)
    return Problem(model, task.x_train.float(), task.y_train.float(), mu=1e-3)


def run_recipe(seed: int, scale: float) -> dict[str, float]:
    """The paper's recipe with its steps multiplied; its history is not timed."""
    trainer = Trainer(problem(seed), recipe("paper", round(6000 * scale)), log_every=10**9)
    started, cpu = time.perf_counter(), time.process_time()
    trainer.run()
    end = trainer.history[-1]
    return {
        "objective": end["objective"],
        "residual_max": end["residual_max"],
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
    }


def time_to(seed: int, target: float) -> dict[str, float]:
    """Seconds and steps of `fast` to a full objective at or below a target, which a network of float64 confirms."""
    started, cpu = time.perf_counter(), time.process_time()
    ours = problem(seed)
    trainer = Trainer(ours, recipe("fast"), log_every=10**9)
    first = sum(stage.steps for stage in trainer.stages[:-1])
    while not trainer.done:
        value = trainer.step().objective
        if trainer.step_count > first and value <= target:
            found = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
            confirmed = ours.geodesic().objective
            if not confirmed <= target * (1 + 1e-5):
                raise SystemExit(f"seed {seed}: the objective is {confirmed}, not {value}")
            return found | {"steps": trainer.step_count, "objective": value}
    return {"seconds": math.inf, "cpu_seconds": math.inf, "steps": math.inf, "objective": math.inf}


def evaluation_seconds(seed: int, threads: int) -> float:
    """Seconds of one of our evaluations: the least of ten."""
    fresh, times = problem(seed), []
    clock = time.process_time if threads == 1 else time.perf_counter
    for _ in range(10):
        before = clock()
        fresh.evaluate()
        times.append(clock() - before)
    return min(times)


def one_peer(name: str, seed: int, target: float, ours: dict[str, float], limit: float) -> dict[str, float]:
    """One peer on one seed: what `race` found, and how many times our seconds it took, or took at least."""
    threads = torch.get_num_threads()
    base = ours["cpu_seconds"] if threads == 1 else ours["seconds"]
    found = race(PEERS[name], CHOSEN[name], problem(seed), target, limit * base)
    reached = math.isfinite(found["seconds"])
    ratio = found["spent"] / base if reached or found["censored"] else math.inf
    step = found["gradients"] - found["steps"] * evaluation_seconds(seed, threads)
    found |= {"ratio": ratio, "with_our_step": (found["spent"] - step) / base if reached else ratio}
    words = f"{found['spent']:.2f} s and {found['steps']} steps: {ratio:.1f} times ours"
    words += f", {found['with_our_step']:.1f} with our step"
    if not reached:
        ended = (
            "does not get there" if found["steps"] >= CHOSEN[name].steps else f"diverges after {found['steps']} steps"
        )
        ended = f"stopped at {ratio:.1f} times ours" if found["censored"] else ended
        words = f"{ended}, least {found['least']:.4f}"
    print(f"seed {seed}: {name}: {words}", flush=True)
    return found


def one(seed: int, scale: float, peers: list[str], limit: float) -> dict[str, Any]:
    """All contestants on one seed, in turn."""
    theirs = run_recipe(seed, scale)
    # it is over in a moment: the median of a few, so that a moment's load does not decide
    several = [time_to(seed, theirs["objective"]) for _ in range(REPEATS)]
    ours = sorted(several, key=lambda found: found["cpu_seconds"])[REPEATS // 2]
    row: dict[str, Any] = {"seed": seed, "recipe": theirs, "fast": ours}
    row |= {"ratio": theirs["seconds"] / ours["seconds"], "cpu_ratio": theirs["cpu_seconds"] / ours["cpu_seconds"]}
    print(
        f"seed {seed}: recipe {theirs['objective']:.4f} in {theirs['seconds']:.1f} s ({theirs['cpu_seconds']:.1f} CPU);"
        f" fast is there in {ours['seconds']:.2f} s ({ours['cpu_seconds']:.2f} CPU) and {ours['steps']} steps:"
        f" {row['ratio']:.1f} times ({row['cpu_ratio']:.1f} CPU)",
        flush=True,
    )
    row["peers"] = {name: one_peer(name, seed, theirs["objective"], ours, limit) for name in peers}
    return row


def show_peers(rows: list[dict[str, Any]], peers: list[str]) -> None:
    """Times ours, a peer a line, and the best of them on every seed; a ratio that a limit cut off is a lower bound."""
    for kind in ("ratio", "with_our_step") if peers else ():
        values = {name: [row["peers"][name][kind] for row in rows] for name in peers}
        values["best peer"] = [min(of_seed) for of_seed in zip(*values.values(), strict=True)]
        for name, of_seeds in values.items():
            cut = sum(int(row["peers"][name]["censored"]) for row in rows) if name in peers else 0
            words = f"median {statistics.median(of_seeds):.1f}, {min(of_seeds):.1f} to {max(of_seeds):.1f}"
            print(f"{kind} to ours, {name}: {words}" + (f" ({cut} stopped: at least)" if cut else ""), flush=True)


def tune(names: list[str], targets: dict[int, float]) -> None:
    """Print the best setting of every peer's grid on these seeds."""
    for name in names:
        print(f"{name}: {choose(PEERS[name], problem, targets)}", flush=True)


def in_its_time(seed: int, seconds: float) -> dict[str, float]:
    """What L-BFGS in the Kronecker metric, begun as `fast` begins, reaches in the recipe's own time."""
    stages = [*recipe("fast")[:-1], Stage(LBFGS(), 100_000, projected=True)]
    found = solve(problem(seed), stages, seconds=seconds, log_every=1000, kink_width=0.0)
    return {"objective": found.objective, "residual_max": found.certificate.residual_max, "seconds": seconds}


def main() -> None:
    """Run, print, write."""
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.set_defaults(threads=torch.get_num_threads())
    parser.add_argument("--scale", type=float, default=1.0, help="times the recipe's 6000 steps (a quick look: 0.1)")
    parser.add_argument("--own-time", type=int, default=1, help="seeds for the run in the recipe's own time")
    parser.add_argument("--long", action="store_true", help="also the recipe with ten times the steps, first seed")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=[*PEERS, "none"])
    parser.add_argument("--limit", type=float, default=12.0, help="stop a peer at this multiple of our seconds")
    parser.add_argument("--tune", action="store_true", help="choose the peers' settings on seeds 0 and 1, and stop")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    peers = [name for name in given.peers if name != "none"]
    left_out = missing(peers)
    for name, why in left_out.items():
        print(f"left out: {name} ({why})", flush=True)
    peers = [name for name in peers if name not in left_out]
    if given.tune:
        return tune(peers, {seed: run_recipe(seed, given.scale)["objective"] for seed in (0, 1)})
    rows = [
        one(seed, given.scale, peers, given.limit) for seed in range(given.first_seed, given.first_seed + given.seeds)
    ]
    for row in rows[: given.own_time]:
        row["own_time"] = in_its_time(row["seed"], row["recipe"]["seconds"])
        print(f"seed {row['seed']}: in the recipe's time L-BFGS reaches {row['own_time']['objective']:.4f}", flush=True)
    if given.long:
        rows[0]["long"] = run_recipe(given.first_seed, 10 * given.scale)
        print(f"seed {given.first_seed}: ten times the steps end at {rows[0]['long']['objective']:.4f}", flush=True)
    for name in ("ratio", "cpu_ratio"):
        values = [row[name] for row in rows]
        print(
            f"{name}: median {statistics.median(values):.1f}, {min(values):.1f} to {max(values):.1f}, {len(rows)} seeds"
        )
    show_peers(rows, peers)
    chosen = {name: str(CHOSEN[name]) for name in peers}
    write(given.json, {"threads": given.threads, "settings": chosen, "left_out": left_out, "rows": rows})


if __name__ == "__main__":
    main()
