import json
import os
import signal
from pathlib import Path

import pytest
import torch

from isthmus.cli import interrupts, progress
from isthmus.runs import RunConfig, RunFolder, load_run_model


def signal_at(monkeypatch, step, number):
    """Send this process a signal when the history reaches a step."""
    real = progress.Lines.record

    def record(self, row):
        real(self, row)
        if row["step"] == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(progress.Lines, "record", record)


def summary(folder):
    return json.loads((Path(folder) / "summary.json").read_text())


# --- exit code 0 ------------------------------------------------------------------------------------------------


def test_a_run_from_beginning_to_end(cli, tiny):
    ended = cli("train", *tiny, "--name", "first")
    assert ended.code == 0
    assert "run folder: runs/first\n" in ended.err
    assert "step 0/24" in ended.err and "step 24/24" in ended.err
    assert "Rank estimate" in ended.out
    assert "Verdict: " in ended.out
    assert "run folder: runs/first\nreport:     runs/first/report.html\n" in ended.out
    assert Path("runs/first/report.html").stat().st_size > 100_000
    assert {entry.suffix for entry in Path("runs/first/figures").iterdir()} == {".svg", ".pdf"}
    assert summary("runs/first")["status"] == "done"


def test_quiet_prints_the_folder_alone(cli, tiny):
    ended = cli("train", *tiny, "--quiet", "--no-report")
    assert (ended.code, ended.out, ended.err) == (0, "runs/run\n", "")
    assert not Path("runs/run/report.html").exists()


def test_a_second_run_gets_a_folder_of_its_own(cli, tiny):
    outs = [cli("train", *tiny, "--quiet", "--no-report").out for _ in range(3)]
    assert outs == ["runs/run\n", "runs/run-2\n", "runs/run-3\n"]


def test_options_come_after_the_file_and_the_file_after_the_defaults(cli, tiny):
    Path("a.yaml").write_text("name: from-file\nmodel: {width: 13, depth: 5}\nanalysis: {gamma0: 1e-4}\n")
    ended = cli("train", *tiny, "--config", "a.yaml", "--quiet", "--no-report")
    assert ended.out == "runs/from-file\n"
    stored = RunConfig.from_yaml("runs/from-file/config.yaml")
    assert (stored.model.width, stored.model.depth, stored.analysis.gamma0) == (12, 6, 1e-4)


def test_every_kind_of_option_arrives(cli, tiny):
    options = ("--no-append-one", "--mesh", "irregular", "--activation", "smooth_relu", "--sharpness", "1e1")
    cli("train", *tiny, *options, "--batch-size", "none", "--quiet", "--no-report")
    stored = RunConfig.from_yaml("runs/run/config.yaml")
    assert stored.model.append_one is False
    assert (stored.mesh.kind, stored.model.activation, stored.model.sharpness) == (
        "irregular",
        "smooth_relu",
        10.0,
    )
    assert stored.train.batch_size is None


def test_show_and_report(cli, tiny, monkeypatch):
    cli("train", *tiny, "--quiet", "--no-report")
    shown = cli("show", "runs/run")
    assert shown.code == 0
    assert "Verdict: " in shown.out
    monkeypatch.setattr("isthmus.report.write_report", lambda folder: folder / "report.html", raising=False)
    reported = cli("report", "runs/run")
    assert (reported.code, reported.out) == (0, "runs/run/report.html\n")


def test_overwrite(cli, tiny):
    cli("train", *tiny, "--quiet", "--no-report")
    ended = cli("train", *tiny, "--seed", 3, "--quiet", "--no-report", "--overwrite")
    assert (ended.code, ended.out) == (0, "runs/run\n")
    assert summary("runs/run")["seed"] == 3


def test_a_report_that_cannot_be_made_for_want_of_a_package_is_no_failure(cli, tiny, monkeypatch):
    def fail(folder):
        raise ImportError("the report needs plotly")

    monkeypatch.setattr("isthmus.report.write_report", fail, raising=False)
    ended = cli("train", *tiny)
    assert ended.code == 0
    assert "warning: no report was written: the report needs plotly; afterwards: isthmus report runs/run" in ended.err


def test_doubts_are_said_once_and_plainly(cli, tiny):
    ended = cli("train", *tiny, "--sharpness", 3, "--quiet", "--no-report")
    assert ended.code == 0
    assert ended.err == (
        "warning: model.sharpness has no effect: it needs model.activation: smooth_relu, here it is relu\n"
    )


# --- exit code 1 ------------------------------------------------------------------------------------------------


def test_a_divergence(cli, tiny):
    ended = cli("train", *tiny, "--recipe", "paper", "--rate", "1e200", "--no-report")
    assert ended.code == 1
    assert "the run failed: NaN or Inf" in ended.err
    assert "advice: " in ended.err
    assert "diverged" in ended.out
    assert summary("runs/run")["status"] == "diverged"


