"""What the README shows must run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TRAINING, SOLVING, PROBING = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def run(code, folder, monkeypatch):
    """Run an example of at most ten lines in a folder of its own; returns its names."""
    assert len([line for line in code.splitlines() if line.strip() and not line.startswith("from")]) <= 10
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


def test_the_solving_example_converges(tmp_path, monkeypatch, capsys):
    solution = run(SOLVING, tmp_path, monkeypatch)["solution"]
    assert solution.status == "converged" and solution.certificate.residual_max <= 1e-6
    assert solution.certificate.h_unexplained < 0.1 * solution.certificate.h_spread
    assert capsys.readouterr().out.startswith("converged ")


def test_the_python_example_runs_and_finds_what_it_says(tmp_path, monkeypatch, capsys):
    names = run(TRAINING, tmp_path, monkeypatch)
    assert (tmp_path / "layers.csv").read_text().startswith("layer,p,rho")
    assert "No verdict: the residual is 0.3, beyond 0.1" in capsys.readouterr().out
    assert (tmp_path / "layers-states.csv").read_text().startswith("state,p,coi")
    assert max(names["table"]["residual"]) < 1.0


def test_the_probing_example_runs_and_shows_what_it_says(tmp_path, monkeypatch, capsys):
    names = run(PROBING, tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert "not read (" in printed and "layers.5" in printed
    assert (tmp_path / "profile.parquet").is_file()
    steps = names["profile"]["step_change"]
    assert len(names["profile"].idle()) == sum(step is not None for step in steps) == 6


def test_the_commands_it_names_exist_with_their_options():
    from typer.main import get_command

    from isthmus.cli.main import app

    commands = get_command(app).commands
    tutorial = (ROOT / "docs/tutorials/probe.md").read_text()
    lines = [line.partition("#")[0].split() for line in (README + tutorial).splitlines() if line.startswith("isthmus ")]
    assert {line[1] for line in lines} >= {"train", "show", "report", "probe"}
    for _, command, *rest in lines:
        options = {option for parameter in commands[command].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, command


def test_what_it_names_exists():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
    for config in re.findall(r"examples/\w+\.yaml", README):
        assert (ROOT / config).exists(), config


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.stem)
def test_examples_are_valid_configs(example):
    from isthmus.runs import RunConfig

    assert RunConfig.from_yaml(example).warnings() == ()


ALLOWED = {"torch", "jaxtyping", "wadler_lindig"}
FORBIDDEN = (
    "polars pydantic yaml typer rich safetensors plotly matplotlib jinja2 sklearn mlxtend mnist1d scipy beartype"
)


def test_the_library_needs_torch_and_jaxtyping_alone():
    """Train and read a network in a process where every other dependency of ours is missing."""
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {FORBIDDEN.split()!r}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Missing())
import isthmus
assert "torch" not in sys.modules, "import isthmus is lazy"
from isthmus.mechanics import mechanics
from isthmus.bottleneck import bottleneck
task = isthmus.make_task("teacher", dims=(5, 2, 5), train=40, test=40)
model = isthmus.LeakyResNet(5, 5, width=8, depth=5, effective_depth=2.0)
problem = isthmus.Problem(model, task.x_train, task.y_train)
isthmus.Trainer(problem, isthmus.recipe("default", 30)).run()
print(bottleneck(problem.geodesic(), mechanics(problem.geodesic())).verdict)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("No verdict: the residual is ")


def test_every_name_of_the_package_loads():
    import isthmus

    for name in isthmus.__all__:
        assert getattr(isthmus, name) is not None
    assert set(isthmus.__all__) <= set(dir(isthmus))
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        isthmus.Nothing  # noqa: B018
