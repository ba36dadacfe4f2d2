"""Which layers are read: by name, pattern, type, function or found; and that all others are listed with a reason."""

import pytest
import torch
from torch import nn

from isthmus.probe.find import find_layers, pattern_matches, stacks, unwrap


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, 8), nn.ReLU(inplace=True), nn.Linear(8, width)

    def forward(self, x):
        return x + self.fc2(self.act(self.fc1(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def names(model, *args, **options):
    return [site.name for site in find_layers(model, *args, **options)[0]]


def test_found_are_streams_blocks_linear_and_conv_layers():
    sites, skipped = find_layers(Net())
    inner = [f"blocks.{i}{part}" for i in range(3) for part in ("", ".fc1", ".fc2")]
    assert [s.name for s in sites] == ["stem", "blocks.0:input", *inner, "head"]
    kinds = {s.name: s.kind for s in sites}
    assert kinds["blocks.0:input"] == "stream" and kinds["blocks.1"] == "block" and kinds["stem"] == "linear"
    assert {s.stack for s in sites if s.kind == "block"} == {"blocks"}
    assert [s.name for s in sites if s.pair] == ["blocks.0", "blocks.1", "blocks.2"]
    assert {s.name for s in skipped} == {"blocks", "blocks.0.act", "blocks.1.act", "blocks.2.act"}
    assert next(s for s in skipped if s.name == "blocks").reason.startswith("a container")
    conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    assert names(conv) == ["0"]


def test_kinds_narrow_what_is_found():
    assert names(Net(), kinds=("block",)) == ["blocks.0", "blocks.1", "blocks.2"]
    assert names(Net(), kinds=("linear",)) == ["stem", *(f"blocks.{i}.fc{j}" for i in range(3) for j in (1, 2)), "head"]
    with pytest.raises(ValueError, match=r"kinds: expected some of stream, block, linear, conv, got 'lineal'"):
        find_layers(Net(), kinds=("lineal",))


@pytest.mark.parametrize(
    "layers, expected",
    [
        ("stem", ["stem"]),
        ("blocks.*", ["blocks.0", "blocks.1", "blocks.2"]),
        ("blocks.?.fc1", ["blocks.0.fc1", "blocks.1.fc1", "blocks.2.fc1"]),
        ("blocks.[12]", ["blocks.1", "blocks.2"]),
        ("**.act", ["blocks.0.act", "blocks.1.act", "blocks.2.act"]),
        (["head", "stem"], ["stem", "head"]),
        (nn.ReLU, ["blocks.0.act", "blocks.1.act", "blocks.2.act"]),
        (lambda name, module: isinstance(module, nn.Linear) and module.out_features == 2, ["head"]),
        (
            ["stem", nn.ReLU, "blocks.1:input"],
            ["stem", "blocks.0.act", "blocks.1:input", "blocks.1.act", "blocks.2.act"],
        ),
        ("(model)", ["(model)"]),
    ],
)
def test_layers_by_name_pattern_type_and_function(layers, expected):
    sites, skipped = find_layers(Net(), layers)
    assert [s.name for s in sites] == expected
    every = {name for name, _ in Net().named_modules() if name}
    assert {s.name for s in skipped} | {s.name.removesuffix(":input") for s in sites} >= every


def test_a_module_itself_can_be_given():
    net = Net()
    assert names(net, net.blocks[1]) == ["blocks.1"]


@pytest.mark.parametrize(
    "layers, error, message",
    [
        ("stemm", ValueError, r"layers: no module fits 'stemm'; did you mean 'stem'\?"),
        ("zzz*", ValueError, r"layers: no module fits 'zzz\*'; there are 'stem', .*\* stays within one part of a name"),
        (nn.Conv2d, ValueError, r"layers: Conv2d fits no module; the model has Block, Linear"),
        (lambda n, m: False, ValueError, r"layers: the function given fits no module"),
        ([], ValueError, r"layers: got an empty selection; None finds the layers"),
        (3, TypeError, r"layers: expected names, glob patterns, module types, functions .* got 3 of type int"),
        (int, TypeError, r"layers: expected subclasses of torch.nn.Module, got the type int"),
    ],
)
def test_selections_that_fit_nothing_say_what_there_is(layers, error, message):
    with pytest.raises(error, match=message):
        find_layers(Net(), layers)


def test_nothing_found_says_what_could_be_named():
    with pytest.raises(ValueError, match=r"found no layer of the kinds .* in Sequential; name some with layers=…: '0'"):
        find_layers(nn.Sequential(nn.ReLU()))


def test_patterns_stay_within_one_part_of_a_name():
    assert pattern_matches("a.*.c", "a.b.c") and not pattern_matches("a.*.c", "a.b.b.c")
    assert pattern_matches("a.**.c", "a.b.b.c")
    assert not pattern_matches("a.b", "a_b")


def test_stacks_are_runs_of_blocks():
    down = nn.Sequential(Block(), Block(), nn.Linear(4, 2))
    assert stacks(down) == {"(model)[0:2]": ["0", "1"]}
    assert stacks(nn.Sequential(Block(), nn.ReLU(), Block())) == {}
    assert stacks(nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2), 2, enable_nested_tensor=False)) == {
        "layers": ["layers.0", "layers.1"]
    }


def test_tied_modules_are_read_once_and_listed_under_their_other_name():
    net = Net()
    net.blocks[2] = net.blocks[0]
    sites, skipped = find_layers(net)
    assert "blocks.2" not in [s.name for s in sites]
    reasons = {s.name: s.reason for s in skipped}
    assert reasons["blocks.2"] == "the same module as 'blocks.0': its calls are read there"
    assert names(net, "blocks.2") == ["blocks.0"]


def test_unwrap_refuses_what_takes_no_hooks(without_shape_checks):
    net = Net()
    assert unwrap(net) == (net, [])
    inner, notes = unwrap(nn.DataParallel(net))
    assert inner is net and "DataParallel" in notes[0]
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module \(an instance, not the class\), got <class"):
        unwrap(Net)
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got 3"):
        unwrap(3)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_scripted_modules_are_refused_or_listed():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match=r"scripted layers take no hooks. Probe the module that was scripted"):
        unwrap(scripted)
    _, skipped = find_layers(nn.Sequential(nn.Linear(2, 2), scripted))
    assert "a scripted module: it takes no hooks" in next(s.reason for s in skipped if s.name == "1")


def test_a_cycle_among_modules_is_cut():
    net = Net()
    net.head.register_module("parent", net)
    assert "head" in names(net)
