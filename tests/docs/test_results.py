"""docs/results.md says what results/ holds, and nothing else."""

import csv
import gzip
import importlib.util
import json
from pathlib import Path

import pytest

from isthmus.claims.reproduce import reproduce
from isthmus.report import write_claims_page

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results():
    """The script."""
    spec = importlib.util.spec_from_file_location("write_results", ROOT / "docs" / "write_results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_script_makes_of_the_data(results):
    assert (ROOT / "docs/results.md").read_text() == results.page(*results.read(ROOT / "results"))


def test_the_data_are_whole(results):
    study, pictures, rows = results.read(ROOT / "results")
    assert study["seeds"] >= 10 and len(pictures) == 7 and study["size"]["name"] == "small"
    table = list(csv.DictReader((ROOT / "results/claims.csv").read_text().splitlines()))
    assert [row["key"] for row in table] == [row["key"] for row in rows]
    assert all(row["command"].startswith("isthmus claims") for row in rows)
    networks = json.loads(gzip.decompress((ROOT / "results/networks.json.gz").read_bytes()))
    assert len(networks) == study["jobs"]
    assert {picture["key"] for picture in pictures} == {
        file.stem for file in (ROOT / "docs/images").glob("figure*.svg") if file.stem[-1] in "abc3"
    }


def test_verdicts_follow_from_the_networks_that_are_kept(results):
    """The table again, from the numbers of the networks in results/."""
    from isthmus.claims.catalogue import rows as judged
    from isthmus.claims.sizes import SIZES
    from isthmus.claims.study import Study
    from isthmus.sweeps import Job

    study, _, rows = results.read(ROOT / "results")
    networks = json.loads(gzip.decompress((ROOT / "results/networks.json.gz").read_bytes()))
    found = {Job(n["kind"], n["settings"], n["version"]).key: n["result"] for n in networks if not n["failure"]}
    again = judged(Study(SIZES[study["size"]["name"]], study["seeds"], found), study["command"])
    assert [(row.key, row.reading, str(row.verdict)) for row in again] == [
        (row["key"], row["reading"], row["verdict"]) for row in rows
    ]
    assert [row.estimate for row in again] == pytest.approx([row["estimate"] for row in rows], nan_ok=True)


def test_another_study_makes_another_page(results, tmp_path):
    from tiny import TINY

    found = reproduce(tmp_path / "study", TINY, 1, ["figure2"], command="isthmus claims --quick")
    write_claims_page(found.folder, found.pictures, found.rows, found.facts)
    page = results.write(found.folder, tmp_path / "root", "0123456789abcdef")
    text = page.read_text()
    assert "Figure 2a" in text and "Figure 1a" not in text and "commit 0123456789" in text
    assert "Of 4 judgements 0 hold, 0 fail and 4 are undecided" in text.replace("\n", " ")
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith(("|", "![", "- ")))
