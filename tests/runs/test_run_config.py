import inspect
import math
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from isthmus._support import nearest
from isthmus.runs import ConfigError, RunConfig
from isthmus.runs.checks import step_sizes
from isthmus.runs.config import apply_overrides, merge_sections
from isthmus.runs.problems import choices, expectation, is_optional, keys_of, plain_type
from isthmus.runs.sections import MeshConfig


def refused(mapping: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_mapping(mapping)
    return str(caught.value)


# --- one problem at a time ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.depth", "abc", r"model\.depth: expected a whole number >= 1, got 'abc'$"),
        ("model.depth", 0, r"model\.depth: expected a whole number >= 1, got 0$"),
        ("model.depth", 2.5, r"model\.depth: expected a whole number >= 1, got 2\.5$"),
        ("model.depth", True, r"model\.depth: expected a whole number >= 1, got True$"),
        ("model.depth", None, r"model\.depth: expected a whole number >= 1, got None$"),
        ("model.depth", [1], r"model\.depth: expected a whole number >= 1, got \[1\]$"),
        ("model.effective_depth", -1, r"model\.effective_depth: expected a finite number >= 0, got -1$"),
        ("model.effective_depth", math.inf, r"expected a finite number >= 0, got inf$"),
        ("model.effective_depth", "nan", r"expected a finite number >= 0, got 'nan'$"),
        ("model.append_one", "perhaps", r"model\.append_one: expected true or false, got 'perhaps'$"),
        (
            "model.activation",
            "reul",
            r"expected one of relu, smooth_relu, identity, got 'reul'; did you mean relu\?$",
        ),
        ("model.activation", 3, r"expected one of relu, smooth_relu, identity, got 3$"),
        ("mesh.irregularity", 1, r"mesh\.irregularity: expected a finite number >= 0 and < 1, got 1$"),
        ("mesh.relaxation", 0, r"mesh\.relaxation: expected a finite number > 0 and <= 1, got 0$"),
        ("train.steps", 2, r"train\.steps: expected a whole number >= 3, or none, got 2$"),
        ("train.rate", "fast", r"train\.rate: expected a finite number > 0, or none, got 'fast'$"),
        (
            "train.device",
            "gpu",
            r"train\.device: expected one of cpu, cuda, auto, cuda:N \(N the number of a GPU\), got 'gpu'",
        ),
        (
            "task.dims",
            "30,x",
            r"task\.dims: expected two or more whole numbers >= 1, as in 30,3,30, got '30,x'$",
        ),
        ("task.dims", [30], r"task\.dims: expected two or more whole numbers >= 1, got \[30\]$"),
        (
            "task.dims",
            [30, 0, 30],
            r"task\.dims: expected two or more whole numbers >= 1, got \[30, 0, 30\]$",
        ),
        ("task.dims", {"a": 1}, r"task\.dims: expected two or more whole numbers >= 1, as in 30,3,30, got"),
        (
            "task.target",
            {"a": 1},
            r"task\.target: expected one or more names or numbers of columns, as in y1,y2",
        ),
        ("seed", -1, r"seed: expected a whole number >= 0 and < 4294967296, got -1$"),
        ("name", "a/b", r"name: expected a name of letters, digits, '\.', '_' and '-', got 'a/b'$"),
        ("name", "", r"name: expected a name of letters"),
    ],
)
def test_a_bad_value_names_the_key_what_was_expected_and_what_came(key, value, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig().merge({key: value})


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"model": {"widht": 3}}, r"model\.widht: unknown key; the nearest valid name is model\.width$"),
        ({"modle": {}}, r"modle: unknown key; the nearest valid name is model$"),
        ({"width": 3}, r"width: unknown key; the nearest valid name is model\.width$"),
        (
            {"analysis": {"steps": 3}},
            r"analysis\.steps: unknown key; the nearest valid name is train\.steps$",
        ),
        ({"task": {"efective_depth": 3}}, r"unknown key; the nearest valid name is model\.effective_depth$"),
        ({"analysis": {"qqq": 3}}, r"analysis\.qqq: unknown key; valid names here: gamma0, rank_threshold$"),
        ({"qqq": 3}, r"qqq: unknown key; valid names here: name, seed, task, model, mesh, train, analysis$"),
        ({5: 3}, r"5: expected text as a key, not a number$"),
        ({"model": {5: 3}}, r"model\.5: expected text as a key, not a number$"),
        ({"mesh": 5}, r"mesh: expected a section, that is a mapping of keys to values, got 5$"),
        ({"mesh": [1]}, r"mesh: expected a section, that is a mapping of keys to values, got \[1\]$"),
        ([1], r"expected a mapping of sections, got \[1\]$"),
    ],
)
def test_a_bad_key_names_the_nearest_valid_one(mapping, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_mapping(mapping)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"task": {"kind": "file"}},
            r"task\.path: expected the path of a data file, since task\.kind is file; got none$",
        ),
        (
            {"model": {"width": 20}},
            r"model\.width: expected at least the larger end of task\.dims, 30, got 20$",
        ),
        (
            {"train": {"batch_size": 1001}},
            r"train\.batch_size: expected at most the 1000 training rows, got 1001$",
        ),
        (
            {"train": {"batch_size": 9}, "task": {"kind": "digits", "train": 8}},
            r"train\.batch_size: expected at most the 8 training rows, got 9$",
        ),
        ({"task": {"test_fraction": 0.1}}, r"task\.test_fraction: a teacher makes any number of rows"),
        (
            {"mesh": {"kind": "adaptive", "cap": 1.5}},
            r"mesh\.slow_cap: expected at least mesh\.cap, 1\.5, got 1$",
        ),
        (
            {"mesh": {"kind": "adaptive"}, "model": {"depth": 6}},
            r"model\.depth: expected at least 7 layers, .* <= mesh\.cap; got 6$",
        ),
    ],
)
def test_values_that_do_not_go_together(mapping, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_mapping(mapping)
    with pytest.raises(ValidationError):
        RunConfig(**mapping)


def test_values_at_the_edge_go_together():
    RunConfig.from_mapping({"mesh": {"kind": "adaptive"}, "model": {"depth": 7}})
    RunConfig.from_mapping({"model": {"width": 30}})
    RunConfig.from_mapping({"train": {"batch_size": 1000}})
    RunConfig.from_mapping({"task": {"kind": "digits"}, "train": {"batch_size": 1001}, "model": {"width": 64}})


# --- all of them at once ----------------------------------------------------------------------------------------


def test_every_problem_is_listed_at_once():
    text = refused({"modle": {}, "model": {"width": "x", "widht": 3}, "task": {"kind": "digts"}, "seed": -1})
    assert text.startswith("the configuration has 5 problems:\n")
    for key in ("modle", "model.width", "model.widht", "task.kind", "seed"):
        assert f"\n  {key}: " in text


def test_one_problem_is_one():
    assert refused({"seed": -1}).startswith("the configuration has a problem:\n  seed: ")


def test_two_cross_problems_are_both_listed():
    text = refused({"task": {"kind": "file"}, "train": {"batch_size": 9}, "mesh": {"kind": "adaptive", "cap": 2}})
    assert "task.path" in text
    assert "mesh.slow_cap" in text


def test_long_values_are_cut_in_messages():
    assert len(refused({"seed": "9" * 500})) < 200


def test_a_config_error_is_a_value_error_with_its_problems():
    with pytest.raises(ValueError, match="seed") as caught:
        RunConfig.from_mapping({"seed": -1})
    assert [problem.key for problem in caught.value.problems] == ["seed"]


# --- reading values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("model.width", "50", 50),
        ("model.width", 50.0, 50),
        ("train.mu", "1e-3", 1e-3),
        ("train.steps", "none", None),
        ("train.steps", "NULL", None),
        ("task.dims", "40, 2,7", (40, 2, 7)),
        ("task.dims", [40, 2], (40, 2)),
        ("task.target", "a,b", ("a", "b")),
        ("task.target", -1, ("-1",)),
        ("task.target", "none", None),
        ("task.drop", "id", ("id",)),
        ("task.normalise", "none", "none"),
        ("model.append_one", "no", False),
        ("model.append_one", "true", True),
        ("name", 2024, "2024"),
    ],
)
def test_text_is_read_as_what_it_means(key, text, value):
    assert RunConfig().merge({key: text}).flat()[key] == value


