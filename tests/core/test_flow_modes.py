"""Every way to do a step, with the path kept or not, stored or recomputed, against autograd on the plain model."""

import pytest
import torch

from isthmus import Adaptive, Identity, LeakyResNet, MeshScheduler, Problem, ReLU, SmoothReLU, Trainer, recipe
from isthmus.curvature import KroneckerPreconditioner
from isthmus.flow import FlowWorkspace, path
from isthmus.flow.recompute import RecomputeWorkspace, flow_bytes, segment_for
from isthmus.optimise import Adam
from isthmus.solve import Stage

ACTIVATIONS = [ReLU(), ReLU(append_one=False), SmoothReLU(sharpness=5.0), Identity(), Identity(append_one=False)]
# 7 layers: ρL̃ = 1 exactly is L̃ = 7 at equal steps, where the skip vanishes; beyond it changes sign
LEAKS = [0.0, 3.0, 7.0, 12.0]


def problem(activation=None, L_tilde=3.0, ends="fixed", loss="mse", depth=7, equal=True, **kwargs):
    rho = None if equal else torch.arange(1.0, depth + 1, dtype=torch.float64) / (depth * (depth + 1) / 2)
    model = LeakyResNet(
        4, 3, width=6, depth=depth, effective_depth=L_tilde, activation=activation or ReLU(), ends=ends, rho=rho,
        initialisation="kaiming", dtype=torch.float64,
    )  # fmt: skip
    x = torch.randn(11, 4, dtype=torch.float64)
    y = torch.randn(11, 3, dtype=torch.float64) if loss == "mse" else torch.arange(11) % 3
    return Problem(model, x, y, mu=0.03, loss=loss, **kwargs)


def by_autograd(problem):
    """The objective (E3) written with the plain model, and its gradients."""
    model = problem.model
    outputs = model(problem.x)
    if not problem.loss.classes:
        cost = (outputs - problem.y).square().sum(dim=1).mean()
    else:
        cost = torch.nn.functional.cross_entropy(outputs, problem.y)
    penalty = (model.rho * model.weight.square().sum(dim=(1, 2))).sum()
    if model.ends == "learned":
        penalty = penalty + model.in_map.square().sum() + model.out_map.square().sum()
    objective = cost + 0.5 * problem.mu * penalty
    return float(objective.detach()), torch.autograd.grad(objective, problem.parameters)


def check(problem):
    for _ in range(2):  # the second evaluation must not see the first one's buffers
        objective, gradients = by_autograd(problem)
        assert problem.evaluate().objective == pytest.approx(objective, rel=1e-12)
        for parameter, expected in zip(problem.parameters, gradients, strict=True):
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-12)
        problem.model.weight.data.mul_(1.1)


@pytest.mark.filterwarnings("ignore:rho . effective_depth")
@pytest.mark.parametrize("L_tilde", LEAKS)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("mode", ["running", "path", "recompute"])
def test_every_mode_equals_autograd(mode, activation, L_tilde):
    p = problem(activation, L_tilde, memory="recompute" if mode == "recompute" else "store")
    p.keep_path = mode == "path"
    check(p)


@pytest.mark.parametrize("memory", ["store", "recompute", 6000])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("ends", ["fixed", "learned"])
def test_losses_learned_ends_and_unequal_steps_equal_autograd(ends, loss, memory):
    check(problem(ends=ends, loss=loss, memory=memory, equal=False))


@pytest.mark.parametrize("keep_path", [False, True])
def test_modes_give_the_same_bits(keep_path):
    first, second = problem(), problem()
    second.keep_path = keep_path
    second.memory = "store" if keep_path else "recompute"
    second.model.load_state_dict(first.model.state_dict())
    second.x, second.y = first.x, first.y
    assert first.evaluate() == second.evaluate()
    assert torch.equal(first.model.weight.grad, second.model.weight.grad)


# --- the path, where nobody asked for it beforehand ----------------------------------------------------------------


def test_the_path_is_there_when_asked_for_and_kept_from_then_on():
    p = problem()
    p.evaluate()
    model = p.model
    expected = path(p.x @ model.in_map.T, model.weight.detach(), model.rho, model.effective_depth, model.activation)
    torch.testing.assert_close(p.last_path().mT, expected, rtol=1e-12, atol=1e-14)
    model.weight.data.mul_(0.9)
    p.evaluate()
    kept = p.last_path().clone()
    model.weight.data.mul_(2)  # of the last evaluation, not of these weights
    assert torch.equal(p.last_path(), kept)


