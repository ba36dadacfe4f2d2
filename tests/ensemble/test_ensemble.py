"""An ensemble gives every member the numbers of its own run."""

import copy

import pytest
import torch

from isthmus import Identity, LeakyResNet, Problem, ReLU, SmoothReLU, Trainer
from isthmus.ensemble import EnsembleProblem, EnsembleTrainer
from isthmus.optimise import SGD, Adam, Muon
from isthmus.runs.state import load_state, save_state
from isthmus.solve import Stage, recipe
from isthmus.status import Status

LEAKS = (3.0, 0.0, 7.0, 5.0)  # at 7 equal layers, ρL̃ = 1 exactly for one of them


def member(seed, L_tilde=3.0, mu=0.01, activation=None, ends="fixed", loss="mse", equal=True, depth=7, samples=11):
    generator = torch.Generator().manual_seed(seed)
    rho = torch.rand(depth, generator=generator, dtype=torch.float64) + 1
    model = LeakyResNet(
        4, 3, width=6, depth=depth, effective_depth=L_tilde, activation=activation or ReLU(), ends=ends,
        rho=None if equal else rho / rho.sum(), initialisation="carrier", seed=seed, dtype=torch.float64,
    )  # fmt: skip
    x = torch.randn(samples, 4, generator=generator, dtype=torch.float64)
    y = (
        torch.randn(samples, 3, generator=generator, dtype=torch.float64)
        if loss == "mse"
        else torch.arange(samples) % 3
    )
    return Problem(model, x, y, mu=mu, loss=loss)


def members(**kwargs):
    return [member(i, L_tilde=L, mu=0.01 * (i + 1), equal=i % 2 == 0, **kwargs) for i, L in enumerate(LEAKS)]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("group", [None, 1, 3])
