"""Data in every form, options out of range, and a model that is left as it was."""

import random

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from isthmus.probe import probe
from isthmus.probe.capture import undisturbed


def same_spectrum(profile, layer, rows, tolerance=1e-9):
    expected = torch.linalg.svdvals(rows.detach().double().reshape(-1, rows.shape[-1]))
    found = profile.spectrum(layer)
    assert profile.record(layer).count == rows.reshape(-1, rows.shape[-1]).shape[0]
    torch.testing.assert_close(found, expected[: len(found)], rtol=tolerance, atol=tolerance * float(expected[0]))


def hooks_on(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def mlp(inplace=False):
    return nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(inplace=inplace), nn.Linear(8, 8), nn.ReLU(inplace=inplace), nn.Linear(8, 3)
    )


# --- data -----------------------------------------------------------------------------------------------------------


def test_data_in_every_form():
    net, x, y = mlp(), torch.randn(30, 5), torch.randint(0, 3, (30,))
    loader = DataLoader(TensorDataset(x, y), batch_size=8)
    pieces = list(x.split(11))
    forms = [x, loader, pieces, (piece for piece in pieces), [(x, y)], [[x, y]], {"input": x, "label": y}]
    for data in forms:
        profile = probe(net, data)
        assert profile.samples == 30
        same_spectrum(profile, "4", net(x), 1e-6)
    doubled = probe(net, [(y, x)], forward=lambda model, batch: model(2 * batch[1]))
    same_spectrum(doubled, "4", net(2 * x), 1e-6)
    assert probe(net, loader, max_batches=2).samples == 16


@pytest.mark.parametrize(
    "data, error, message",
    [
        ((torch.zeros(2, 5), torch.zeros(2)), TypeError, r"a tuple of 2 could be one batch or several; pass \[batch\]"),
        (3, TypeError, r"data: expected a DataLoader, a tensor, or an iterable .* got int"),
        (torch.zeros(()), ValueError, r"expected a tensor with samples along its first dimension"),
        ([], ValueError, r"data: no samples came; a generator that was read before\?"),
        (torch.zeros(0, 5), ValueError, r"data: no samples came"),
        (
            [{"wrong": torch.zeros(2, 5)}],
            TypeError,
            r"a dict with the keys 'wrong' .*forward takes 'input'; pass forward",
        ),
        ([()], TypeError, r"an empty tuple came as a batch"),
        ([{1, 2}], TypeError, r"expected tensors, tuples or dicts as batches, got set; pass forward="),
    ],
)
def test_data_that_cannot_be_used_say_what_was_expected(data, error, message):
    with pytest.raises(error, match=message):
        probe(mlp(), data)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"positions": "all"}, r"positions: expected 'samples' .* got 'all'"),
        ({"channels": "middle"}, r"channels: expected 'auto', 'first' or 'last', got 'middle'"),
        ({"shards": 0}, r"shards: expected at least 1, got 0"),
        ({"batch_size": 0}, r"batch_size: expected at least 1, got 0"),
        ({"max_width": 0}, r"max_width: expected at least 1"),
        ({"mode": "train"}, r"mode: expected 'eval' or 'as_is' .* got 'train'"),
        ({"distributed": True}, r"expected torch.distributed.init_process_group to have been called"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        probe(mlp(), torch.randn(4, 5), **options)


# --- nothing is left behind -----------------------------------------------------------------------------------------


class Noisy(nn.Module):
    """Draws from every generator, has a running average, and can fail."""

    def __init__(self, error=None):
        super().__init__()
        self.norm, self.drop, self.fc = nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.error = error

    def forward(self, x):
        assert not torch.is_grad_enabled()
        random.random(), numpy.random.rand()
        self.calls += 1  # in eval mode as well
        x = self.fc(self.drop(self.norm(x)) + torch.rand_like(x))
        if self.error is not None:
            raise self.error
        return x


@pytest.mark.parametrize("mode", ["eval", "as_is"])
@pytest.mark.parametrize("error", [None, RuntimeError("inside"), KeyboardInterrupt()], ids=str)
def test_modes_buffers_generators_and_hooks_are_as_they_were(mode, error):
    net = Noisy(error).train()
    net.drop.eval()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    generators = torch.get_rng_state(), numpy.random.get_state()[1].copy()
    if error is None:
        probe(net, torch.randn(20, 5, generator=torch.Generator().manual_seed(1)), mode=mode)
    else:
        with pytest.raises(type(error)):
            probe(net, torch.randn(20, 5, generator=torch.Generator().manual_seed(1)), mode=mode)
    assert net.training and net.norm.training and not net.drop.training
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    assert torch.equal(generators[0], torch.get_rng_state())
    assert (generators[1] == numpy.random.get_state()[1]).all()
    assert hooks_on(net) == 0 and torch.is_grad_enabled() and torch.backends.mha.get_fastpath_enabled()


def test_pythons_generator_is_as_it_was():
    # not around probe(): beartype, which these tests run under, draws from it as well
    inside = undisturbed(nn.Linear(2, 2))
    before = random.getstate()
    with inside:
        random.random()
        assert random.getstate() != before
    assert random.getstate() == before


def test_an_error_of_the_model_says_in_which_batch():
    with pytest.raises(RuntimeError, match="inside") as caught:
        probe(Noisy(RuntimeError("inside")), torch.randn(20, 5))
    assert caught.value.__notes__ == ["isthmus.probe: while Noisy ran on batch 0"]


def test_the_callers_own_hooks_stay_and_are_heeded():
    net, x = nn.Sequential(nn.Linear(5, 4)), torch.randn(20, 5)
    net[0].register_forward_hook(lambda module, args, output: 2 * output)
    same_spectrum(probe(net, x), "0", net(x))
    assert hooks_on(net) == 1


def test_undisturbed_with_gradients():
    net = mlp()
    with undisturbed(net, grad=True):
        assert not net.training and net(torch.randn(2, 5)).requires_grad
    assert net.training
