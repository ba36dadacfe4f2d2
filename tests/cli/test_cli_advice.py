"""Every command that the program prints is one that it takes as it stands, also where a folder has a space."""

import ast
import html
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer

import isthmus
from isthmus.cli import interrupts
from isthmus.cli.main import app
from isthmus.report.run.page import RunReport
from isthmus.runs import RunConfig, RunFolder, load_state, save_state
from isthmus.runs import state as format_
from isthmus.runs.reader import load_run
from isthmus.solve import recipes

SMALL = (
    *("--dims", "3,1,3", "--hidden", "4", "--train", "30", "--test", "10", "--width", "6", "--depth", "8"),
    *("--effective-depth", "2", "--mu", "0.02", "--dtype", "float64", "--threads", "1", "--log-every", "5"),
    *("--no-report", "--quiet"),
)
RUN = "my run"


def commands(text):
    """The commands in a message, whole: those in backticks and those that end a line."""
    found = re.findall(r"`(isthmus [^`]*)`", text)
    return found + re.findall(r"(?:with|afterwards|then|end): (isthmus [^`\n]*)$", text, re.MULTILINE)


def parsed(line):
    """What the command line's own parser makes of a command: its name and its parameters."""
    program, *words = shlex.split(line)
    assert program == "isthmus"
    group = typer.main.get_command(app)
    context = group.make_context("isthmus", list(words))
    name, command, rest = group.resolve_command(context, words)
    return name, command.make_context(name, rest, parent=context).params


@pytest.fixture
def trained(cli):
    """A run of a fraction of a second, in a folder with a space."""
    assert cli("train", *SMALL, "--steps", "12", "--checkpoint-every", "5", "--out", RUN).code == 0
    return Path(RUN)


def only_command(text):
    """The one command of a message that names a folder (`isthmus train` alone names who wrote something)."""
    (found,) = {line for line in commands(text) if line != "isthmus train"}
    return found


def resumes(line, folder=RUN):
    name, options = parsed(line)
    return name == "train" and options["resume"] and options["out"] == Path(folder)


# --- the ways in which commands come to be printed ---------------------------------------------------------------


