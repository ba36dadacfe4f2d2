"""Killing the real command at several moments; whatever is left must resume to the same bits."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import isthmus.cli
from isthmus.cli.main import app
from isthmus.runs import RunConfig, RunFolder, execute, load_run_model
from isthmus.runs.folder import free_folder

COMMAND = [sys.executable, "-c", "from isthmus.cli.main import main; main()", "train", "--no-report"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(isthmus.cli.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
TINY = (
    *("--dims", "6,2,6", "--hidden", "8", "--train", "60", "--test", "30", "--threads", "1"),
    *("--width", "12", "--depth", "6", "--effective-depth", "3", "--dtype", "float64"),
)
LONG = ("--steps", "300", "--log-every", "1", "--checkpoint-every", "50")


def start(folder, *options):
    return subprocess.Popen(
        [*COMMAND, "--out", str(folder), *options],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(process, text):
    """Read the standard error up to a line with a text; false where the process ended before."""
    return any(text in line for line in process.stderr)


def finish(process):
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run, in this process."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.raises(SystemExit) as stopped:
        app(["train", "--out", str(folder), "--quiet", "--no-report", *TINY, *LONG])
    assert stopped.value.code == 0
    return folder


def equal_runs(folder, other):
    mine, theirs = load_run_model(folder).state_dict(), load_run_model(other).state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("moment", ["run folder:", "step 30/", "step 150/", "step 300/"])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, whole, moment):
    folder = tmp_path / "run"
    process = start(folder, *TINY, *LONG)
    wait_for(process, moment)
    process.kill()
    finish(process)
    config = RunConfig.from_yaml(whole / "config.yaml")
    outcome = execute(config, folder, resume=True)
    assert outcome.status == "done"
    assert equal_runs(folder, whole)
    assert not [entry for entry in folder.iterdir() if entry.suffix == ".tmp"]


def test_killed_twice_and_resumed_by_the_command(tmp_path, whole):
    folder = tmp_path / "run"
    process = start(folder, *TINY, *LONG)
    wait_for(process, "step 75/")
    process.kill()
    finish(process)
    assert RunFolder(folder).has_checkpoint
    process = start(folder, "--resume")
    wait_for(process, "step ")
    process.kill()
    finish(process)
    code, out, err = finish(start(folder, "--resume"))
    assert code == 0, err
    assert "Verdict: " in out
    assert equal_runs(folder, whole)


def test_ctrl_c_in_a_real_process(tmp_path):
    folder = tmp_path / "run"
    process = start(folder, *TINY, "--recipe", "paper", "--steps", "100000000")
    assert wait_for(process, "step 0/")
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert "stopping after this step and saving; again to stop at once" in err
    assert f"saved; continue with: isthmus train --resume --out {folder}" in err
    assert RunFolder(folder).has_checkpoint
    assert free_folder("run", tmp_path) == tmp_path / "run-2"
