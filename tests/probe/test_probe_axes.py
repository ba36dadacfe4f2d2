"""Which dimension is the width, which holds samples, and what a batch holds: by evidence, and refused without."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from isthmus.probe import probe, simplify

mse = nn.functional.mse_loss
PR = "participation_ratio_centred"


def pr(rows):
    rows = rows.detach().reshape(-1, rows.shape[-1])
    s = torch.linalg.svdvals((rows - rows.mean(0)).double()) ** 2
    return float(s.sum() ** 2 / (s**2).sum())


def same(profile, layer, rows):
    """Rows, width and participation ratio are those of rows taken by hand."""
    i = profile.layers.index(layer)
    assert profile["rows"][i] == rows.reshape(-1, rows.shape[-1]).shape[0] and profile["width"][i] == rows.shape[-1]
    assert profile[PR][i] == pytest.approx(pr(rows), rel=1e-5)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Permute(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class Patches(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 10, 2, 2)

    def forward(self, x):
        return self.c(x).flatten(2).mT


class Gated(nn.Module):
    """Channels last, with a convolution inside."""

    def __init__(self):
        super().__init__()
        self.f, self.c = nn.Linear(8, 8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.f(self.c(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class FirstNorm(nn.LayerNorm):
    """A LayerNorm that takes channels first, as timm's ``LayerNorm2d``."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_the_width_of_a_stem_that_ends_in_a_norm_over_the_last_dimension():
    stem = nn.Sequential(nn.Conv2d(3, 10, 2, 2), Permute(), nn.LayerNorm(10))
    net, x = (
        nn.Sequential(stem, nn.Sequential(nn.Linear(10, 10), nn.GELU(), nn.Linear(10, 10))),
        torch.randn(30, 3, 12, 12),
    )
    profile = probe(net, x)
    same(profile, "0", net[0](x))
    same(profile, "1", net(x))


def test_the_width_of_a_patch_embedding_is_not_the_number_of_tokens():
    net, x = nn.Sequential(Patches(), nn.Linear(10, 10)), torch.randn(30, 3, 8, 8)
    same(probe(net, x, ["0"]), "0", net[0](x))


def test_the_width_of_a_channels_last_block_with_a_convolution_inside():
    net, x = nn.Sequential(Gated(), Gated()), torch.randn(20, 6, 6, 8)
    profile = probe(net, x)
    same(profile, "0:input", x)
    same(profile, "0", net[0](x))
    same(profile, "1", net(x))


def test_a_norm_of_the_last_dimension_that_is_given_channels_first():
    net, x = nn.Sequential(nn.Conv2d(3, 10, 1), FirstNorm(10)), torch.randn(20, 3, 6, 6)
    same(probe(net, x, "1"), "1", net(x).movedim(1, -1))


def test_two_dimensions_of_one_size_are_doubted():
    net, x = nn.Sequential(Gated(), Gated()), torch.randn(20, 8, 8, 8)
    assert any("no parameter tells which dimension is the width" in doubt for doubt in probe(net, x).doubts)
    stated = probe(net, x, channels="last")
    same(stated, "1", net(x))
    assert stated.doubts == ()


# --- samples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
def test_a_dimension_of_one_is_no_number_of_samples(first):
    net, x, t = nn.Sequential(nn.Linear(5, 6)), torch.randn(64, 9, 5), torch.tensor([500.0])
    d = {"timestep": t, "sample": x} if first else {"sample": x, "timestep": t}
    profile = probe(net, [d], positions="mean", forward=lambda m, b: m(b["sample"]))
    assert profile.samples == 64 and f"{PR}_se" in profile
    same(profile, "0", net(x).mean(1))


def test_the_number_of_samples_is_that_of_the_state_where_it_is_divided():
    net, x = nn.Sequential(nn.Linear(5, 6)), torch.randn(50, 3, 5)
    profile = probe(net, [{"meta": torch.randn(3), "x": x}], positions="mean", forward=lambda m, b: m(b["x"]))
    assert profile.samples == 50
    same(profile, "0", net(x).mean(1))


class Stream(IterableDataset):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def __iter__(self):
        g = torch.Generator().manual_seed(3)
        for i in range(50):
            yield torch.randn(*self.shape, generator=g), i % 2


@pytest.mark.parametrize(
    "net, shape",
    [
        (nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3)), (3, 9, 9)),
        (nn.Sequential(nn.MaxPool2d(2), nn.Linear(4, 6)), (3, 9, 9)),
        (nn.Sequential(nn.Conv1d(3, 6, 3), nn.ReLU()), (3, 9)),
    ],
    ids=["conv2d", "pool", "conv1d"],
)
def test_samples_that_come_one_by_one_are_refused(net, shape):
    message = r"without a batch dimension: samples come one by one; wrap the data in torch.utils.data.DataLoader"
    for data in (Stream(shape), [torch.randn(shape) for _ in range(5)]):
        with pytest.raises(ValueError, match=message):
            probe(net, data)
    assert probe(net, DataLoader(Stream(shape), 10)).samples == 50


