import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.tasks import Teacher, teacher_task
from isthmus.tasks.teachers import _Network

SETTINGS = [
    ("fcnn", (30, 3, 30), 2),
    ("resnet", (30, 6, 3, 30), 2),
    ("fcnn", (12, 5, 2, 7), 3),
    ("resnet", (4, 1, 4), 1),
]


NUMBERS = ("x_mean", "x_scale", "y_mean", "y_scale")


def gaussian(rows, columns, seed=123):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parts(task):
    return task.x_train, task.y_train, task.x_test, task.y_test


@pytest.mark.parametrize(("kind", "dims", "layers"), SETTINGS)
@pytest.mark.parametrize("seed", range(5))
def test_inner_representations_fill_their_dimension(kind, dims, layers, seed):
    teacher = Teacher(kind, dims, layers=layers, seed=seed)
    *inner, _ = teacher.representations(gaussian(4000, dims[0]))  # fresh inputs, not those it was whitened on
    assert [z.shape[1] for z in inner] == list(dims[1:-1])
    for z in inner:
        covariance = torch.linalg.eigvalsh(z.T.cov(correction=0).reshape(z.shape[1], z.shape[1]))
        assert 0.75 < float(covariance[0]) <= float(covariance[-1]) < 1.3
        assert float(z.mean(0).abs().max()) < 0.1


@pytest.mark.parametrize(("kind", "dims", "layers"), SETTINGS)
def test_rank_of_the_derivative_is_the_narrowest_dimension(kind, dims, layers):
    teacher = Teacher(kind, dims, layers=layers, seed=1)

    def rank(x):
        jacobian = torch.func.jacrev(lambda v: teacher(v[None])[0])(x)
        return int(torch.linalg.matrix_rank(jacobian, rtol=1e-9))

    ranks = [rank(x) for x in gaussian(20, dims[0])]
    assert max(ranks) == min(dims)
    assert sorted(ranks)[10] == min(dims)


def test_teachers_are_not_linear():
    for kind in ("fcnn", "resnet"):
        task = teacher_task(kind, train=2000, test=1)
        features = torch.cat([task.x_train, torch.ones(2000, 1, dtype=torch.float64)], dim=1)
        fit = features @ torch.linalg.lstsq(features, task.y_train).solution
        unexplained = float((task.y_train - fit).square().sum() / task.y_train.square().sum())
        assert unexplained > 0.1


def test_networks_equal_plain_torch():
    def features(z):
        return torch.cat([z.relu(), torch.ones(len(z), 1, dtype=torch.float64)], dim=1)

    def with_one(z):
        return torch.cat([z, torch.ones(len(z), 1, dtype=torch.float64)], dim=1)

    x = gaussian(7, 5)
    for kind in ("fcnn", "resnet"):
        network = _Network(kind, 5, 4, 6, 3, torch.Generator().manual_seed(0))
        first, *middle, last = network.weights
        z = with_one(x) @ first.T
        if kind == "fcnn":
            assert [tuple(w.shape) for w in network.weights] == [(6, 6), (6, 7), (4, 7)]
            z = features(z) @ middle[0].T
            expected = features(z) @ last.T
        else:
            assert [tuple(w.shape) for w in network.weights] == [(6, 6), (6, 7), (6, 7), (6, 7), (4, 7)]
            for weight in middle:
                z = z + features(z) @ weight.T
            expected = with_one(z) @ last.T
        torch.testing.assert_close(network(x), expected, atol=1e-13, rtol=1e-13)
    alone = _Network("fcnn", 5, 4, 6, 1, torch.Generator().manual_seed(0))
    torch.testing.assert_close(alone(x), with_one(x) @ alone.weights[0].T)


def test_weights_have_the_variances_that_the_docstring_names():
    # Each estimate has a relative standard error below 0.8 %.
    for kind, gains in (("fcnn", [1, 2, 2, 2]), ("resnet", [1, 0.5, 0.5, 0.5, 0.5, 1])):
        network = _Network(kind, 199, 199, 199, 4, torch.Generator().manual_seed(0))
        variances = [float(weight.square().mean()) * 200 for weight in network.weights]
        assert variances == pytest.approx(gains, rel=0.04)


