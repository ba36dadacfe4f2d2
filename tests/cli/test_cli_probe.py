"""`isthmus probe`: what it reads, prints and writes, and what it says where it cannot."""

import re
import subprocess
import sys
from pathlib import Path

import numpy
import polars
import pytest
import torch

from isthmus.cli.choices import Choices
from isthmus.probe import Profile, probe
from isthmus.report._numbers import show
from isthmus.report.run.figures.build import build_figures
from isthmus.runs import load_run_model
from isthmus.runs.reader import load_run

NETS = """
import torch
from torch import nn

CALLS = []
WIDTH = 6

class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        with torch.no_grad():
            self.out.weight.copy_(size * torch.eye(WIDTH))

    def forward(self, x):
        return x + self.out(torch.relu(x))

class Net(nn.Sequential):
    def __init__(self, sizes=(1.0, 0.02)):
        super().__init__(nn.Linear(4, WIDTH), *(Block(size) for size in sizes), nn.Linear(WIDTH, 3))

def make():
    torch.manual_seed(0)
    return Net()

ready = make()

def inputs(samples=200):
    return torch.rand(samples, 4, generator=torch.Generator().manual_seed(1))

def loader():
    labelled = torch.utils.data.TensorDataset(inputs(), torch.zeros(200))
    return torch.utils.data.DataLoader(labelled, batch_size=64)

def trained_on():
    return [(inputs(), inputs()[:, :3])]

def squares(output, target):
    return (output - target).square().mean()

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(20, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, ids):
        return self.head(self.table(ids))

class Holder:
    @staticmethod
    def nested():
        return Net()

def fails():
    raise FileNotFoundError("weights.pt is not here")

def leaves():
    raise SystemExit(3)

def needs(width, depth, heads=2):
    return Net()

def pair():
    return Net(), "tokenizer"

def number():
    return 7

class Heavy(nn.Sequential):
    def forward(self, x):
        raise torch.OutOfMemoryError("CUDA out of memory.")

def heavy():
    return Heavy(nn.Linear(4, 4))

def broken_loader():
    yield inputs(50)
    raise KeyError("column")

def one_tuple():
    return (inputs(), inputs())

def integers():
    return torch.zeros(10, 4, dtype=torch.int64)

class Blank(nn.Module):
    def forward(self, x):
        return x
"""


@pytest.fixture
def nets(cli, tmp_path, monkeypatch):
    """A module of networks in the current directory, imported afresh."""
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    yield cli
    sys.modules.pop("nets", None)


def inputs(samples=200):
    return torch.rand(samples, 4, generator=torch.Generator().manual_seed(1))


# --- what it does ---------------------------------------------------------------------------------------------------


def test_a_network_from_beginning_to_end(nets, tmp_path):
    ended = nets("probe", "nets:make", "--data", "nets:loader", "--out", "deep/out")
    assert (ended.code, ended.err) == (0, "")
    assert re.search(r"^layer +rows +width +dimension +null +stable COI", ended.out, re.M)
    assert re.search(r"^1:input +200 +6 ", ended.out, re.M)
    assert "Reading: Narrowest at " in ended.out
    assert ended.out.endswith("profile: deep/out\npage:    deep/out/profile.html\n")
    folder = tmp_path / "deep/out"
    assert {p.name for p in folder.iterdir()} == {
        *("profile.html", "profile.csv", "profile.parquet", "profile.pt", "figures")
    }
    frame = polars.read_parquet(folder / "profile.parquet")
    again = probe(torch.nn.Sequential(*sys.modules["nets"].make()), inputs())
    assert frame["layer"].to_list() == again.layers
    assert frame["coi_stable"].to_list() == pytest.approx(again["coi_stable"], rel=1e-6)
    assert {"null_coi_stable", "null_coi_stable_sd"} <= set(frame.columns)
    assert polars.read_csv(folder / "profile.csv")["layer"].to_list() == frame["layer"].cast(str).to_list()
    loaded = Profile.load(folder / "profile.pt")
    assert loaded.merge(loaded).samples == 400
    assert loaded["coi_stable"] == pytest.approx(again["coi_stable"], rel=1e-6)


@pytest.mark.parametrize("network", ["nets:make", "nets:ready", "nets:Net", "nets:Holder.nested"])
def test_functions_modules_and_classes_are_networks(nets, network):
    ended = nets("probe", network, "--data", "nets:inputs", "--null", "none", "--shards", 2)
    assert ended.code == 0 and "200 samples" in ended.out