def test_a_model_that_takes_its_samples_apart_itself_is_not_refused_for_it():
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.l = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)

        def forward(self, x):
            return self.l(torch.stack([self.c(one).mean((1, 2)) for one in x]))

    net, x = Apart(), torch.randn(5, 3, 9, 9)
    profile = probe(net, x)
    same(profile, "l", net(x))
    assert "a Conv2d without a batch dimension" in {s.name: s.reason for s in profile.skipped}["c"]


def test_attention_over_samples_without_a_batch_is_doubted():
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    profile = probe(nn.Sequential(net), [torch.randn(5, 8) for _ in range(4)])
    assert any("a sequence without samples" in doubt for doubt in profile.doubts)


class Recurrent(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.r, self.o, self.n = nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 6), n

    def forward(self, x):
        packed, _ = self.r(pack_padded_sequence(x, self.n, batch_first=True, enforce_sorted=False))
        out = packed._replace(data=self.o(packed.data))
        return pad_packed_sequence(out, batch_first=True)[0][:, 0]


@pytest.mark.parametrize("lengths", ["any", "multiple"])
@pytest.mark.parametrize("positions", ["mean", "samples"])
def test_packed_sequences_are_unpacked_also_for_layers_on_their_data(lengths, positions):
    x, n = torch.randn(40, 7, 5), torch.randint(1, 8, (40,))
    if lengths == "multiple":
        n[:] = torch.tensor([2, 4]).repeat(20)
    net = Recurrent(n)
    profile = probe(net, x, ["r", "o"], positions=positions)
    y, _ = pad_packed_sequence(
        net.r(pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False))[0], batch_first=True
    )
    for name, state in (("r", y), ("o", net.o(y))):
        own = [a[:k].mean(0, keepdim=True) if positions == "mean" else a[:k] for a, k in zip(state, n, strict=True)]
        same(profile, name, torch.cat(own))
    assert profile.record("r").moments[0].count == (5 if positions == "mean" else int(n[::8].sum()))


class Clip(nn.Module):
    """Tokens first inside, samples first outside."""

    def __init__(self):
        super().__init__()
        self.l = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)

    def forward(self, x):
        return self.l(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("tokens", [7, 40])
def test_layers_with_tokens_first_inside_a_model_with_samples_first(tokens):
    net, x = Clip().eval(), torch.randn(40, tokens, 8)
    profile = probe(net, x, ["l", "l.linear2"], positions="mean")
    same(profile, "l", net(x).mean(1))
    attention = nn.Sequential(nn.MultiheadAttention(8, 2))
    h = torch.randn(tokens, 40, 8)
    found = probe(attention, [h], "0", positions="mean", sequence_first=True, forward=lambda m, b: m[0](b, b, b))
    same(found, "0", attention[0](h, h, h)[0].mean(0))


def test_tokens_first_in_a_block_that_is_not_torchs_and_by_pattern():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn, self.ln = nn.MultiheadAttention(8, 2), nn.LayerNorm(8)

        def forward(self, x):
            h = self.ln(x)
            return x + self.attn(h, h, h)[0]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(Block(), Block())

        def forward(self, x):
            return self.blocks(x.transpose(0, 1)).transpose(0, 1)

    net, x = Net().eval(), torch.randn(20, 7, 8)
    same(probe(net, x, positions="mean"), "blocks.1", net(x).mean(1))
    square = torch.randn(20, 20, 8)
    with pytest.raises(ValueError, match="which come first could not be told"):
        probe(net, square, "blocks.1", positions="mean")
    told = probe(net, square, "blocks.1", positions="mean", sequence_first={"blocks.*": True})
    same(told, "blocks.1", net(square).mean(1))


# --- what of a batch is input, label or neither ----------------------------------------------------------------------


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.l = nn.Embedding(20, 8), nn.Linear(8, 8)

    def forward(self, ids, mask=None, verbose=False):
        h = self.e(ids)
        return self.l(h if mask is None else h * mask[..., None])


def test_a_mask_between_inputs_and_labels_is_passed_on_and_heeded():
    net, mask = Tokens(), (torch.arange(6) < torch.randint(1, 7, (40, 1))).long()
    ids, y = torch.randint(1, 20, (40, 6)) * mask, torch.randint(0, 2, (40,))
    profile = probe(net, DataLoader(TensorDataset(ids, mask, y), 10))
    same(profile, "l", net(ids, mask)[mask.bool()])
    assert "of batches of 3, 2 elements were passed, as ids, mask" in profile.notes
    assert "padding: key 'mask', 1 where real" in profile.notes
    two = probe(net, [(ids, mask)])
    assert "was taken for the label, not for a mask" in two.notes[0] and two["rows"][-1] == 240
    as_dict = probe(net, [{"ids": ids, "mask": mask, "y": y}])
    assert as_dict["rows"] == profile["rows"]


def test_a_mask_is_no_key_value_cache():
    class Gpt(Tokens):
        def forward(self, input_ids, past_key_values=None, attention_mask=None):
            assert past_key_values is None
            return super().forward(input_ids, attention_mask)

    net, mask = Gpt(), (torch.arange(6) < torch.randint(1, 7, (40, 1))).long()
    ids, y = torch.randint(1, 20, (40, 6)), torch.randint(0, 2, (40,))
    same(probe(net, [(ids, mask, y)]), "l", net(ids, attention_mask=mask)[mask.bool()])


def test_which_of_several_elements_is_the_label_is_asked():
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6))
    x, w, y = torch.randn(30, 5), torch.rand(30, 6), torch.randn(30, 6)
    options = {"loss": mse, "weight_decay": 0.1}
    with pytest.raises(ValueError, match=r"of batches of 3 the model takes 1; which of the other 2 is the label\?"):
        probe(net, [(x, w, y)], **options)
    told = probe(net, [(x, w, y)], target=lambda batch: batch[2], **options)
    assert told["momentum_norm"][1] == pytest.approx(probe(net, [(x, y)], **options)["momentum_norm"][1])
    assert "2 elements of the batches, from the end, were not passed to the model" in probe(net, [(x, w, y)]).notes
    with pytest.raises(ValueError, match="which of the other 2 is the label"):
        simplify(nn.Sequential(*(nn.Sequential(nn.Linear(5, 5)) for _ in range(2))), [(x, w, y)], mse, drop=1)