def test_same_seed_same_bits_whatever_the_global_state():
    torch.manual_seed(1)
    one = teacher_task(train=50, test=20, seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = teacher_task(train=50, test=20, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(parts(one), parts(two), strict=True))
    other = teacher_task(train=50, test=20, seed=4)
    assert not any(torch.equal(a, b) for a, b in zip(parts(one), parts(other), strict=True))


@settings(deadline=None, max_examples=15)
@given(
    st.integers(2, 60),
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from(["coordinate", "global", "none"]),
)
def test_training_part_does_not_depend_on_the_test_size(train, test, other, normalise):
    one = teacher_task(dims=(5, 2, 5), train=train, test=test, normalise=normalise)
    two = teacher_task(dims=(5, 2, 5), train=train, test=other, normalise=normalise)
    assert torch.equal(one.x_train, two.x_train)
    assert torch.equal(one.y_train, two.y_train)


def test_teacher_function_does_not_depend_on_the_sample():
    x = gaussian(10, 30)
    expected = Teacher("fcnn", (30, 3, 30), seed=5)(x)
    for train in (20, 300):
        task = teacher_task(train=train, test=10, seed=5, normalise="coordinate")
        note = {name: torch.tensor(task.notes[name], dtype=torch.float64) for name in NUMBERS}
        raw_x = task.x_test * note["x_scale"] + note["x_mean"]
        raw_y = task.y_test * note["y_scale"] + note["y_mean"]
        torch.testing.assert_close(Teacher("fcnn", (30, 3, 30), seed=5)(raw_x), raw_y, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(Teacher("fcnn", (30, 3, 30), seed=5)(x), expected, atol=0, rtol=0)


def test_training_and_test_inputs_differ():
    task = teacher_task(train=40, test=40, normalise="none")
    assert float((task.x_train[:, None] - task.x_test[None]).norm(dim=-1).min()) > 1


@pytest.mark.parametrize("normalise", ["coordinate", "global", "none"])
def test_normalisation_is_of_the_training_part(normalise):
    task = teacher_task(train=300, test=200, normalise=normalise)
    zero = torch.zeros(30, dtype=torch.float64)
    for train, test in ((task.x_train, task.x_test), (task.y_train, task.y_test)):
        assert train.dtype == test.dtype == torch.float64
        torch.testing.assert_close(train.mean(0), zero, atol=1e-13, rtol=0)
        assert float(test.mean(0).abs().max()) > 1e-3
        deviation = train.std(0, correction=0)
        if normalise == "coordinate":
            torch.testing.assert_close(deviation, zero + 1)
        elif normalise == "global":
            assert float(train.square().sum(1).mean()) == pytest.approx(30)
            assert float(deviation.max() - deviation.min()) > 0.01
        else:
            assert task.notes["x_scale"] == task.notes["y_scale"] == 1.0


def test_notes_and_sizes():
    task = teacher_task("resnet", dims=[30, 6, 3, 30], train=25, test=11, seed=9)
    assert (task.inputs, task.outputs, len(task.x_train), len(task.x_test)) == (30, 30, 25, 11)
    assert task.loss == "mse" and task.classes is None
    assert task.notes["dims"] == [30, 6, 3, 30]
    assert (task.notes["kind"], task.notes["seed"], task.notes["hidden"], task.notes["layers"]) == (
        "resnet",
        9,
        20,
        2,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "mlp"}, "kind must be one of fcnn, resnet, got 'mlp'"),
        ({"kind": "resnt"}, "did you mean 'resnet'"),
        (
            {"dims": (30,)},
            r"dims must be at least two sizes of 1 or more, such as \(30, 3, 30\), got \(30,\)",
        ),
        ({"dims": (30, 0, 30)}, r"got \(30, 0, 30\)"),
        ({"hidden": 0}, "hidden, the width inside each network, must be at least 1, got 0"),
        ({"layers": 0}, "layers, the number of weight layers in each network, must be at least 1, got 0"),
        ({"train": 1}, "train must be at least 2 rows, so that variances exist, got 1"),
        ({"test": 0}, "test must be at least 1 row, got 0"),
        ({"seed": -1}, r"seed must be a whole number from 0 to 2\*\*63 - 1, got -1"),
        (
            {"normalise": "coordinates"},
            "normalise must be one of coordinate, global, none, got.*'coordinate'",
        ),
        ({"dims": (30, 6, 30), "hidden": 4}, "dimension 6 only fills 4 of its directions.* hidden >= 12"),
    ],
)
def test_misuse_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        teacher_task(**options)