def test_nothing_is_written_and_little_printed_unless_asked_for(nets, tmp_path):
    ended = nets("probe", "nets:make", "--data", "nets:inputs", "--quiet", "--null", "none", "--shards", 1)
    assert (ended.code, ended.out, ended.err) == (0, "", "")
    assert [p.name for p in tmp_path.iterdir() if p.name != "__pycache__"] == ["nets.py"]
    ended = nets("probe", "nets:make", "--data", "nets:inputs", "--quiet", "--shards", 1, "--out", "out")
    assert ended.out == "out\n"


def test_files_give_inputs_alone_in_the_networks_type_and_say_so(nets):
    x = inputs().numpy().astype("float64")
    numpy.savez("a.npz", x=x, y=numpy.zeros(200), x_test=x)
    frame = polars.DataFrame(x, schema=["a", "b", "c", "d"]).with_columns(
        label=polars.lit("cat"), note=polars.lit("text")
    )
    frame.write_parquet("a.parquet")
    frame.drop("label", "note").write_csv("a.csv")
    options = ("--null", "none", "--shards", 1)
    tables = [
        nets("probe", "nets:make", "--data", *arguments, *options)
        for arguments in (
            ("a.npz",),
            ("a.parquet", "--drop", "note"),
            ("a.csv",),
            ("a.parquet", "--target", "label,note"),
        )
    ]
    assert [ended.code for ended in tables] == [0] * 4
    assert (
        "note: data: 200 × 4 numbers in the network's float32, as they stand in a.npz: not normalised" in tables[0].out
    )
    assert "note: arrays left out: 'y', 'x_test'" in tables[0].out
    assert "note: label columns left out: 'label'\nnote: columns left out: 'note'" in tables[1].out
    assert "left out" not in tables[2].out
    assert "note: label columns left out: 'label', 'note'" in tables[3].out
    rows = [re.findall(r"^1 .*", ended.out, re.M) for ended in tables]
    assert rows[0] and rows[0] == rows[1] == rows[2] == rows[3]


def test_integers_go_to_an_embedding_as_they_are(nets):
    numpy.savez("ids.npz", x=numpy.arange(120).reshape(30, 4) % 20)
    ended = nets("probe", "nets:Words", "--data", "ids.npz", "--null", "none", "--shards", 1)
    assert ended.code == 0 and "30 × 4 integers, for the network's embedding" in ended.out
    assert "120" in re.findall(r"^head .*", ended.out, re.M)[0]


def assert_one_place_of_the_least_cost(cli, probed):
    """`show`, the doubt of the verdict, the report's curve and the probe name one p for the least cost of identity."""
    run = load_run("runs/run")
    state = probed["coi_stable"].arg_min()
    p = (probed["p"][state] or 0.0) if state else 0.0
    text = cli("show", "runs/run").out
    assert f"at p = {show(p, 3)} (A_{state})" in re.findall(r"^Smallest stable COI .*", text, re.M)[0]
    rows = text.split("run: states\n")[1].splitlines()
    place = re.split(r"  +", rows[0].strip()).index("stable COI")
    least = min(rows[1 : probed.height + 1], key=lambda row: float(row.split()[place]))
    assert least.split()[:2] == [str(state), show(p, 3)]
    (doubt,) = [doubt for doubt in run.summary["doubts"] if "cost of identity" in doubt]
    assert f"at p = {p:.2f} (A_{state})" in doubt
    rank = next(figure for figure in build_figures(run) if figure.key == "rank")
    curve = next(series for series in rank.panels[0].series if "cost of identity" in series.label)
    assert curve.x[list(curve.y).index(min(curve.y))] == pytest.approx(p)


def test_a_run_is_probed_on_its_own_data(nets, tiny):
    nets("train", *tiny, "--quiet", "--no-report")
    ended = nets("probe", "runs/run", "--out", "runs/run")
    assert ended.code == 0 and "the training part of the run's own task" in ended.out
    assert Path("runs/run/profile.html").is_file() and Path("runs/run/summary.json").is_file()
    found = polars.read_parquet("runs/run/profile.parquet")
    layers = polars.read_parquet("runs/run/layers.parquet")
    states = polars.read_parquet("runs/run/states.parquet")
    assert found["coi_stable"].to_list() == pytest.approx(states["coi_stable"].to_list(), rel=1e-8)
    assert found["step_change"].to_list()[1:] == pytest.approx(layers["step_change"].to_list(), rel=1e-8)
    assert_one_place_of_the_least_cost(nets, found)
    numpy.savez("other.npz", x=torch.rand(50, 6, generator=torch.Generator().manual_seed(0)).numpy())
    ended = nets("probe", "runs/run", "--data", "other.npz", "--null", "none")
    assert ended.code == 0 and "the run's own data were normalised; these were not" in ended.out
    assert load_run_model("runs/run").width == 12


