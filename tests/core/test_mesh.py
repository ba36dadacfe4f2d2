import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.mesh import (
    Adaptive,
    Equidistant,
    Irregular,
    MeshScheduler,
    MeshState,
    interpolate_weights,
    relative_changes,
)
from isthmus.mesh.adaptive import fit_under
from isthmus.model import LeakyResNet

F64 = torch.float64
BARE = Adaptive(floor=0.0, smoothing=0, relaxation=1.0, cap=1e6, slow_cap=1e6)


def test_equidistant():
    assert Equidistant().init(5, 3.0).rho.tolist() == [0.2] * 5
    assert not Equidistant().adapts


@pytest.mark.parametrize("a", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("depth", [1, 2, 18, 19])
def test_irregular_is_the_formula_and_sums_to_one(a, depth):
    rho = Irregular(irregularity=a).init(depth, 3.0).rho
    assert float(rho.sum()) == pytest.approx(1, abs=1e-15)
    layer = torch.arange(1, depth + 1, dtype=F64)
    formula = 1 / depth + a / depth * (0.25 - (layer / depth - 0.5).abs())
    torch.testing.assert_close(rho, formula / formula.sum())
    if depth == 18 and a:
        assert float(rho[0]) < float(rho[8]) > float(rho[-1])


def test_irregular_keeps_the_skip_positive_as_the_theory_says():
    """ρL̃ < 1 where L > (1 + a/4)L̃."""
    L_tilde, a = 16.0, 0.9
    depth = math.floor((1 + a / 4) * L_tilde) + 1
    assert float(Irregular(irregularity=a).init(depth, L_tilde).rho.max()) * L_tilde < 1


def test_bare_adaptive_is_the_papers_update():
    rho = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
    changes = torch.tensor([0.3, 0.1, 0.05, 0.2], dtype=F64)
    c = changes / rho
    new = BARE.update(MeshState(rho), changes, 3.0)
    torch.testing.assert_close(new.rho, (1 / c) / (1 / c).sum())
    assert new.updates == 1


def test_bare_adaptive_equidistributes_a_fixed_speed():
    """With a speed that depends on p alone, the fixed point has equal changes in all layers."""
    state = Equidistant().init(40, 1.0)
    speed = lambda p: 0.2 + 5 * (torch.exp(-30 * p) + torch.exp(-30 * (1 - p)))  # noqa: E731
    rule = Adaptive(floor=0.0, smoothing=0, relaxation=0.5, cap=1e6, slow_cap=1e6)
    for _ in range(200):
        p = state.rho.cumsum(0) - state.rho / 2
        state = rule.update(state, speed(p) * state.rho, 1.0)
    p = state.rho.cumsum(0) - state.rho / 2
    changes = speed(p) * state.rho
    assert float(changes.max() / changes.min()) < 1.001
    assert float(state.rho.max() / state.rho.min()) > 5


@given(st.integers(2, 30), st.integers(0, 10_000), st.sampled_from([0.5, 3.0, 15.0]))
@settings(deadline=None, max_examples=60)
def test_adaptive_always_returns_a_partition_under_the_caps(depth, seed, L_tilde):
    rule = Adaptive(cap=1.0, slow_cap=1.5)
    generator = torch.Generator().manual_seed(seed)
    if depth < L_tilde:
        with pytest.raises(ValueError, match="layers cannot satisfy"):
            rule.init(depth, L_tilde)
        return
    state = rule.init(depth, L_tilde)
    for _ in range(3):
        changes = torch.rand(depth, dtype=F64, generator=generator) ** 8
        state = rule.update(state, changes, L_tilde)
        assert float(state.rho.sum()) == pytest.approx(1, abs=1e-12)
        assert float(state.rho.min()) > 0
        assert float(state.rho.max()) * L_tilde <= 1.5 * (1 + 1e-9)


def test_each_safeguard_does_its_work():
    state = MeshState(torch.full((10,), 0.1, dtype=F64))
    changes = torch.full((10,), 0.1, dtype=F64)
    changes[5] = 1e-9  # a layer where nothing moves takes the whole range without a floor
    assert float(BARE.update(state, changes, 1.0).rho[5]) > 0.99
    floored = Adaptive(floor=0.1, smoothing=0, relaxation=1.0, cap=1e6, slow_cap=1e6).update(state, changes, 1.0).rho
    assert float(floored[5]) < 0.6
    smoothed = Adaptive(floor=0.1, smoothing=2, relaxation=1.0, cap=1e6, slow_cap=1e6).update(state, changes, 1.0).rho
    assert float(smoothed.max() / smoothed.min()) < float(floored.max() / floored.min())
    relaxed = Adaptive(floor=0.1, smoothing=0, relaxation=0.3, cap=1e6, slow_cap=1e6).update(state, changes, 1.0).rho
    assert 0.1 < float(relaxed[5]) < float(floored[5])
    L_tilde = 5.0
    capped = Adaptive(floor=0.1, smoothing=0, relaxation=1.0, cap=1.0, slow_cap=1.0).update(state, changes, L_tilde).rho
    assert float(capped.max()) * L_tilde <= 1 + 1e-12
    slow = Adaptive(floor=0.1, smoothing=0, relaxation=1.0, cap=1.0, slow_cap=2.0).update(state, changes, L_tilde).rho
    assert 1 < float(slow[5]) * L_tilde <= 2 + 1e-12


@pytest.mark.parametrize("kappa", [1.0, 3.0])
@pytest.mark.parametrize("relaxation", [1.0, 0.5])
def test_on_a_fixed_path_the_update_converges_to_equidistribution_at_the_rate_that_was_derived(kappa, relaxation):
    """docs/notes/mesh.md: per update the error shrinks by max_n |1 − θ + θλ_n| with λ_n = κ/(κ + 2πin).

    The path has the relative speed 1/(p + b), on which the mesh with equal changes is ρ(s) ∝ e^{κs}.
    """
    layers, updates = 400, 24
    rule = Adaptive(floor=0.0, smoothing=0, relaxation=relaxation, cap=1e9, slow_cap=1e9)
    b = 1 / math.expm1(kappa)
    s = torch.linspace(0, 1, layers + 1, dtype=torch.float64)
    goal = (torch.expm1(kappa * s) / math.expm1(kappa)).diff()
    state, errors = rule.init(layers, 0.0), []
    for _ in range(updates):
        p = torch.cat((torch.zeros(1, dtype=torch.float64), state.rho.cumsum(0)))
        state = rule.update(state, (p + b).log().diff(), 0.0)
        errors.append(float((state.rho.cumsum(0) - goal.cumsum(0)).abs().max()))
    last = [e for e in errors if e > 1e-11][-12:]
    assert len(last) == 12 and last[-1] < 0.02 * last[0]
    measured = (last[-1] / last[0]) ** (1 / 11)
    modes = [kappa / complex(kappa, 2 * math.pi * n) for n in (*range(1, 50), -1)]
    derived = max(abs(1 - relaxation + relaxation * mode) for mode in modes)
    assert measured == pytest.approx(derived, rel=0.03)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_changes_that_say_nothing_leave_the_mesh(bad):
    state = Irregular().init(6, 1.0)
    changes = torch.full((6,), bad, dtype=F64)
    assert torch.equal(Adaptive().update(state, changes, 1.0).rho, state.rho)


def test_fit_under_shares_out_what_is_cut():
    rho = fit_under(torch.tensor([0.7, 0.2, 0.1], dtype=F64), torch.tensor([0.4, 0.5, 0.5], dtype=F64))
    torch.testing.assert_close(rho, torch.tensor([0.4, 0.4, 0.2], dtype=F64))
    tight = fit_under(torch.tensor([0.7, 0.3], dtype=F64), torch.tensor([0.2, 0.3], dtype=F64))
    torch.testing.assert_close(tight, torch.tensor([0.4, 0.6], dtype=F64))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Irregular(irregularity=1.0), r"irregularity a must lie in \[0, 1\)"),
        (lambda: Adaptive(floor=1.0), "floor must lie in"),
        (lambda: Adaptive(smoothing=-1), "smoothing must be"),
        (lambda: Adaptive(relaxation=0.0), "relaxation must lie in"),
        (lambda: Adaptive(cap=2.0, slow_cap=1.0), "caps must satisfy"),
        (lambda: Equidistant().init(0, 1.0), "at least one layer"),
        (lambda: Adaptive().init(4, 7.0), "use at least 7 layers"),
        (
            lambda: Adaptive().update(MeshState(torch.ones(3, dtype=F64)), torch.ones(4, dtype=F64), 1.0),
            "one change a layer",
        ),
    ],
)
def test_misuse_of_rules_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def net(depth=8, **kwargs):
    return LeakyResNet(4, 3, width=8, depth=depth, effective_depth=2.0, dtype=F64, **kwargs)