def test_an_empty_section_takes_its_defaults():
    assert RunConfig.from_mapping({"model": None, "train": {}}) == RunConfig()


def test_it_cannot_be_changed_after_construction():
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().model.width = 3


def test_merge_leaves_the_original_alone_and_replaces_only_what_it_names():
    config = RunConfig()
    changed = config.merge({"model.width": 50, "name": "other"})
    assert changed.differences(config) == {"model.width": (50, 100), "name": ("other", "run")}
    assert config == RunConfig()


def test_an_override_into_a_section_that_is_none_leaves_the_section_to_validation():
    assert apply_overrides({"model": 5}, {"model.width": 3}) == {"model": 5}
    assert apply_overrides({"model": None}, {"model.width": 3}) == {"model": {"width": 3}}
    base = {"model": {"depth": 4}}
    assert apply_overrides(base, {"model.width": 3}) == {"model": {"depth": 4, "width": 3}}
    assert base == {"model": {"depth": 4}}


def test_sections_merge_key_by_key():
    below = {"model": {"depth": 4, "width": 5}, "seed": 1}
    assert merge_sections(below, {"model": {"width": 6}}) == {"model": {"depth": 4, "width": 6}, "seed": 1}
    assert merge_sections(below, {"model": None, "seed": 2}) == {"model": {"depth": 4, "width": 5}, "seed": 2}
    assert merge_sections(below, {"model": 7})["model"] == 7


