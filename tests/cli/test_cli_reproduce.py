"""`isthmus reproduce` and `isthmus claims`: the quick study as a user gives it, and what can go wrong."""

import json
import signal
import subprocess
import sys
import time

import pytest
from test_cli_kill import ENVIRONMENT
from tiny import TINY

from isthmus.claims import sizes

KEYS = ("figure1a", "figure1b", "figure1c", "figure2a", "figure2b", "figure2c", "figure3")


@pytest.fixture
def tiny_size(monkeypatch):
    """Both sizes that need no hours are tiny ones."""
    monkeypatch.setitem(sizes.SIZES, "quick", TINY)


def test_the_quick_study_writes_every_figure_and_the_table_and_computes_nothing_twice(cli, tmp_path):
    """The commands of docs/how-to/claims.md, one after the other, in the folder that they share."""
    for what in ("figure1", "figure2", "figure3"):
        ended = cli("reproduce", what, "--quick")
        assert ended.code == 0, ended.err
        assert "the paper:" in ended.out and "here:" in ended.out
    folder = tmp_path / "runs" / "paper-quick"
    written = {f.name for f in (folder / "figures").iterdir()}
    assert written == {f"{key}.{ending}" for key in KEYS for ending in ("svg", "pdf", "png", "json")}
    ended = cli("claims", "--quick")
    assert ended.code == 0, ended.err
    assert "25 computations, 23 of them done before" in ended.err  # the networks were there
    assert "computations" not in cli("claims", "--quick", "--no-report").err
    assert "undecided" in ended.out.lower() and "page:" in ended.out
    assert (folder / "claims.html").stat().st_size > 1e6 and (folder / "claims.csv").exists()
    facts = json.loads((folder / "study.json").read_text())
    assert facts["failures"] == [] and facts["command"] == "isthmus claims --quick"
    shown = cli("show", folder)
    assert shown.code == 0 and "judgements)" in shown.out
    assert cli("report", folder).out.strip() == str(folder / "claims.html")
    page = (folder / "claims.html").read_text()
    assert page.count("not a critical point, residual") >= 3  # those that the paper's recipe trained


def test_seeds_out_and_quiet(cli, tiny_size, tmp_path):
    ended = cli("reproduce", "figure2", "--quick", "--seeds", 1, "--out", "here", "--workers", 1, "--quiet")
    assert (ended.code, ended.out, ended.err) == (0, "here\n", "")
    assert (tmp_path / "here" / "figures.html").exists()
    ended = cli("reproduce", "figure2", "--quick", "--seeds", 1, "--out", "here", "--workers", 1, "--no-report")
    assert ended.code == 0 and ended.err == ""
    assert json.loads((tmp_path / "here" / "study.json").read_text())["command"] == (
        "isthmus reproduce figure2 --quick --seeds 1"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("reproduce", "figure4"), "unknown figure 'figure4': expected figure1, figure2, figure3 or all"),
        (("reproduce", "figur1"), "did you mean 'figure1'?"),
        (("reproduce", "all", "--seeds", 0), "--seeds must be at least 1, got 0"),
        (("claims", "--workers", 0), "--workers must be at least 1, got 0"),
        (("claims", "--size", "smal"), "--size: expected quick, small, paper, got 'smal'; did you mean 'small'?"),
        (("claims", "--quick", "--size", "paper"), "--quick is --size quick: leave one of them out"),
    ],
)
def test_misuse_says_what_was_expected(cli, tmp_path, arguments, words):
    ended = cli(*arguments)
    assert ended.code == 2 and words in ended.err
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_something_else_of_another_version_or_damaged_is_named(cli, tiny_size, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    ended = cli("claims", "--quick", "--out", "mine")
    assert ended.code == 2 and "mine holds something else than results" in ended.err
    study = ("reproduce", "figure2", "--quick", "--seeds", 1, "--out", "here", "--workers", 1, "--no-report")
    assert cli(*study).code == 0
    one = sorted((tmp_path / "here" / "data").glob("trained-*.json"))[0]
    one.unlink()
    ended = cli(*study)
    assert ended.code == 0 and f"warning: the result {one.name} was deleted: it is computed again" in ended.err
    one.write_bytes(one.read_bytes()[:-20])
    ended = cli(*study)
    assert ended.code == 2 and f"{one.name} is damaged" in ended.err and "delete it and run again" in ended.err
    (tmp_path / "here" / "store.json").write_text('{"version": 7}')
    ended = cli(*study)
    assert ended.code == 2 and "results of store version 7" in ended.err


def test_what_failed_is_said_and_left_out(cli, tiny_size, tmp_path, monkeypatch):
    def broken(settings, scratch, should_stop):
        raise ArithmeticError("no luck")

    monkeypatch.setitem(__import__("isthmus.claims.work", fromlist=["KINDS"]).KINDS, "branch", broken)
    study = ("reproduce", "figure1", "--quick", "--seeds", 1, "--out", "here", "--workers", 1, "--no-report")
    ended = cli(*study)
    assert ended.code == 0
    assert "failed: branch, seed 0: ArithmeticError: no luck" in ended.err
    assert "1 computation failed and is left out of all figures; try again: isthmus reproduce figure1" in ended.err
    assert "At critical points: 0 of 2 networks are there" in ended.out
    monkeypatch.undo()
    monkeypatch.setitem(sizes.SIZES, "quick", TINY)
    monkeypatch.chdir(tmp_path)
    ended = cli(*study, "--retry-failed")
    assert ended.code == 0 and "At critical points: 0 of" not in ended.out


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(tmp_path):
    command = [
        sys.executable, "-c", "from isthmus.cli.main import main; main()",
        "reproduce", "figure1", "--quick", "--seeds", "1", "--out", str(tmp_path / "here"), "--no-report",
    ]  # fmt: skip
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    data = tmp_path / "here" / "data"
    until = time.monotonic() + 120
    while not list(data.glob("*.json")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "are left, the others are kept; go on with: isthmus reproduce figure1 --quick --seeds 1 --out" in err
    kept = {file.name: file.stat().st_mtime_ns for file in data.glob("*.json")}
    assert kept and out == ""
    again = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)
    assert again.returncode == 0, again.stderr
    assert f"{len(kept)} of them done before" in again.stderr
    assert all((data / name).stat().st_mtime_ns == time for name, time in kept.items())