def test_a_path_that_is_gone_is_refused():
    p = problem()
    p.evaluate()
    p.model.weight.data[3, 2, 1] += 0.5
    with pytest.raises(RuntimeError, match="was not kept, and the weights have moved since"):
        p.last_path()
    p.evaluate()
    assert p.last_path().shape == (8, 6, 11)


def test_a_running_workspace_says_that_it_has_no_path():
    flow = FlowWorkspace(ReLU(), 3.0, 7, 6, 11, dtype=torch.float64, keep_path=False)
    with pytest.raises(RuntimeError, match="make it with keep_path=True"):
        _ = flow.A
    assert FlowWorkspace(SmoothReLU(), 3.0, 7, 6, 11, dtype=torch.float64, keep_path=False).keeps_path


def test_the_metric_needs_no_path():
    p = problem()
    KroneckerPreconditioner(p).refresh()
    assert not p.keep_path


def metric_of(p):
    metric = KroneckerPreconditioner(p)
    metric.refresh()
    return [tensor for basis in metric.state_dict()["bases"] for tensor in basis]


@pytest.mark.parametrize("ends", ["fixed", "learned"])
@pytest.mark.parametrize("keep_path", [False, True])
def test_the_metric_is_the_same_to_the_bit_whatever_the_buffers_hold(ends, keep_path):
    """It reuses the features of the last evaluation; these must be those of the present parameters and rows."""

    def fresh(p):
        other = problem(ends=ends)
        other.x, other.y = p.x, p.y
        other.model.load_state_dict(p.model.state_dict())
        return metric_of(other)

    def same(p):
        return all(torch.equal(a, b) for a, b in zip(metric_of(p), fresh(p), strict=True))

    p = problem(ends=ends)
    p.evaluate()
    assert same(p)  # as evaluated
    p.keep_path = keep_path
    assert same(p)  # in other buffers, perhaps
    p.model.weight.data[3, 2, 1] += 0.5
    assert same(p)  # weights moved
    p.evaluate(torch.arange(10, -1, -1))
    assert same(p)  # as many rows, in another order
    p.evaluate()
    p.model.in_map.data.mul_(1.5)
    assert ends == "fixed" or same(p)
    p.evaluate()
    p.model.rho.copy_(torch.arange(1.0, 8) / 28)
    assert same(p)  # other step-sizes


def test_a_refresh_after_an_evaluation_sweeps_backward_only(monkeypatch):
    p = problem()
    p.evaluate()
    monkeypatch.setattr(FlowWorkspace, "forward", lambda *_: pytest.fail("swept forward again"))
    KroneckerPreconditioner(p).refresh()


# --- recomputing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segment", [1, 2, 3, 6, 7, 50])
def test_segments_of_any_length_visit_every_layer_once(segment):
    activation, L, w, N = ReLU(), 7, 6, 11
    W = torch.randn(L, w, w + 1, dtype=torch.float64)
    rho = [0.1, 0.2, 0.1, 0.2, 0.1, 0.2, 0.1]
    A0, end = torch.randn(w, N, dtype=torch.float64), torch.randn(w, N, dtype=torch.float64)
    found = []
    stored = FlowWorkspace(activation, 3.0, L, w, N, dtype=torch.float64)
    segmented = RecomputeWorkspace(activation, 3.0, L, w, N, dtype=torch.float64, segment=segment)
    for flow in (stored, segmented):
        visited = []
        flow.start.copy_(A0)
        A_end = flow.forward(W, rho).clone()
        assert torch.equal(A_end, flow.end)
        flow.gradient(L).copy_(end)
        out = torch.full_like(W, float("nan"))
        G0 = flow.backward(W, rho, 0.1, out, visit=lambda layer, G, to=visited: to.append((layer, G.clone())))
        found.append((A_end, out, G0.clone(), visited))
    for a, b in zip(found[0][:3], found[1][:3], strict=True):
        assert torch.equal(a, b)
    assert [layer for layer, _ in found[1][3]] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(found[0][3], found[1][3], strict=True))


