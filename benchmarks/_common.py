"""What every benchmark needs: interleaved timing, medians, and the machine and versions it ran on."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Processor, cores, load and versions: what a figure must be read with."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
    except OSError:
        pass
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("isthmus", "jax", "jaxlib", "torchdiffeq", "pytorch_optimizer", "singd"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "versions": versions,
    }


def interleaved(
    contestants: dict[str, Callable[[], object]], rounds: int, warm: int = 1, timed: int = 2
) -> dict[str, dict[str, list[float]]]:
    """Time contestants in turn, round by round: ``{name: {"wall": [...], "cpu": [...]}}``, seconds a call.

    In its turn each runs ``warm`` calls untimed, since the one before it has filled the cache, then ``timed`` calls.
    CPU time is that of the whole process: on one thread it leaves out what other processes took.
    """
    times: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in contestants}
    for call in contestants.values():
        call()
    for _ in range(rounds):
        for name, call in contestants.items():
            for _ in range(warm):
                call()
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(timed):
                call()
            times[name]["wall"].append((time.perf_counter() - wall) / timed)
            times[name]["cpu"].append((time.process_time() - cpu) / timed)
    return times


def summary(times: dict[str, dict[str, list[float]]], reference: str, clock: str) -> list[dict[str, Any]]:
    """Median and least milliseconds, and the ratio to the reference: median over rounds, quartiles, of the least.

    On a machine that others use as well, the ratio of the least times is what the others disturb least.
    """
    base = times[reference][clock]
    rows = []
    for name, both in times.items():
        ratios = sorted(own / ref for own, ref in zip(both[clock], base, strict=True))
        rows.append(
            {
                "contestant": name,
                "wall_ms": 1e3 * statistics.median(both["wall"]),
                "cpu_ms": 1e3 * statistics.median(both["cpu"]),
                "least_ms": 1e3 * min(both[clock]),
                "ratio": statistics.median(ratios),
                "ratio_quartiles": [ratios[len(ratios) // 4], ratios[(3 * len(ratios)) // 4]],
                "ratio_of_least": min(both[clock]) / min(base),
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print such rows as a table."""
    for row in rows:
        low, high = row["ratio_quartiles"]
        print(
            f"  {row['contestant']:34} {row['wall_ms']:10.2f} ms wall {row['cpu_ms']:10.2f} ms cpu "
            f"{row['ratio']:8.3f} ({low:.3f}-{high:.3f}), least {row['least_ms']:9.2f} ms, {row['ratio_of_least']:.3f}",
            flush=True,
        )


def options(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default=None, help="write all results here")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def write(path: str | None, results: dict[str, Any]) -> None:
    """Write the results, with the machine, where a path was given."""
    if path:
        Path(path).write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")
