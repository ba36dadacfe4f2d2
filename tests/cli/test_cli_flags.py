import re
import subprocess
import sys
from pathlib import Path

import pytest

import isthmus.cli
from isthmus.cli.choices import Choices
from isthmus.cli.flags import option_name
from isthmus.runs.config import RunConfig
from isthmus.runs.problems import choices, keys_of

HEAVY = ("torch", "polars", "numpy", "matplotlib", "plotly", "sklearn", "jaxtyping")
SOURCES = str(Path(isthmus.cli.__file__).parents[2])


@pytest.fixture(scope="module")
def help_text():
    """What `isthmus train --help` prints in a process of its own, wide enough not to wrap."""
    return in_a_process("train", "--help")


def in_a_process(*arguments):
    """Run the command, and check that it never loaded what takes long."""
    code = f"""if True:
        import sys
        from isthmus.cli.main import main
        sys.argv[1:] = {list(arguments)!r}
        try:
            main()
        finally:
            heavy = {set(HEAVY)!r} & set(sys.modules)
            assert not heavy, heavy
    """
    environment = {"PYTHONPATH": SOURCES, "COLUMNS": "400", "PATH": "", "TERM": "dumb"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def test_help_does_not_load_torch(help_text):
    assert "--width" in help_text


def test_the_top_help_and_the_version_do_not_load_torch_either():
    text = in_a_process("--help")
    for command in ("train", "show", "report", "probe"):
        assert re.search(rf"│ {command}\b", text)
    assert in_a_process("--version") == f"isthmus {isthmus.__version__}\n"


def test_the_help_of_probe_does_not_load_torch_and_has_every_choice():
    text = in_a_process("probe", "--help")
    for option in Choices.__dataclass_fields__:
        assert re.search(rf"--{option.replace('_', '-')}\b", text), option
    for option in ("--data", "--target", "--drop", "--device", "--null", "--out", "--overwrite", "--quiet", "--debug"):
        assert re.search(rf"{option}\b", text), option


def test_every_field_is_an_option_with_its_meaning_and_default(help_text):
    for key, field in keys_of(RunConfig).items():
        lines = [line for line in help_text.splitlines() if line.startswith("│")]
        line = next(line for line in lines if re.search(rf"{option_name(key)}\b", line))
        meaning = field.description.partition(" Default: ")[0]
        assert meaning in line, key
        assert "(default: " in line, key
        for word in choices(field):
            assert word in line, key


def test_defaults_are_shown_as_one_would_type_them(help_text):
    for option, default in (
        ("--dims", "30,3,30, the paper's Figure 1"),
        ("--mu", "0.001, the paper's"),
        ("--effective-depth", "7, the paper's Figure 1"),
        ("--batch-size", "none"),
        ("--append-one", "yes, the paper's"),
        ("--drop", "none"),
    ):
        line = next(line for line in help_text.splitlines() if f"{option} " in line)
        assert f"(default: {default})" in line


def test_the_options_stand_in_a_panel_per_section(help_text):
    panels = re.findall(r"╭─ (.+?) ─+╮", help_text)
    assert panels == [
        "Options",
        "Run",
        "Task",
        "Model",
        "Mesh (step-sizes of the layers)",
        "Training",
        "Analysis",
    ]


def test_option_names():
    assert option_name("task.kind") == "--task"
    assert option_name("mesh.kind") == "--mesh"
    assert option_name("model.effective_depth") == "--effective-depth"
    assert option_name("seed") == "--seed"
    names = [option_name(key) for key in keys_of(RunConfig)]
    own = ["--config", "--out", "--resume", "--overwrite", "--no-report", "--quiet", "--debug", "--help"]
    assert len({*names, *own}) == len(names) + len(own)
