"""Families of timm: width, rows and participation ratio of every block are those of hooks set by hand.

Not in CI, where timm is not installed: ``pip install timm`` beside the package, and ``pytest -m slow``.
"""

import importlib.machinery
import importlib.util
import sys
import types
from unittest import mock

import pytest
import torch
from torch import nn

from isthmus.probe import probe
from isthmus.probe.find import stacks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed"),
]


def _without_torchvision():
    """What timm imports of torchvision, where that is not there: nothing that a forward pass needs."""
    if importlib.util.find_spec("torchvision") is not None:
        return
    tree = ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional", ".datasets", ".utils", ".models")
    for part in (*tree, ".models.feature_extraction"):
        name = "torchvision" + part
        module = types.ModuleType(name)
        module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None, is_package=True), []
        module.__getattr__ = lambda attribute: mock.MagicMock() if not attribute.startswith("__") else None
        sys.modules[name] = module
    sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = type("FrozenBatchNorm2d", (nn.BatchNorm2d,), {})


# family: size of the image, and the dimension of the width in states of rank 4; at rank 3 it is the last
FAMILIES = {
    "resnet18": (64, 1),
    "convnext_atto": (64, 1),
    "mobilenetv3_small_050": (64, 1),
    "efficientnet_b0": (64, 1),
    "maxvit_tiny_rw_224": (224, 1),
    "poolformer_s12": (64, 1),
    "edgenext_xx_small": (64, 1),
    "vit_tiny_patch16_224": (224, -1),
    "deit_tiny_patch16_224": (224, -1),
    "mixer_s32_224": (224, -1),
    "cait_xxs24_224": (224, -1),
    "swin_tiny_patch4_window7_224": (224, -1),
    "mambaout_femto": (256, -1),
    "sequencer2d_s": (224, -1),
    "volo_d1_224": (224, -1),
    "focalnet_tiny_srf": (64, 1),
    "davit_tiny": (224, 1),
    "pvt_v2_b0": (64, 1),
    "levit_128s": (224, -1),
    "hiera_tiny_224": (224, -1),
}


def stacked(net):
    """Names of all blocks in a row."""
    return [name for names in stacks(net).values() for name in names]


def pr(rows):
    s = torch.linalg.svdvals(rows.double() - rows.double().mean(0)) ** 2
    return float(s.sum() ** 2 / (s**2).sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_a_family_are_read_as_by_hooks_of_ones_own(family):
    _without_torchvision()
    import timm

    size, width = FAMILIES[family]
    torch.manual_seed(0)
    net, x = timm.create_model(family, pretrained=False).eval(), torch.randn(2, 3, size, size)
    profile = probe(net, x, ["patch_embed", *stacked(net)] if hasattr(net, "patch_embed") else stacked(net), shards=1)
    states = {}
    modules = dict(net.named_modules())

    def keep(name):
        def hook(_module, _args, out):
            states.setdefault(name, out)

        return hook

    hooks = [modules[name].register_forward_hook(keep(name)) for name in {r.site for r in profile.records}]
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    assert states
    for record in profile.records:
        if record.call:
            continue
        state = states[record.site]
        state = state if isinstance(state, torch.Tensor) else state[0]
        own = width if state.ndim == 4 and record.site != "patch_embed" else -1
        own = 1 if (family, record.site) == ("volo_d1_224", "patch_embed") else own
        rows = state.movedim(own, -1).reshape(-1, state.shape[own])
        told = any(doubt.startswith(record.site + ":") for doubt in profile.doubts)
        assert told or (record.moments[0].width, record.count) == (rows.shape[1], len(rows)), record.site
        row = [r.key for r in profile.records].index(record.key)
        assert told or profile["participation_ratio_centred"][row] == pytest.approx(pr(rows), rel=1e-4), record.site
