"""`isthmus follow`: a branch from a configuration or a run, cut off, taken up again, extended; and misuse."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import isthmus.cli
from isthmus.cli.main import app
from isthmus.runs import RunConfig
from isthmus.runs.branch import Watcher, execute_branch
from isthmus.runs.branch_folder import load_branch
from isthmus.runs.branch_points import branch_spectra
from isthmus.runs.branch_start import Origin
from isthmus.status import Status

CONFIG = """\
name: small
task: {kind: teacher, dims: [3, 1, 3], hidden: 4, train: 12, test: 10}
model: {width: 4, depth: 6, effective_depth: 1.0, activation: smooth_relu, sharpness: 1.0, append_one: false}
train: {mu: 0.05, threads: 1}
"""
FOLLOW = ("--parameter", "effective_depth", "--to", "1.5", "--no-report")
GIVEN = {"parameter": "effective_depth", "to": 1.5}
TRAIN = (
    *("train", "--dims", "3,1,3", "--hidden", "4", "--train", "12", "--test", "10", "--width", "4", "--depth", "6"),
    *(
        "--effective-depth",
        "1",
        "--no-append-one",
        "--mu",
        "0.05",
        "--threads",
        "1",
        "--steps",
        "6",
        "--log-every",
        "3",
    ),
    *("--no-report", "--quiet", "--out", "run"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A branch that nothing interrupted, and its configuration beside it."""
    place = tmp_path_factory.mktemp("whole")
    (place / "small.yaml").write_text(CONFIG)
    arguments = ["follow", "--config", str(place / "small.yaml"), *FOLLOW, "--quiet", "--out", str(place / "branch")]
    with pytest.raises(SystemExit) as stopped:
        app(arguments, prog_name="isthmus")
    assert stopped.value.code == 0
    return place / "branch"


def points(folder):
    """Every point, without what a clock gave."""
    return [{k: v for k, v in point.items() if k != "seconds"} for point in load_branch(folder).points]


def test_a_branch_from_a_configuration_is_solved_followed_and_certified(cli, whole):
    data = load_branch(whole)
    assert data.status == "converged" and data.values[0] == 1.0 and data.values[-1] == 1.5
    assert all(data.certified(i) and data.minimum(i) for i in range(len(data.points)))
    assert data.start["solved"]["residual"] <= 1e-5 < data.start["solved"]["residual_before"]
    assert (whole / "branch.csv").read_text().count("\n") == len(data.points) + 1
    certified = cli("certify", whole / "end.safetensors")
    assert certified.code == 0 and "A critical point: every layer's residual is at most 1e-4." in certified.out
    found = json.loads(cli("certify", whole / "end.safetensors", "--json").out)
    assert found["objective"] == pytest.approx(data.points[-1]["objective"], rel=1e-12)
    assert "A critical point" in cli("certify", whole / "start.safetensors").out
    probed = cli("probe", whole / "end.safetensors")
    assert probed.code == 0 and "layer" in probed.out
    for command in ("certify", "probe"):
        refused = cli(command, whole)
        assert refused.code == 2 and "holds a branch: give the last network of it" in refused.err