def test_models_of_two_inputs_take_two():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(5, 6)

        def forward(self, x, t):
            return self.l(x + t)

    net, x, t, y = Two(), torch.randn(30, 5), torch.randn(30, 1), torch.randn(30, 6)
    same(probe(net, [(x, t)]), "l", net(x, t))
    profile = probe(net, [(x, t, y)], loss=mse, weight_decay=0.1)
    same(profile, "l", net(x, t))
    with pytest.raises(ValueError, match="expected batches with labels"):
        probe(net, [(x, t)], loss=mse, weight_decay=0.1)


def test_any_number_of_arguments_is_asked_about():
    class Any(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(5, 6)

        def forward(self, *given):
            return self.l(given[0])

    net, x = Any(), torch.randn(30, 5)
    with pytest.raises(TypeError, match=r"takes any number of arguments: which of them are inputs\? Pass forward="):
        probe(net, [(x, x, x)])
    same(probe(net, [(x, torch.zeros(30))]), "l", net(x))


def test_a_class_that_forward_needs_is_an_input_though_it_is_called_y():
    class Dit(nn.Module):
        def __init__(self, default=False):
            super().__init__()
            self.c, self.l = nn.Embedding(4, 5), nn.Linear(5, 6)

        def forward(self, x, t, y):
            return self.l(x + t + self.c(y))

    net, x, t, y = Dit(), torch.randn(30, 5), torch.randn(30, 1), torch.randint(0, 4, (30,))
    same(probe(net, [{"x": x, "t": t, "y": y}]), "l", net(x, t, y))
    with pytest.raises(ValueError, match="expected batches with labels"):
        probe(net, [{"x": x, "t": t, "y": y}], loss=mse, weight_decay=0.1)


def test_a_model_that_fails_names_what_it_was_not_given():
    class Needs(nn.Module):
        def __init__(self):
            super().__init__()
            self.l = nn.Linear(5, 6)

        def forward(self, x, y=None):
            return self.l(x) + y.sum()

    with pytest.raises(AttributeError, match="NoneType") as caught:
        probe(Needs(), [{"x": torch.randn(3, 5), "y": torch.randn(3)}])
    assert "key 'y' of the batches was not passed to the model" in caught.value.__notes__


def test_sparse_and_jagged_inputs_are_refused_in_a_sentence():
    net, x = nn.Sequential(nn.Linear(5, 6)), torch.randn(8, 5).relu()
    jagged = torch.nested.nested_tensor([torch.randn(2, 5), torch.randn(3, 5)], layout=torch.jagged)
    for data in (x.to_sparse(), x.to_sparse(1)):
        with pytest.raises(TypeError, match=r"expected a dense tensor, got .*x.to_dense\(\) makes one"):
            probe(net, data)
    with pytest.raises(TypeError, match=r"expected a dense tensor, got a nested tensor; pad it"):
        probe(net, jagged)


def test_a_mapping_that_gives_its_keys_as_attributes_keeps_them():
    from collections import UserDict

    class Encoding(UserDict):
        def __getattr__(self, name):
            try:
                return self.__dict__["data"][name]
            except KeyError:
                raise AttributeError(name) from None

    net, x = nn.Sequential(nn.Linear(5, 6)), torch.randn(8, 5)
    same(probe(net, [Encoding(input_ids=x)], forward=lambda m, b: m(b.input_ids)), "0", net(x))