def test_commands_are_made_in_one_place():
    # Whatever prints a command takes it from `_support.command`, which quotes; the tests below see each kind.
    for file in (*Path(isthmus.__file__).parent.glob("cli/*.py"), *Path(isthmus.__file__).parent.glob("runs/*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        documents = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
                for line in re.findall(r"isthmus (?:train|show|report|certify|probe|follow)\b[^`]*`?", node.value):
                    assert line in ("isthmus train`", "isthmus train.", "isthmus follow`"), (file.name, node.value)


def test_an_interrupted_run(cli, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(interrupts.Interrupts, "__call__", lambda self: True)
        ended = cli("train", *SMALL, "--steps", "12", "--out", RUN)
    assert ended.code == 130
    line = only_command(ended.err)
    assert resumes(line)
    assert cli(*shlex.split(line)[1:], "--no-report", "--quiet").code == 0


@pytest.mark.parametrize("error", [ImportError("no plotly"), OSError(28, "No space left")], ids=str)
def test_a_report_that_was_not_written(cli, monkeypatch, error):
    def fail(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("isthmus.report.write_report", fail, raising=False)
        ended = cli("train", *(word for word in SMALL if word != "--no-report"), "--steps", "12", "--out", RUN)
    assert parsed(only_command(ended.err)) == ("report", {"run": Path(RUN), "debug": False})


def test_a_full_disk(cli, monkeypatch):
    def full(self, name, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_bytes", full)
        ended = cli("train", *SMALL, "--steps", "12", "--out", RUN)
    assert ended.code == 1 and resumes(only_command(ended.err))


def test_what_has_no_tables_or_no_weights_yet(cli, trained):
    (trained / "layers.parquet").write_bytes(b"damaged")
    line = only_command(cli("show", RUN).err)
    assert resumes(line)
    (trained / "summary.json").unlink()
    assert resumes(only_command(cli("show", RUN).err))
    assert cli(*shlex.split(line)[1:], "--no-report", "--quiet").code == 0
    assert cli("show", RUN).code == 0
    for name in ("checkpoint.safetensors", "model.safetensors"):
        (trained / name).unlink()
    assert resumes(only_command(cli("certify", RUN).err))


def test_a_model_file_that_is_not_the_checkpoints(cli, trained):
    path = trained / "model.safetensors"
    state = load_state(path, "model")
    state["weight"].mul_(2)
    path.write_bytes(save_state(state, "model"))
    for command in ("certify", "probe"):
        ended = cli(command, RUN)
        assert ended.code == 2 and "both are of step 12, and weight are not the same" in ended.err
        line = only_command(ended.err)
        assert resumes(line)
    assert cli(*shlex.split(line)[1:], "--no-report", "--quiet").code == 0
    assert cli("certify", RUN).code == 0


@pytest.mark.parametrize("command", ["certify", "probe"])
def test_garbage_in_the_model_file_and_one_flipped_byte(cli, trained, command):
    path = trained / "model.safetensors"
    sound = path.read_bytes()
    for damaged in (b"garbage", sound[:-5] + bytes([sound[-5] ^ 1]) + sound[-4:]):
        path.write_bytes(damaged)
        ended = cli(command, RUN)
        assert ended.code == 2 and "model.safetensors is damaged" in ended.err
    path.write_bytes(sound)
    assert cli(command, RUN).code == 0


def test_a_model_file_of_an_earlier_step(cli, trained):
    early = (trained / "model.safetensors").read_bytes()
    assert cli("train", "--resume", "--extend", "4", "--out", RUN, "--no-report", "--quiet").code == 0
    (trained / "model.safetensors").write_bytes(early)
    ended = cli("certify", RUN)
    assert ended.code == 0
    assert "warning: my run/model.safetensors is of step 12, the checkpoint beside it of step 16" in ended.err
    assert "my run/model.safetensors, step 12: checked in float64" in ended.out
    assert resumes(only_command(ended.err))


def test_a_run_of_an_earlier_version(cli, trained):
    for name, kind in (("checkpoint.safetensors", "checkpoint"), ("model.safetensors", "model")):
        path = trained / name
        state, tensors = load_state(path, kind), {}
        tree = format_._encode(state, "", tensors)
        about = {"version": 1, "kind": kind, "tree": tree}
        about["digest"] = format_.digest(format_._dump(tree), tensors, 1)
        path.write_bytes(format_.save(tensors, {format_.FORMAT: format_._dump(about)}))
    assert cli("certify", RUN).code == 0
    (trained / "states.parquet").unlink()
    line = only_command(cli("show", RUN).out.split("Certificate")[0])
    assert resumes(line)
    assert cli(*shlex.split(line)[1:], "--no-report", "--quiet").code == 0
    assert (trained / "states.parquet").is_file()
    ended = cli("train", "--resume", "--extend", "4", "--out", RUN)
    assert ended.code == 2
    line = only_command(ended.err)
    assert cli(*shlex.split(line)[1:], "--no-report", "--quiet").code == 0
    assert RunConfig.from_yaml("my run-2/config.yaml").train.steps == 12


# --- certify -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["folder", "file alone"])
def test_the_advice_of_certify_trains_the_run_that_was_certified(cli, trained, given, monkeypatch):
    # The recipe of 6000 steps takes a minute or two here, and then `certify` finds a critical point.
    monkeypatch.setitem(recipes.RECIPES, "kinks", lambda steps=50, rate=1.0: recipes.kinks(steps, rate))
    path = trained
    if given == "file alone":
        path = Path(shutil.copy(trained / "model.safetensors", "shared net.safetensors"))
    ended = cli("certify", path)
    assert ended.code == 0
    line = only_command(ended.out)
    name, options = parsed(line)
    assert (name, options["model__init_from"]) == ("train", str(path))
    assert cli(*shlex.split(line)[1:], "--no-report", "--quiet").code == 0
    out = options["out"]
    then, now = RunConfig.from_yaml(trained / "config.yaml"), RunConfig.from_yaml(out / "config.yaml")
    changed = {"model.init_from", "train.recipe", "train.steps"}
    assert set(now.differences(then)) == changed
    assert (now.train.recipe, now.train.steps) == ("kinks", None)
    objectives = [json.loads(cli("certify", run, "--json").out)["objective"] for run in (path, out)]
    assert objectives[1] < objectives[0]


def test_a_run_of_that_solver_is_told_to_go_on(cli):
    train = ("train", *SMALL, "--solver", "kinks", "--steps", "20", "--out", RUN)
    assert cli(*train).code == 0
    line = only_command(cli("certify", RUN).out)
    assert resumes(line) and parsed(line)[1]["train__extend"] == "1"
    assert cli(*shlex.split(line)[1:], "--no-report", "--quiet").code == 0
    assert RunConfig.from_yaml("my run/config.yaml").train.extend == (1,)
    (Path(RUN) / "checkpoint.safetensors").unlink()  # now it would begin again
    name, options = parsed(only_command(cli("certify", RUN).out))
    assert (name, options["resume"], options["model__init_from"]) == ("train", False, RUN)


def test_the_advice_of_certify_names_a_folder_that_is_free(cli, trained):
    assert parsed(only_command(cli("certify", RUN).out))[1]["out"] == Path("my run-kinks")
    Path("my run-kinks").mkdir()
    Path("my run-kinks/config.yaml").write_text("")
    assert parsed(only_command(cli("certify", RUN).out))[1]["out"] == Path("my run-kinks-2")


def test_a_file_alone_is_certified_and_probed(cli, trained):
    whole = cli("certify", RUN, "--json").out
    Path("shared.safetensors").write_bytes((trained / "model.safetensors").read_bytes())
    shutil.rmtree(trained)
    alone = cli("certify", "shared.safetensors", "--json").out
    assert alone.replace("shared.safetensors", "") == whole.replace("my run/model.safetensors", "").replace(RUN, "")
    ended = cli("probe", "shared.safetensors", "--null", "none")
    assert ended.code == 0 and "A_8" in ended.out


@pytest.mark.parametrize(
    ("recipe", "dtype", "activation"),
    [("default", "float64", "relu"), ("default", "float32", "smooth_relu"), ("kinks", "float64", "relu")],
)
def test_the_advice_of_the_report_is_of_the_run_itself(cli, recipe, dtype, activation, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "kinks", lambda steps=50, rate=1.0: recipes.kinks(steps, rate))
    monkeypatch.setitem(recipes.RECIPES, "geodesic", lambda steps=50, rate=None: recipes.geodesic(steps))
    settings = ("--solver", recipe, "--dtype", dtype, "--activation", activation, "--steps", "12", "--out", RUN)
    assert cli("train", *SMALL, *settings).code == 0
    shown = cli("show", RUN).out
    assert "No verdict: the residual is" in shown and "default recipe" not in shown
    line = only_command(shown)
    page = RunReport(load_run(RUN)).render((), {})
    assert line in html.unescape(page) and "default recipe" not in page
    name, options = parsed(line)
    assert name == "train"
    if recipe == "kinks":
        made = json.loads(Path(RUN, "summary.json").read_text())["steps"]
        assert resumes(line) and options["train__extend"] == str(made)
    else:
        solver = "kinks" if activation == "relu" else "geodesic"
        assert (options["model__init_from"], options["train__recipe"]) == (RUN, solver)
    assert cli(*shlex.split(line)[1:], "--no-report", "--quiet").code == 0


# --- further and from another run --------------------------------------------------------------------------------


def test_a_finished_run_is_extended(cli, trained):
    ended = cli("train", "--resume", "--extend", "4", "--out", RUN, "--no-report")
    assert ended.code == 0 and "done: 16 steps" in ended.out
    assert cli("train", "--resume", "--extend", "3", "--out", RUN, "--no-report", "--quiet").code == 0
    assert RunConfig.from_yaml("my run/config.yaml").train.extend == (4, 3)
    ended = cli("train", "--resume", "--extend", "few", "--out", RUN)
    assert ended.code == 2 and "train.extend: expected whole numbers >= 1, as in 500" in ended.err
    assert "(--extend)" in ended.err


def test_a_new_run_starts_from_another_with_other_values(cli, trained):
    ended = cli("train", "--init-from", RUN, "--mu", "0.05", "--out", "new", "--no-report", "--quiet")
    assert ended.code == 0
    then, now = RunConfig.from_yaml("my run/config.yaml"), RunConfig.from_yaml("new/config.yaml")
    assert set(now.differences(then)) == {"model.init_from", "train.mu"}
    Path("a.yaml").write_text("model: {init_from: my run}\ntrain: {mu: 0.07}\n")
    assert cli("train", "--config", "a.yaml", "--out", "newer", "--no-report", "--quiet").code == 0
    assert RunConfig.from_yaml("newer/config.yaml").train.mu == 0.07
    fresh = ("train", "--config", "newer/config.yaml", "--init-from", "none", "--out", "fresh")
    assert cli(*fresh, "--no-report", "--quiet").code == 0
    assert RunConfig.from_yaml("fresh/config.yaml").model.init_from is None
    again = ("train", "--init-from", RUN, "--mu", "0.05", "--resume", "--out", "new")
    assert cli(*again, "--no-report", "--quiet").code == 0


def test_another_shape_names_the_option(cli, trained):
    ended = cli("train", "--init-from", RUN, "--width", "7", "--out", "new")
    assert ended.code == 2
    assert ended.err == (
        "error: the configuration to start with has a problem:\n"
        f"  model.width: {Path(RUN, 'model.safetensors').absolute()} has 6, got 7 (--width)\n"
        "  weights can start a network of the same shape only\n"
    )
    assert not Path("new").exists()
    ended = cli("train", "--init-from", "nothing", "--out", "new")
    assert ended.code == 2 and "nothing is not a run folder" in ended.err


def test_a_value_by_its_alias_is_named_by_its_options(cli):
    ended = cli("train", "--solver", "papr")
    expected = "train.recipe: expected one of default, paper, fast, geodesic, kinks, got 'papr'; did you mean paper?"
    assert ended.code == 2 and f"{expected} (--recipe, --solver)\n" in ended.err
