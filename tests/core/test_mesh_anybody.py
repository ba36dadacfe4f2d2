import copy

import pytest
import torch
from torch import nn

from isthmus.mesh import (
    Adaptive,
    Equidistant,
    MeshScheduler,
    ODEMesh,
    ResidualSteps,
    Stepped,
    relative_changes,
    shares_of_curvature,
)
from isthmus.model import LeakyResNet

F64 = torch.float64
SHARP = Adaptive(floor=0.0, smoothing=0, relaxation=0.5)


class Rate(nn.Module):
    """``rate · x``: the speed of the state is a number that a test can choose."""

    def __init__(self, rate):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(rate, dtype=F64))

    def forward(self, x):
        return self.rate * x


def stack(seed=0, blocks=6, dtype=F64, **kwargs):
    torch.manual_seed(seed)
    make = lambda: nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 5)).to(dtype)  # noqa: E731
    return ResidualSteps([make() for _ in range(blocks)], **kwargs)


def rates(**kwargs):
    return ResidualSteps([Rate(r) for r in (0.2, 0.2, 8.0, 4.0, 0.2, 0.2, 0.1, 0.1)], **kwargs)


def test_the_stack_is_x_plus_h_f():
    h = torch.tensor([0.5, 0.3, 0.2, 1.0, 0.6, 0.4], dtype=F64)
    model, x = stack(step_sizes=h, horizon=3.0, record=True), torch.randn(4, 5, dtype=F64)
    y, states = x, [x]
    for k, block in zip(h, model.blocks, strict=True):
        y = y + k * block(y)
        states.append(y)
    torch.testing.assert_close(model(x), y)
    torch.testing.assert_close(model.path(), torch.stack(states).detach())
    torch.testing.assert_close(model.trajectory(x), model.path())
    assert not model.path().requires_grad and model(x).requires_grad