@pytest.mark.parametrize("activation", [ReLU(), SmoothReLU()], ids=str)
@pytest.mark.parametrize("segment", [None, 4, 30, 100])
def test_the_bytes_foretold_are_those_of_the_buffers(activation, segment):
    kind = {"dtype": torch.float32}
    if segment is None:
        flow = FlowWorkspace(activation, 3.0, 100, 16, 50, keep_path=False, **kind)
    else:
        flow = RecomputeWorkspace(activation, 3.0, 100, 16, 50, segment=segment, **kind)
    inner = [flow, *([flow._flow] if segment else [])]
    tensors = [t for f in inner for t in vars(f).values() if isinstance(t, torch.Tensor) and t._base is None]
    foretold = flow_bytes(activation, 100, 16, 50, torch.float32, segment)
    assert foretold == sum(t.untyped_storage().nbytes() for t in tensors)


def test_a_segment_is_the_square_root_of_the_depth_or_what_the_budget_allows():
    arguments = (ReLU(), 1000, 256, 10_000, torch.float32)
    assert 25 <= segment_for(*arguments) <= 40
    segment = segment_for(*arguments, budget=4 * 10**9)
    assert flow_bytes(*arguments, segment) <= 4 * 10**9 < flow_bytes(*arguments, segment + 1)
    assert segment_for(*arguments, budget=10**12) == 1000


def test_a_budget_too_small_is_refused():
    with pytest.raises(ValueError, match="a memory budget of 1000 bytes is too small: 7 layers of width 6"):
        problem(memory=1000).evaluate()


@pytest.mark.parametrize("memory", ["disk", True, None, 0.5])
def test_an_unknown_memory_is_refused(memory, without_shape_checks):
    with pytest.raises(ValueError, match="memory must be 'store', 'recompute' or a whole number of bytes"):
        problem(memory=memory)


def test_recomputing_keeps_no_path_and_says_so():
    p = problem(memory="recompute")
    p.evaluate()
    with pytest.raises(RuntimeError, match="keeps neither path nor features of all layers"):
        p.workspace()


def test_a_moving_mesh_works_from_recomputed_paths():
    stages = (Stage(Adam(), 8, 0.01),)
    first, second = problem(equal=False, L_tilde=2.0), problem(equal=False, L_tilde=2.0, memory="recompute")
    second.model.load_state_dict(first.model.state_dict())
    second.x, second.y = first.x, first.y
    for p in (first, second):
        scheduler = MeshScheduler(p.model, Adaptive(), every=2)
        Trainer(p, stages, scheduler).run()
    assert not torch.allclose(first.model.rho, first.model.rho[0])
    # not the same: the mesh then sees the path after the update, not that of the evaluation before it
    torch.testing.assert_close(second.model.rho, first.model.rho, rtol=1e-2, atol=0)


def test_lbfgs_without_the_features_is_refused_at_once():
    with pytest.raises(ValueError, match="L-BFGS's metric needs the features of all layers, which memory='recompute'"):
        Trainer(problem(memory="recompute"), recipe("default", 30))


def test_a_segment_of_no_layers_is_refused():
    with pytest.raises(ValueError, match="a segment needs at least one layer, got 0"):
        RecomputeWorkspace(ReLU(), 3.0, 7, 6, 11, dtype=torch.float64, segment=0)


def test_fused_and_autograd_gradients_agree_where_states_are_exactly_zero():
    """L = L̃ = 3: no skips; two zero layers make states of zero, at which the derivative of ReLU is 0."""
    torch.manual_seed(0)
    model = LeakyResNet(3, 3, width=5, depth=3, effective_depth=3.0, dtype=torch.float64)
    model.weight.data[:2] = 0
    x, y, mu = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64), 0.1
    Problem(model, x, y, mu=mu).evaluate()
    fused = model.weight.grad.clone()
    penalty = 0.5 * mu * (model.rho * model.weight.square().sum(dim=(1, 2))).sum()
    (expected,) = torch.autograd.grad((model(x) - y).square().sum() / 7 + penalty, model.weight)
    assert bool((model.trajectory(x)[1:3] == 0).all()) and float(expected[2].norm()) > 0
    torch.testing.assert_close(fused, expected, rtol=1e-12, atol=1e-13)
