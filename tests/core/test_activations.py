import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.activations import ACTIVATIONS, Identity, ReLU, SmoothReLU

ALL = [ReLU(), SmoothReLU(sharpness=5.0), SmoothReLU(sharpness=20.0), Identity()]


@pytest.mark.parametrize("activation", ALL, ids=str)
def test_derivative_and_pullback_equal_autograd(activation):
    z = torch.linspace(-4, 4, 82, dtype=torch.float64, requires_grad=True)  # even count: 0 itself is left out
    (slope,) = torch.autograd.grad(activation.value(z).sum(), z)
    z = z.detach()
    torch.testing.assert_close(activation.derivative(z), slope, rtol=1e-13, atol=1e-15)
    v = torch.randn_like(z)
    pulled = activation.pullback_(v.clone(), z, activation.value(z))
    torch.testing.assert_close(pulled, v * slope, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("activation", ALL, ids=str)
def test_value_into_a_buffer_equals_value(activation):
    z = torch.randn(5, 3, dtype=torch.float64)
    out = torch.empty_like(z)
    activation.value(z, out=out)
    assert torch.equal(out, activation.value(z))


@given(st.floats(-1e4, 1e4), st.floats(0.1, 1e3))
@settings(deadline=None, max_examples=60)
def test_smooth_relu_is_close_to_relu_and_never_overflows(z, sharpness):
    z = torch.tensor([z], dtype=torch.float64)
    gap = float(SmoothReLU(sharpness=sharpness).value(z) - ReLU().value(z))
    assert -1e-12 <= gap <= 0.6931471805599454 / sharpness + 1e-12


def test_smooth_relu_is_continuous_where_torch_goes_linear():
    """PyTorch's default threshold of 20 leaves a jump of e^-20/β; ours is at 40, below float64's resolution."""
    sharpness = 2.0
    z = torch.tensor([20.0 - 1e-12, 20.0 + 1e-12], dtype=torch.float64)
    jump = SmoothReLU(sharpness=sharpness).value(z).diff()
    assert abs(float(jump) - 2e-12) < 1e-14


def test_features_with_and_without_the_one():
    A = torch.tensor([[-1.0, 2.0], [3.0, -4.0]])
    assert ReLU().features(A).tolist() == [[0, 2, 1], [3, 0, 1]]
    assert ReLU(append_one=False).features(A).tolist() == [[0, 2], [3, 0]]
    assert ReLU().features(A[None]).shape == (1, 2, 3)


@pytest.mark.parametrize("activation", ALL, ids=str)
def test_homogeneous_says_the_truth(activation):
    z = torch.randn(50, dtype=torch.float64)
    scaled = torch.allclose(activation.value(3 * z), 3 * activation.value(z), rtol=1e-12, atol=0)
    assert scaled == activation.homogeneous


@pytest.mark.parametrize("sharpness", [0.0, -1.0, float("inf"), float("nan")])
def test_sharpness_is_checked(sharpness):
    with pytest.raises(ValueError, match="sharpness must be positive and finite"):
        SmoothReLU(sharpness=sharpness)


def test_names_are_the_registry():
    assert {name: kind().name for name, kind in ACTIVATIONS.items()} == {name: name for name in ACTIVATIONS}
