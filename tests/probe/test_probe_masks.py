"""Padding: which mask a layer has, and what its values mean."""

import pytest
import torch
from torch import nn

from isthmus.probe import probe

PR = "participation_ratio_centred"


def pr(rows):
    rows = rows.detach().reshape(-1, rows.shape[-1])
    s = torch.linalg.svdvals((rows - rows.mean(0)).double()) ** 2
    return float(s.sum() ** 2 / (s**2).sum())


def same(profile, layer, rows):
    i = profile.layers.index(layer)
    assert profile["rows"][i] == rows.reshape(-1, rows.shape[-1]).shape[0]
    assert profile[PR][i] == pytest.approx(pr(rows), rel=1e-4)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def padding(length, samples=20):
    return torch.arange(length)[None] >= torch.randint(1, length + 1, (samples, 1))


def translate(m, d):
    source = d["src_key_padding_mask"]
    pads = {"src_key_padding_mask": source, "memory_key_padding_mask": source, "tgt_key_padding_mask": d["tgt_pad"]}
    return m(d["src"], d["tgt"], **pads)


@pytest.mark.parametrize("length", [6, 5])
@pytest.mark.parametrize("positions", ["samples", "mean"])
def test_layers_of_a_decoder_have_the_padding_that_they_are_called_with(length, positions):
    net = nn.Transformer(8, 2, 1, 1, 16, batch_first=True, dropout=0.0).eval()
    src, tgt, a, b = torch.randn(20, 6, 8), torch.randn(20, length, 8), padding(6), padding(length)
    d = {"src": src, "tgt": tgt, "src_key_padding_mask": a, "tgt_pad": b}
    profile = probe(
        net,
        [d],
        ["encoder.layers.0", "decoder.layers.0", "**.linear2", "decoder"],
        forward=translate,
        positions=positions,
    )
    states = {}
    hooks = [
        m.register_forward_hook(lambda _m, _a, out, n=n: states.update({n: out.detach()}))
        for n, m in net.named_modules()
        if n in profile.layers
    ]
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        translate(net, d)
    torch.backends.mha.set_fastpath_enabled(True)
    for hook in hooks:
        hook.remove()
    assert len(states) == 5
    for name, state in states.items():
        keep = ~(b if name.startswith("decoder") else a)
        rows = (
            state[keep]
            if positions == "samples"
            else torch.stack([s[k].mean(0) for s, k in zip(state, keep, strict=True)])
        )
        same(profile, name, rows)


class Block(nn.Module):
    def __init__(self, cross=False):
        super().__init__()
        self.l, self.k = nn.Linear(8, 8), nn.Linear(8, 8) if cross else None

    def forward(self, x, memory=None):
        return x + self.l(x) + (0 if memory is None else self.k(memory).mean(1, keepdim=True))


