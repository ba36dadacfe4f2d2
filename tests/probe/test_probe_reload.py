"""What `simplify` leaves of a Hugging Face model: saved, loaded again, generating; families that cannot be saved."""

import copy

import pytest
import torch

from isthmus.probe import simplify
from isthmus.probe.configs import Change, cache_fault, renumber
from isthmus.probe.gates import PassThrough

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("without_shape_checks")

WORDS = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
LLAMA = WORDS | TOKENS | {"num_hidden_layers": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]

LANGUAGE = {
    "gpt2": ("GPT2", {"vocab_size": 40, "n_embd": 16, "n_head": 2, "n_layer": 4, "n_positions": 64} | TOKENS),
    "llama": ("Llama", LLAMA),
    "qwen2": ("Qwen2", LLAMA | {"layer_types": MIXED, "sliding_window": 3, "use_sliding_window": True}),
    "qwen3": ("Qwen3", LLAMA | {"head_dim": 8}),
    "gemma2": ("Gemma2", LLAMA | {"head_dim": 8, "sliding_window": 3, "layer_types": MIXED}),
    "gpt_neo": (
        "GPTNeo",
        {"vocab_size": 40, "hidden_size": 16, "num_heads": 2, "num_layers": 4, "window_size": 3}
        | {"attention_types": [[["global", "local"], 2]], "max_position_embeddings": 64}
        | TOKENS,
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        LLAMA
        | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
        | {"shared_expert_intermediate_size": 8, "mlp_only_layers": [1, 3], "decoder_sparse_step": 1},
    ),
}


def language(kind, **options):
    family, settings = LANGUAGE[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**settings | options)
    kind_of = "LMHeadModel" if family == "GPT2" else "ForCausalLM"
    return rough(getattr(transformers, family + kind_of)(config))


def rough(model):
    """Random weights that make each block matter."""
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=0.15)
    return model.eval()


def next_token(output, labels):
    return torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def sentences():
    ids = torch.randint(1, 40, (6, 10))
    return [{"input_ids": ids, "labels": ids}]


def run(model, batch):
    with torch.no_grad():
        return model.eval()(**{k: v for k, v in batch.items() if k != "labels"}).logits


def reloaded(model, folder):
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval()


@pytest.mark.parametrize("gone", [0, 2])
@pytest.mark.parametrize("kind", list(LANGUAGE))
def test_a_shortened_language_model_reloads_and_generates(kind, gone, tmp_path):
    model, data = language(kind), sentences()
    before = copy.deepcopy(model.config.to_dict())
    stay = [f"**.{i}" for i in range(4) if i != gone]
    found = simplify(model, data, next_token, keep=stay, blocks=["transformer.h.*", "model.layers.*"], reloadable=True)
    assert len(found.rounds) == 1 and found.notes == ()
    small = found.model
    assert model.config.to_dict() == before
    assert small.config.num_hidden_layers == 3
    if getattr(small.config, "layer_types", None):
        assert small.config.layer_types == [t for i, t in enumerate(model.config.layer_types) if i != gone]
    numbers = {m.layer_idx for m in small.modules() if isinstance(getattr(m, "layer_idx", None), int)}
    assert numbers in ({0, 1, 2}, set())
    again = reloaded(small, tmp_path)
    torch.testing.assert_close(run(again, data[0]), run(small, data[0]), rtol=1e-5, atol=1e-5)
    ids = data[0]["input_ids"][:2, :6]
    options = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    for one in (small, again):
        cached = one.generate(ids, use_cache=True, **options)
        assert torch.equal(cached, one.generate(ids, use_cache=False, **options))


def test_a_shortened_bert_and_vit_reload(tmp_path):
    torch.manual_seed(0)
    bert = rough(transformers.BertForSequenceClassification(transformers.BertConfig(**WORDS, num_hidden_layers=4)))
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8, "patch_size": 4}
    vit = rough(transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, num_hidden_layers=4)))
    labels = torch.randint(0, 2, (6,))
    for model, inputs in (
        (bert, {"input_ids": torch.randint(0, 40, (6, 7))}),
        (vit, {"pixel_values": torch.randn(6, 3, 8, 8)}),
    ):
        batch = inputs | {"labels": labels}
        found = simplify(
            model, [batch], lambda out, y: torch.nn.functional.cross_entropy(out.logits, y), drop=2, reloadable=True
        )
        assert len(found.rounds) == 2 and found.notes == ()
        again = reloaded(found.model, tmp_path / type(model).__name__)
        assert again.config.num_hidden_layers == 2
        torch.testing.assert_close(run(again, batch), run(found.model, batch), rtol=1e-5, atol=1e-5)


def translation(kind):
    torch.manual_seed(0)
    if kind == "t5":
        config = transformers.T5Config(
            vocab_size=40,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=4,
            num_decoder_layers=3,
            num_heads=2,
            decoder_start_token_id=0,
        )
        return rough(transformers.T5ForConditionalGeneration(config))
    config = transformers.BartConfig(
        vocab_size=40, d_model=16, encoder_layers=3, decoder_layers=3, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32,
    )  # fmt: skip
    return rough(transformers.BartForConditionalGeneration(config))


