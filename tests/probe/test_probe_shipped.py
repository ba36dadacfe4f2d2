"""Networks that a package ships, with random weights: the profile against the hidden states that they hand out."""

import warnings

import pytest
import torch

from isthmus.activations import Identity
from isthmus.probe import probe, simplify

transformers = pytest.importorskip("transformers")


def batch_of(samples=9, tokens=7):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, tokens + 1, (samples, 1), generator=generator)
    return {
        "input_ids": torch.randint(0, 40, (samples, tokens), generator=generator),
        "attention_mask": (torch.arange(tokens) < lengths).long(),
    }


def make(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own deprecations
        if kind == "bert":
            config = transformers.BertConfig(
                vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
            )
            return transformers.BertModel(config), "encoder.layer"
        config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=3, n_head=2, n_positions=16)
        return transformers.GPT2Model(config), "h"


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_stream_of_a_transformer_is_its_hidden_states(kind):
    model, stack = make(kind)
    model.train()
    batch = batch_of()
    halves = [{name: value[part] for name, value in batch.items()} for part in (slice(0, 4), slice(4, 9))]
    profile = probe(model, halves, activation=Identity())
    assert model.training
    model.eval()
    with torch.no_grad():
        hidden = model(**batch, output_hidden_states=True).hidden_states
    kept = batch["attention_mask"].bool()
    # GPT-2 hands out its last state after the final normalisation only
    names = [f"{stack}.0:input", *(f"{stack}.{i}" for i in range(3))][: 4 if kind == "bert" else 3]
    for name, states in zip(names, hidden, strict=False):
        rows = states[kept].double()
        expected = torch.linalg.svdvals(rows)
        assert profile.record(name).count == len(rows) == int(kept.sum())
        torch.testing.assert_close(profile.spectrum(name), expected, rtol=1e-4, atol=1e-5 * float(expected[0]))
    row = profile.layers.index(f"{stack}.1")
    step = (hidden[2] - hidden[1])[kept].norm() / hidden[2][kept].norm()
    assert profile["step_change"][row] == pytest.approx(float(step), rel=1e-4)
    assert profile["stack"][row] == stack and profile.samples == 9
    read = {name.split("@")[0].removesuffix(":input") for name in profile.layers}
    every = {name for name, _ in model.named_modules() if name}
    assert every == (read | {s.name.split("[")[0] for s in profile.skipped}) & every


def test_blocks_of_a_shipped_transformer_are_dropped():
    model, _ = make("gpt2")
    batch = batch_of() | {"labels": torch.randn(9, 16)}

    def loss(output, target):
        return (output.last_hidden_state.mean(1) - target).square().mean()

    found = simplify(model, [batch], loss, keep=2)
    assert len(found.model.h) == 2 and len(model.h) == 3
    assert found.loss_after == pytest.approx(found.loss_before + found.rounds[0].measured, rel=1e-6)
    assert abs(found.predicted - found.measured) < 0.5 * abs(found.measured) + 1e-3