def test_show_and_report_know_a_branch(cli, whole, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    shown = cli("show", folder)
    assert shown.code == 0 and "copy: a branch in L̃" in shown.out
    assert "critical points, certified." in shown.out and "It reached L̃ = 1.5." in shown.out
    assert "Verdict at L̃ = 1.5: " in shown.out
    written = cli("report", folder)
    assert written.code == 0 and written.out.strip() == str(folder / "report.html")
    assert sorted(f.stem for f in (folder / "figures").glob("*.svg")) == ["curve", "objective", "residual", "spectra"]


def test_progress_and_the_end_are_told(cli, tmp_path):
    (tmp_path / "small.yaml").write_text(CONFIG)
    ended = cli("follow", "--config", "small.yaml", *FOLLOW, "--no-weights", "--at", "1.2,1.3", "--out", "told")
    assert ended.code == 0, ended.err
    assert "folder: told" in ended.err and "it is solved first" in ended.err and "the start: converged" in ended.err
    for value in ("1", "1.2", "1.3", "1.5"):
        assert f"effective_depth {value} objective " in ended.err
    assert "folder: told" in ended.out and "report" not in ended.out
    assert branch_spectra("told") == []
    page = cli("report", "told")
    assert page.code == 0
    assert "The weights of the points were not kept" in Path("told/report.html").read_text()
    assert not Path("told/figures/spectra.svg").exists()


def test_a_run_with_relu_in_float32_starts_a_branch_once_its_relu_is_replaced(cli):
    assert cli(*TRAIN).code == 0
    refused = cli("follow", "run", *FOLLOW, "--out", "branch")
    assert refused.code == 2 and not Path("branch").exists()
    assert "run has a ReLU, and a branch needs a smooth σ" in refused.err and "--sharpness 20 puts" in refused.err
    ended = cli("follow", "run", *FOLLOW, "--sharpness", "1", "--out", "branch")
    assert ended.code == 0, ended.err
    assert "weights of float32, taken to float64" in ended.err
    assert "relu replaced by a smooth ReLU of sharpness 1" in ended.err and "it is solved first" in ended.err
    data = load_branch("branch")
    assert data.start["run"] == str(Path("run").resolve()) and data.config["model"]["sharpness"] == 1.0
    again = cli("follow", "run", *FOLLOW, "--sharpness", "1", "--out", "branch")
    assert again.code == 0 and "it is solved first" not in again.err
    other = cli("follow", "run", *FOLLOW, "--sharpness", "2", "--out", "branch")
    assert other.code == 2 and "--sharpness 2, and not 1" in other.err


def test_a_start_that_is_critical_is_not_solved_again(cli, whole):
    ended = cli("follow", whole / "end.safetensors", "--parameter", "mu", "--to", "0.045", "--no-report", "--out", "mu")
    assert ended.code == 0, ended.err
    assert "it is solved first" not in ended.err
    data = load_branch("mu")
    assert data.config["model"]["effective_depth"] == 1.5 and data.values[0] == pytest.approx(0.05)
    assert data.points[0]["objective"] == pytest.approx(load_branch(whole).points[-1]["objective"], rel=1e-9)


class Stops(Watcher):
    """Asks to stop after every point, as often as it is called."""

    def __init__(self, after):
        self.left = after

    def point(self, point):
        self.left -= 1

    def should_stop(self):
        return self.left <= 0


def test_a_branch_that_is_interrupted_again_and_again_has_the_same_points(whole, tmp_path):
    config, folder = RunConfig.from_yaml(whole.parent / "small.yaml"), tmp_path / "branch"
    outcome = execute_branch(folder, Origin(config=config), GIVEN, watcher=Stops(1))
    assert outcome.status is Status.INTERRUPTED
    assert load_branch(folder).notes() == (
        f"The branch was interrupted: `isthmus follow --out {folder}` goes on with it.",
    )
    calls = 1
    while outcome.status is Status.INTERRUPTED:
        outcome = execute_branch(folder, Origin(), {}, watcher=Stops(1))
        calls += 1
    assert outcome.status is Status.CONVERGED and calls >= len(points(whole)) > 2
    assert points(folder) == points(whole)
    assert len(load_branch(folder).environment["resumed"]) == calls - 1


def test_the_solving_of_the_start_may_be_interrupted(whole, tmp_path):
    config, folder = RunConfig.from_yaml(whole.parent / "small.yaml"), tmp_path / "branch"
    outcome = execute_branch(folder, Origin(config=config), GIVEN, watcher=Stops(0))
    assert outcome.status is Status.INTERRUPTED and outcome.branch is None
    assert load_branch(folder).points == ()
    outcome = execute_branch(folder, Origin(), {})
    assert outcome.status is Status.CONVERGED and load_branch(folder).values[-1] == 1.5


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_stopped_leaves_a_folder_that_goes_on(cli, whole, tmp_path, how):
    folder = tmp_path / "branch"
    command = [sys.executable, "-c", "from isthmus.cli.main import main; main()", "follow", *FOLLOW]
    environment = {**os.environ, "PYTHONPATH": str(Path(isthmus.cli.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, str(whole / "start.safetensors"), "--step", "0.02", "--out", str(folder)],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert any("effective_depth 1.0" in line for line in process.stderr)
    process.send_signal(how)
    _, err = process.communicate()
    before = len(load_branch(folder).points)
    assert 1 <= before and load_branch(folder).values[-1] < 1.5
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert f"interrupted, saved; continue with: isthmus follow --out {folder}" in err
    else:
        assert f"has not ended, or was cut off: `isthmus follow --out {folder}`" in load_branch(folder).notes()[0]
    ended = cli("follow", "--out", folder, "--no-report")
    assert ended.code == 0, ended.err
    assert "going on from effective_depth 1.0" in ended.err
    data = load_branch(folder)
    assert data.status == "converged" and data.values == sorted(data.values) and len(data.points) > before


def test_a_branch_that_has_ended_goes_further(cli, whole, tmp_path):
    folder = tmp_path / "branch"
    shutil.copytree(whole, folder)
    ended = cli("follow", "--out", folder, "--to", "1.6", "--no-report")
    assert ended.code == 0, ended.err
    data = load_branch(folder)
    assert data.values[-1] == 1.6 and points(folder)[: len(points(whole))] == points(whole)
    again = cli("follow", "--out", folder, "--quiet", "--no-report")  # nothing is left to do
    assert again.code == 0 and again.out.strip() == str(folder) and points(folder) == points(folder)
    for to, words in (
        ("0.5", "--to 0.5 lies on the other side of the start, 1: follow that way into another folder"),
        ("1.2", "--to 1.2 lies behind the last point of the branch, 1.6: nothing is left to do"),
    ):
        refused = cli("follow", "--out", folder, "--to", to)
        assert refused.code == 2 and words in refused.err
    assert load_branch(folder).values[-1] == 1.6


def test_another_branch_is_not_taken_up_in_its_place(cli, whole, tmp_path):
    folder = tmp_path / "branch"
    shutil.copytree(whole, folder)
    refused = cli("follow", "--out", folder, "--tolerance", "1e-6", "--parameter", "mu", "--no-eigenvalues")
    assert refused.code == 2
    assert "--parameter mu, and not --parameter effective_depth" in refused.err
    assert "choose another --out, or replace it with --overwrite" in refused.err
    (tmp_path / "other.yaml").write_text(CONFIG.replace("0.05", "0.06"))
    refused = cli("follow", "--config", "other.yaml", *FOLLOW, "--out", folder)
    assert refused.code == 2 and "another train.mu" in refused.err
    assert cli("follow", "--config", "other.yaml", *FOLLOW, "--out", folder, "--overwrite").code == 0
    assert load_branch(folder).config["train"]["mu"] == 0.06
    shutil.copy(folder / "state.pt", tmp_path / "state.pt")
    shutil.copytree(whole, tmp_path / "third")
    made = cli("follow", whole / "start.safetensors", "--parameter", "mu", "--to", "0.048", "--no-report", "--out", "m")
    assert made.code == 0, made.err
    shutil.copy("m/state.pt", tmp_path / "third/state.pt")
    refused = cli("follow", "--out", "third", "--to", "1.6")
    assert refused.code == 2 and "holds another branch: its parameter is mu, here effective_depth" in refused.err


MISUSE = {
    "unknown parameter": (("--parameter", "effective_dept", "--to", "2"), "unknown parameter 'effective_dept'"),
    "no parameter": (("--to", "2"), "--parameter is missing: give one of mu, effective_depth, sharpness"),
    "no end": (("--parameter", "mu"), "--to is missing: the value of mu at which to end"),
    "no way": (("--parameter", "mu", "--to", "0.05"), "--to must differ from where the branch starts, mu = 0.05"),
    "out of range": (("--parameter", "effective_depth", "--to", "-1"), "--to of effective_depth must be >= 0, got -1"),
    "zero": (("--parameter", "mu", "--to", "0"), "--to of mu must be > 0, got 0"),
    "beside": ((*FOLLOW, "--at", "1.2,1.7"), "--at must lie between the start and --to, 1 and 1.5; got 1.7"),
    "no numbers": ((*FOLLOW, "--at", "1.2;1.7"), "--at: expected numbers, as in 6,8,10, got '1.2;1.7'"),
    "step": ((*FOLLOW, "--step", "0"), "step must be positive"),
    "tolerance": ((*FOLLOW, "--tolerance", "0.5"), "tolerance must lie in (0, 0.01]"),
    "seconds": ((*FOLLOW, "--seconds", "0"), "--seconds must be positive, got 0"),
}


@pytest.mark.parametrize("what", MISUSE)
def test_misuse_is_named_before_anything_is_computed(cli, tmp_path, what):
    (tmp_path / "small.yaml").write_text(CONFIG)
    options, words = MISUSE[what]
    ended = cli("follow", "--config", "small.yaml", *options, "--out", "branch")
    assert ended.code == 2 and words in ended.err and "Traceback" not in ended.err
    assert not Path("branch").exists()


def test_starts_and_folders_that_cannot_be_used(cli, whole, tmp_path):
    (tmp_path / "small.yaml").write_text(CONFIG)
    (tmp_path / "linear.yaml").write_text(CONFIG.replace("smooth_relu, sharpness: 1.0", "identity"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    assert cli(*TRAIN).code == 0
    for arguments, words in (
        ((*FOLLOW,), "there is nothing to start from: give the folder of a run, or --config FILE"),
        (("nothing", *FOLLOW), "nothing is not a run folder"),
        ((whole, *FOLLOW), f"{whole} holds a branch: give the last network of it, {whole / 'end.safetensors'}"),
        (("run", "--config", "small.yaml", *FOLLOW), "a branch starts from RUN or from --config FILE"),
        (("--config", "none.yaml", *FOLLOW), "none.yaml"),
        (("--config", "linear.yaml", *FOLLOW, "--sharpness", "3"), "--sharpness is for networks with a ReLU"),
        (("--config", "linear.yaml", "--parameter", "sharpness", "--to", "3"), "sharpness is for networks with a Smoo"),
        (("--config", "small.yaml", *FOLLOW, "--out", "mine"), "mine is not empty and holds no branch"),
        (("--config", "small.yaml", *FOLLOW, "--out", "run"), "run holds a run of `isthmus train`; choose another"),
        (("--config", "small.yaml", *FOLLOW, "--out", "run", "--overwrite"), "run holds a run of `isthmus train`"),
    ):
        ended = cli("follow", *arguments)
        assert ended.code == 2 and words in ended.err, ended.err
    assert (tmp_path / "mine/notes.txt").exists() and not (tmp_path / "runs").exists()


def test_time_that_is_spent_on_the_start_is_said_and_nothing_is_lost(cli, tmp_path):
    (tmp_path / "small.yaml").write_text(CONFIG)
    ended = cli("follow", "--config", "small.yaml", *FOLLOW, "--seconds", "1e-3", "--out", "branch")
    assert ended.code == 1
    assert "no critical point was found at the start, effective_depth = 1: the residual is" in ended.err
    assert "a larger train.mu, a smaller model.effective_depth" in ended.err and "report it" not in ended.err
    ended = cli("follow", "--out", "branch", "--no-report")
    assert ended.code == 0 and "it is solved first" in ended.err


def test_folders_that_are_no_branch_or_damaged(whole, tmp_path):
    with pytest.raises(ValueError, match=r"expected the folder of a branch, but .* does not exist"):
        load_branch(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"holds no branch\.json: give the folder that `isthmus follow` wrote"):
        load_branch(tmp_path)
    file = tmp_path / "branch.json"
    text = (whole / "branch.json").read_text()
    for content, words in (
        (text[:200], "cannot be read as a branch"),
        ("{}", "it holds no branch"),
        (text.replace('"version": 1', '"version": 9', 1), "is of version 9"),
        (text.replace('"events"', '"event"', 1), "cannot be read as a branch"),
    ):
        file.write_text(content)
        with pytest.raises(ValueError, match=words):
            load_branch(tmp_path)


def test_showing_a_branch_loads_no_torch(whole):
    code = (
        "import sys; from isthmus.report.branch.terminal import plain_branch;"
        "from isthmus.runs.branch_folder import load_branch; import isthmus.cli.main;"
        f"assert 'a branch in' in plain_branch(load_branch({str(whole)!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
