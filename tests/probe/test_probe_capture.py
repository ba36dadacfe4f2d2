"""Real models, each read right or refused with a reason, and left as they were."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from isthmus.activations import Identity, ReLU
from isthmus.mechanics import cost_of_identity
from isthmus.probe import probe


def same_spectrum(profile, layer, rows, tolerance=1e-9):
    expected = torch.linalg.svdvals(rows.detach().double().reshape(-1, rows.shape[-1]))
    found = profile.spectrum(layer)
    assert profile.record(layer).count == rows.reshape(-1, rows.shape[-1]).shape[0]
    torch.testing.assert_close(found, expected[: len(found)], rtol=tolerance, atol=tolerance * float(expected[0]))


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def reasons(profile):
    return {s.name: s.reason for s in profile.skipped}


# --- models ---------------------------------------------------------------------------------------------------------


def mlp(inplace=False):
    return nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(inplace=inplace), nn.Linear(8, 8), nn.ReLU(inplace=inplace), nn.Linear(8, 3)
    )


class ConvBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.act = nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x):
        return x + self.conv2(self.act(self.norm(self.conv1(x))))


class ResCNN(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ConvBlock(width) for _ in range(3)))
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Text(nn.Module):
    def __init__(self, batch_first=True):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        self.embed = nn.Embedding(20, 8)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens, src_key_padding_mask=None):
        h = self.encoder(self.embed(tokens), src_key_padding_mask=src_key_padding_mask)
        return self.head(h)


def test_an_mlp_is_read_layer_by_layer():
    net, x = mlp(), torch.randn(60, 5)
    profile = probe(net, x)
    assert profile.layers == ["0", "2", "4"]
    same_spectrum(profile, "0", net[0](x))
    same_spectrum(profile, "2", net[:3](x))
    expected = cost_of_identity(net[:3](x).detach().double(), ReLU())
    assert abs(profile["coi"][1] - expected) < 1e-8 * expected
    assert reasons(profile)["1"].startswith("not of a kind looked for")


def test_an_in_place_relu_does_not_change_what_was_read():
    net, x = mlp(inplace=True), torch.randn(60, 5)
    profile = probe(net, x)
    same_spectrum(profile, "0", nn.functional.linear(x, net[0].weight, net[0].bias))
    assert profile["compared_with"] == [None, "0", None]


def test_an_in_place_block_is_compared_with_what_went_in():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return x.add_(self.fc(x))

    net, x = nn.Sequential(nn.Linear(5, 8), InPlace(), InPlace()), torch.randn(60, 5)
    a = net[0](x).detach()
    b = a + net[1].fc(a).detach()
    profile = probe(net, x, method="qr")
    row = profile.layers.index("1")
    assert abs(profile["step_change"][row] - float((b - a).norm() / b.norm())) < 1e-6
    same_spectrum(profile, "1:input", a)


@pytest.mark.parametrize("positions", ["samples", "mean"])
def test_a_residual_cnn_has_its_channels_as_width(positions):
    net, x = ResCNN().eval(), torch.randn(20, 1, 4, 4)
    profile = probe(net, x, positions=positions, batch_size=7, activation="relu")
    h = net.stem(x).movedim(1, -1)
    h = h.flatten(1, 2).double()
    rows = h if positions == "samples" else h.mean(1)
    same_spectrum(profile, "stem", rows)
    same_spectrum(profile, "blocks.0:input", rows)
    assert profile["reading"][0].startswith("width = channels (dimension 1), ")
    assert profile["reading"][-1] == "rank 2"
    assert profile["compared_with"][profile.layers.index("blocks.2")] == "blocks.2:input"
    assert list(profile.effective_depth) == ["blocks"]


def test_channels_can_be_stated():
    net, x = nn.Sequential(nn.Conv2d(1, 6, 1), nn.ReLU()), torch.randn(5, 1, 2, 3)
    profile = probe(net, x, ["0", "1"], channels={"1": "last"})
    assert profile["width"] == [6, 3] and profile["reading"][1].startswith("width = last dimension")
    assert probe(nn.Conv1d(2, 6, 1), torch.randn(5, 2, 9), "(model)")["width"] == [6]


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_transformer_in_eval_mode_is_read_without_its_padding(batch_first):
    net = Text(batch_first).eval()
    tokens = torch.randint(0, 20, (10, 7))
    padding = torch.arange(7)[None] >= torch.randint(3, 8, (10, 1))
    batch = {"tokens": tokens if batch_first else tokens.T, "src_key_padding_mask": padding, "labels": tokens}
    profile = probe(net, [batch], sequence_first=not batch_first)
    kept = ~padding if batch_first else ~padding.T
    with torch.no_grad():
        x = net.embed(batch["tokens"])
        for i, layer in enumerate(net.encoder.layers):
            same_spectrum(profile, "encoder.layers.0:input", net.embed(batch["tokens"])[kept])
            torch.backends.mha.set_fastpath_enabled(False)
            x = layer(x, src_key_padding_mask=padding)
            torch.backends.mha.set_fastpath_enabled(True)
            same_spectrum(profile, f"encoder.layers.{i}", x[kept], 1e-6)
    # the fast path would have called neither of these
    assert {"encoder.layers.0.linear1", "encoder.layers.1.linear2"} <= set(profile.layers)
    assert "never called" in reasons(profile)["encoder.layers.0.self_attn.out_proj"]
    assert "padding: key 'src_key_padding_mask', True where padding" in profile.notes
    assert "key 'labels' of the batches was not passed to the model" in profile.notes
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_mask_that_fits_the_other_layout_says_so():
    net = Text(False).eval()
    batch = {"tokens": torch.randint(0, 20, (7, 10)), "src_key_padding_mask": torch.zeros(10, 7, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"does not fit; pass sequence_first=True"):
        probe(net, [batch])


def test_a_mask_by_function_and_by_key():
    net, x = nn.Sequential(nn.Linear(3, 4)), torch.randn(6, 5, 3)
    keep = torch.rand(6, 5) < 0.5
    same_spectrum(probe(net, [(x, keep)], mask=lambda b: b[1]), "0", net(x)[keep])
    named = probe(net, [{"input": x, "real": keep}], mask="real", positions="mean")
    some = keep.any(1)
    means = torch.stack([net(x)[i][keep[i]].double().mean(0) for i in range(6) if keep[i].any()])
    assert named.record("0").count == int(some.sum())
    same_spectrum(named, "0", means)
    with pytest.raises(ValueError, match=r"mask: no key 'there' in the batch, which is 'input'"):
        probe(net, [{"input": x}], mask="there")
    with pytest.raises(ValueError, match=r"mask: expected \(samples, tokens\), true where real, got shape \(6, 5, 3\)"):
        probe(net, [x], mask=lambda b: b)


def test_a_tied_module_and_one_called_twice_have_a_row_for_each_call():
    shared = nn.Linear(6, 6)
    tied, x = nn.Sequential(shared, nn.ReLU(), shared), torch.randn(40, 6)
    profile = probe(tied, x)
    assert profile.layers == ["0@1", "0@2"]
    same_spectrum(profile, "0@1", shared(x))
    same_spectrum(profile, "0@2", tied(x))
    assert reasons(profile)["2"] == "the same module as '0': its calls are read there"

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            return self.fc(torch.tanh(self.fc(x)))

    twice = Twice()
    same_spectrum(probe(twice, x, batch_size=9), "fc@2", twice(x), 1e-6)


def test_a_cell_called_often_is_read_so_often_and_listed():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(3, 3)

        def forward(self, x):
            for _ in range(40):
                x = self.cell(x)
            return x

    profile = probe(Loop(), torch.randn(9, 3))
    assert len(profile.layers) == 32
    assert "called more than 32 times" in reasons(profile)["cell@33"]


@dataclass
class Output:
    hidden: torch.Tensor
    logits: torch.Tensor


class Many(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x):
        index = torch.arange(len(x))
        return {
            "tuple": (index, x, 2 * x.relu()),
            "dict": {"index": index, "a": x, "b": 2 * x.relu()},
            "dataclass": Output(x, 2 * x.relu()),
            "nested": [(index,), {"a": x}, 2 * x.relu()],
        }[self.kind]


@pytest.mark.parametrize(
    "kind, place, other, choice",
    [
        ("tuple", "[1]", "[2]", 2),
        ("dict", "['a']", "['b']", "b"),
        ("dataclass", ".hidden", ".logits", "logits"),
        ("nested", "[1]['a']", "[2]", lambda out: out[2]),
    ],
)
def test_outputs_as_tuple_dict_and_dataclass(kind, place, other, choice):
    net, x = nn.Sequential(Many(kind)), torch.randn(30, 4)
    profile = probe(net, x, "0")
    same_spectrum(profile, "0", x)
    assert profile["reading"] == [f"rank 2, output{place}"]
    assert "another output, (30, 4): the first one is read" in reasons(profile)["0" + other]
    same_spectrum(probe(net, x, "0", output={"0": choice}), "0", 2 * x.relu())
    if kind in ("tuple", "dict"):
        with pytest.raises(ValueError, match=r"none of the layers could be read\. 0: output='none' does not lead to"):
            probe(net, x, "0", output={"*": "none"})


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda x: x.sum(), "of rank 0"),
        (lambda x: x.argmax(1, keepdim=True), "of dtype torch.int64; only real floating-point states are read"),
        (lambda x: x.to_sparse(), "of layout torch.sparse_coo"),
        (lambda x: "text", "a str, holds no tensor"),
        (lambda x: torch.full_like(x, torch.nan), "20 of 20 rows have NaN"),
        (lambda x: x.repeat(1, 20), "of width 80 > max_width=50"),
    ],
)
def test_what_cannot_be_read_is_listed_with_the_reason(make, reason):
    class Odd(nn.Module):
        def forward(self, x):
            return make(x)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.odd = nn.Linear(4, 4), Odd()

        def forward(self, x):
            self.odd(x)
            return self.fc(x)

    profile = probe(Both(), torch.randn(20, 4), ["fc", "odd"], max_width=50, shards=1)
    assert profile.layers == ["fc"]
    assert reason in reasons(profile)["odd"]


def test_a_frozen_model_stays_frozen():
    net, x = mlp().requires_grad_(False), torch.randn(20, 5)
    same_spectrum(probe(net, x, method="qr"), "0", net[0](x))
    assert not any(p.requires_grad or p.grad is not None for p in net.parameters())


def test_compiled_models_are_read_uncompiled():
    net, x = mlp(), torch.randn(20, 5)
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        compiled(x)
    profile = probe(compiled, x)
    same_spectrum(profile, "2", net[:3](x))
    assert "compiled model: the original module was read" in profile.notes[0]
    net.compile(backend="eager")
    with torch.no_grad():
        net(x)
    same_spectrum(probe(net, x), "2", net[:3](x))
    part = nn.Sequential(torch.compile(nn.Linear(5, 4), backend="eager"))
    part(x)
    same_spectrum(probe(part, x), "0", part(x))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.bfloat16, 1e-12), (torch.float16, 1e-12)])
def test_any_dtype_is_summed_in_float64(dtype, tolerance):
    net, x = nn.Sequential(nn.Linear(5, 4)).to(dtype), torch.randn(30, 5).to(dtype)
    profile = probe(net, x)
    same_spectrum(profile, "0", net(x), tolerance)
    assert profile["dtype"] == [str(dtype).removeprefix("torch.")]


def test_mixed_precision():
    net, x = mlp(), torch.randn(30, 5)
    profile = probe(net, x, autocast=torch.bfloat16)
    assert set(profile["dtype"]) == {"bfloat16"}
    with torch.autocast("cpu", torch.bfloat16):
        same_spectrum(profile, "2", net[:3](x))


def test_recurrent_attention_and_1d_convolution_layers():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.lstm = nn.Embedding(10, 6), nn.LSTM(6, 6, batch_first=True)
            self.mha, self.conv = nn.MultiheadAttention(6, 2, batch_first=True), nn.Conv1d(6, 8, 1)

        def forward(self, ids):
            h, _ = self.lstm(self.emb(ids))
            return self.conv((h + self.mha(h, h, h)[0]).mT)

    net, ids = Mixed(), torch.randint(0, 10, (20, 5))
    profile = probe(net, ids, ["emb", "lstm", "mha", "conv"])
    assert profile["width"] == [6, 6, 6, 8] and profile["rows"] == [100] * 4
    same_spectrum(profile, "lstm", net.lstm(net.emb(ids))[0], 1e-6)
    same_spectrum(profile, "conv", net(ids).mT, 1e-6)
    assert {"lstm[1][0]", "lstm[1][1]", "mha[1]"} <= set(reasons(profile))


@pytest.mark.parametrize("method", ["qr", "gram"])
def test_blocks_called_by_keyword_that_return_tuples(method):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, *, hidden_states, mask=None):
            return hidden_states + self.fc(hidden_states), None

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.h = nn.Embedding(10, 6), nn.ModuleList(Layer() for _ in range(2))

        def forward(self, input_ids, attention_mask=None):
            x = self.emb(input_ids)
            for layer in self.h:
                x = layer(hidden_states=x)[0]
            return {"last_hidden_state": x}

    net, ids = Model(), torch.randint(0, 10, (8, 5))
    mask = torch.ones(8, 5, dtype=torch.long)
    mask[:, 3:] = 0
    profile = probe(net, [{"input_ids": ids, "attention_mask": mask}], method=method)
    tolerance = 1e-9 if method == "qr" else 1e-6
    same_spectrum(profile, "h.0:input", net.emb(ids)[mask.bool()], tolerance)
    same_spectrum(profile, "h.1", net(ids)["last_hidden_state"][mask.bool()], tolerance)
    assert profile["compared_with"][-1] == "h.1:input"


def test_activation_by_pattern():
    net, x = mlp(), torch.randn(60, 5)
    profile = probe(net, x, activation={"4": Identity(append_one=False)})
    assert profile["activation"][2] == "Identity(append_one=False)" and profile["activation"][0] == str(ReLU())
    assert abs(profile["coi"][2] - 3) < 1e-6
