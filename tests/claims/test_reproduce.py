"""A study into a folder: real networks, tiny; done once, resumed to the same numbers, repaired where it was damaged."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
from tiny import TINY

from isthmus.claims.folder import is_study, load_study
from isthmus.claims.plan import FIGURES, branch_job, plan, trained_job
from isthmus.claims.reproduce import reproduce
from isthmus.claims.sizes import PAPER, SIZES, SMALL
from isthmus.claims.work import work
from isthmus.report import write_claims_page
from isthmus.sweeps import Store, StoreError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study of one seed."""
    return reproduce(tmp_path_factory.mktemp("whole") / "study", TINY, 1, command="isthmus claims --quick")


def numbers(folder):
    store = Store(folder)
    return {job.key: store.read(job).result for job in plan(FIGURES, TINY, 1, claims=True)}


def test_figures_data_and_table_are_written_and_agree_with_what_is_returned(whole):
    assert (whole.sweep.done, whole.sweep.failed, whole.failures) == (11, 0, ())
    for picture in whole.pictures:
        stored = json.loads((whole.folder / "figures" / f"{picture.key}.json").read_text())
        assert stored["title"] == picture.title and stored["finding"] == picture.finding
    table = list(csv.DictReader((whole.folder / "claims.csv").read_text().splitlines()))
    assert [row["key"] for row in table] == [row.key for row in whole.rows]
    assert [row["verdict"] for row in table] == [row.verdict for row in whole.rows] == ["undecided"] * len(table)
    assert "nan" not in (whole.folder / "claims.csv").read_text()
    assert json.loads((whole.folder / "claims.json").read_text())[0]["statement"] == whole.rows[0].statement
    facts = json.loads((whole.folder / "study.json").read_text())
    assert facts["seeds"] == 1 and facts["size"]["width"] == 6 and facts["environment"]["versions"]["torch"]


def test_a_study_is_read_back_as_it_was_written_and_drawn_again_without_a_network(whole, tmp_path):
    pictures, rows, facts = load_study(whole.folder)
    assert is_study(whole.folder) and not is_study(tmp_path)
    assert pictures == whole.pictures
    assert repr(rows) == repr(whole.rows)  # NaN is not equal to itself
    assert facts["size"]["name"] == "tiny"
    page = write_claims_page(tmp_path, pictures, rows, facts).read_text()
    assert page == write_claims_page(whole.folder, whole.pictures, whole.rows, whole.facts).read_text()
    broken = shutil.copytree(whole.folder, tmp_path / "broken")
    (broken / "claims.json").write_text('[{"key": 1}]')
    with pytest.raises(ValueError, match=r"claims.json cannot be read .*give the command of the study again"):
        load_study(broken)


def test_figures_drawn_again_leave_the_claims_and_those_of_other_seeds_do_not(whole, tmp_path):
    folder = shutil.copytree(whole.folder, tmp_path / "study")
    reproduce(folder, TINY, 1, ["figure2"], claims=False)
    assert (folder / "claims.csv").exists() and load_study(folder)[2]["command"] == "isthmus claims --quick"
    reproduce(folder, TINY, 2, ["figure2"], claims=False, command="isthmus reproduce figure2")
    assert not (folder / "claims.csv").exists() and load_study(folder)[2]["command"] == "isthmus reproduce figure2"


def test_networks_by_the_recipe_are_not_called_critical_and_points_of_branches_are(whole):
    found = numbers(whole.folder)
    trained = found[trained_job(TINY, 0, 2.0).key]["values"]
    assert trained["certified"] is False and trained["residual_max"] > 1e-2
    points = found[branch_job(TINY, 0).key]["effective_depth"]["points"]
    assert [p["values"]["effective_depth"] for p in points] == [2.0, 3.0]
    assert all(p["values"]["certified"] and p["values"]["residual_max"] <= TINY.tolerance for p in points)
    assert all(p["values"]["kind"] == "minimum" for p in points)
    assert "spectra_a" in points[1] and "spectra_a" not in points[0]
    # the cost on the test part is of the network at its own effective depth: near that of the training part
    assert all(p["values"]["test_cost"] < 20 * p["values"]["data_cost"] for p in points)