@pytest.mark.parametrize("side", ["encoder", "decoder"])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_each_side_of_an_encoder_decoder_reloads(kind, side, tmp_path):
    model = translation(kind)
    ids, words = torch.randint(3, 40, (5, 7)), torch.randint(3, 40, (5, 6))
    batch = {"input_ids": ids, "decoder_input_ids": words, "labels": words}
    stay = ["**.0", "**.2", "**.3"] if kind == "t5" and side == "encoder" else ["**.0", "**.2"]
    blocks = [f"**.{side}.block.*", f"{side}.block.*", f"**.{side}.layers.*"]
    found = simplify(model, [batch], next_token, blocks=blocks, keep=stay, reloadable=True)
    assert len(found.rounds) == 1 and found.notes == (), found.notes
    again = reloaded(found.model, tmp_path)
    torch.testing.assert_close(run(again, batch), run(found.model, batch), rtol=1e-5, atol=1e-5)
    options = {"max_new_tokens": 6, "do_sample": False, "num_beams": 1}
    cached = again.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, again.generate(ids, use_cache=False, **options))


def test_what_cannot_be_saved_is_said_or_refused():
    """T5's first block makes the position bias of the others; GPT-2 may divide attention by a block's number."""
    t5, words = translation("t5"), torch.randint(3, 40, (5, 6))
    batch = {"input_ids": words, "decoder_input_ids": words, "labels": words}
    options = {"keep": ["**.1", "**.2", "**.3"], "blocks": "encoder.block.*"}
    loose = simplify(t5, [batch], next_token, **options)
    assert not any(isinstance(m, PassThrough) for m in loose.model.modules())
    assert loose.rounds == () and "encoder.block.0: it cannot go" in loose.notes[0]
    refused = simplify(t5, [batch], next_token, reloadable=True, **options)
    assert refused.rounds == () and "encoder.block.0: it cannot go" in refused.notes[0]
    gpt2 = language("gpt2", scale_attn_by_inverse_layer_idx=True)
    options = {"keep": ["**.1", "**.2", "**.3"], "blocks": "transformer.h.*"}
    loose = simplify(gpt2, sentences(), next_token, **options)
    assert len(loose.rounds) == 1 and "saved and loaded again it is another network" in loose.notes[0]
    assert "makes blocks of another kind" in loose.notes[0] and len(loose.notes) == 1
    strict = simplify(gpt2, sentences(), next_token, reloadable=True, **options)
    assert strict.rounds == () and "saved and loaded again" in strict.notes[0]


def test_a_decoder_deeper_than_its_encoder_has_no_cache_in_t5():
    """transformers counts the places of the cache by the encoder's layers: said, since the drop makes it matter."""
    model, words = translation("t5"), torch.randint(3, 40, (5, 6))
    batch = {"input_ids": words, "decoder_input_ids": words, "labels": words}
    found = simplify(model, [batch], next_token, keep=["**.0", "**.3"], blocks="encoder.block.*")
    assert len(found.rounds) == 2 and "use_cache=False does" in found.notes[-1]


def test_shared_layers_are_no_stack_to_drop_from():
    torch.manual_seed(0)
    config = transformers.AlbertConfig(**WORDS, embedding_size=8, num_hidden_layers=4)
    model = transformers.AlbertForSequenceClassification(config)
    batch = {"input_ids": torch.randint(0, 40, (4, 6)), "labels": torch.randint(0, 2, (4,))}
    with pytest.raises(ValueError, match=r"expected blocks in a row"):
        simplify(model, [batch], lambda out, y: torch.nn.functional.cross_entropy(out.logits, y), drop=1)


def test_a_cache_with_an_empty_first_place_is_found_out():
    """Blocks that keep their numbers, as `simplify` left them before: the cache counts what is in its first place."""
    model, batch = language("llama"), sentences()[0]
    assert cache_fault(model, batch) is None
    del model.model.layers[0]
    model.config.num_hidden_layers = 3
    assert cache_fault(model, batch) is not None
    renumber(Change(), [model.model.layers[0], *model.model.layers], 0)
    assert cache_fault(model, batch) is None


def test_a_block_that_is_put_back_leaves_everything_as_it_was():
    model, data = language("qwen2"), sentences()
    found = simplify(model, data, next_token, max_increase=-1e6)
    assert found.rounds == () and found.notes == ()
    assert found.model.config.to_dict() == model.config.to_dict()
    assert [layer.self_attn.layer_idx for layer in found.model.model.layers] == [0, 1, 2, 3]
    torch.testing.assert_close(run(found.model, data[0]), run(model, data[0]), rtol=0, atol=0)


def test_a_model_within_another_follows_too(tmp_path):
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = language("qwen2")

        def forward(self, input_ids):
            return self.inner(input_ids=input_ids)

    data = sentences()
    found = simplify(Wrapped(), data, next_token, drop=2, reloadable=True)
    assert len(found.rounds) == 2 and found.notes == ()
    inner = found.model.inner
    assert inner.config.num_hidden_layers == len(inner.config.layer_types) == 2
    torch.testing.assert_close(run(reloaded(inner, tmp_path), data[0]), run(inner, data[0]), rtol=1e-5, atol=1e-5)
