"""A Hugging Face model's configuration, brought into agreement with the blocks that are left.

Such a model is saved as weights and a configuration, and built anew from the configuration when loaded. Three things
must follow when a block goes: the number of layers, lists with an entry a layer (``layer_types``), and the number that
each block carries (``layer_idx``, its place in the cache). Nothing here imports transformers: a model is one of these
where it has ``save_pretrained`` and a ``config`` with ``to_dict``.

Names alone do not say which number of a configuration belongs to which run of blocks, so each way to read them is
tried, and that one is taken which rebuilds the network: the same weights, and the same outputs on a batch.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from isthmus.probe.capture import undisturbed
from isthmus.probe.find import walk

DEPTHS = re.compile(r"(^|_)(layers?|blocks?|depth)$")  # num_hidden_layers, n_layer, encoder_layers, depth
PLACES = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx")
_NUMBERS_OF_LAYERS = re.compile(r"(layers|indices|indexes|idxs?|ids)$")
_PREFIXES = ("first_k_dense_replace", "max_window_layers")  # how many of the first layers are of another kind


def has_config(model: nn.Module) -> bool:
    """Whether a model is saved with a configuration that it is built from."""
    return hasattr(model, "save_pretrained") and hasattr(getattr(model, "config", None), "to_dict")


def saved_part(model: nn.Module, path: str) -> nn.Module | None:
    """The outermost module from the model down to a container that `has_config`: models are put into others."""
    return next((module for module in _down(model, path) if has_config(module)), None)


class Change:
    """What of a model's configurations and blocks is altered when a block goes; `undo` puts all of it back."""

    def __init__(self) -> None:
        self._old: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute, and remember what it was."""
        self._old.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def undo(self) -> None:
        """As it was before."""
        while self._old:
            owner, name, value = self._old.pop()
            setattr(owner, name, value)


Edit = Callable[[Change], None]


def renumber(change: Change, members: Sequence[nn.Module], gone: int) -> None:
    """Give the members behind a place the number of the place they move to: ``layer_idx`` and its like.

    Args:
        change: takes note.
        members: of the container before the block goes.
        gone: place of the block that goes.
    """
    later = {id(module): module for member in members[gone + 1 :] for module in member.modules()}
    for module in later.values():
        for name in PLACES:
            # a number that is not the place, but counted from elsewhere, is shifted all the same
            value = vars(module).get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                change.set(module, name, value - 1)


def readings(model: nn.Module, path: str, count: int, gone: int) -> list[Edit]:
    """Ways to take a block out of the configurations, the likeliest first.

    Args:
        model: of Hugging Face's kind.
        path: dotted name of the container of the blocks.
        count: of its members, before.
        gone: place of the block that goes.
    """
    found = [(config, names) for config in _owners(model, path) if (names := _depths(config, count, path))]
    most = max((len(names) for _, names in found), default=0)

    def edit(choice: int, lists: bool) -> Edit:
        def make(change: Change) -> None:
            for config, names in found:
                if lists:
                    _cut_lists(change, config, count, gone)
                for name in names if choice == most else names[choice : choice + 1] or names[:1]:
                    change.set(config, name, count - 1)

        return make

    # each name alone, then all of them; with lists of an entry a layer cut, and without
    return [edit(choice, lists) for choice in range(most + (most > 1)) for lists in (True, False)]


def _owners(model: nn.Module, path: str) -> list[Any]:
    """Configurations of the modules from the model down to the container, each once."""
    configs = [c for m in _down(model, path) if hasattr(c := getattr(m, "config", None), "to_dict")]
    return list({id(config): config for config in configs}.values())


def _down(model: nn.Module, path: str) -> list[nn.Module]:
    """The modules from the model down to one of its parts, both among them."""
    parts, named = path.split(".") if path else [], dict(walk(model))
    return [named[".".join(parts[:i])] for i in range(len(parts) + 1)]


def _depths(config: Any, count: int, path: str) -> list[str]:
    """Names of the numbers that can be that of the layers; of an encoder's and a decoder's its own first."""
    names = [k for k, v in vars(config).items() if DEPTHS.search(k) and type(v) is int and v == count]
    side = next((s for s in ("decoder", "encoder") if s in path.split(".")), "")
    other = {"decoder": "encoder", "encoder": "decoder"}.get(side)
    return sorted(names, key=lambda n: (other is not None and other in n, side not in n, "hidden" not in n))


def _cut_lists(change: Change, config: Any, count: int, gone: int) -> None:
    for name, value in list(vars(config).items()):
        if name in _PREFIXES and isinstance(value, int) and gone < value:
            change.set(config, name, value - 1)
        if not isinstance(value, list | tuple) or name.endswith(("_id", "architectures")):
            continue
        kind = type(value)
        if name == "attention_types":  # GPT-Neo: [[["global", "local"], 2]] is repeated into attention_layers
            flat = [one for pattern, times in value for _ in range(times) for one in pattern]
            if len(flat) == count:
                change.set(config, name, [[[*flat[:gone], *flat[gone + 1 :]], 1]])
        elif len(value) == count:
            change.set(config, name, kind([*value[:gone], *value[gone + 1 :]]))
        elif value and _NUMBERS_OF_LAYERS.search(name) and all(type(i) is int and 0 <= i < count for i in value):
            change.set(config, name, kind([i - (i > gone) for i in value if i != gone]))


def cache_fault(model: nn.Module, batch: object) -> str | None:
    """What is wrong with generation with a cache, for a model that generates and a batch with ``input_ids``.

    Three tokens for two rows, with and without; None where both give the same, or where nothing can be tried.
    """
    if not isinstance(batch, Mapping) or "input_ids" not in batch or not getattr(model, "can_generate", bool)():
        return None
    given = {k: batch[k][:2] for k in ("input_ids", "attention_mask") if isinstance(batch.get(k), torch.Tensor)}
    options = {"min_new_tokens": 3, "max_new_tokens": 3, "do_sample": False, "num_beams": 1}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    generate: Any = model.generate
    with undisturbed(model):
        try:
            without = torch.stack(generate(**given, **options, use_cache=False).logits)
        except Exception:
            return None  # nor does it without
        try:
            cached = torch.stack(generate(**given, **options, use_cache=True).logits)
        except Exception as error:
            return f"with a cache it does not generate ({type(error).__name__}: {error}); use_cache=False does"
    real = without.isfinite()
    if bool(((cached - without)[real].abs() <= 1e-3 * without[real].abs().max()).all()):
        return None
    return "with a cache it generates something else than without: say use_cache=False"


def rebuilt(model: nn.Module) -> nn.Module:
    """A model built anew from a copy of the configuration, with the weights of this one: they are shared, not copied.

    Raises:
        ValueError: what the configuration describes has other weights.
        Exception: whatever the model's own code raises.
    """
    config = copy.deepcopy(model.config)
    with torch.device("meta"):
        made = type(model)(config)
    own, new = model.state_dict(), made.state_dict()
    if own.keys() != new.keys():
        odd = sorted(own.keys() ^ new.keys())
        raise ValueError(f"built from its configuration it has other weights: {', '.join(odd[:3])}")
    wrong = next((k for k in own if own[k].shape != new[k].shape), None)
    if wrong is not None:
        raise ValueError(
            f"built from its configuration {wrong} has the shape {tuple(new[wrong].shape)}, "
            f"not {tuple(own[wrong].shape)}"
        )
    made.load_state_dict(own, assign=True)
    modules = dict(model.named_modules())
    for name, module in made.named_modules():  # buffers that are not saved do not depend on the number of layers
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[key] = modules[name]._buffers[key]
        for key, value in vars(module).items():  # plain tensors, as rotary frequencies kept aside
            if isinstance(value, torch.Tensor) and value.is_meta:
                setattr(module, key, getattr(modules[name], key))
    return made.train(model.training)