@pytest.mark.parametrize("shape", [(6,), (3, 4), (2, 3, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_steps_go_where_the_movement_is_and_changes_become_equal_for_any_shape(shape, dtype):
    """Each block has a speed of its own, so the path's speed belongs to the blocks, and equal changes exist."""
    model, x = rates(horizon=2.0).to(dtype), torch.randn(10, *shape, dtype=dtype)
    scheduler = MeshScheduler(model, SHARP, x, every=1)
    before = relative_changes(model.trajectory(x))
    for _ in range(80):
        scheduler.step()
    after = relative_changes(model.trajectory(x))
    assert float(before.max() / before.min()) > 20
    assert float(after.max() / after.min()) < 1.001
    assert int(model.rho.argmin()) == 2
    assert float(model.step_sizes.sum()) == pytest.approx(2.0, rel=1e-6)
    assert model(x).dtype == dtype


def test_changes_of_any_shape_are_those_of_the_flattened_states_and_rows_keep_their_bits():
    path = torch.randn(5, 7, 3, 2, dtype=F64)
    torch.testing.assert_close(relative_changes(path), relative_changes(path.reshape(5, 7, 6)))
    rows = torch.randn(5, 7, 6)
    step = (rows[1:] - rows[:-1]).double().norm(dim=(1, 2))
    assert torch.equal(relative_changes(rows), step / rows[1:].double().norm(dim=(1, 2)))


def test_saved_and_loaded_goes_on_as_if_never_stopped():
    x = torch.randn(8, 5, dtype=F64)

    def train(model, scheduler, optimiser, steps):
        for _ in range(steps):
            optimiser.zero_grad()
            model(x).square().mean().backward()
            optimiser.step()
            scheduler.step(model.path())

    def make(seed):
        model = stack(seed, record=True)
        return model, MeshScheduler(model, Adaptive(), every=3, freeze_after=14), torch.optim.Adam(model.parameters())

    whole = make(0)
    train(*whole, 17)
    first, second = make(0), make(1)
    train(*first, 8)
    for new, old in zip(second, first, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    train(*second, 9)
    for name, value in whole[0].state_dict().items():
        assert torch.equal(value, second[0].state_dict()[name]), name
    assert float(whole[0].rho.std()) > 0 and whole[1].frozen and not whole[1].step(whole[0].path())


def test_a_leaky_resnet_by_the_protocol_moves_as_the_formula_says():
    model = LeakyResNet(4, 3, width=8, depth=8, effective_depth=2.0, dtype=F64)
    x, rule = torch.randn(20, 4, dtype=F64), Adaptive()
    assert isinstance(model, Stepped) and isinstance(stack(), Stepped) and isinstance(ODEMesh(3), Stepped)
    state = rule.init(8, 2.0)
    want = rule.update(state, relative_changes(model.trajectory(x).detach()), 2.0)
    MeshScheduler(model, rule, x, every=1).step()
    assert torch.equal(model.rho, want.rho)


def test_without_an_effective_depth_nothing_is_capped():
    model = ResidualSteps([Rate(8.0), Rate(0.01), Rate(0.01)], horizon=50.0)
    scheduler = MeshScheduler(model, SHARP, torch.ones(2, 1, dtype=F64), every=1)
    scheduler.step()
    assert float(model.step_sizes.max()) > 20


def test_the_trajectory_leaves_batch_norm_dropout_and_the_generator_alone():
    model = ResidualSteps([nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.5)) for _ in range(3)])
    model.blocks[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    x, state = torch.randn(9, 5), torch.get_rng_state()
    model.trajectory(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_compiled_stack_is_not_compiled_again_when_steps_move():
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    model, x, counter = stack(), torch.randn(8, 5, dtype=F64), CompileCounter()
    compiled = torch.compile(model, backend=counter)
    scheduler = MeshScheduler(model, Adaptive(), x, every=1)
    compiled(x)
    frames = counter.frame_count
    for _ in range(3):
        before = compiled(x)
        assert scheduler.step()
        torch.testing.assert_close(compiled(x), model(x))
        assert not torch.equal(compiled(x), before)
    assert counter.frame_count == frames >= 1
    torch._dynamo.reset()


def test_transfer_reads_parameters_off_their_positions_and_is_off_by_default():
    new = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.05, 0.05], dtype=F64)
    for transfer in (False, True):
        model = stack(transfer=transfer)
        middle = model.rho.cumsum(0) - model.rho / 2
        for p, block in zip(middle, model.blocks, strict=True):
            block[0].weight.data.fill_(2 + 3 * float(p))
        model.move_weights(model.rho, new)
        want = 2 + 3 * ((new.cumsum(0) - new / 2) if transfer else middle)
        torch.testing.assert_close(torch.stack([b[0].weight[0, 0] for b in model.blocks]).detach(), want)


def test_transfer_refuses_what_it_cannot_move():
    shared = nn.Linear(3, 3)
    for blocks, message in (
        ([nn.Linear(3, 3), nn.Linear(3, 3, bias=False)], "same names and shapes"),
        ([shared, shared], "share parameters"),
        ([nn.BatchNorm1d(3), nn.BatchNorm1d(3)], "running statistics"),
    ):
        with pytest.raises(ValueError, match=message):
            ResidualSteps(blocks, transfer=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResidualSteps([]), "at least one block"),
        (lambda: ResidualSteps([nn.Identity()], horizon=0.0), "horizon must be positive"),
        (lambda: ResidualSteps([nn.Identity()], torch.tensor([2.0])), "must sum to 1"),
        (lambda: ResidualSteps([nn.Identity()], torch.ones(2) / 2), r"expected \(1,\)"),
        (lambda: stack().set_step_sizes(torch.tensor([2.0, -1, 0, 0, 0, 0])), "positive and finite"),
        (lambda: ResidualSteps([nn.Linear(3, 2)])(torch.ones(4, 3)), "keep the shape"),
        (lambda: stack().path(), "record=True"),
        (lambda: ODEMesh(3, 1.0, 1.0), "two different finite times"),
        (lambda: ODEMesh(0), "at least one layer"),
        (lambda: ODEMesh(3).trajectory(torch.ones(1)), "has no solve"),
        (lambda: ODEMesh(3).grid_constructor(None, torch.ones(1), torch.tensor([0.0, 2.0])), "the mesh runs from"),
        (lambda: MeshScheduler(ODEMesh(3), Adaptive(), every=1).step(torch.ones(3, 2, 2)), "3 steps have 4 states"),
    ],
)
def test_misuse_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (torch.zeros(5, 3, 2), "do not change"),
        (torch.full((5, 3, 2), float("nan")), "around step 1 are not finite"),
        (torch.tensor([1.0, 2, float("inf"), 1, 2])[:, None, None], "around step 2 are not finite"),
    ],
)
def test_states_that_say_nothing_leave_the_mesh_with_a_sentence(path, message):
    mesh = ODEMesh(4)
    scheduler = MeshScheduler(mesh, Adaptive(), every=1)
    assert not scheduler.step(path) and message in str(scheduler.doubt)
    assert torch.equal(mesh.rho, Equidistant().init(4, 0.0).rho)
    assert scheduler.step(torch.tensor([1.0, 2, 3, 3.5, 3.6])[:, None, None]) and scheduler.doubt is None


