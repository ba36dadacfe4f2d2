"""Which dimension of a state is its width, and which its samples: by the sizes of parameters, not by position.

The dimension that a module ends with is the size of what its last layer makes (``out_features``, ``out_channels``,
``normalized_shape``). Where two dimensions have that size, or none, the class of the module decides, and it is said.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.RMSNorm, nn.MultiheadAttention, nn.RNNBase)
CONV = nn.modules.conv._ConvNd
POOL = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
_FIRST = (CONV, *POOL, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.Upsample)


def sizes_of(layer: nn.Module) -> tuple[int, int] | None:
    """Widths that a single layer takes and makes, as its parameters say; None where it has none or they do not."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, CONV):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        size = layer.normalized_shape[-1]
        return (size, size) if len(layer.normalized_shape) == 1 else None
    if isinstance(layer, nn.RNNBase):
        made = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
        return layer.input_size, made
    for name in ("num_features", "num_channels", "embed_dim", "embedding_dim"):
        held = getattr(layer, name, None)
        if isinstance(held, int) and isinstance(layer, (*_FIRST, nn.MultiheadAttention, nn.Embedding)):
            return held, held
    weight = layer._parameters.get("weight")
    if weight is None or isinstance(weight, nn.parameter.UninitializedParameter) or weight.ndim not in (1, 2):
        return None
    return int(weight.shape[-1]), int(weight.shape[0])


def _widths(module: nn.Module, made: bool) -> Iterator[int]:
    """Widths in a module, those nearest to its end (to its beginning) first."""
    layers = list(module.modules())
    for layer in reversed(layers) if made else layers:
        found = sizes_of(layer)
        if found is not None:
            yield found[int(made)]
    for parameter in module._parameters.values():  # the scale of a layer, say
        if parameter is not None and parameter.numel() == max(parameter.shape, default=0):
            yield parameter.numel()


def width_first(module: nn.Module, shape: torch.Size, rule: str = "auto", entering: bool = False) -> tuple[bool, bool]:
    """Whether dimension 1 is the width, not the last; and whether that could be told.

    Args:
        module: whose state it is.
        shape: of the state.
        rule: ``first`` or ``last`` where the caller says so.
        entering: whether the state goes into the module.
    """
    if len(shape) == 2 or rule != "auto":
        return rule == "first" and len(shape) > 2, True
    first, last = shape[1], shape[-1]
    single = isinstance(module, (*_LAST, *_FIRST))
    for width in _widths(module, not entering):
        if width in (first, last) and first != last:
            return width == first, True
    guess = _by_class(module, len(shape))
    return guess, single or (len(shape) == 3 and not any(isinstance(m, _FIRST) for m in module.modules()))


def _by_class(module: nn.Module, rank: int) -> bool:
    """Convolutions and what goes with them have channels first.

    A module of several layers counts as convolutional where it holds convolutions: at rank 3 it must hold nothing else
    (transformers use them for positions), from rank 4 on any will do.
    """
    if isinstance(module, _LAST):
        return False
    if isinstance(module, _FIRST):
        return True
    inner = list(module.modules())
    conv = any(isinstance(m, CONV) for m in inner)
    dense = any(isinstance(m, nn.Linear | nn.MultiheadAttention) for m in inner)
    return conv and not dense if rank == 3 else conv or not dense


def without_batch(module: nn.Module, x: Tensor) -> bool:
    """Whether a convolution or pooling was given a sample without a batch dimension, which torch allows."""
    dimensions = "".join(c for c in type(module).__name__ if c.isdigit())
    return isinstance(module, (CONV, *POOL)) and dimensions in ("1", "2", "3") and x.ndim == int(dimensions) + 1


def tokens_first(module: nn.Module) -> bool | None:
    """Whether a module of `torch.nn` takes ``(tokens, samples, width)``, as its ``batch_first`` says."""
    if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder) and len(module.layers):
        module = module.layers[0]
    if isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        module = module.self_attn
    if isinstance(module, nn.Transformer | nn.RNNBase | nn.MultiheadAttention):
        return not module.batch_first
    return None