def test_interpolated_weights_are_exact_for_linear_ones_and_the_same_on_the_same_mesh():
    old = Irregular(irregularity=0.8).init(10, 1.0).rho
    new = Equidistant().init(10, 1.0).rho
    slope, middle = torch.randn(1, 3, 4, dtype=F64), (old.cumsum(0) - old / 2)
    W = slope * middle[:, None, None]
    torch.testing.assert_close(interpolate_weights(W, old, old), W)
    moved = interpolate_weights(W, old, new)
    want = (new.cumsum(0) - new / 2).clamp(float(middle[0]), float(middle[-1]))
    torch.testing.assert_close(moved, slope * want[:, None, None])


def test_interpolated_weights_are_exact_for_linear_ones_beyond_the_outermost_midpoints():
    old = Equidistant().init(10, 1.0).rho
    new = Irregular(irregularity=0.8).init(10, 1.0).rho
    slope, middle = torch.randn(1, 3, 4, dtype=F64), (old.cumsum(0) - old / 2)
    want = new.cumsum(0) - new / 2
    assert want[0] < middle[0] and want[-1] > middle[-1]
    moved = interpolate_weights(slope * middle[:, None, None], old, new)
    torch.testing.assert_close(moved, slope * want[:, None, None])


def test_scheduler_moves_the_buffer_every_k_calls_and_freezes():
    model, x = net(), torch.randn(20, 4, dtype=F64)
    scheduler = MeshScheduler(model, Adaptive(), x, every=3, freeze_after=7, transfer=None)
    moved = [scheduler.step() for _ in range(12)]
    assert moved == [False, False, True, False, False, True, *[False] * 6]
    assert scheduler.frozen
    torch.testing.assert_close(model.rho, scheduler.state.rho)
    assert "rho" in model.state_dict() and float(model.rho.std()) > 0