def test_a_second_call_computes_nothing_and_a_larger_study_only_what_is_new(whole):
    again = reproduce(whole.folder, TINY, 1)
    assert (again.sweep.done, again.sweep.skipped) == (0, 11)
    assert again.pictures == whole.pictures
    more = reproduce(whole.folder, TINY, 2, ["figure2"])
    assert (more.sweep.done, more.sweep.skipped) == (6, 7)


def test_stopped_anywhere_and_taken_up_it_ends_in_the_same_numbers(whole, tmp_path):
    """Stops inside of trainings and branches as well: each call gets as far as some hundred questions."""
    calls = 0
    while True:
        left = iter(range(80 + 37 * calls))
        found = reproduce(tmp_path / "study", TINY, 1, should_stop=lambda left=left: next(left, None) is None)
        calls += 1
        assert calls < 60
        if not found.sweep.left:
            break
        assert not (tmp_path / "study" / "study.json").exists() and found.pictures == ()
    assert calls > 2
    assert numbers(tmp_path / "study") == numbers(whole.folder)


def test_what_was_deleted_or_damaged_is_named_and_computed_again(whole, tmp_path):
    folder = shutil.copytree(whole.folder, tmp_path / "study")
    jobs = plan(FIGURES, TINY, 1, claims=True)
    Store(folder).file(jobs[1]).unlink()
    told = []
    found = reproduce(folder, TINY, 1, on_plan=lambda total, there, lost: told.append((total, there, lost)))
    assert told == [(11, 10, [jobs[1]])] and found.sweep.done == 1
    assert numbers(folder) == numbers(whole.folder)
    Store(folder).file(jobs[2]).write_text("{}")
    with pytest.raises(StoreError, match=rf"{jobs[2].name}.json is damaged"):
        reproduce(folder, TINY, 1)


def test_a_start_that_cannot_be_solved_is_a_failure_with_its_reason(monkeypatch, tmp_path):
    hopeless = replace(TINY, tolerance=1e-300)
    monkeypatch.setattr("isthmus.claims.work.solve", lambda problem, *_, **__: _nothing(problem))
    found = reproduce(tmp_path / "study", hopeless, 1, ["figure1"])
    ((job, why),) = found.failures
    assert job.kind == "branch" and "no critical point to start from at mu = 0.06: residual" in why
    assert any("At critical points: 0 of 2 networks are there" in note for note in found.pictures[0].notes)


def _nothing(problem):
    from isthmus.solve import solve

    return solve(problem, "fast", steps=3)


def test_training_that_is_not_finite_is_a_failure_and_not_a_number(tmp_path):
    """So much weight decay that Adam's steps overflow."""
    job = trained_job(TINY, 0, 2.0)
    with pytest.raises(ArithmeticError, match="training diverged"):
        work(replace(job, settings={**job.settings, "mu": 1e38}), tmp_path, lambda: False)


def test_sizes_have_what_their_figures_show():
    for size in SIZES.values():
        assert size.shown in size.leaks and size.mesh_shown >= size.mesh_leak
        assert list(size.leaks) == sorted(size.leaks) and list(size.decays) == sorted(size.decays, reverse=True)
        assert size.decays[-1] == size.mu and all(depth > size.mesh_leak for depth in size.mesh_depths)
        assert size.depth > size.leaks[-1]
    assert (PAPER.dims, PAPER.deep_dims, PAPER.width, PAPER.rows, PAPER.depth, PAPER.mu, PAPER.steps) == (
        (30, 3, 30), (30, 6, 3, 30), 100, 1000, 20, 0.001, 6000,
    )  # fmt: skip
    assert len(plan(FIGURES, SMALL, 10)) == 10 * (1 + 6 + 15) + 1


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="unknown figure 'figure4': expected one of figure1"):
        reproduce(tmp_path / "a", TINY, 1, ["figure4"])
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        reproduce(tmp_path / "a", TINY, 0)
    assert not (tmp_path / "a").exists()