def test_every_choice_reaches_the_probe(nets, monkeypatch):
    seen = {}

    def spy(model, data, **options):
        seen.update(options)
        seen["batches"] = [len(batch) for batch in data]
        return probe(model, inputs())

    monkeypatch.setattr("isthmus.probe.probe", spy)
    nets(
        *("probe", "nets:make", "--data", "nets:inputs", "--quiet", "--null", "none"),
        *("--layers", "0, 1:input,**.out", "--kinds", "block,linear", "--positions", "mean"),
        *("--channels", "0=first,1=last", "--sequence-first", "--max-width", 77),
        *("--activation", "0=identity,**=smooth_relu", "--no-append-one", "--gamma0", 0.01, "--method", "gram"),
        *("--neighbours", 500),
        *(
            "--loss",
            "mse",
            "--weight-decay",
            0.1,
            "--shards",
            3,
            "--batch-size",
            150,
            "--max-batches",
            5,
            "--autocast",
            "bfloat16",
            "--device",
            "cpu",
        ),
    )
    assert seen.pop("batches") == [150, 50]
    sigmas = seen.pop("activation")
    assert {p: (a.name, a.append_one) for p, a in sigmas.items()} == {
        "0": ("identity", False),
        "**": ("smooth_relu", False),
    }
    assert seen == {
        "layers": ["0", "1:input", "**.out"],
        "kinds": ["block", "linear"],
        "positions": "mean",
        "channels": {"0": "first", "1": "last"},
        "sequence_first": True,
        "max_width": 77,
        "gamma0": 0.01,
        "neighbours": 500,
        "method": "gram",
        "shards": 3,
        "max_batches": 5,
        "autocast": torch.bfloat16,
        "loss": torch.nn.functional.mse_loss,
        "weight_decay": 0.1,
    }
    assert set(Choices.__dataclass_fields__) - set(seen) == {"append_one", "batch_size", "activation"}


def test_activation_is_read_unless_given_and_append_one_is_of_one_that_is(nets, monkeypatch):
    seen = []

    def spy(model, data, **options):
        seen.append(options["activation"])
        return probe(model, inputs())

    monkeypatch.setattr("isthmus.probe.probe", spy)
    call = ("probe", "nets:make", "--data", "nets:inputs", "--quiet", "--null", "none")
    for options in ((), ("--activation", "relu", "--no-append-one"), ("--activation", "identity")):
        nets(*call, *options)
    assert seen[0] is None
    assert [(a.name, a.append_one) for a in seen[1:]] == [("relu", False), ("identity", True)]
    ended = nets(*call, "--no-append-one")
    assert ended.code and "says how the features of --activation are" in ended.err + ended.out


def test_momenta_where_a_loss_is_given(nets):
    arguments = ("probe", "nets:make", "--data", "nets:trained_on", "--null", "none", "--weight-decay", 0.1)
    ended = nets(*arguments, "--loss", "mse")
    assert ended.code == 0 and "Hamiltonian of (model)[1:3]: " in ended.out
    assert nets(*arguments, "--loss", "nets:squares").out == ended.out


def test_a_limit_of_batches_is_a_doubt(nets):
    ended = nets("probe", "nets:make", "--data", "nets:loader", "--max-batches", 1, "--null", "none")
    assert "64 samples" in ended.out and "doubt: Only the first batches were read" in ended.out


def test_a_terminal_is_told_what_goes_on(nets, monkeypatch):
    told = []
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setattr("rich.status.Status.update", lambda self, text: told.append(text))
    ended = nets("probe", "nets:make", "--data", "nets:loader", "--layers", "0")
    assert ended.code == 0
    assert told == [*(f"reading: batch {i}" for i in (1, 2, 3, 4)), "quantities of 1 layers", "null control"]


def test_gaussian_control(nets):
    ended = nets("probe", "nets:make", "--data", "nets:inputs", "--null", "gaussian", "--layers", "0")
    assert ended.code == 0 and "null: the dimension of the gaussian null control" in ended.out


