"""What a run ran on: versions, platform, threads, seed; and what changed when it was resumed."""

import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from isthmus import __version__

PACKAGES = (
    "torch",
    "numpy",
    "polars",
    "safetensors",
    "pydantic",
    "scikit-learn",
    "mlxtend",
    "mnist1d",
)

# Bits depend on these: sums are split by threads, kernels differ by version and device.
_DECISIVE = {
    "threads": "the number of threads",
    "device": "the device",
    "device_name": "the device's model",
    "machine": "the processor's kind",
    "torch": "the version of torch",
}


def package_version(name: str) -> str | None:
    """The installed version of a package, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def describe_environment(*, device: str, dtype: str, seed: int) -> dict[str, Any]:
    """Versions, platform, threads, precision, device, seed, command and the time, for environment.json."""
    import torch

    versions = {name: found for name in PACKAGES if (found := package_version(name)) is not None}
    return {
        "versions": {
            "python": platform.python_version(),
            "isthmus": __version__,
            **versions,
            "torch": str(torch.__version__),
        },
        "platform": platform.platform(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "seed": seed,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """What differs between two environments such that a resumed run may end in other bits, in words."""
    words = []
    for key, what in _DECISIVE.items():
        if key == "torch":
            old, new = (environment.get("versions", {}).get("torch") for environment in (before, now))
        else:
            old, new = before.get(key), now.get(key)
        if old is not None and old != new:
            words.append(f"{what} was {old} and is {new}")
    return tuple(words)


def resumed(before: Mapping[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The environment to record after a resumption: the first one, and the later ones in a list."""
    if not before:
        return now
    later = {key: value for key, value in now.items() if before.get(key) != value}
    return {**before, "resumed": [*before.get("resumed", ()), later]}
