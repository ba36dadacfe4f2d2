"""Sweeps: done once, failures recorded, deaths survived, kills at random moments, damaged stores named."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import isthmus
from isthmus.sweeps import Job, Store, StoreError, sweep

WORK = "toy_jobs:square"


def jobs(folder, xs, **settings):
    return [Job("square", {"x": x, "log": str(folder / "log"), **settings}) for x in xs]


def ran(folder):
    log = folder / "log"
    return [int(line) for line in log.read_text().split()] if log.exists() else []


@pytest.mark.parametrize("workers", [1, 2])
def test_everything_is_computed_once_and_a_second_call_computes_nothing(tmp_path, workers):
    store, told = Store(tmp_path / "store"), []
    wanted = jobs(tmp_path, range(5))
    first = sweep([*wanted, wanted[0]], store, WORK, workers=workers, on_done=told.append)
    assert (first.done, first.skipped, first.failed, first.left) == (5, 0, 0, 0)
    assert sorted(ran(tmp_path)) == list(range(5))
    assert [done.number for done in told] == [1, 2, 3, 4, 5] and told[0].total == 5
    assert [store.read(job).result["square"] for job in wanted] == [0, 1, 4, 9, 16]
    assert {store.read(job).result["threads"] for job in wanted} == {1}
    again = sweep(wanted, Store(tmp_path / "store"), WORK, workers=workers)
    assert (again.done, again.skipped) == (0, 5)
    assert len(ran(tmp_path)) == 5
    more = sweep([*wanted, *jobs(tmp_path, [7])], store, WORK, workers=workers)
    assert (more.done, more.skipped) == (1, 5)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_fails_is_recorded_while_others_go_on(tmp_path, workers):
    store = Store(tmp_path / "store")
    bad, good = jobs(tmp_path, [1], fail=True), jobs(tmp_path, [2, 3])
    found = sweep([*bad, *good], store, WORK, workers=workers)
    assert (found.done, found.failed, found.left) == (3, 1, 0)
    failure = store.read(bad[0]).failure
    assert "ArithmeticError: no square today" in failure and "toy_jobs.py, line" in failure
    assert store.read(bad[0]).result is None
    assert sweep([*bad, *good], store, WORK, workers=workers).done == 0
    store.forget_failures([*bad, *good])
    assert sweep([*bad, *good], store, WORK, workers=workers).done == 1


def test_a_job_whose_process_dies_is_begun_again_and_fails_the_second_time(tmp_path):
    store = Store(tmp_path / "store")
    once, always = jobs(tmp_path, [1], die="once"), jobs(tmp_path, [2], die="always")
    others = jobs(tmp_path, range(3, 9))
    found = sweep([*once, *others, *always], store, WORK, workers=2)
    assert (found.failed, found.left) == (1, 0)
    assert store.read(once[0]).result["square"] == 1
    assert "died twice" in store.read(always[0]).failure


def test_who_was_beside_a_process_that_dies_is_not_blamed(tmp_path):
    store = Store(tmp_path / "store")
    slow, always = jobs(tmp_path, [1], wait=3.0), jobs(tmp_path, [2], die="always")
    found = sweep([*slow, *always], store, WORK, workers=2)
    assert (found.failed, found.left) == (1, 0)
    assert store.read(slow[0]).result["square"] == 1
    assert "died twice" in store.read(always[0]).failure


def test_all_of_several_that_die_once_are_done(tmp_path):
    store = Store(tmp_path / "store")
    once, others = jobs(tmp_path, [1], die="once"), jobs(tmp_path, range(3, 9))
    assert sweep([*once, *others], store, WORK, workers=2).failed == 0
    assert all(store.read(job).result["square"] == job.settings["x"] ** 2 for job in others)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_leaves_what_was_not_finished_and_the_next_call_goes_on(tmp_path, workers):
    store, wanted = Store(tmp_path / "store"), jobs(tmp_path, range(6), wait=0.05)
    told = []
    found = sweep(wanted, store, WORK, workers=workers, on_done=told.append, should_stop=lambda: len(told) >= 2)
    assert 2 <= found.done < 6 and found.left == 6 - found.done
    rest = sweep(wanted, store, WORK, workers=workers)
    assert (rest.skipped, rest.left) == (found.done, 0)


def test_a_job_that_keeps_its_state_goes_on_from_it_and_leaves_none(tmp_path):
    store, job = Store(tmp_path / "store"), Job("counted", {"log": str(tmp_path / "log")})
    asked = iter([False] * 5 + [True] * 5)
    assert sweep([job], store, "toy_jobs:counted", should_stop=lambda: next(asked)).left == 1
    assert sweep([job], store, "toy_jobs:counted").done == 1
    assert ran(tmp_path) == list(range(1, 11))
    assert not store.scratch(job).exists()


def test_equal_content_is_one_job_whatever_the_order_and_another_version_another():
    assert Job("a", {"x": 1, "y": [2.0]}).key == Job("a", {"y": [2.0], "x": 1}).key
    keys = {Job("a", {"x": 1}).key, Job("b", {"x": 1}).key, Job("a", {"x": 2}).key, Job("a", {"x": 1}, 2).key}
    assert len(keys) == 4


def alive(pid):
    """Whether a process runs; zombies do not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("kill", range(8))