def test_a_failure_of_the_machine(cli, tiny, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("isthmus.runs.execution.save_state", full)
        ended = cli("train", *tiny, "--no-report")
    assert ended.code == 1
    assert ended.err.endswith(
        "error: the run failed while training: [Errno 28] No space left on device; free space or correct permissions, "
        "then `isthmus train --resume --out runs/run`\n"
    )
    assert cli("train", "--resume", "--out", "runs/run", "--quiet", "--no-report").code == 0


def test_a_failure_of_the_program_asks_for_a_report(cli, tiny, monkeypatch):
    def fault(*args):
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("isthmus.runs.execution.save_state", fault)
    ended = cli("train", *tiny, "--no-report")
    assert ended.code == 1
    assert "error: the run failed while training: ZeroDivisionError: a fault\n" in ended.err
    assert "Run again with --debug" in ended.err and "--resume" not in ended.err
    assert "Traceback" not in ended.err


def test_a_disk_that_is_full_before_or_after_the_run_is_no_bug_either(cli, tiny, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("isthmus.report.write_report", full, raising=False)
    ended = cli("train", *tiny)
    assert ended.code == 1
    assert "error: no report was written: [Errno 28] No space left on device; free space or correct" in ended.err
    assert "then: isthmus report runs/run\n" in ended.err
    assert ended.out.endswith("run folder: runs/run\n")
    ended = cli("report", "runs/run")
    assert (ended.code, ended.err) == (
        1,
        "error: [Errno 28] No space left on device\nFree space or correct permissions, then give the command again.\n",
    )


@pytest.mark.parametrize("how", ["option", "variable", "off"])
def test_tracebacks_only_where_asked_for(cli, tiny, monkeypatch, how):
    def fault(*args, **kwargs):
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("isthmus.runs.execution.execute", fault)
    if how != "option":
        monkeypatch.setenv("ISTHMUS_DEBUG", "1" if how == "variable" else "0")
    ended = cli("train", *tiny, *(["--debug"] if how == "option" else []))
    assert ended.code == 1
    assert "error: ZeroDivisionError: a fault\n" in ended.err
    assert ("Traceback" in ended.err) == (how != "off")


# --- exit code 2 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--widht", "3"], "No such option: --widht"),
        (["train", "stray"], "unexpected extra argument"),
        (["train", "--width"], "requires an argument"),
        (["tarin"], "No such command 'tarin'"),
        (["show"], "Missing argument 'RUN'"),
    ],
)
def test_bad_options(cli, arguments, message):
    ended = cli(*arguments)
    assert ended.code == 2
    assert message in ended.err


def test_bad_values_are_all_listed(cli):
    ended = cli("train", "--width", "x", "--mu", "-1", "--task", "digtis", "--dims", "a")
    assert ended.code == 2
    assert ended.err == (
        "error: the configuration has 4 problems:\n"
        "  task.kind: expected one of teacher, digits, mnist, mnist1d, file, got 'digtis'; did you mean digits? "
        "(--task)\n"
        "  task.dims: expected two or more whole numbers >= 1, as in 30,3,30, got 'a' (--dims)\n"
        "  model.width: expected a whole number >= 1, got 'x' (--width)\n"
        "  train.mu: expected a finite number > 0, got '-1' (--mu)\n"
    )
    assert not Path("runs").exists()