# --- YAML -------------------------------------------------------------------------------------------------------


def test_order_is_defaults_then_yaml_then_overrides(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("model: {width: 40, depth: 9}\ntrain:\n  mu: 1e-3\n")
    config = RunConfig.from_yaml(file, {"model.width": "50"})
    assert (config.model.width, config.model.depth, config.train.mu) == (50, 9, 1e-3)
    assert config.model.effective_depth == RunConfig().model.effective_depth


def test_an_override_mends_a_bad_value_in_the_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("seed: -1\n")
    assert RunConfig.from_yaml(file, {"seed": 4}).seed == 4


@pytest.mark.parametrize("text", ["", "# nothing but a remark\n", "---\n", "model:\n"])
def test_an_empty_file_means_the_defaults(tmp_path, text):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    assert RunConfig.from_yaml(file) == RunConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model:\n  width: 3\n  width: 4\n",
            r"a\.yaml has a problem:\n  line 3, column 3: the key 'width' is given twice",
        ),
        ("seed: 1\nmodel: {}\nseed: 2\n", r"line 3, column 1: the key 'seed' is given twice"),
        ("model:\n  width: [3\n", r"a\.yaml has a problem:\n  line 3, column 1: "),
        ("\tseed: 3\n", r"line 1, column 1: found character '\\t'"),
        ("- 1\n- 2\n", r"expected a mapping of sections \(task:, model:, \.\.\.\), got \[1, 2\]"),
        ("just words\n", r"expected a mapping of sections .* got 'just words'"),
        (
            "seed: !!python/object/apply:os.system ['true']\n",
            r"line 1, column 7: could not determine a constructor",
        ),
        ("? [1, 2]\n: 3\n", r"line 1, column 3: found unhashable key"),
        ("a: \x07\n", r"is not valid YAML: .*special characters are not allowed"),
        ("seed: 1\n---\nseed: 2\n", r"line 2, column 1: but found another document"),
    ],
)
def test_yaml_errors_name_the_file_and_the_line(tmp_path, text, message):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_yaml(file)


def test_a_merge_key_is_no_duplicate(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("model: &m {width: 40}\nmesh: {}\ntrain: {}\n")
    assert RunConfig.from_yaml(file).model.width == 40
    file.write_text("model:\n  <<: {width: 40}\n  width: 50\n")
    assert RunConfig.from_yaml(file).model.width == 50


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml has a problem:\n  no such file; give the path of a YAML"):
        RunConfig.from_yaml(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="expected a YAML file, got a directory"):
        RunConfig.from_yaml(tmp_path)
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        RunConfig.from_yaml(binary)


def test_errors_in_a_file_name_the_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("seed: -1\nwidht: 3\n")
    with pytest.raises(ConfigError, match=r"a\.yaml has 2 problems:"):
        RunConfig.from_yaml(file)


NUMBERS = st.floats(min_value=1e-300, max_value=1e300, allow_nan=False)
NAMES = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
CONFIGS = st.fixed_dictionaries(
    {
        "name": NAMES,
        "seed": st.integers(0, 2**32 - 1),
        "task.kind": st.just("file"),
        "task.path": st.text(min_size=1).filter(
            lambda text: text.strip().lower() not in ("none", "null") and text.isprintable()
        ),
        "task.target": st.none() | st.lists(NAMES, min_size=1).map(tuple),
        "task.dims": st.lists(st.integers(1, 90), min_size=2, max_size=4).map(tuple),
        "task.test_fraction": st.none() | st.floats(0, 0.99),
        "model.width": st.integers(90, 2**40),
        "model.effective_depth": st.floats(0, 1e300),
        "model.append_one": st.booleans(),
        "mesh.irregularity": st.floats(0, 1, exclude_max=True),
        "train.rate": st.none() | NUMBERS,
        "train.mu": NUMBERS,
        "train.steps": st.none() | st.integers(3, 2**62),
    }
)


@settings(deadline=None, max_examples=60)
@given(values=CONFIGS)
def test_yaml_round_trip_is_exact(tmp_path_factory, values):
    config = RunConfig().merge(values)
    file = tmp_path_factory.mktemp("yaml") / "a.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert RunConfig.from_yaml(file) == config


# --- warnings ---------------------------------------------------------------------------------------------------


def test_the_default_has_no_warnings():
    assert RunConfig().warnings() == ()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"task.kind": "digits", "task.hidden": 7},
            "task.hidden has no effect: it needs task.kind: teacher, here it is digits",
        ),
        ({"task.path": "x"}, "task.path has no effect: it needs task.kind: file"),
        ({"model.sharpness": 3}, "model.sharpness has no effect: it needs model.activation: smooth_relu"),
        ({"mesh.irregularity": 0.1}, "mesh.irregularity has no effect: it needs mesh.kind: irregular"),
        ({"mesh.cap": 0.9}, "mesh.cap has no effect: it needs mesh.kind: adaptive, here it is equidistant"),
        ({"model.effective_depth": 30}, "rho * effective_depth reaches 1.5 > 1"),
    ],
)
def test_what_has_no_effect_or_is_doubtful_is_said(overrides, message):
    [warning] = RunConfig().merge(overrides).warnings()
    assert message in warning