class Seq2Seq(nn.Module):
    """The shape of T5 and BART: one embedding for both, cross-attention on what the encoder made."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Embedding(20, 8)
        self.encoder = nn.ModuleList(Block() for _ in range(2))
        self.decoder = nn.ModuleList(Block(True) for _ in range(2))
        self.head = nn.Linear(8, 8)

    def forward(self, input_ids, decoder_input_ids, attention_mask=None, decoder_attention_mask=None):
        h, y = self.shared(input_ids), self.shared(decoder_input_ids)
        for b in self.encoder:
            h = b(h)
        for b in self.decoder:
            y = b(y, h)
        return self.head(y)


def test_a_decoder_has_its_own_mask_and_cross_attention_the_encoders():
    net, a, b = Seq2Seq(), ~padding(6), ~padding(6)
    x, z = torch.randint(0, 20, (20, 6)), torch.randint(0, 20, (20, 6))
    d = {"input_ids": x, "decoder_input_ids": z, "attention_mask": a.long(), "decoder_attention_mask": b.long()}
    profile = probe(net, [d])
    h = net.shared(x)
    for i, block in enumerate(net.encoder):
        h = block(h)
        same(profile, f"encoder.{i}", h[a])
    y = net.shared(z)
    for i, block in enumerate(net.decoder):
        same(profile, f"decoder.{i}.k", block.k(h)[a])
        y = block(y, h)
        same(profile, f"decoder.{i}", y[b])
    reasons = {s.name: s.reason for s in profile.skipped}
    assert "the padding of two sequences fits its shape" in reasons["head"]
    told = probe(net, [d], ["head", "encoder.*"], mask={"head": "decoder_attention_mask", "**": "attention_mask"})
    same(told, "head", net.head(y)[b])
    same(told, "encoder.1", h[a])


def test_two_sequences_and_the_padding_of_one_are_refused_where_it_is_not_told():
    net, a = Seq2Seq(), ~padding(6)
    x, z = torch.randint(0, 20, (20, 6)), torch.randint(0, 20, (20, 6))
    d = {"input_ids": x, "decoder_input_ids": z, "attention_mask": a.long()}
    profile = probe(net, [d])
    reasons = {s.name: s.reason for s in profile.skipped}
    assert "the batch holds two sequences and the padding of one: mask={pattern" in reasons["decoder.0"]
    assert profile["rows"][profile.layers.index("encoder.0")] == int(a.sum())
    none = probe(net, [d], ["decoder.1"], mask={"encoder.**": "attention_mask", "decoder.**": None})
    assert none["rows"] == [120]


def test_latents_that_are_as_many_as_tokens_can_be_told():
    class Perceiver(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.p, self.l = nn.Embedding(20, 8), nn.Parameter(torch.randn(6, 8)), nn.Linear(8, 8)

        def forward(self, ids, attention_mask):
            h = self.e(ids) * attention_mask[..., None]
            return self.l(self.p + h.mean(1, keepdim=True))

    net, mask = Perceiver(), (~padding(6)).long()
    d = {"ids": torch.randint(0, 20, (20, 6)), "attention_mask": mask}
    profile = probe(net, [d], ["e", "l"], mask={"e": "attention_mask", "l": None})
    assert profile["rows"] == [int(mask.sum()), 120]


@pytest.mark.parametrize("kind", ["float32", "-inf", "bool", "long", "float", "extended"])
@pytest.mark.parametrize("key", ["attention_mask", "own", "function"])
def test_a_mask_in_any_form_leaves_the_padding_out(kind, key):
    net, x, real = nn.Sequential(nn.Linear(6, 6)), torch.randn(20, 5, 6), torch.ones(20, 5)
    real[:, 3:] = 0
    forms = {
        "float32": (1 - real) * torch.finfo(torch.float32).min,
        "-inf": torch.zeros(20, 5).masked_fill(real == 0, -torch.inf),
        "bool": real.bool(),
        "long": real.long(),
        "float": real,
        "extended": ((1 - real) * -1e4)[:, None, None],
    }
    d = {"x": x, key: forms[kind]}
    mask = {"attention_mask": "auto", "own": "own", "function": lambda b: b["function"]}[key]
    same(probe(net, [d], mask=mask, forward=lambda net, d: net(d["x"])), "0", net(x)[real.bool()])


def test_an_additive_mask_of_a_batch_without_padding_leaves_nothing_out():
    net, x = nn.Sequential(nn.Linear(6, 6)), torch.randn(20, 5, 6)
    d = {"x": x, "attention_mask": torch.zeros(20, 5)}
    same(probe(net, [d], forward=lambda net, d: net(d["x"])), "0", net(x))


def test_a_mask_of_torch_in_floats_is_additive():
    net, x, pad = nn.Sequential(nn.Linear(6, 6)), torch.randn(20, 5, 6), padding(5)
    d = {"x": x, "src_key_padding_mask": torch.zeros(20, 5).masked_fill(pad, -torch.inf)}
    same(probe(net, [d], forward=lambda net, d: net(d["x"])), "0", net(x)[~pad])


@pytest.mark.parametrize("values", [[0.3, 1.0], [-1, 1], [0.0, 2.5]])
def test_masks_of_other_values_are_refused(values):
    net, x = nn.Sequential(nn.Linear(6, 6)), torch.randn(20, 2, 6)
    d = {"x": x, "attention_mask": torch.tensor([values]).repeat(20, 1)}
    with pytest.raises(ValueError, match=r"mask: 'attention_mask' has values from .* expected 0 and 1, or 0 \(real\)"):
        probe(net, [d], forward=lambda net, d: net(d["x"]))


def test_masks_that_cannot_be_told_are_doubted():
    net, x, pad = nn.Sequential(nn.Linear(6, 6)), torch.randn(20, 5, 6), padding(5)
    causal = torch.ones(20, 1, 5, 5)
    for key, value, text in (
        ("mask", pad, "'mask': true where tokens are real, or where padding?"),
        ("attention_mask", causal, r"'attention_mask' of shape (20, 1, 5, 5) is no (samples, tokens)"),
    ):
        profile = probe(net, [{"x": x, key: value}], forward=lambda net, d: net(d["x"]))
        assert profile["rows"] == [100] and text in profile.doubts[0] and f"doubt: {profile.doubts[0]}" in str(profile)