def test_scheduler_brings_the_changes_closer_together():
    model, x = net(depth=16), torch.randn(50, 4, dtype=F64)
    scheduler = MeshScheduler(model, Adaptive(relaxation=0.5), x, every=1, transfer=None)
    before = relative_changes(model.trajectory(x).detach())
    for _ in range(60):
        scheduler.step()
    after = relative_changes(model.trajectory(x).detach())
    assert float(after.std() / after.mean()) < 0.5 * float(before.std() / before.mean())


def test_scheduler_resumes_to_the_same_bits():
    x = torch.randn(20, 4, dtype=F64)
    first, second = net(), net()
    one, two = (MeshScheduler(m, Adaptive(), x, every=2) for m in (first, second))
    for _ in range(5):
        one.step()
    two.load_state_dict(one.state_dict())
    second.load_state_dict(first.state_dict())
    for _ in range(6):
        one.step()
        two.step()
    assert torch.equal(first.rho, second.rho) and torch.equal(first.weight, second.weight)


def test_large_changes_move_the_weights_with_p():
    x = torch.randn(20, 4, dtype=F64)
    for transfer, moves in ((None, False), (0.0, True), (1e9, False)):
        model = net()
        before = model.weight.detach().clone()
        MeshScheduler(model, Adaptive(), x, every=1, transfer=transfer).step()
        assert torch.equal(model.weight, before) is not moves


def test_scheduler_misuse():
    with pytest.raises(ValueError, match="every must be at least 1"):
        MeshScheduler(net(), Equidistant(), every=0)
    with pytest.raises(ValueError, match=r"step\(\) needs the path"):
        MeshScheduler(net(), Adaptive(), every=1).step()


def test_fixed_rules_set_the_models_mesh_once():
    model = net()
    scheduler = MeshScheduler(model, Irregular(irregularity=0.9))
    torch.testing.assert_close(model.rho, Irregular(irregularity=0.9).init(8, 2.0).rho)
    assert scheduler.frozen and not scheduler.step()