@pytest.mark.parametrize("ends", ["fixed", "learned"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_evaluation_is_that_of_every_member(loss, ends, group):
    problems = members(loss=loss, ends=ends)
    ensemble = EnsembleProblem(problems, group=group)
    for _ in range(2):  # the second evaluation must not see the first one's buffers
        together, residual = ensemble.evaluate(), ensemble.residual()
        for i, problem in enumerate(problems):
            alone = problem.evaluate()
            assert float(together.objective[i]) == pytest.approx(alone.objective, rel=1e-12)
            assert float(together.data_cost[i]) == pytest.approx(alone.data_cost, rel=1e-12)
            assert float(together.penalty[i]) == pytest.approx(alone.penalty, rel=1e-12)
            for stacked, parameter in zip(ensemble.parameters, problem.parameters, strict=True):
                close(stacked.grad[i], parameter.grad)
            close(residual[i], problem.residual())
        ensemble.weight.mul_(1.1)
        for problem in problems:
            problem.model.weight.data.mul_(1.1)


@pytest.mark.parametrize(
    "activation", [ReLU(append_one=False), SmoothReLU(sharpness=5.0), Identity(), Identity(append_one=False)], ids=str
)
@pytest.mark.parametrize("common", [True, False])
def test_every_activation_with_common_and_with_own_steps(activation, common):
    problems = [member(i, activation=activation) for i in range(3)] if common else members(activation=activation)
    ensemble = EnsembleProblem(problems)
    ensemble.evaluate()
    for i, problem in enumerate(problems):
        problem.evaluate()
        close(ensemble.weight.grad[i], problem.model.weight.grad)


def test_the_problems_are_only_read_until_they_are_written():
    problems = members()
    before = [p.model.weight.detach().clone() for p in problems]
    ensemble = EnsembleProblem(problems)
    ensemble.weight.mul_(2)
    assert all(torch.equal(p.model.weight, w) for p, w in zip(problems, before, strict=True))
    ensemble.write_back()
    assert all(torch.equal(p.model.weight, 2 * w) for p, w in zip(problems, before, strict=True))


@pytest.mark.parametrize("ends", ["fixed", "learned"])
@pytest.mark.parametrize("optimiser", [Adam(), SGD(), Muon()], ids=lambda settings: settings.name)
def test_training_is_that_of_every_member(optimiser, ends):
    problems = members(ends=ends)
    stages = (Stage(optimiser, 20, 0.02), Stage(SGD(), 5, 0.01, cosine=False))
    alone = [copy.deepcopy(p) for p in problems]
    trainers = [Trainer(p, stages, log_every=5) for p in alone]
    for trainer in trainers:
        trainer.run()
    ensemble = EnsembleTrainer(EnsembleProblem(problems), stages, log_every=5)
    seen = []
    results = ensemble.run(on_records=seen.append)
    assert [r.status for r in results] == [Status.DONE] * 4 and results[0].step == 25
    for mine, own, history, trainer in zip(problems, alone, ensemble.histories, trainers, strict=True):
        for a, b in zip(mine.parameters, own.parameters, strict=True):
            close(a, b)
        assert [row["step"] for row in history] == [row["step"] for row in trainer.history] == [0, 5, 10, 15, 20, 25]
        for row, expected in zip(history, trainer.history, strict=True):
            assert (row["stage"], row["rate"]) == (expected["stage"], expected["rate"])
            for column in ("objective", "data_cost", "penalty", "residual_max", "residual_median"):
                assert row[column] == pytest.approx(expected[column], rel=1e-8), column
    assert seen[2] == {i: history[2] for i, history in enumerate(ensemble.histories)}


def test_finished_members_drop_out_and_the_others_never_notice():
    problems = members()
    problems[1].model.weight.data.zero_()  # with targets 0, a critical point: finished at once
    problems[1].y.zero_()
    problems[1].x.zero_()
    problems[3].model.weight.data[2, 1, 1] = float("nan")
    bad = problems[3].model.weight.detach().clone()
    own = copy.deepcopy(problems[0])
    stages = (Stage(Adam(), 20, 0.02),)
    Trainer(own, stages).run()
    ensemble = EnsembleTrainer(EnsembleProblem(problems), stages, log_every=5, tolerance=1e-9)
    results = ensemble.run()
    assert [r.status for r in results] == [
        Status.DONE, Status.DONE, Status.DONE, Status.DIVERGED,
    ]  # fmt: skip
    assert "residual 0 at most 1e-09 after 0 steps" in results[1].message
    assert results[3].step == 0 and "try a smaller rate" in results[3].advice
    torch.testing.assert_close(problems[3].model.weight.detach(), bad, equal_nan=True)
    assert ensemble.problem.members == [0, 2]
    close(problems[0].model.weight, own.model.weight)


def test_a_member_that_diverges_keeps_its_last_good_state():
    problems = [member(0), member(1)]
    problems[1].y.mul_(1e150)  # its gradient overflows after the first steps
    ensemble = EnsembleTrainer(EnsembleProblem(problems), (Stage(SGD(), 10, 0.1, cosine=False),), log_every=2)
    results = ensemble.run()
    assert [r.status for r in results] == [Status.DONE, Status.DIVERGED]
    assert torch.isfinite(problems[1].model.weight).all()
    assert results[1].step == ensemble.histories[1][-1]["step"] + 2


def test_all_members_may_finish_early():
    problems = [member(0), member(1)]
    trainer = EnsembleTrainer(EnsembleProblem(problems), (Stage(SGD(), 10, 0.1),), log_every=2, tolerance=1e9)
    assert [r.step for r in trainer.run()] == [0, 0] and trainer.problem.members == []


@pytest.mark.parametrize("optimiser", [Adam(), Muon()], ids=lambda settings: settings.name)
def test_members_of_another_effective_depth_than_their_models_train_as_alone(optimiser):
    variants = [p.variant(effective_depth=depth) for p, depth in zip(members(), (0.5, 4.0, 6.0, 2.0), strict=True)]
    alone = [copy.deepcopy(p) for p in variants]
    stages = (Stage(optimiser, 3, 0.02, cosine=False),)
    ensemble = EnsembleTrainer(EnsembleProblem(variants), stages, log_every=1)
    ensemble.run()
    for mine, own, history in zip(variants, alone, ensemble.histories, strict=True):
        trainer = Trainer(own, stages, log_every=1)
        trainer.run()
        close(mine.model.weight, own.model.weight)
        assert [row["rate"] for row in history] == [row["rate"] for row in trainer.history]


def hard(seed):
    """A stage that goes up again: gradient descent at too large a rate."""
    return member(seed), (Stage(Adam(), 12, 0.5, cosine=False), Stage(SGD(), 5, 0.3, cosine=False))


def test_members_keep_their_best_iterate_as_alone():
    kept = 0
    problems = [hard(seed)[0] for seed in range(4)]
    alone, stages = [copy.deepcopy(p) for p in problems], hard(0)[1]
    ensemble = EnsembleTrainer(EnsembleProblem(problems), stages, log_every=3)
    results = ensemble.run()
    for mine, own, history, result in zip(problems, alone, ensemble.histories, results, strict=True):
        trainer = Trainer(own, stages, log_every=3)
        assert trainer.run() == result
        kept += any(row["kept_step"] is not None for row in trainer.history)
        assert [row["kept_step"] for row in history] == [row["kept_step"] for row in trainer.history]
        close(mine.model.weight, own.model.weight)
    assert kept > 0


@pytest.mark.parametrize("stop", [1, 5, 7, 12, 13, 16])
def test_an_ensemble_resumes_to_the_same_bits(stop, tmp_path):
    def make():
        problems = [hard(seed)[0] for seed in range(5)]
        problems[1].model.weight.data.zero_()  # a critical point: finished at once
        problems[1].x.zero_()
        problems[1].y.zero_()
        problems[3].y.mul_(1e150)  # diverges after the first steps
        stages = (Stage(Muon(), 4, 0.05), *hard(0)[1])
        return problems, EnsembleTrainer(EnsembleProblem(problems, group=2), stages, log_every=3, tolerance=1e-12)

    problems, whole = make()
    results = whole.run()
    _, part = make()
    stopped = part.run(should_stop=lambda: part.step_count == stop)
    assert Status.INTERRUPTED in [r.status for r in stopped]
    (tmp_path / "state").write_bytes(save_state(part.state_dict(), "ensemble"))
    again, rest = make()
    rest.load_state_dict(load_state(tmp_path / "state", "ensemble"))
    assert rest.run() == results
    for a, b in zip(again, problems, strict=True):
        torch.testing.assert_close(a.model.weight, b.model.weight, rtol=0, atol=0, equal_nan=True)
    assert rest.histories == whole.histories and rest.step_count == whole.step_count


def test_a_state_may_be_taken_twice():
    stages = (Stage(Adam(), 9, 0.05), Stage(Muon(), 9, 0.05))
    part = EnsembleTrainer(EnsembleProblem(members()), stages, log_every=2)
    part.run(should_stop=lambda: part.step_count == 5)
    state, ends = copy.deepcopy(part.state_dict()), []
    for _ in range(2):
        problems = members()
        rest = EnsembleTrainer(EnsembleProblem(problems), stages, log_every=2)
        rest.load_state_dict(state)
        rest.run()
        ends.append(torch.stack([p.model.weight.detach() for p in problems]))
    assert torch.equal(*ends)


def test_a_state_of_another_ensemble_is_refused():
    state = EnsembleTrainer(EnsembleProblem([member(0)]), (Stage(SGD(), 2, 0.1),)).state_dict()
    with pytest.raises(ValueError, match="the state is of 1 members, this trainer has 2 of 2: make it anew"):
        EnsembleTrainer(EnsembleProblem([member(0), member(1)]), (Stage(SGD(), 2, 0.1),)).load_state_dict(state)


def test_members_may_be_problems_under_other_conditions():
    variants = [p.variant(activation=SmoothReLU(sharpness=4.0), effective_depth=2.0, mu=0.5) for p in members()]
    found = EnsembleProblem(variants).evaluate().objective
    close(found, torch.tensor([p.evaluate().objective for p in variants], dtype=torch.float64))


def test_members_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"must be of one shape; 0 and 1 differ in depth \(7 and 5\)"):
        EnsembleProblem([member(0), member(1, depth=5)])
    with pytest.raises(ValueError, match=r"differ in samples \(11 and 9\)"):
        EnsembleProblem([member(0), member(1, samples=9)])
    with pytest.raises(ValueError, match="differ in activation"):
        EnsembleProblem([member(0), member(1, activation=SmoothReLU())])


def test_misuse_is_named():
    with pytest.raises(ValueError, match="needs at least one problem"):
        EnsembleProblem([])
    with pytest.raises(ValueError, match="a group must hold at least one member, got 0"):
        EnsembleProblem([member(0)], group=0)
    ensemble = EnsembleProblem([member(0)])
    with pytest.raises(ValueError, match="march in step, which lbfgs cannot"):
        EnsembleTrainer(ensemble, recipe("default"))
    with pytest.raises(ValueError, match=r"take no conditions of their own .* give the members problems of that kind"):
        EnsembleTrainer(ensemble, [Stage(Adam(), 3, mu_factor=2.0)])
    with pytest.raises(ValueError, match="at least one stage"):
        EnsembleTrainer(ensemble, ())
    with pytest.raises(ValueError, match="log_every must be at least 1, got 0"):
        EnsembleTrainer(ensemble, recipe("paper"), log_every=0)