def test_killed_at_a_random_moment_nothing_is_lost_and_nothing_done_twice_but_what_was_under_way(tmp_path, kill):
    """The driver is killed with SIGKILL, its workers stop by themselves; the next call computes the rest."""
    wanted = jobs(tmp_path, range(12), wait=0.1)
    script = (
        "from isthmus.sweeps import Job, Store, sweep\nimport json, sys\n"
        "if __name__ == '__main__':\n"
        "    jobs = [Job('square', s) for s in json.loads(sys.argv[2])]\n"
        f"    sweep(jobs, Store(sys.argv[1]), '{WORK}', workers=2)\n"
    )
    file = tmp_path / "driver.py"
    file.write_text(script)
    path = os.pathsep.join([str(Path(isthmus.__file__).parents[1]), str(Path(__file__).parent)])
    driver = subprocess.Popen(
        [sys.executable, str(file), str(tmp_path / "store"), json.dumps([dict(job.settings) for job in wanted])],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )
    moment = random.Random(kill)
    while not ran(tmp_path):  # the processes start
        time.sleep(0.01)
    time.sleep(moment.random() * 0.6)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    workers = {int(pid) for pid in (tmp_path / "processes").read_text().split()}
    until = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    store = Store(tmp_path / "store")
    kept = {job.name for job in wanted if store.has(job)}
    before = ran(tmp_path)
    found = sweep(wanted, store, WORK)
    assert found.left == 0 and found.skipped >= len(kept)
    assert [store.read(job).result["square"] for job in wanted] == [x**2 for x in range(12)]
    again = [x for x in ran(tmp_path)[len(before) :] if x in before]
    assert len(again) <= 2  # of two workers


def test_a_store_in_use_is_named(tmp_path):
    store = Store(tmp_path / "store")
    wanted = jobs(tmp_path, [1])
    sweep(wanted, store, WORK)
    with pytest.raises(StoreError, match="another process works on"):
        sweep(
            jobs(tmp_path, [2]),
            store,
            WORK,
            on_done=lambda done: sweep(wanted, Store(tmp_path / "store"), WORK),
        )


def test_damage_loss_and_foreign_folders_are_named_with_what_to_do(tmp_path):
    store, (one, two) = Store(tmp_path / "store"), jobs(tmp_path, [1, 2])
    sweep([one, two], store, WORK)
    content = store.file(one).read_bytes()
    flipped = content.replace(b'"square":1', b'"square":2')
    assert flipped != content
    store.file(one).write_bytes(flipped)
    with pytest.raises(StoreError, match=r"is damaged .*delete it"):
        store.read(one)
    store.file(one).write_bytes(content[:20])
    with pytest.raises(StoreError, match=r"is damaged .*no JSON"):
        store.read(one)
    store.file(one).unlink()
    assert store.lost([one, two]) == [one]
    with pytest.raises(StoreError, match="is missing"):
        store.read(one)
    (store.folder / "store.json").write_text('{"version": 99}')
    with pytest.raises(StoreError, match="store version 99"):
        Store(store.folder)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    with pytest.raises(StoreError, match="holds something else"):
        Store(foreign)
    with pytest.raises(StoreError, match="is a file"):
        Store(foreign / "thesis.tex")
    with pytest.raises(ValueError, match="workers must be at least 1"):
        sweep([two], Store(tmp_path / "new"), WORK, workers=0)