def test_a_profile_is_not_overwritten_unawares(nets):
    arguments = ("probe", "nets:make", "--data", "nets:inputs", "--null", "none", "--shards", 1, "--out", "out")
    assert nets(*arguments).code == 0
    ended = nets(*arguments)
    assert ended.code == 2
    assert "error: out already holds profile.parquet; replace it with --overwrite, or choose another" in ended.err
    assert nets(*arguments, "--overwrite").code == 0


def test_without_the_packages_of_the_page_the_tables_are_written(nets, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    ended = nets("probe", "nets:make", "--data", "nets:inputs", "--shards", 1, "--null", "none", "--out", "out")
    assert ended.code == 0
    assert "warning: no page was written: the report needs plotly" in ended.err
    assert Path("out/profile.parquet").is_file() and "page:" not in ended.out


def test_a_full_disk_fails(nets, monkeypatch):
    def full(data, folder):
        raise OSError("No space left on device")

    monkeypatch.setattr("isthmus.report.profile.page.write_profile_page", full)
    ended = nets("probe", "nets:make", "--data", "nets:inputs", "--shards", 1, "--null", "none", "--out", "out")
    assert ended.code == 1 and "error: no page was written: No space left on device; free space" in ended.err


def test_the_current_directory_is_importable_from_the_installed_command(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    command = Path(sys.executable).with_name("isthmus")
    arguments = (
        "probe",
        "nets:make",
        "--data",
        "nets:inputs",
        "--null",
        "none",
        "--shards",
        "1",
        "--quiet",
        "--out",
        "o",
    )
    done = subprocess.run([command, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "o\n", "")


# --- what it says where it cannot -----------------------------------------------------------------------------------

GOOD = ("nets:make", "--data", "nets:inputs")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        # the network
        (("nts:make", "--data", "nets:inputs"), r"no module 'nts' in the current directory .*did you mean 'nets'\?"),
        (("nets.py:make", "--data", "x"), r"'nets.py' is a path, expected the dotted name of a module .*: nets:make"),
        (("nets", "--data", "x"), r"the network: expected a run folder or PACKAGE.MODULE:FACTORY.* got 'nets'"),
        (("nets:mke", "--data", "x"), r"nets has no attribute 'mke'; did you mean 'make'\?"),
        (("nets:fails", "--data", "x"), r"nets:fails raised FileNotFoundError: weights.pt is not here \(--debug shows"),
        (("nets:leaves", "--data", "x"), r"nets:leaves raised SystemExit: 3; keep what is to run as a script under if"),
        (("nets:needs", "--data", "x"), r"needs arguments \(width, depth\); .*def make\(\): return needs\(width=…\)"),
        (("nets:pair", "--data", "x"), r"gave a value of type tuple, expected a torch.nn.Module \(return the network"),
        (("nets:number", "--data", "x"), r"nets:number gave a value of type int, expected a torch.nn.Module"),
        (("nets:WIDTH", "--data", "x"), r"nets:WIDTH gave a value of type int, expected a torch.nn.Module"),
        (("bad:make", "--data", "x"), r"module bad could not be imported: it raised SyntaxError"),
        (("lacks:make", "--data", "x"), r"module lacks could not be imported: it needs not_installed"),
        (("empty", "--data", "x"), r"empty is a folder, but of no run of isthmus; give one that `isthmus train` wrote"),
        # the data
        (("nets:make",), r"--data is missing: give a .npz, .csv or .parquet file of inputs, or MODULE:FACTORY"),
        (("nets:make", "--data", "no.npz"), r"there is no file no.npz; did you mean 'nan.npz'\?"),
        (
            ("nets:make", "--data", "nowhere"),
            r"the data: expected a file or MODULE:FACTORY.*; there is no file nowhere",
        ),
        (("nets:make", "--data", "flat.npz"), r"x of flat.npz has shape \(5,\): expected samples along the first"),
        (("nets:make", "--data", "nan.npz"), r"x of nan.npz holds NaN \(missing values\): row 0"),
        (
            ("nets:make", "--data", "flat.npz", "--drop", "a"),
            r"target and drop name columns of a table; of flat.npz only",
        ),
        ((*GOOD, "--drop", "a"), r"--target and --drop name columns of a table: they go with a .csv or .parquet file"),
        (
            ("nets:make", "--data", "wide.npz"),
            r"nets:make and wide.npz do not fit, .*RuntimeError while Net ran on batch 0",
        ),
        (("nets:make", "--data", "nets:integers"), r"do not fit, or the network fails: RuntimeError while Net ran"),
        (("nets:make", "--data", "nets:number"), r"nets:number: data: expected a DataLoader, a tensor, or .*got int"),
        (("nets:make", "--data", "nets:one_tuple"), r"data: a tuple of 2 could be one batch or several"),
        (("nets:make", "--data", "nets:broken_loader"), r"nets:broken_loader raised, on batch 1, KeyError: 'column'"),
        # what is read
        ((*GOOD, "--layers", "1.outt"), r"layers: no module fits '1.outt'; did you mean '1.out'"),
        ((*GOOD, "--layers", ","), r"layers: got an empty selection"),
        ((*GOOD, "--kinds", "attention"), r"kinds: expected some of stream, block, linear, conv, got 'attention'"),
        (("nets:Blank", "--data", "nets:inputs"), r"layers: found no layer of the kinds stream, block, linear, conv"),
        ((*GOOD, "--max-width", 2), r"layers: none of the layers could be read. .*of width 6 > max_width=2"),
        # the options
        (("nets:make", "--data", "flat4.npz", "--loss", "mse"), r"--loss needs labels, and of flat4.npz only inputs"),
        (("nets:make", "--data", "nets:loader", "--loss", "mse"), r"momenta need loss= and weight_decay= both"),
        ((*GOOD, "--loss", "mse", "--weight-decay", 1), r"data: expected batches with labels"),
        ((*GOOD, "--loss", "hinge"), r"the loss: expected cross_entropy, mse or MODULE:FUNCTION, .*got 'hinge'"),
        (
            (*GOOD, "--loss", "nets:WIDTH", "--weight-decay", 1),
            r"--loss: expected a function \(output, target\) -> scalar tensor, nets:WIDTH is 6",
        ),
        (
            (*GOOD, "--channels", "middle"),
            r"--channels: expected one of auto, first, last, or PATTERN=WORD,..., got 'mid",
        ),
        (
            (*GOOD, "--activation", "relu,gelu"),
            r"--activation: expected one of relu, smooth_relu, identity, or PATTERN",
        ),
        ((*GOOD, "--gamma0", 0), r"gamma0 must be positive, got 0"),
        ((*GOOD, "--device", "tpu"), r"--device: 'tpu' cannot be used here \(.*\); try cpu"),
        (
            (*GOOD, "--out", "nets.py"),
            r"nets.py is a file, expected a folder for the profile; choose another with --out",
        ),
        ((*GOOD, "--positions", "sum"), r"Invalid value for '--positions'.*'sum' is not one of"),
        ((*GOOD, "--batch-size", 0), r"Invalid value for '--batch-size'.*greater than or equal to 1"),
    ],
)
def test_misuse(nets, arguments, message):
    Path("bad.py").write_text("def make(:\n")
    Path("lacks.py").write_text("import not_installed\n")
    Path("empty").mkdir()
    numpy.savez("flat.npz", x=numpy.zeros(5))
    numpy.savez("flat4.npz", x=numpy.zeros((5, 4)), y=numpy.zeros((5, 3)))
    numpy.savez("nan.npz", x=numpy.full((5, 4), numpy.nan))
    numpy.savez("wide.npz", x=numpy.zeros((50, 9)))
    ended = nets("probe", *arguments)
    assert ended.code == 2
    said = re.sub(r"[\s│]+", " ", ended.err)
    assert re.search(message, said), said
    assert "issue tracker" not in said


def test_running_out_of_memory_is_a_failure_with_advice(nets):
    ended = nets("probe", "nets:heavy", "--data", "nets:inputs")
    assert ended.code == 1
    assert "error: out of memory: CUDA out of memory. Give a smaller --batch-size, fewer --shards" in ended.err


def test_debug_shows_where_the_users_code_failed(nets):
    ended = nets("probe", "nets:fails", "--data", "nets:inputs", "--debug")
    assert ended.code == 2 and "in fails" in ended.err


def test_a_run_without_its_configuration_needs_data(nets, tiny):
    nets("train", *tiny, "--quiet", "--no-report")
    Path("runs/run/config.yaml").unlink()
    ended = nets("probe", "runs/run")
    assert ended.code == 2 and "runs/run has no config.yaml, which says what data it was trained on" in ended.err
