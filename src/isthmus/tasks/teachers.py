"""Teachers: random networks composed through narrow inner representations (arXiv:2405.17573).

The paper's data come from `30→3→30`, two random fully connected networks, and `30→6→3→30`, three random
ResNets. It says no more about them than that; `Teacher` says what is chosen here.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from isthmus.tasks._checks import NORMALISATIONS, check_choice, check_seed
from isthmus.tasks._scale import fit_scaling
from isthmus.tasks._split import generator
from isthmus.tasks.base import Notes, Task

KINDS = ("fcnn", "resnet")
CALIBRATION_ROWS = 4096
SMALLEST_DIRECTION = 1e-3


class _Network:
    """One random network; each weight matrix is `(out, in + 1)`, the last column its bias.

    The entries are independent Gaussians. Their variance is `1/(in + 1)` where the layer reads a linear
    quantity and `2/(in + 1)` where it reads ReLU's output (the appended 1 counted as an input, as in (E1)).
    """

    def __init__(self, kind: str, inputs: int, outputs: int, hidden: int, layers: int, random: torch.Generator):
        def draw(rows: int, columns: int, gain: float) -> Tensor:
            weight = torch.randn(rows, columns + 1, generator=random, dtype=torch.float64)
            return weight * math.sqrt(gain / (columns + 1))

        self.kind = kind
        if kind == "fcnn":
            widths = [inputs, *[hidden] * (layers - 1), outputs]
            self.weights = [draw(b, a, 2.0 if i else 1.0) for i, (a, b) in enumerate(itertools.pairwise(widths))]
        else:
            steps = [draw(hidden, hidden, 2.0 / layers) for _ in range(layers)]
            self.weights = [draw(hidden, inputs, 1.0), *steps, draw(outputs, hidden, 1.0)]

    def __call__(self, x: Tensor) -> Tensor:
        first, *rest = self.weights
        x = _affine(first, x)
        if self.kind == "fcnn":
            for weight in rest:
                x = _affine(weight, x.relu())
            return x
        *steps, last = rest
        for weight in steps:
            x = x + _affine(weight, x.relu())
        return _affine(last, x)

    def whiten(self, x: Tensor, hidden: int) -> None:
        """Replace the last layer by one whose outputs on `x` have mean 0 and covariance 1."""
        output = self(x)
        mean = output.mean(0)
        covariance = (output - mean).T @ (output - mean) / len(x)
        values, vectors = torch.linalg.eigh(covariance)
        width = len(mean)
        if float(values[0]) < SMALLEST_DIRECTION**2 * float(values[-1]):
            rank = int((values >= SMALLEST_DIRECTION**2 * values[-1]).sum())
            raise ValueError(
                f"an inner representation of dimension {width} only fills {rank} of its directions: its "
                f"network of hidden width {hidden} is too narrow for it; use hidden >= {2 * width}, or "
                "another seed"
            )
        # The symmetric root, in which the arbitrary signs of the eigenvectors cancel.
        whitener = vectors @ torch.diag(values.rsqrt()) @ vectors.T
        last = whitener @ self.weights[-1]
        last[:, -1] -= whitener @ mean
        self.weights[-1] = last


def _affine(weight: Tensor, x: Tensor) -> Tensor:
    return x @ weight[:, :-1].T + weight[:, -1]


class Teacher:
    """A fixed random function `R^dims[0] → R^dims[-1]` through representations of dimensions `dims[1:-1]`.

    A function of its arguments alone: it knows nothing of samples or their sizes. Between neighbouring `dims`
    stands one random network with biases. Kind "fcnn": `layers` weight layers, ReLU between them, hidden
    width `hidden`. Kind "resnet": a linear map to width `hidden`, `layers` residual steps `h ← h + W σ(h)`
    with W scaled by `1/√layers` ((E1) at L̃ = 0), and a linear map out. Each inner representation is
    whitened, by the last linear layer of its network: over 4096 Gaussian inputs drawn from the seed it has
    mean 0 and covariance 1, so that no inner direction dies and the next network sees inputs of unit size.
    The output is left as it comes.

    Raises:
        ValueError: on sizes below 1, fewer than two dims, an unknown kind, a bad seed, or a hidden width too
            small to fill an inner representation.
    """

    def __init__(self, kind: str, dims: Sequence[int], hidden: int = 20, layers: int = 2, seed: int = 0):
        check_choice("kind", kind, KINDS)
        check_seed(seed)
        if len(dims) < 2 or min(dims) < 1:
            raise ValueError(f"dims must be at least two sizes of 1 or more, such as (30, 3, 30), got {tuple(dims)}")
        if hidden < 1:
            raise ValueError(f"hidden, the width inside each network, must be at least 1, got {hidden}")
        if layers < 1:
            raise ValueError(f"layers, the number of weight layers in each network, must be at least 1, got {layers}")
        self.kind, self.dims, self.hidden, self.layers, self.seed = kind, tuple(dims), hidden, layers, seed
        weight_seed, calibration_seed, *_ = child_seeds(seed)
        random = generator(weight_seed)
        self._networks = [_Network(kind, a, b, hidden, layers, random) for a, b in itertools.pairwise(dims)]
        x = torch.randn(CALIBRATION_ROWS, dims[0], generator=generator(calibration_seed), dtype=torch.float64)
        for network in self._networks[:-1]:
            network.whiten(x, hidden)
            x = network(x)

    def representations(self, x: Float[Tensor, "samples inputs"]) -> list[Float[Tensor, "samples _"]]:
        """Return what each network gives, `(N, dims[1])` to `(N, dims[-1])`, for inputs `(N, dims[0])`."""
        out = []
        for network in self._networks:
            x = network(x)
            out.append(x)
        return out

    def __call__(self, x: Float[Tensor, "samples inputs"]) -> Float[Tensor, "samples outputs"]:
        """Return the outputs `(N, dims[-1])` for inputs `(N, dims[0])`, float64."""
        return self.representations(x)[-1]


def child_seeds(seed: int) -> list[int]:
    """Return seeds of independent streams: the weights, the calibration, the training and the test inputs."""
    return torch.randint(2**63 - 1, (4,), generator=generator(seed)).tolist()


def teacher_task(
    kind: str = "fcnn",
    dims: Sequence[int] = (30, 3, 30),
    hidden: int = 20,
    layers: int = 2,
    train: int = 1000,
    test: int = 1000,
    seed: int = 0,
    normalise: str = "coordinate",
) -> Task:
    """Gaussian inputs and the outputs of a random `Teacher`, for the mean squared error.

    Inputs and outputs are centred and scaled by the training part; the same map is applied to the test part.
    The training part does not depend on `test`, nor the teacher on either; the global random state is neither
    read nor moved.

    Args:
        kind: "fcnn" or "resnet", see `Teacher`.
        dims: the sizes of the inputs, of the inner representations, and of the outputs. Default: the paper's
            Figure 1.
        hidden: the width inside each network (20: this project's choice, the paper gives none).
        layers: weight layers (fcnn) or residual steps (resnet) in each network (2: likewise).
        train: training rows, at least 2 (1000: the paper).
        test: test rows, at least 1 (1000: the paper).
        seed: of the weights and of the inputs.
        normalise: "coordinate" gives each coordinate unit variance on the training part (population),
            "global" scales all of them by one number that makes the mean squared norm the dimension, "none"
            only centres.

    Raises:
        ValueError: on an option out of range, see also `Teacher`.
    """
    check_choice("normalise", normalise, NORMALISATIONS)
    if train < 2:
        raise ValueError(f"train must be at least 2 rows, so that variances exist, got {train}")
    if test < 1:
        raise ValueError(f"test must be at least 1 row, got {test}")
    teacher = Teacher(kind, dims, hidden, layers, seed)
    _, _, train_seed, test_seed = child_seeds(seed)
    x_train = torch.randn(train, dims[0], generator=generator(train_seed), dtype=torch.float64)
    x_test = torch.randn(test, dims[0], generator=generator(test_seed), dtype=torch.float64)
    y_train, y_test = teacher(x_train), teacher(x_test)
    inputs, outputs = fit_scaling(x_train, normalise), fit_scaling(y_train, normalise)
    if not bool(outputs.varying.all()):
        raise ValueError(
            f"this teacher's outputs are constant over its {train} training rows: use a larger hidden width "
            f"than {hidden}, more rows, or another seed"
        )
    notes: Notes = {
        "source": "random teacher",
        "kind": kind,
        "dims": list(dims),
        "hidden": hidden,
        "layers": layers,
        "seed": seed,
        "normalise": normalise,
        **inputs.notes("x"),
        **outputs.notes("y"),
    }
    name = "teacher " + "-".join(map(str, dims))
    return Task(
        name,
        inputs(x_train),
        outputs(y_train),
        inputs(x_test),
        outputs(y_test),
        loss="mse",
        classes=None,
        notes=notes,
    )
