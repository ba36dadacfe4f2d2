"""What reading a network costs, in forward passes over the same data: every column read and the table printed.

    python benchmarks/probe.py --rounds 3 --json out.json

Contestants, interleaved, on one thread: the plain forward pass; `probe` of the blocks alone and with its defaults, the
call alone and with all columns; hooks at the same sites with `torch.linalg.svdvals` of what they caught, without
standard errors; TorchLens where it is installed (benchmarks/requirements-peers.txt). Networks are drawn at random: the
work does not depend on the weights. CPU seconds, which other processes disturb least.
"""

import gc
from collections.abc import Callable

import torch
from _common import interleaved, options, show, summary, write
from torch import Tensor, nn

from isthmus import probe


def encoder() -> tuple[nn.Module, dict[str, Tensor]]:
    """MiniLM's size: six blocks of width 384, 256 sentences of 8 to 32 tokens."""
    import transformers

    config = transformers.BertConfig(
        vocab_size=2000, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    lengths = torch.randint(8, 33, (256,))
    mask = (torch.arange(32) < lengths[:, None]).long()
    return transformers.BertModel(config).eval(), {
        "input_ids": torch.randint(0, 2000, (256, 32)),
        "attention_mask": mask,
    }


def vit() -> tuple[nn.Module, Tensor]:
    """A tiny ViT: twelve blocks of width 192, 64 images of 14 × 14 patches."""
    import transformers

    config = transformers.ViTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768, image_size=224
    )
    return transformers.ViTModel(config).eval(), torch.randn(64, 3, 224, 224)


def resnet() -> tuple[nn.Module, Tensor]:
    """ResNet-18's stages, 128 images of 64 × 64."""
    import transformers

    config = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
    )
    return transformers.ResNetModel(config).eval(), torch.randn(128, 3, 64, 64)


def mlp(width: int, samples: int) -> Callable[[], tuple[nn.Module, Tensor]]:
    """Eight fully connected layers."""

    def make() -> tuple[nn.Module, Tensor]:
        layers = [part for _ in range(8) for part in (nn.Linear(width, width), nn.ReLU())]
        return nn.Sequential(*layers), torch.randn(samples, width)

    return make


NETWORKS: dict[str, Callable[[], tuple[nn.Module, object]]] = {
    "encoder": encoder,
    "vit": vit,
    "resnet": resnet,
    "mlp128": mlp(128, 4000),
    "mlp512": mlp(512, 4000),
    "mlp1024": mlp(1024, 4000),
}


def batches(data: object, size: int = 32) -> list[object]:
    """The data in batches."""
    if isinstance(data, dict):
        whole = len(next(iter(data.values())))
        return [{k: v[i : i + size] for k, v in data.items()} for i in range(0, whole, size)]
    assert isinstance(data, Tensor)
    return list(data.split(max(size, 1000) if data.ndim == 2 else size))


def run(model: nn.Module, batch: object) -> object:
    """One forward pass."""
    return model(**batch) if isinstance(batch, dict) else model(batch)


@torch.no_grad()
def forward(model: nn.Module, data: list[object]) -> None:
    """All batches, nothing read."""
    for batch in data:
        run(model, batch)


def by_hand(model: nn.Module, data: list[object], sites: list[str]) -> list[Tensor]:
    """What one writes without a library: hooks that keep the rows, then singular values."""
    kept: dict[str, list[Tensor]] = {name: [] for name in sites}
    modules = dict(model.named_modules())

    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            x = (
                output
                if isinstance(output, Tensor)
                else output[0]
                if isinstance(output, tuple)
                else output.last_hidden_state
            )
            x = x.movedim(1, -1) if x.ndim == 4 else x
            kept[name].append(x.reshape(-1, x.shape[-1]))

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in sites]
    forward(model, data)
    for handle in handles:
        handle.remove()
    return [torch.linalg.svdvals(torch.cat(rows)) for rows in kept.values()]


def read(model: nn.Module, data: list[object], printed: bool = True, **options: object) -> object:
    """A profile, with every column read and the table printed, or the call alone."""
    profile = probe(model, data, **options)
    if printed:
        for name in profile:
            profile[name]
        str(profile)
    return profile


def lens(model: nn.Module, data: list[object]) -> None:
    """TorchLens' trace of every operation."""
    import torchlens

    for batch in data:
        torchlens.trace(model, () if isinstance(batch, dict) else (batch,), batch if isinstance(batch, dict) else None)


def contest(name: str, rounds: int, peers: bool) -> list[dict]:
    """All contestants on one network."""
    torch.manual_seed(0)
    model, given = NETWORKS[name]()
    data = batches(given)
    sites = [r.site for r in probe(model, data[:1]).records if not r.site.endswith(":input")]
    blocks = ("block", "stream") if not name.startswith("mlp") else ("linear",)
    contestants: dict[str, Callable[[], object]] = {
        "forward": lambda: forward(model, data),
        "blocks, call": lambda: read(model, data, printed=False, kinds=blocks),
        "blocks, every column": lambda: read(model, data, kinds=blocks),
        "defaults, call": lambda: read(model, data, printed=False),
        f"defaults, every column ({len(sites)})": lambda: read(model, data),
        f"hooks and svdvals ({len(sites)})": lambda: by_hand(model, data, sites),
    }
    if peers:
        contestants["TorchLens"] = lambda: lens(model, data)
    gc.collect()
    rows = summary(interleaved(contestants, rounds, warm=0, timed=1), "forward", "cpu")
    print(name)
    show(rows)
    return rows


def main() -> None:
    """All networks, or those named."""
    parser = options(__doc__)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        import torchlens  # noqa: F401

        peers = True
    except ImportError:
        peers = False
    write(args.json, {"networks": {name: contest(name, args.rounds, peers) for name in args.networks}})


if __name__ == "__main__":
    main()
