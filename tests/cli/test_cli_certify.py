"""`isthmus certify`: a saved run checked afresh."""

import json
from pathlib import Path

import pytest

SMALL = (
    *("--dims", "3,1,3", "--hidden", "4", "--train", "30", "--test", "10", "--width", "6", "--depth", "8"),
    *("--effective-depth", "2", "--mu", "0.02", "--dtype", "float64", "--threads", "1", "--log-every", "5"),
    *("--no-report", "--quiet", "--out", "run"),
)


def test_a_run_that_converges_is_certified(cli):
    smooth = ("--activation", "smooth_relu", "--sharpness", "2")
    ended = cli("train", *SMALL, *smooth, "--solver", "geodesic", "--steps", "800", "--tolerance", "1e-5")
    assert ended.code == 0, ended.err
    ended = cli("certify", "run")
    assert ended.code == 0, ended.err
    assert "A critical point: every layer's residual is at most 1e-4." in ended.out
    for line in ("residual, largest", "duality gap", "-2H/L, max - min", "predicted", "unexplained"):
        assert line in ended.out
    assert "Minimum: all 336 eigenvalues of the Hessian are positive." in ended.out and "least eigenvalue" in ended.out
    assert "kinks" not in ended.out  # a smooth network has none
    found = json.loads(cli("certify", "run", "--json").out)
    assert found["converged"] and found["residual_max"] <= 1e-5 and len(found["residual"]) == 8
    assert found["h_unexplained"] < found["h_spread"]
    kind = found["kind"]
    assert kind["kind"] == "minimum" and kind["exact"] and kind["negative"] == 0 and kind["least"] > kind["error"] > 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert found["objective"] == pytest.approx(summary["objective"], rel=1e-12)
    assert summary["kind"] == "minimum" and summary["least_eigenvalue"] == pytest.approx(kind["least"], rel=1e-6)
    assert found["residual_max"] == pytest.approx(summary["residual_max"], rel=1e-6)


def test_a_run_that_does_not_is_not(cli):
    assert cli("train", *SMALL, "--solver", "paper", "--steps", "12").code == 0
    ended = cli("certify", "run")
    assert ended.code == 0
    advice = "isthmus train --init-from run --solver kinks --dtype float64 --steps none --out run-kinks"
    assert f"No critical point: energies and H show the optimiser. Try `{advice}`." in ended.out
    assert "residual up to kinks" in ended.out
    assert "residual up to kinks" not in cli("certify", "run", "--kink-width", "0").out
    assert json.loads(cli("certify", "run", "--json", "--kink-width", "0").out)["kink_residual"] is None


def test_what_cannot_be_certified(cli):
    ended = cli("certify", "nothing")
    assert ended.code == 2 and "nothing is not a run folder; give the folder that `isthmus train` wrote" in ended.err
    assert cli("certify", "nothing", "--kink-width", "-1").code == 2


def test_other_data_are_noticed(cli, tmp_path):
    rows = [",".join(str(((i * k) % 17) / 3) for k in (3, 5, 7)) for i in range(40)]
    (tmp_path / "a.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
    train = (*("--task", "file", "--path", "a.csv", "--width", "4", "--depth", "4", "--effective-depth", "2"),
             *("--steps", "6", "--no-report", "--quiet", "--out", "run"))  # fmt: skip
    assert cli("train", *train).code == 0
    assert cli("certify", "run").code == 0
    (tmp_path / "a.csv").write_text("\n".join(["a,b,y", *rows[:-1], "9,9,9"]) + "\n")
    ended = cli("certify", "run")
    assert ended.code == 2 and "are not those that run was trained on; put them back" in ended.err


def test_of_no_critical_point_no_kind_is_said(cli):
    smooth = ("--activation", "smooth_relu", "--sharpness", "2")
    assert cli("train", *SMALL, *smooth, "--solver", "paper", "--steps", "12").code == 0
    out = cli("certify", "run").out
    assert "No critical point" in out and "Undecided" not in out and "least eigenvalue" not in out
    kind = json.loads(cli("certify", "run", "--json").out)["kind"]
    assert kind["kind"] == "undecided" and kind["reason"].startswith("no critical point") and kind["least"] is None
