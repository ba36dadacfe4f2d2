import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import polars as pl
import pytest

from isthmus.columns import Column
from isthmus.runs import FolderError, RunFolder
from isthmus.runs import folder as module
from isthmus.runs.folder import free_folder, latest_folder
from isthmus.runs.schema import Table


@pytest.fixture
def place(tmp_path):
    place = RunFolder(tmp_path / "run")
    with place.lock():
        pass
    return place


def names(place):
    return sorted(entry.name for entry in place.path.iterdir() if entry.name != ".lock")


# --- atomic writes ----------------------------------------------------------------------------------------------


def test_writing_replaces_and_leaves_nothing_else(place):
    place.write_text("a.txt", "one")
    place.write_bytes("a.txt", b"two")
    assert (place / "a.txt").read_text() == "two"
    assert names(place) == ["a.txt"]


@pytest.mark.parametrize("fails", ["fsync", "replace", "chmod"])
def test_a_failed_write_leaves_the_old_file_and_no_other(place, monkeypatch, fails):
    place.write_text("a.txt", "old")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, fails, fail)
    with pytest.raises(OSError, match="No space left"):
        place.write_text("a.txt", "new")
    monkeypatch.undo()
    assert (place / "a.txt").read_text() == "old"
    assert names(place) == ["a.txt"]


def test_the_data_are_synced_before_the_rename_and_the_folder_after(place, monkeypatch):
    calls = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(module.os, "fsync", lambda handle: calls.append("sync") or real_sync(handle))
    monkeypatch.setattr(module.os, "replace", lambda *a: calls.append("replace") or real_replace(*a))
    place.write_text("a.txt", "new")
    assert calls == ["sync", "replace", "sync"]


def test_files_have_the_permissions_of_ordinary_ones(place):
    (place / "ordinary").write_text("x")
    place.write_text("written", "x")
    assert (place / "written").stat().st_mode == (place / "ordinary").stat().st_mode


def test_a_file_system_that_cannot_sync_folders(place, monkeypatch):
    real = os.fsync

    def only_files(handle):
        if Path(f"/proc/self/fd/{handle}").resolve().is_dir():
            raise OSError(22, "Invalid argument")
        real(handle)

    monkeypatch.setattr(module.os, "fsync", only_files)
    place.write_text("a.txt", "x")
    assert (place / "a.txt").read_text() == "x"


def test_json_holds_no_nan(place):
    place.write_json("a.json", {"a": math.nan, "b": [math.inf, 1.5], "c": {"d": (-math.inf, None)}, 3: "L̃"})
    text = (place / "a.json").read_text(encoding="utf-8")
    values = json.loads(text, parse_constant=pytest.fail)
    assert values == {"a": None, "b": [None, 1.5], "c": {"d": [None, None]}, "3": "L̃"}
    assert place.read_json("a.json") == values


@pytest.mark.parametrize("text", [None, "{", "[1]"])
def test_json_that_cannot_be_read_is_empty(place, text):
    if text is not None:
        place.write_text("a.json", text)
    assert place.read_json("a.json") == {}