def test_a_bad_file_names_itself(cli):
    Path("a.yaml").write_text("model:\n  widht: 3\n")
    ended = cli("train", "--config", "a.yaml", "--depth", 0)
    assert ended.code == 2
    assert "error: the configuration (a.yaml and options) has 2 problems:\n" in ended.err
    assert "model.widht: unknown key; the nearest valid name is model.width\n" in ended.err
    ended = cli("train", "--config", "no.yaml")
    assert (ended.code, "no.yaml has a problem:\n  no such file" in ended.err) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "file", "--path", "no-such.csv"], "/no-such.csv"),
        (["--task", "file"], "task.path: expected the path of a data file"),
        (["--task", "digits", "--width", "12"], "error: width must be at least the larger end, max(64, 10)"),
        (["--device", "cuda"], "train.device: expected cpu or auto, since torch finds no CUDA device here"),
        (["--resume", "--overwrite"], "error: a run is either resumed or overwritten"),
    ],
)
def test_what_only_shows_when_it_is_built(cli, options, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ended = cli("train", *options, "--quiet")
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert not Path("runs").exists()


def test_bad_data(cli):
    Path("a.csv").write_text("a,b,y\n1,2,3\n1,nan,4\n2,3,5\n")
    ended = cli("train", "--task", "file", "--path", "a.csv", "--target", "y")
    assert ended.code == 2
    assert ended.err.startswith("error: ")


def test_a_missing_package_is_said(cli, tiny, monkeypatch):
    def fail(config):
        raise ImportError("this task needs the package sklearn: pip install 'isthmus[data]'")

    monkeypatch.setattr("isthmus.runs.build.build_task", fail)
    ended = cli("train", *tiny)
    assert (ended.code, ended.err) == (
        2,
        "error: this task needs the package sklearn: pip install 'isthmus[data]'\n",
    )


def test_folders_that_cannot_be_used(cli, tiny):
    Path("work").mkdir()
    Path("work/thesis.tex").write_text("x")
    for options in ([], ["--overwrite"], ["--resume"]):
        ended = cli("train", *tiny, "--out", "work", *options)
        assert ended.code == 2
        assert "is not a run folder" in ended.err or "is not empty" in ended.err
    assert [entry.name for entry in Path("work").iterdir()] == ["thesis.tex"]
    cli("train", *tiny, "--out", "done", "--quiet", "--no-report")
    ended = cli("train", *tiny, "--out", "done")
    assert (ended.code, "done already holds a run; continue it with --resume" in ended.err) == (2, True)
    with RunFolder("done").lock():
        ended = cli("train", *tiny, "--out", "done", "--resume")
    assert (ended.code, "is training in done" in ended.err) == (2, True)


@pytest.mark.parametrize("command", ["show", "report"])
def test_folders_that_are_no_runs(cli, command):
    Path("empty").mkdir()
    for folder, message in (("absent", "does not exist"), ("empty", "is not a run folder")):
        ended = cli(command, folder)
        assert ended.code == 2
        assert message in ended.err
    (Path("empty") / "config.yaml").write_text("")
    ended = cli(command, "empty")
    assert ended.code == 2
    assert "continue it with `isthmus train --resume --out empty`" in ended.err


# --- interrupting and resuming ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_cleanly_and_it_resumes(cli, tiny, monkeypatch, number):
    cli("train", *tiny, "--out", "whole", "--quiet", "--no-report")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signal_at(patch, 8, number)
        ended = cli("train", *tiny, "--name", "cut", "--no-report")
    assert ended.code == 130
    assert "interrupted at step 8, saved; continue with: isthmus train --resume --out runs/cut\n" in ended.err
    assert signal.getsignal(number) is before
    assert summary("runs/cut")["status"] == "interrupted"
    again = cli("train", "--resume", "--out", "runs/cut", "--no-report")
    assert again.code == 0
    assert "step 8/24" not in again.err and "step 24/24" in again.err
    mine, whole = load_run_model("runs/cut").state_dict(), load_run_model("whole").state_dict()
    assert all(torch.equal(mine[name], whole[name]) for name in whole)


def test_resuming_without_out_takes_the_latest_run_of_its_name(cli, tiny, monkeypatch):
    cli("train", *tiny, "--name", "a", "--quiet", "--no-report")
    with monkeypatch.context() as patch:
        signal_at(patch, 8, signal.SIGINT)
        assert cli("train", *tiny, "--name", "a", "--no-report").code == 130
    ended = cli("train", "--resume", "--name", "a", "--quiet", "--no-report")
    assert (ended.code, ended.out) == (0, "runs/a-2\n")
    assert summary("runs/a-2")["status"] == "done"


def test_resuming_with_the_same_values_is_fine_and_with_others_is_not(cli, tiny):
    Path("a.yaml").write_text("name: a\nmodel: {initialisation: default}\n")
    cli("train", *tiny, "--config", "a.yaml", "--quiet", "--no-report")
    assert cli("train", "--resume", *tiny, "--config", "a.yaml", "--quiet", "--no-report").code == 0
    ended = cli("train", "--resume", "--config", "a.yaml", "--width", 13, "--seed", 2)
    assert ended.code == 2
    assert "error: the configuration to resume with has 2 problems:\n" in ended.err
    assert "  seed: the run in runs/a has 0, got 2 (--seed)\n" in ended.err
    assert "  model.width: the run in runs/a has 12, got 13 (--width)\n" in ended.err


def test_resuming_nothing_starts_the_run(cli, tiny):
    ended = cli("train", *tiny, "--resume", "--quiet", "--no-report")
    assert (ended.code, ended.out) == (0, "runs/run\n")


def test_a_second_signal_leaves_at_once(monkeypatch):
    left = []
    monkeypatch.setattr(interrupts.os, "_exit", left.append)
    monkeypatch.setattr(interrupts.os, "write", lambda *args: None)
    with interrupts.Interrupts() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop()
        assert left == []
        signal.raise_signal(signal.SIGINT)
    assert left == [130]


def test_signals_that_the_parent_ignores_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts.Interrupts() as stop:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            signal.raise_signal(signal.SIGINT)
            assert not stop()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_keyboard_interrupt_before_training_exits_130(cli, tiny, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("isthmus.cli.main._settle", interrupted)
    ended = cli("train", *tiny)
    assert (ended.code, ended.err) == (130, "interrupted\n")