def test_irregular_steps_warn_between_equal_ones_and_the_bound():
    # L must exceed (1 + a/4) L_tilde, approximately: the largest step is 1/L times 1 + a/4 before normalising.
    equal = RunConfig().merge({"model.depth": 7, "model.effective_depth": 7})
    assert equal.warnings() == ()
    [warning] = equal.merge({"mesh.kind": "irregular", "mesh.irregularity": 0.9}).warnings()
    assert "change the sign of their skip" in warning
    assert equal.merge({"mesh.kind": "irregular", "mesh.irregularity": 0.9, "model.depth": 9}).warnings() == ()


def test_step_sizes_are_those_of_the_mesh():
    from isthmus.mesh import Irregular

    config = RunConfig().merge({"mesh.kind": "irregular", "mesh.irregularity": 0.7, "model.depth": 9})
    assert step_sizes(config) == pytest.approx(Irregular(0.7).init(9, 7.0).rho.tolist(), rel=1e-14)


# --- the fields themselves --------------------------------------------------------------------------------------


def test_every_field_is_described_and_has_words_for_what_it_takes():
    for key, field in keys_of(RunConfig).items():
        assert field.description and field.description.endswith("."), key
        assert "a value" not in expectation(field), key


def test_the_defaults_of_the_mesh_are_those_of_the_rules():
    from isthmus.mesh import Adaptive, Irregular, MeshScheduler

    mesh = MeshConfig()
    for name in ("floor", "smoothing", "relaxation", "cap", "slow_cap"):
        assert getattr(mesh, name) == getattr(Adaptive(), name), name
    assert mesh.irregularity == Irregular().irregularity
    assert mesh.every == inspect.signature(MeshScheduler).parameters["every"].default


def test_the_choices_are_those_of_the_code_they_name():
    from isthmus.activations import ACTIVATIONS
    from isthmus.initialise import INITIALISATIONS
    from isthmus.solve import RECIPES
    from isthmus.tasks import KINDS

    fields = keys_of(RunConfig)
    assert set(choices(fields["model.initialisation"])) == {"default", *INITIALISATIONS}
    assert set(choices(fields["model.activation"])) == set(ACTIVATIONS)
    assert set(choices(fields["task.kind"])) == set(KINDS)
    assert set(choices(fields["train.recipe"])) == set(RECIPES)


def test_the_defaults_of_the_model_are_those_of_leaky_resnet():
    from isthmus.activations import SmoothReLU
    from isthmus.model import LeakyResNet

    parameters = inspect.signature(LeakyResNet).parameters
    for name in ("width", "depth", "effective_depth", "ends"):
        assert getattr(RunConfig().model, name) == parameters[name].default, name
    assert RunConfig().model.sharpness == SmoothReLU().sharpness


def test_looking_at_fields():
    fields = keys_of(RunConfig)
    assert is_optional(fields["train.steps"]) and not is_optional(fields["model.width"])
    assert plain_type(fields["train.steps"]) is int
    assert plain_type(fields["task.target"]) == tuple[str, ...]
    assert choices(fields["model.width"]) == ()
    assert nearest("widht", ["width", "depth"]) == "width"
    assert nearest("qqq", ["width", "depth"]) is None


def test_example_files_are_valid():
    examples = Path(__file__).parents[2] / "examples"
    for file in examples.glob("*.yaml"):
        RunConfig.from_yaml(file)
