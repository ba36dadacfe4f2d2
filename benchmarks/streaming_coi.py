"""What a cost of identity costs: streaming moments against the bare pass S Sᵀ, and against torch.linalg.pinv.

    OMP_NUM_THREADS=1 python benchmarks/streaming_coi.py --samples 1000000 --width 512 --json out.json

Contestants take the same float32 rows in turns, a segment each, so that a busy machine is busy for all; a contestant's
time is the sum of its segments and of what it needs at the end, by the clock and (all threads together) of the CPU: on
a busy machine with one thread the latter is the steadier. ``pass`` is what people write, a loop over chunks with
``G += S.T @ S`` in PyTorch; ``numpy pass`` lets BLAS use the symmetry, as `isthmus.probe.gram` does. "coi" contestants
give the cost of identity, exact and stable; the others all quantities of `LayerMoments.quantities`.

Threads: set OMP_NUM_THREADS, which PyTorch and NumPy both heed (torch.set_num_threads does not reach NumPy's BLAS).
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy
import torch
from torch import Tensor

from isthmus.activations import ReLU
from isthmus.probe.moments import STATES, LayerMoments

CHUNK = 8192
F32, F64 = torch.float32, torch.float64
METHODS: dict[str, dict[str, Any]] = {
    "gram float32, coi": {"method": "gram", "dtype": F32, "spectra": False},
    "gram float64, coi": {"method": "gram", "spectra": False},
    "gram float32, all": {"method": "gram", "dtype": F32},
    "gram float64, all": {"method": "gram"},
    "qr, all": {"method": "qr"},
}


def data(samples: int, width: int) -> Tensor:
    """Float32 rows with a mean, and scales from 1 down to 0.1."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(samples, width, generator=generator)
    rows += 0.2
    return rows.mul_(torch.logspace(0, -1, width))


class Pass:
    """S Sᵀ alone."""

    def __init__(self, width: int, dtype: torch.dtype, by_numpy: bool = False) -> None:
        self.G, self.dtype, self.by_numpy = torch.zeros(width, width, dtype=dtype), dtype, by_numpy

    def update(self, rows: Tensor) -> None:
        """One chunk."""
        S = rows.to(self.dtype).clamp_min(0)
        if self.by_numpy:
            self.G += torch.from_numpy(numpy.dot(S.numpy().T, S.numpy()))
        else:
            self.G.addmm_(S.T, S)

    def finish(self) -> dict[str, float]:
        """Nothing."""
        return {}


class Ours:
    """`LayerMoments`, to the cost of identity alone or to all quantities."""

    def __init__(self, width: int, name: str) -> None:
        self.moments, self.only_coi = LayerMoments(width, ReLU(), **METHODS[name]), name.endswith("coi")

    def update(self, rows: Tensor) -> None:
        """One chunk."""
        self.moments.update(rows)

    def finish(self) -> dict[str, float]:
        """The numbers."""
        if not self.only_coi:
            return self.moments.quantities()
        projection = self.moments._sums.project((STATES,))
        return {
            "coi": projection.inner(),
            "coi_stable": projection.stable(),
            "coi_error": projection.error(),
            "coi_stable_error": projection.stable_error(),
        }


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def race(rows: Tensor, segments: int, methods: list[str]) -> dict[str, Any]:
    """All contestants, a segment each in turn; the last method is taken for exact."""
    width = rows.shape[1]
    field: dict[str, Any] = {
        "pass float32": Pass(width, F32),
        "pass float64": Pass(width, F64),
        "numpy pass float32": Pass(width, F32, True),
        "numpy pass float64": Pass(width, F64, True),
    } | {name: Ours(width, name) for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in field}
    cpu = dict.fromkeys(field, 0.0)

    def feed(one: Any, part: Tensor) -> None:
        for chunk in part.split(CHUNK):
            one.update(chunk)

    for one in (Pass(width, F32), *(Ours(width, name) for name in methods)):  # warm up
        feed(one, rows[:CHUNK])
    for part in rows.tensor_split(segments):
        for name, one in field.items():
            busy = time.process_time()
            seconds[name].append(timed(partial(feed, one, part))[0])
            cpu[name] += time.process_time() - busy
    found: dict[str, Any] = {}
    for name, one in field.items():
        busy = time.process_time()
        end, values = timed(one.finish)
        cpu[name] += time.process_time() - busy
        keep = {key: values[key] for key in ("coi", "coi_stable", "coi_error", "coi_stable_error") if key in values}
        found[name] = {"seconds": sum(seconds[name]) + end, "segments": seconds[name], "finish": end} | keep
        found[name]["cpu_seconds"] = cpu[name]
    for name, entry in found.items():
        entry["microseconds_per_row"] = entry["seconds"] / len(rows) * 1e6
        dtype = "float32" if "float32" in name else "float64"
        for label, base in (("same dtype", dtype), ("float64", "float64")):
            for kind in ("pass", "numpy pass"):
                reference = found[f"{kind} {base}"]
                entry[f"over {kind}, {label}"] = entry["seconds"] / reference["seconds"]
                ratios = [a / b for a, b in zip(entry["segments"], reference["segments"], strict=True)]
                entry[f"cpu over {kind}, {label}"] = entry["cpu_seconds"] / reference["cpu_seconds"]
                entry[f"median segment over {kind}, {label}"] = statistics.median(ratios)
        if "coi" in entry:
            for key in ("coi", "coi_stable"):
                exact = found[methods[-1]][key]
                entry[f"{key} off"] = abs(entry[key] - exact) / exact
    return found