def test_a_step_that_ends_in_zero_changes_all_of_the_state():
    """A state may pass through 0 exactly; divided by it, the mesh would never move again."""
    assert relative_changes(torch.tensor([1.0, 2, 0, 0, 3])[:, None, None]).tolist() == [0.5, 1, 0, 1]
    mesh = ODEMesh(4)
    assert MeshScheduler(mesh, Adaptive(), every=1).step(torch.tensor([1.0, 2, 0, 1, 2])[:, None, None])


def test_curvature_is_that_of_a_parabola_on_any_mesh_and_zero_on_a_line():
    rho = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=F64)
    p = torch.cat((torch.zeros(1, dtype=F64), rho.cumsum(0)))[:, None, None]
    torch.testing.assert_close(shares_of_curvature(3 * p**2 + p, rho), rho * 6**0.5)
    assert float(shares_of_curvature(2 * p, rho).max()) < 1e-6


def test_the_times_run_from_start_to_end_both_ways():
    for start, end in ((0.0, 1.0), (2.0, -3.0)):
        mesh = ODEMesh(7, start, end)
        mesh.set_step_sizes(torch.arange(1.0, 8, dtype=F64) / 28)
        assert float(mesh.t[0]) == start and float(mesh.t[-1]) == end
        torch.testing.assert_close(mesh.t.diff() / (end - start), mesh.rho)


def layer(t, y):
    """A fast transient, then cos 2t, whose solution by many steps is the reference."""
    return -60 * torch.exp(-8 * t) * (y - torch.cos(2 * t)) - 2 * torch.sin(2 * t)


def euler(f, y0, t):
    states = [y0]
    for now, h in zip(t[:-1], t.diff(), strict=True):
        states.append(states[-1] + h * f(now, states[-1]))
    return torch.stack(states)


def test_curvature_resolves_a_fast_transient_with_as_many_steps():
    """``y = cos 2t + (y_0 − 1) exp(−7.5(1 − e^{−8t}))``; docs/how-to/mesh.md has the factor, 0.03 to 0.07."""
    y0, worst = torch.tensor([[3.0], [2.0], [4.5]], dtype=F64), []
    mesh = ODEMesh(60, solve=lambda y, t: euler(layer, y, t))
    scheduler = MeshScheduler(mesh, Adaptive(), y0, every=1, monitor="curvature")
    for _ in range(26):
        t = mesh.t[:, None, None]
        exact = torch.cos(2 * t) + (y0 - 1) * torch.exp(-7.5 * (1 - torch.exp(-8 * t)))
        worst.append(float((mesh.trajectory(y0) - exact).abs().max()))
        scheduler.step()
    assert worst[-1] < 0.1 * worst[0]


@pytest.mark.parametrize("monitor", ["change", "curvature"])
def test_torchdiffeqs_fixed_grid_is_moved_without_further_evaluations(monitor):
    odeint = pytest.importorskip("torchdiffeq").odeint
    y0, count = torch.full((3, 1), 3.0, dtype=F64), [0]

    def counted(t, y):
        count[0] += 1
        return layer(t, y)

    mesh = ODEMesh(40)
    scheduler = MeshScheduler(mesh, Adaptive(), every=1, monitor=monitor)
    path = odeint(counted, y0, mesh.t, method="euler")
    first = path
    for _ in range(20):
        scheduler.step(path)
        path = odeint(counted, y0, mesh.t, method="euler")
    assert count[0] == 21 * 40
    assert float(mesh.rho[0]) < 0.5 * float(mesh.rho[-1]) and not torch.equal(first, path)
    grid = {"grid_constructor": mesh.grid_constructor}
    ends = odeint(layer, y0, mesh.t[[0, -1]], method="euler", options=grid)
    torch.testing.assert_close(ends[-1], path[-1])


def test_a_block_that_changes_its_input_in_place_is_refused_and_the_input_kept():
    blocks = [torch.nn.Sequential(torch.nn.ReLU(inplace=True), torch.nn.Linear(3, 3)) for _ in range(3)]
    x = torch.randn(5, 3)
    given = x.clone()
    with pytest.raises(ValueError, match="block 0 changes its input in place"):
        ResidualSteps(blocks).trajectory(x)
    assert torch.equal(x, given)