class Unbatched(ValueError):
    """Samples that come one by one."""


@contextmanager
def guards(
    modules: Mapping[str, nn.Module],
    rank: Callable[[], int],
    packed: Callable[[PackedSequence], None],
    doubt: Callable[[str], None],
) -> Iterator[None]:
    """While open, layers that take samples without a batch dimension say so, and recurrent ones what was packed.

    Args:
        modules: of the model, by name.
        rank: of what the model is called with: where it is higher, the model takes its samples apart itself.
        packed: called with packed sequences.
        doubt: called with what could not be told.

    Raises:
        Unbatched: from inside the forward pass.
    """
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def enters(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            x = next(iter((*args, *kwargs.values())), None)
            made = output[0] if isinstance(output, tuple) and not hasattr(output, "_fields") else output
            if isinstance(made, PackedSequence):
                packed(made)
            elif isinstance(x, Tensor) and without_batch(module, x) and x.ndim >= rank():
                raise Unbatched(
                    f"data: {name} ({type(module).__name__}) was given a sample of shape {tuple(x.shape)}, without a "
                    "batch dimension: samples come one by one; wrap the data in torch.utils.data.DataLoader"
                )
            elif isinstance(x, Tensor) and not isinstance(module, (CONV, *POOL)) and x.ndim == 2 >= rank():
                doubt(
                    f"{name}: a {type(module).__name__} was given {tuple(x.shape)}, a sequence without samples; where "
                    "samples come one by one, wrap the data in torch.utils.data.DataLoader"
                )

        handles.append(module.register_forward_hook(enters, with_kwargs=True))

    try:
        for name, module in modules.items():
            if isinstance(module, (CONV, *POOL, nn.RNNBase, nn.MultiheadAttention)):
                watch(name or "(model)", module)
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Axes:
    """What is known of a site's dimensions before a state comes.

    Args:
        tokens_first: as the module, or the nearest one of `torch.nn` around it, says; None: nothing does.
        hint: whether attention inside it takes tokens first.
    """

    tokens_first: bool | None = None
    hint: bool = False


def axes_of(name: str, modules: dict[str, nn.Module]) -> Axes:
    """Of a site, by its name and the model's modules."""
    name = name.removesuffix(":input").replace("(model)", "")
    parts = name.split(".") if name else []
    around = [modules[".".join(parts[:up])] for up in range(len(parts), -1, -1) if ".".join(parts[:up]) in modules]
    known = [tokens_first(module) for module in around]
    found = next((k for k in known if k is not None), None)
    inside = around[0].modules() if around else ()
    return Axes(found, any(tokens_first(m) is True for m in inside))


def samples_first(x: Tensor, axes: Axes, batch: int | None) -> tuple[bool, str | None]:
    """Whether dimension 0 of ``(·, ·, width)`` holds the samples, not the tokens; and a doubt.

    Args:
        x: of rank 3.
        axes: of its site.
        batch: number of samples in the batch, None if unknown.
    """
    zero, one = x.shape[0] == batch, x.shape[1] == batch
    if axes.tokens_first:
        if zero and not one:
            return True, (
                f"its module has batch_first=False, tokens before samples, but the batch has {batch} samples by its "
                "first dimension; pass sequence_first=True where that holds tokens"
            )
        return False, None
    if axes.tokens_first is False or zero or not one or not batch:
        both = axes.tokens_first is None and zero and one and axes.hint
        doubt = (
            f"{batch} samples of {batch} tokens each: which come first could not be told; sequence_first={{name: …}}"
        )
        return True, doubt if both else None
    if x.shape[0] % batch == 0 and not axes.hint:
        return True, (
            f"of shape {tuple(x.shape)} for {batch} samples: taken as {x.shape[0] // batch} windows a sample, not as "
            "tokens before samples; sequence_first={name: True} says otherwise"
        )
    return False, None
