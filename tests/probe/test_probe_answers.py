"""What `probe` says in Python where data, names or states do not serve; and names of the library."""

import numpy
import pytest
import torch
from torch import nn

from isthmus import LeakyResNet
from isthmus.activations import ACTIVATIONS, ReLU
from isthmus.probe import probe
from isthmus.probe.rows import Reading

F64 = torch.float64


def mlp():
    return nn.Sequential(nn.Linear(9, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.mark.parametrize("sample", [19, 63])
@pytest.mark.parametrize("cut", [64, 10])
def test_nan_is_named_by_the_sample_of_the_data_and_once(sample, cut):
    x = torch.randn(64, 9)
    x[sample, 2] = torch.nan
    with pytest.raises(ValueError, match=rf"the first is sample {sample} of the data, counted from 0") as caught:
        probe(mlp(), x, batch_size=cut)
    assert str(caught.value).count("NaN") == 1 and "0, 2, 4: its values cannot be used" in str(caught.value)


def test_nan_at_a_token_is_named_by_sample_and_position():
    x = torch.randn(12, 7, 9)
    x[5, 3] = torch.inf
    with pytest.raises(ValueError, match=r"1 of 84 rows have NaN .*sample 5 of the data, position 3, counted from 0"):
        probe(nn.Sequential(nn.Linear(9, 4)), x)


def test_momenta_at_states_that_are_exactly_zero_are_those_of_the_derivative_that_is_zero_there():
    net = LeakyResNet(4, 3, width=6, depth=3, effective_depth=3.0, dtype=F64)
    with torch.no_grad():
        net.weight[0].zero_(), net.weight[1].zero_()
    x, y, loss = torch.randn(30, 4, dtype=F64), torch.randn(30, 3, dtype=F64), nn.functional.mse_loss
    profile = probe(net, [(x, y)], loss=loss, weight_decay=0.5)
    # A_1 = A_2 = 0, as is the skip: what reaches A_2 goes through σ at 0, where torch.relu has derivative 0
    zero = torch.zeros(30, 6, dtype=F64, requires_grad=True)
    V = net.rho[2] * net.weight[2].detach()
    out = torch.cat((torch.relu(zero), torch.ones(30, 1, dtype=F64)), 1) @ V.T @ net.out_map.T
    (gradient,) = torch.autograd.grad(loss(out, y), zero)
    assert float(gradient.norm()) == 0.0
    assert profile["momentum_norm"][2] == 0.0 and profile["momentum_norm"][3] > 0


@pytest.mark.parametrize("name", ["identity", "relu", "smooth_relu"])
def test_activations_by_name(name):
    profile = probe(mlp(), torch.randn(64, 9), activation=name)
    assert set(profile["activation"]) == {str(ACTIVATIONS[name]())}
    assert probe(mlp(), torch.randn(64, 9), activation={"2": name, "4": ReLU()}).layers == ["0", "2", "4"]


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize(
    "given, error, message",
    [
        (
            "rleu",
            ValueError,
            r"activation: expected one of relu, smooth_relu, identity, got 'rleu'; did you",
        ),
        ({"*": "tanh"}, ValueError, r"activation: expected one of relu, .*got 'tanh'"),
        (torch.relu, TypeError, r"activation: expected a name \(relu, .*or an isthmus.activations.Activation"),
    ],
)
def test_activations_that_are_none(given, error, message):
    with pytest.raises(error, match=message):
        probe(mlp(), torch.randn(64, 9), activation=given)


@pytest.mark.parametrize("x", [torch.randn(64, 8), torch.randn(64, 9, dtype=F64)], ids=["shape", "dtype"])
def test_inputs_that_do_not_fit_are_answered_as_on_the_command_line(x):
    with pytest.raises(
        RuntimeError, match=r"^mat1.* Network and data do not fit, .*Sequential ran on batch 0. Check the shape"
    ):
        probe(mlp(), x)


@pytest.mark.parametrize("data", [numpy.zeros((4, 9)), [numpy.zeros((4, 9))], [(numpy.zeros((4, 9)), 1)]])
def test_arrays_are_to_be_made_tensors(data):
    with pytest.raises(TypeError, match=r"got a ndarray of \(4, 9\) float64; torch.as_tensor\(array\) makes one"):
        probe(mlp(), data)


def test_a_reading_holds_what_five_options_say():
    net, x = nn.Sequential(nn.Linear(3, 4)), torch.randn(6, 5, 3)
    one, two = probe(net, x, positions="mean"), probe(net, x, reading=Reading(positions="mean"))
    assert one["rows"] == two["rows"] == [6] and one["reading"] == two["reading"]
    with pytest.raises(ValueError, match=r"reading: holds channels, positions, .*give these in it"):
        probe(net, x, positions="mean", reading=Reading())
