"""Toy computations for `isthmus.sweeps`, in a module that processes can import."""

import os
import time
from pathlib import Path

import torch


def square(job, scratch, should_stop):
    """Notes that it ran; fails, dies or waits where its settings say so."""
    settings = job.settings
    with Path(settings["log"]).open("a") as log:
        log.write(f"{settings['x']}\n")
    with Path(settings["log"]).with_name("processes").open("a") as log:
        log.write(f"{os.getpid()}\n")
    if settings.get("fail"):
        raise ArithmeticError("no square today")
    if settings.get("die"):
        mark = Path(settings["log"]).with_name(f"died-{settings['x']}")
        if settings["die"] == "always" or not mark.exists():
            mark.touch()
            os._exit(9)
    until = time.monotonic() + settings.get("wait", 0)
    while time.monotonic() < until:
        if should_stop():
            return None
        time.sleep(0.01)
    return {"square": settings["x"] ** 2, "threads": torch.get_num_threads()}


def counted(job, scratch, should_stop):
    """Counts to ten, a file of its scratch folder at a time: goes on where it was stopped."""
    scratch.mkdir(parents=True, exist_ok=True)
    state = scratch / "count"
    count = int(state.read_text()) if state.exists() else 0
    while count < 10:
        if should_stop():
            return None
        count += 1
        state.write_text(str(count))
        with Path(job.settings["log"]).open("a") as log:
            log.write(f"{count}\n")
    return {"count": count}