def against_pinv(width: int, budget: float, repeats: int = 3) -> list[dict[str, float]]:
    """‖A‖_K² by ``pinv(K)``, N×N, as defined, at doubled N while the next is expected within the budget."""
    found, samples, last = [], 512, 0.0
    while samples == 512 or 9 * last < budget:
        rows = data(samples, width).double()
        S = ReLU().features(rows)
        K = S @ S.T
        entry: dict[str, float] = {"samples": samples}
        last, inverse = timed(partial(torch.linalg.pinv, K))
        entry["pinv(K)"] = last
        entry["pinv(K, hermitian)"] = timed(partial(torch.linalg.pinv, K, hermitian=True))[0]
        entry["pinv(S), N x (w + 1)"] = timed(partial(torch.linalg.pinv, S))[0]
        entry["coi by pinv(K)"] = float((rows * (inverse @ rows)).sum())
        for name in METHODS:

            def once(name: str = name, rows: Tensor = rows) -> dict[str, float]:
                ours = Ours(width, name)
                ours.update(rows)
                return ours.finish()

            runs = [timed(once) for _ in range(repeats)]
            entry[name] = statistics.median(run[0] for run in runs)
            entry[f"{name}: coi"] = runs[0][1]["coi"]
            entry[f"pinv(K) over {name}"] = last / entry[name]
        found.append(entry)
        samples *= 2
    return found


def child(name: str, samples: int, width: int) -> None:
    """Print the peak memory that a pass over rows made on the way takes beyond what was there before, in MiB."""
    chunk = data(CHUNK, width)
    ours = Ours(width, name)
    ours.update(chunk[:64])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(max(1, samples // CHUNK)):
        ours.update(chunk)
    ours.finish()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def memory(width: int, samples: int) -> Iterator[dict[str, Any]]:
    """Peak memory of one method in a process of its own, at two numbers of rows."""
    for name in ("gram float32, coi", "gram float64, all", "qr, all"):
        for rows in (samples // 8, samples):
            command = [sys.executable, __file__, "--child", name, "--samples", str(rows), "--width", str(width)]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            yield {"method": name, "samples": rows, "mebibytes": float(out)}


def blocks(width: int) -> list[dict[str, float]]:
    """Microseconds a row of the QR against the rows of a block, in units of its columns; medians of 3, interleaved."""
    columns = 2 * width + 1
    factors, runs = (1, 2, 4, 8), 3
    rows = data(16 * columns, width)
    taken: dict[int, list[float]] = {factor: [] for factor in factors}
    for _ in range(runs):
        for factor in factors:
            moments = LayerMoments(width, block_rows=factor * columns)
            moments.update(rows[: 2 * columns])
            taken[factor].append(timed(partial(moments.update, rows))[0])
    return [
        {"width": width, "factor": f, "microseconds_per_row": statistics.median(t) / len(rows) * 1e6}
        for f, t in taken.items()
    ]


def machine() -> dict[str, Any]:
    """What ran it."""
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.startswith("model name")]
        model = lines[0].split(":")[1].strip() if lines else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def main() -> None:
    """Run what was asked for and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--segments", type=int, default=5, help="turns that contestants take")
    parser.add_argument("--pinv-seconds", type=float, default=30.0, help="longest run of pinv to begin; 0: none")
    parser.add_argument("--memory-samples", type=int, default=131_072, help="rows of the memory runs; 0: none")
    parser.add_argument("--blocks", action="store_true", help="also QR against the rows of a block")
    parser.add_argument("--no-qr", action="store_true", help="leave the slowest contestant out of the race")
    parser.add_argument("--coi-only", action="store_true", help="race the contestants for the cost of identity alone")
    parser.add_argument("--json", default=None, help="write everything here")
    parser.add_argument("--child", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(arguments.child, arguments.samples, arguments.width)
    report: dict[str, Any] = {"machine": machine(), "samples": arguments.samples, "width": arguments.width}
    print(report["machine"])
    if arguments.blocks:
        report["blocks"] = blocks(64) + blocks(arguments.width)
        for row in report["blocks"]:
            print(
                f"qr, width {row['width']}, block {row['factor']} x columns: {row['microseconds_per_row']:.1f} us a row"
            )
    if arguments.memory_samples:
        report["memory"] = list(memory(arguments.width, arguments.memory_samples))
        for row in report["memory"]:
            print(f"{row['method']}: {row['mebibytes']:.0f} MiB at {row['samples']} rows")
    if arguments.pinv_seconds:
        report["pinv"] = against_pinv(arguments.width, arguments.pinv_seconds)
        for row in report["pinv"]:
            print("  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    methods = [name for name in METHODS if not (arguments.no_qr and name.startswith("qr"))]
    methods = [name for name in methods if not (arguments.coi_only and not name.endswith("coi"))]
    report["race"] = race(data(arguments.samples, arguments.width), arguments.segments, methods)
    print(f"{'':20}{'seconds':>9}{'us/row':>8}   over pass: same dtype (CPU), float64; over numpy's; coi, stable off")
    for name, row in report["race"].items():
        print(
            f"{name:20}{row['seconds']:9.2f}{row['microseconds_per_row']:8.2f}{row['over pass, same dtype']:15.2f}"
            f" ({row['cpu over pass, same dtype']:.2f})"
            f"{row['over pass, float64']:10.2f}{row['over numpy pass, same dtype']:12.2f}"
            + (f"     {row['coi off']:.1e}  {row['coi_stable off']:.1e}" if "coi" in row else "")
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(report, file, indent=1)
    return None


if __name__ == "__main__":
    main()
