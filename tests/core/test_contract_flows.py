"""One contract for every discretised flow: each class below inherits all of it, and adds only how it is called.

States against an eager sweep, adjoints and second adjoints against autograd, tangents against differences, the
transpose against the tangent; with states that are exactly zero, at ρL̃ = 1, for every loss, in both precisions.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import pytest
import torch
from reference import F64, cost_of, make_problem, slow_derivatives, slow_outputs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from isthmus import Identity, ReLU, SmoothReLU
from isthmus.curvature import Hessian, Linearisation
from isthmus.ensemble import EnsembleProblem
from isthmus.loss import LOSSES
from isthmus.two_ended import scheme_of_order
from isthmus.two_ended.linearise import StageHessian, StageLinearisation
from isthmus.two_ended.sweeps import Sweeps

ACTIVATIONS = [
    ReLU(), ReLU(append_one=False), SmoothReLU(sharpness=3.0), SmoothReLU(append_one=False, sharpness=3.0), Identity(),
]  # fmt: skip
STEPS = [0.25, 0.25, 0.25, 0.25]  # ρL̃ = 1 is L̃ = 4, to the bit


class FlowContract(ABC):
    """What a discretised flow promises. Networks are Euler's scheme."""

    order = 1
    options: ClassVar = {}

    def problem(self, activation=None, loss="mse", L_tilde=2.0, dtype=F64):
        return make_problem(
            activation, loss, L_tilde=L_tilde, depth=len(STEPS), rho=torch.tensor(STEPS), dtype=dtype, **self.options
        )

    def weights(self, p, zeros=False):
        w, count = p.model.width, len(STEPS) * scheme_of_order(self.order).stages
        generator = torch.Generator().manual_seed(3)
        W = 0.5 * torch.randn(count, w, w + p.activation.extra, dtype=F64, generator=generator)
        if zeros:
            W[: count // 2] = 0
        return W.to(p.model.weight.dtype)

    @abstractmethod
    def outputs(self, p, W):
        """Batch-first outputs at weights."""

    @abstractmethod
    def gradient(self, p, W):
        """Gradient of (E3) at weights."""

    @pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("L_tilde", [0.0, 2.0, 4.0])
    @pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
    def test_states_and_adjoints(self, activation, L_tilde, loss, dtype):
        p = self.problem(activation, loss, L_tilde, dtype)
        W = self.weights(p)
        close = {"rtol": 1e-10, "atol": 1e-12} if dtype is F64 else {"rtol": 2e-4, "atol": 2e-5}
        for _ in range(2):  # the second must not see the buffers of the first
            _, gradient, _ = slow_derivatives(p, W.double(), STEPS, self.order, W.double())
            torch.testing.assert_close(
                self.outputs(p, W).double(), slow_outputs(p, W.double(), STEPS, self.order), **close
            )
            found = self.gradient(p, W)
            assert found.dtype == dtype
            torch.testing.assert_close(found.double(), gradient, **close)
            W = 1.1 * W

    @pytest.mark.filterwarnings("ignore:rho . effective_depth")
    @pytest.mark.parametrize("activation", [ReLU(), ReLU(append_one=False)], ids=str)
    def test_states_that_are_exactly_zero(self, activation):
        """Half the layers are zero, and a step forgets all it had: σ̇(0) = 0 whoever computes it."""
        p = self.problem(activation, L_tilde=8.0 if self.order == 4 else 4.0)
        W = self.weights(p, zeros=True)
        _, gradient, _ = slow_derivatives(p, W, STEPS, self.order, W)
        assert float(gradient.abs().max()) > 0
        torch.testing.assert_close(self.gradient(p, W), gradient, rtol=1e-10, atol=1e-13)


class LinearisedContract(FlowContract):
    """What a flow that is linearised promises beyond."""

    @abstractmethod
    def net(self, p, W, dtype=F64):
        """Linearised at weights."""

    @abstractmethod
    def product(self, p, W, v, dtype=F64):
        """Hessian of (E3) at weights times a direction."""

    @pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
    def test_tangents_and_their_transpose(self, activation):
        p = self.problem(activation)
        W, eps = self.weights(p), 1e-6
        net, v = self.net(p, W), torch.randn_like(W)
        u = torch.randn(2, len(p.x), dtype=F64)
        tangent = net.tangent([v]).clone()
        if not isinstance(activation, ReLU):
            ahead, behind = (slow_outputs(p, W + sign * eps * v, STEPS, self.order) for sign in (1, -1))
            torch.testing.assert_close(tangent.T, (ahead - behind) / (2 * eps), rtol=1e-6, atol=1e-7)
        back = net.transposed(u)[0]
        assert float((tangent * u).sum()) == pytest.approx(float((back * v).sum()), rel=1e-11)
        one_by_one = list(net.adjoints(net.out_map.T @ u, lambda slopes: slopes))
        layered = torch.stack([D @ S.T for D, S in zip(one_by_one[::-1], net.features, strict=True)])
        torch.testing.assert_close(layered, back, rtol=1e-11, atol=1e-13)

    @pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
    def test_second_adjoints(self, activation, loss, dtype):
        p = self.problem(activation, loss)
        W = self.weights(p)
        v = torch.randn_like(W)
        _, _, expected = slow_derivatives(p, W, STEPS, self.order, v)
        close = {"rtol": 1e-9, "atol": 1e-12} if dtype is F64 else {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(self.product(p, W, v, dtype).double(), expected, **close)

    @pytest.mark.filterwarnings("ignore:rho . effective_depth")
    def test_second_adjoints_at_states_that_are_exactly_zero(self):
        p = self.problem(ReLU(), L_tilde=8.0 if self.order == 4 else 4.0)
        W = self.weights(p, zeros=True)
        v = torch.randn_like(W)
        _, _, expected = slow_derivatives(p, W, STEPS, self.order, v)
        torch.testing.assert_close(self.product(p, W, v), expected, rtol=1e-9, atol=1e-12)


class TestStored(FlowContract):
    """`FlowWorkspace` as training uses it."""

    path = False

    def outputs(self, p, W):
        p.keep_path = self.path
        p.model.weight.data.copy_(W)
        p.evaluate(gradient=False)
        return (p.model.out_map @ p._workspace(len(p.x)).end).T

    def gradient(self, p, W):
        p.keep_path = self.path
        p.model.weight.data.copy_(W)
        p.evaluate()
        return p.model.weight.grad.clone()


class TestStoredWithPath(TestStored):
    """`FlowWorkspace` that keeps every state."""

    path = True


class TestRecomputed(TestStored):
    """`RecomputeWorkspace`, two layers a segment."""

    options: ClassVar = {"memory": "recompute"}


class TestEnsemble(FlowContract):
    """`EnsembleFlow`: two members, of which the second has another L̃."""

    def both(self, p, W):
        p.model.weight.data.copy_(W)
        both = EnsembleProblem([p.variant(effective_depth=1.0), p], group=2)
        both.evaluate()
        return both

    def outputs(self, p, W):
        flow = self.both(p, W)._flow
        return (p.model.out_map @ flow._state[flow.depth % len(flow._state)][1]).T

    def gradient(self, p, W):
        return self.both(p, W).weight.grad[1].clone()


class TestNetworkLinearised(TestStored, LinearisedContract):
    """`Linearisation` and `Hessian`."""

    def net(self, p, W, dtype=F64):
        net = Linearisation(p, dtype)
        net.at([W])
        return net

    def product(self, p, W, v, dtype=F64):
        p.model.weight.data.copy_(W)
        hessian = Hessian(p, dtype=dtype)
        hessian.linearise()
        return hessian.product([v])[0]


class TestEuler(LinearisedContract):
    """`Sweeps` and `StageLinearisation` of the two-ended solver."""

    def sweeps(self, p, W):
        sweeps = Sweeps(p, scheme_of_order(self.order), torch.tensor(STEPS, dtype=F64), W.dtype)
        sweeps.W.copy_(W)
        self.value = sweeps.evaluate().objective
        return sweeps

    def outputs(self, p, W):
        sweeps = self.sweeps(p, W)
        outputs = sweeps.last_outputs().T
        rounding = 1e-12 if W.dtype is F64 else 1e-5
        penalty = 0.5 * p.mu * float((torch.tensor(sweeps.quadrature, dtype=F64) * W.square().sum(dim=(1, 2))).sum())
        y = p.y if p.loss.classes else p.y.to(W.dtype)
        assert self.value == pytest.approx(float(cost_of(p.loss, outputs, y)) + penalty, rel=rounding)
        return outputs

    def gradient(self, p, W):
        return self.sweeps(p, W).W.grad.clone()

    def net(self, p, W, dtype=F64):
        net = StageLinearisation(self.sweeps(p, W), dtype)
        net.at([W])
        return net

    def product(self, p, W, v, dtype=F64):
        hessian = StageHessian(self.sweeps(p, W), dtype)
        hessian.linearise()
        return hessian.product([v])[0]


class TestHeun(TestEuler):
    """Two stages."""

    order = 2


class TestRK4(TestEuler):
    """Four stages."""

    order = 4


class OneDevice(TorchDispatchMode):
    """Fails where an operation returns a tensor elsewhere than on the device meant."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            assert not isinstance(tensor, torch.Tensor) or tensor.device.type == self.device, func
        return out


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("loss", LOSSES)
def test_two_ended_sweeps_make_nothing_elsewhere_than_on_the_problems_device(order, loss):
    """On ``meta``, which computes nothing but knows where everything lies; values are never asked for."""
    p = make_problem(loss=loss, depth=4)
    p.model.to("meta")
    p.x, p.y = p.x.to("meta"), p.y.to("meta")
    steps = torch.tensor(STEPS, dtype=F64, device="meta")
    with OneDevice("meta"):
        steps.tolist = lambda: STEPS  # meta holds no numbers
        sweeps = Sweeps(p, scheme_of_order(order), steps, torch.float32)
        sweeps.forward()
        hessian, net = StageHessian(sweeps, torch.float32), StageLinearisation(sweeps)
        hessian.linearise()
        net.at([sweeps.W])
        found = [*hessian.product([sweeps.W]), *net.transposed(net.tangent([sweeps.W])), sweeps.residual()]
        found += net.adjoints(net.end, lambda s: s)
    assert all(t.device.type == "meta" and t.dtype == torch.float32 for t in found)
