"""Reading run folders: what is accepted, what is refused and how."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from isthmus import thresholds
from isthmus.report import RunFolderError, load_run, plain_text
from isthmus.report._numbers import finite, number, positive, show, span
from isthmus.report.run.figures.build import build_figures
from isthmus.report.run.page import RunReport

Make = Callable[..., Path]


def test_reads_every_part(make_run: Make) -> None:
    run = load_run(make_run())
    assert (run.name, run.status, run.notes) == ("figure-1", "done", ())
    assert run.layers.height == 20 and run.value("rank_estimate") == 3
    assert run.config["train"]["recipe"] == "default" and "mu: 1e-3" in run.config_text
    assert not run.classification
    assert run.spectra is not None and run.projection is not None


def test_nan_and_null_become_none(make_run: Make) -> None:
    run = load_run(make_run(effective_depth=0.0))
    assert run.column("kinetic") == [None] * 20  # written as NaN
    assert run.column("kinetic_stable") == [None] * 20  # written as null
    assert run.trace("test_cost")[0] is None


def test_rows_come_sorted_by_layer(make_run: Make) -> None:
    folder = make_run()
    pl.read_parquet(folder / "layers.parquet").reverse().write_parquet(folder / "layers.parquet")
    assert load_run(folder).column("layer") == list(range(1, 21))


@pytest.mark.parametrize("missing", ["config.yaml", "environment.json", "spectra.parquet", "projection.parquet"])
def test_optional_files_become_notes(make_run: Make, missing: str) -> None:
    folder = make_run()
    (folder / missing).unlink()
    (note,) = load_run(folder).notes
    assert note.startswith(f"{missing} is missing or empty")


def test_a_run_of_an_earlier_version_lacks_states(make_run: Make) -> None:
    folder = make_run()
    (folder / "states.parquet").unlink()
    run = load_run(folder)
    (note,) = run.notes
    assert note.startswith("states.parquet is missing or empty, as in runs of earlier versions: ranks and costs of")
    assert f"`isthmus train --resume --out {folder}` writes it from the saved network and trains nothing." in note
    text = plain_text(run)
    assert note in text and "states\n" not in text and "at p = " not in text.split("summary")[1].split("Path length")[0]
    ranks = {figure.key: figure for figure in build_figures(run)}["ranks"]
    assert [series.label for series in ranks.panels[0].series] == ["rank of {W}", "stable rank of {W}"]
    page = RunReport(run).render((), {})
    assert 'id="layers"' in page and 'id="states"' not in page and "as in runs of earlier versions" in page


def test_name_falls_back_on_the_folder(make_run: Make) -> None:
    folder = make_run("plain")
    (folder / "config.yaml").unlink()
    assert load_run(folder).name == "plain"


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ("interrupted", "interrupted at step 2990: everything below describes an unfinished run"),
        ("diverged", "diverged at step 2990: everything below describes the last good state"),
        ("dnoe", "status 'dnoe', not 'done'"),
    ],
)
def test_unfinished_runs_say_so(make_run: Make, status: str, sentence: str) -> None:
    assert sentence in load_run(make_run(status=status)).notes[0]


def test_refuses_what_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"nowhere does not exist: give the folder that `isthmus train` wrote"):
        load_run(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file is a file"):
        load_run(tmp_path / "file")


def test_refuses_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is not a run folder .it has neither config.yaml nor summary.json"):
        load_run(tmp_path)


def test_refuses_a_run_without_summary(make_run: Make) -> None:
    folder = make_run()
    (folder / "summary.json").unlink()
    with pytest.raises(RunFolderError, match=r"has not finished: summary.json missing; continue it with .*--resume"):
        load_run(folder)


def test_refuses_a_stopped_run_without_tables(make_run: Make) -> None:
    folder = make_run(status="interrupted")
    (folder / "layers.parquet").unlink()
    (folder / "history.parquet").unlink()
    expected = "ended as 'interrupted' without its tables: history.parquet and layers.parquet missing"
    with pytest.raises(RunFolderError, match=expected):
        load_run(folder)


def test_refuses_a_done_run_without_layers(make_run: Make) -> None:
    folder = make_run()
    (folder / "layers.parquet").unlink()
    with pytest.raises(RunFolderError, match=r"is incomplete: layers.parquet missing"):
        load_run(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("summary.json", b'{"status": ', "summary.json cannot be read as JSON"),
        ("summary.json", b"\xff\xfe\x00", "summary.json cannot be read as JSON"),
        ("summary.json", b"[1, 2]", "summary.json must hold a JSON object, but holds a list"),
        ("environment.json", b"{", "environment.json cannot be read as JSON"),
        ("config.yaml", b"a: [1, ", "config.yaml cannot be read as YAML"),
        ("config.yaml", b"- 1\n- 2\n", "config.yaml must hold a YAML mapping, but holds a list"),
        ("layers.parquet", b"not parquet", "layers.parquet cannot be read as parquet"),
        ("layers.parquet", b"", "layers.parquet cannot be read as parquet"),
        ("history.parquet", b"PAR1" + 40 * b"\x07" + b"PAR1", "history.parquet cannot be read as parquet"),
        ("spectra.parquet", b"PAR1", "spectra.parquet cannot be read as parquet"),
    ],
)
def test_damaged_files_are_named(make_run: Make, file: str, content: bytes, message: str) -> None:
    folder = make_run()
    (folder / file).write_bytes(content)
    with pytest.raises(RunFolderError, match=message):
        load_run(folder)


def test_a_file_cut_short_is_named(make_run: Make) -> None:
    folder = make_run()
    whole = (folder / "projection.parquet").read_bytes()
    (folder / "projection.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunFolderError, match=r"projection.parquet cannot be read.*damaged or cut short"):
        load_run(folder)


def test_missing_columns(make_run: Make) -> None:
    folder = make_run()
    table = pl.read_parquet(folder / "layers.parquet")
    table.drop("speed", "slow").write_parquet(folder / "layers.parquet")
    run = load_run(folder)
    assert run.notes == ("layers.parquet lacks the columns speed, slow: they are shown as missing.",)
    assert run.column("speed") == [None] * 20
    table.drop("p").write_parquet(folder / "layers.parquet")
    with pytest.raises(RunFolderError, match=r"layers.parquet lacks the columns p; it has layer, rho"):
        load_run(folder)


def test_columns_of_the_wrong_kind_and_empty_tables(make_run: Make) -> None:
    folder = make_run()
    table = pl.read_parquet(folder / "layers.parquet")
    table.with_columns(pl.lit("much").alias("kinetic")).write_parquet(folder / "layers.parquet")
    with pytest.raises(
        RunFolderError, match=r"column 'kinetic' of .*layers.parquet must hold Float64, but holds String"
    ):
        load_run(folder)
    table.head(0).write_parquet(folder / "layers.parquet")
    with pytest.raises(RunFolderError, match=r"layers.parquet has no rows: one row per layer was expected"):
        load_run(folder)


def test_summary_numbers_that_are_no_numbers(make_run: Make) -> None:
    folder = make_run()
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {"objective": "low", "residual_max": None, "penalty": True}
    (folder / "summary.json").write_text(json.dumps(summary))
    run = load_run(folder)
    assert [run.value(key) for key in ("objective", "residual_max", "penalty", "absent")] == [None] * 4


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (-12.5, "−12.5"),
        (20, "20"),
        (3.0, "3"),
        (0.0, "0"),
        (123456.0, "1.23e5"),
        (-2e-9, "−2e-9"),
        (0.00099999, "1e-3"),
        (9999.96, "1e4"),
        (9999.4, "9999"),
        (math.nan, "–"),
        (None, "–"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (True, "yes"),
        ("text", "text"),
    ],
)
def test_show(value: object, text: str) -> None:
    assert show(value) == text


def test_small_helpers() -> None:
    assert number(math.nan) is None and number(True) is None and number("1") is None and number(2) == 2.0
    assert finite([1, None, math.inf, 2.5]) == [1.0, 2.5]
    assert positive([1, 0, -1, None, math.nan]) == [1.0, None, None, None, None]
    assert [span(x) for x in (None, 12.34, 185.0, 7300.0)] == ["–", "12.3 s", "3 min 5 s", "2 h 1 min"]


def test_the_report_and_the_bottleneck_trust_the_same_residual():
    import isthmus.bottleneck
    from isthmus.report.run import words
    from isthmus.report.run.figures import training

    assert isthmus.bottleneck.SHAPES is words.SHAPES is training.SHAPES is thresholds.SHAPES