@pytest.mark.parametrize("csv", [True, False])
def test_a_table_that_does_not_fit_on_the_disk_is_an_error_of_the_system(tmp_path, csv):
    # In another process: the limit holds for the rest of one. Polars' own writers raise their own errors.
    code = f"""
import resource, sys
import polars
from isthmus.columns import Column
from isthmus.runs.folder import RunFolder
from isthmus.runs.schema import Table
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    table = Table("a", "a row", {{"a": Column("a", "a number")}}, csv={csv})
    RunFolder(sys.argv[1]).write_table(table, {{"a": [i * 0.1 for i in range(5000)]}})
except OSError as error:
    print(error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "File too large\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_lock_on_a_full_disk_still_holds(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.Path, "write_text", full)
    with (
        RunFolder(tmp_path).lock(),
        pytest.raises(FolderError, match=r"another process \(pid unknown\) is training in"),
        RunFolder(tmp_path).lock(),
    ):
        pass


def test_an_environment_alone_is_a_leftover_and_another_file_of_that_name_is_not(place):
    place.write_json("environment.json", {"versions": {}})
    (place / ".config.yaml.abc.tmp").write_text("half")
    assert place.is_empty
    place.write_json("environment.json", {"PATH": "mine"})
    assert not place.is_empty
    with pytest.raises(FolderError, match="is not empty and is not a run folder"):
        place.check_startable(overwrite=True)


def test_tables_are_written_twice_where_asked(place):
    frame = pl.DataFrame({"a": [1, 2], "b": [0.1, None]})
    columns = {"a": Column("a", "a count", kind="integer"), "b": Column("b", "a number")}
    place.write_table(Table("t", "a row", columns, csv=True), frame.to_dict())
    place.write_table(Table("u", "a row", columns), frame.to_dict())
    assert names(place) == ["t.csv", "t.parquet", "u.parquet"]
    assert pl.read_parquet(place / "t.parquet").equals(frame)
    assert pl.read_csv(place / "t.csv").equals(frame)


# --- what is in a folder ----------------------------------------------------------------------------------------


def test_absent_empty_and_left_over_folders_may_be_started_in(tmp_path, place):
    assert RunFolder(tmp_path / "absent").is_empty
    (place / ".checkpoint.safetensors.x1.tmp").write_text("half")
    assert place.is_empty
    place.check_startable(overwrite=False)


def test_a_folder_with_other_files_is_refused_even_with_overwrite(place):
    (place / "thesis.tex").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(FolderError, match=r"is not empty and is not a run folder; choose another .* --out"):
            place.check_startable(overwrite=overwrite)


def test_a_run_is_refused_unless_overwritten(place):
    place.write_text("config.yaml", "")
    message = "already holds a run; continue it with --resume, replace it with --overwrite, or choose another"
    with pytest.raises(FolderError, match=message):
        place.check_startable(overwrite=False)
    place.check_startable(overwrite=True)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a").write_text("x")
    for act in (lambda place: place.check_startable(overwrite=False), lambda place: place.lock().__enter__()):
        with pytest.raises(FolderError, match="is a file, expected a folder for the run"):
            act(RunFolder(tmp_path / "a"))


def test_clearing_deletes_what_runs_write_and_nothing_else(place):
    for name in (module.CONFIG, module.CHECKPOINT, *module.PRODUCTS, module.REPORT, module.ENVIRONMENT):
        place.write_text(name, "x")
    (place / "figures").mkdir()
    for name in ("figures/a.svg", "figures/a.pdf", "figures/mine.txt", "notes.txt"):
        (place / name).write_text("x")
    place.clear()
    assert names(place) == ["figures", "notes.txt"]
    assert [entry.name for entry in (place / "figures").iterdir()] == ["mine.txt"]


def test_clearing_removes_an_empty_folder_of_figures(place):
    (place / "figures").mkdir()
    (place / "figures" / "a.svg").write_text("x")
    place.clear()
    assert names(place) == []


def test_clearing_deletes_the_configuration_last(place, monkeypatch):
    order = []
    real = Path.unlink
    for name in (module.CONFIG, module.CHECKPOINT, module.SUMMARY):
        place.write_text(name, "x")
    monkeypatch.setattr(Path, "unlink", lambda self, **kw: order.append(self.name) or real(self, **kw))
    place.clear()
    assert order[0] == module.SUMMARY
    assert order[-1] == module.CONFIG


def test_numbered_folders(tmp_path):
    assert free_folder("a", tmp_path) == latest_folder("a", tmp_path) == tmp_path / "a"
    for name in ("a", "a-2"):
        RunFolder(tmp_path / name).path.mkdir()
        (tmp_path / name / "config.yaml").write_text("")
    (tmp_path / "a-3").mkdir()
    assert free_folder("a", tmp_path) == tmp_path / "a-3"
    assert latest_folder("a", tmp_path) == tmp_path / "a-2"


# --- the lock ---------------------------------------------------------------------------------------------------

HOLD = """
import sys
from isthmus.runs.folder import RunFolder
with RunFolder(sys.argv[1]).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of ``tmp_path / "run"``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])},
    )
    assert process.stdout.readline() == b"locked\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_second_process_is_refused_and_told_the_first(place, holder):
    message = rf"another process \(pid {holder.pid}\) is training in .*run; wait for it, or choose another folder"
    with pytest.raises(FolderError, match=message):
        place.lock().__enter__()


def test_a_killed_process_lets_go(place, holder):
    holder.kill()
    holder.wait()
    with place.lock():
        pass


def test_a_process_that_ends_lets_go(place, holder):
    holder.stdin.close()
    holder.wait()
    with place.lock():
        pass


def test_the_lock_holds_within_a_process_too(place):
    refused = []

    def second():
        try:
            with place.lock():
                pass
        except FolderError as error:
            refused.append(str(error))

    with place.lock():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(refused) == 1
    with place.lock():
        pass


def test_locking_makes_the_folder_and_sweeps_it(tmp_path):
    place = RunFolder(tmp_path / "a" / "b")
    with place.lock():
        left_over = place / ".checkpoint.safetensors.abc.tmp"
        left_over.write_text("half")
        (place / "kept.tmp").write_text("the user's")
    with place.lock():
        assert names(place) == ["kept.tmp"]


def test_the_lock_is_let_go_after_an_error(place):
    with pytest.raises(RuntimeError, match="inside"), place.lock():
        raise RuntimeError("inside")
    with place.lock():
        pass


def test_a_file_system_without_locks_warns(place, monkeypatch):
    def fail(*args):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.warns(UserWarning, match=r"cannot be locked \(No locks available\): start no second run in it"):
        with place.lock():
            pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FolderError, match="cannot be made: Not a directory"):
        RunFolder(tmp_path / "file" / "run").lock().__enter__()


def test_a_folder_that_cannot_be_written_to(place, monkeypatch):
    def fail(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.os, "open", fail)
    with pytest.raises(FolderError, match="cannot be written to: Permission denied"):
        place.lock().__enter__()
