"""What `simplify` predicts and measures, and what one linear map saves: five architectures, trained here.

    python benchmarks/simplify.py --seeds 1 --json out.json

Each has eight blocks; a quarter goes. ``predicted`` and ``measured`` are changes of the mean loss by dropping two
blocks one by one; ``dropped`` and ``replaced`` are of the run of two that `replace_run` chooses. Data are the digits of
scikit-learn (images in patches for the ViT) and sequences that go on by a step of their own; on the training part.
"""

import argparse
import json
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from isthmus.probe import replace_run, simplify

SIZES = {"num_hidden_layers": 8, "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 48}
WORDS = SIZES | {"vocab_size": 16, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


class Residual(nn.Module):
    """``x + f(x)``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.f = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The stream, and what is added to it."""
        return x + self.f(x)


def mlp() -> nn.Module:
    """Fully connected, width 24."""
    blocks = (Residual(nn.LayerNorm(24), nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24)) for _ in range(8))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), *blocks, nn.Linear(24, 10))


def cnn() -> nn.Module:
    """Convolutions of 12 channels."""
    blocks = (
        Residual(nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 1))
        for _ in range(8)
    )
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)
    )


def cases() -> list[tuple]:
    """Name, model, data, loss."""
    import transformers

    digits = load_digits()
    images = torch.tensor(digits.images[:1000, None] / 16, dtype=torch.float32)
    labels = torch.tensor(digits.target[:1000])
    steps = torch.randint(1, 4, (128, 1))
    ids = (torch.randint(0, 16, (128, 1)) + steps * torch.arange(12)) % 16
    words, pictures = {"input_ids": ids, "labels": ids}, {"pixel_values": images, "labels": labels}
    gpt2 = {"vocab_size": 16, "n_embd": 24, "n_head": 2, "n_layer": 8, "n_positions": 32}
    vit = transformers.ViTConfig(**SIZES, image_size=8, patch_size=2, num_channels=1, num_labels=10)
    llama = transformers.LlamaConfig(**WORDS, num_key_value_heads=2)

    def plain(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, y)

    def logits(output: object, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output.logits, y)

    def following(output: object, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output.logits[:, 1:-1].flatten(0, 1), y[:, 2:].flatten())

    return [
        ("residual MLP", mlp(), (images, labels), plain),
        ("residual CNN", cnn(), (images, labels), plain),
        ("ViT", transformers.ViTForImageClassification(vit), pictures, logits),
        (
            "GPT-2",
            transformers.GPT2LMHeadModel(transformers.GPT2Config(**gpt2, bos_token_id=None, eos_token_id=None)),
            words,
            following,
        ),
        ("Llama", transformers.LlamaForCausalLM(llama), words, following),
    ]


def trained(model: nn.Module, batch: object, loss: object, steps: int = 150) -> nn.Module:
    """AdamW on the whole batch."""
    optimiser = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        if isinstance(batch, dict):
            given = {key: value for key, value in batch.items() if key != "labels"}
            value = loss(model(**given), batch["labels"])
        else:
            value = loss(model(batch[0]), batch[1])
        value.backward()
        optimiser.step()
    return model.eval()


def main() -> None:
    """Print the table, row by row, and write the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print("| model | seed | loss | predicted | measured | run dropped | run replaced | into |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        for name, model, batch, loss in cases():
            trained(model, batch, loss)
            small = simplify(model, [batch], loss, drop=2, batch_size=2048)
            replaced = replace_run(model, [batch], loss, run=2, batch_size=2048)
            before = replaced.loss_before
            changes = {"predicted": small.predicted, "measured": small.measured}
            changes |= {"dropped": replaced.loss_dropped - before, "replaced": replaced.loss_after - before}
            into = replaced.into if replaced.merged else "a new map"
            rows.append({"model": name, "seed": seed, "loss": before, "into": into} | changes)
            numbers = " | ".join(f"{value:+.4f}" for value in changes.values())
            print(f"| {name} | {seed} | {before:.4f} | {numbers} | `{into}` |", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
