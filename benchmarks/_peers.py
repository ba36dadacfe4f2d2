"""Optimisers of other packages on a problem of ours: what a user would pick instead, with a user's means.

Each trains the same network from the same initial weights on the full batch of the same objective (E3), by automatic
differentiation of a loop over `torch.nn.Linear`. Each gets a rate that falls to 0 along a half cosine over a number
of steps; both are chosen from a small grid (`GRIDS`).
"""

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isthmus import LeakyResNet, Problem


class Loop(nn.Module):
    """The network of a problem as a loop over layers, which holds the weights in the form that the optimiser takes.

    Args:
        problem: with fixed ends, ReLU with its appended 1, and the mean squared error.
        linear: as `torch.nn.Linear`; else as one matrix ``(width, width + 1)`` a layer, biases last.
    """

    def __init__(self, problem: Problem, linear: bool) -> None:
        super().__init__()
        model = problem.model
        self.x, self.y, self.mu = problem.x, problem.y, problem.mu
        self.in_map, self.out_map = model.in_map.detach(), model.out_map.detach()
        self.rho, self.leak = model.rho.tolist(), model.effective_depth
        weight = model.weight.detach().clone()
        if linear:
            self.linears = nn.ModuleList(nn.Linear(model.width, model.width) for _ in self.rho)
            with torch.no_grad():
                for layer, W in zip(self.linears, weight, strict=True):
                    layer.weight.copy_(W[:, :-1])
                    layer.bias.copy_(W[:, -1])
        else:
            self.matrices = nn.ParameterList(nn.Parameter(W.clone()) for W in weight)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """The outputs ``(samples, out)``."""
        A = x @ self.in_map.T
        for layer, r in enumerate(self.rho):
            S = torch.relu(A)
            if self.linear:
                update = self.linears[layer](S)
            else:
                W = self.matrices[layer]
                update = nn.functional.linear(S, W[:, :-1], W[:, -1])
            A = (1 - r * self.leak) * A + r * update
        return A @ self.out_map.T

    def penalty(self) -> Tensor:
        """``(μ/2) Σ_ℓ ρ_ℓ ‖W_ℓ‖²``, biases included."""
        layers: Any = [tuple(m.parameters()) for m in self.linears] if self.linear else [(W,) for W in self.matrices]
        squares = [r * p.square().sum() for r, layer in zip(self.rho, layers, strict=True) for p in layer]
        return 0.5 * self.mu * torch.stack(squares).sum()

    def objective(self) -> Tensor:
        """(E3) on the full batch."""
        return (self(self.x) - self.y).square().sum() / self.x.shape[0] + self.penalty()


@dataclass(frozen=True)
class Setting:
    """Rate and horizon of one run.

    Args:
        rate: peak rate, in the package's own unit.
        steps: the rate falls to 0 over this number of steps, or stays constant (0).
        extra: more arguments of the optimiser.
    """

    rate: float
    steps: int
    extra: tuple[tuple[str, Any], ...] = ()

    def rate_at(self, step: int) -> float:
        """The rate of a step."""
        return self.rate if self.steps == 0 else self.rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class Peer:
    """An optimiser of a package.

    Args:
        package: what to install.
        make: from the network and a setting's ``rate`` and ``extra`` to the optimiser.
        grid: settings to choose from.
        linear: see `Loop`.
    """

    package: str
    make: Callable[..., torch.optim.Optimizer]
    grid: tuple[Setting, ...]
    linear: bool = False


def grid(rates: tuple[float, ...], steps: tuple[int, ...], **extra: tuple[Any, ...]) -> tuple[Setting, ...]:
    """All combinations."""
    names = tuple(extra)
    return tuple(
        Setting(rate, length, tuple(zip(names, values, strict=True)))
        for rate, length, *values in itertools.product(rates, steps, *extra.values())
    )


def muon(net: Loop, rate: float, **extra: Any) -> torch.optim.Optimizer:
    """Muon of torch; decay is in the objective."""
    return torch.optim.Muon(net.parameters(), lr=rate, weight_decay=0.0, **extra)


def soap(net: Loop, rate: float, **extra: Any) -> torch.optim.Optimizer:
    """SOAP: Adam in the eigenbases of Shampoo."""
    from pytorch_optimizer import SOAP

    return SOAP(net.parameters(), lr=rate, weight_decay=0.0, **extra)


def shampoo(net: Loop, rate: float, **extra: Any) -> torch.optim.Optimizer:
    """Shampoo with blocks and grafting, as in its authors' code."""
    from pytorch_optimizer import ScalableShampoo

    return ScalableShampoo(net.parameters(), lr=rate, **extra)


def singd(net: Loop, rate: float, **extra: Any) -> torch.optim.Optimizer:
    """K-FAC without inverses, of singd: dense factors of the empirical Fisher matrix, the update close to K-FAC's."""
    from singd.optim.optimizer import SINGD

    return SINGD(net, lr=rate, alpha1=0.0, kfac_like=True, **extra)


KFAC = {"T": (1,), "lr_cov": (0.1,), "normalize_lr_cov": (True,), "damping": (0.01,)}
SHAMPOO = {"preconditioning_compute_steps": (10,), "start_preconditioning_step": (5,)}
PEERS = {
    "Muon": Peer("torch", muon, grid((0.1, 0.2, 0.4), (300, 400, 500))),
    "SOAP": Peer("pytorch_optimizer", soap, grid((0.03, 0.05, 0.1), (250, 300, 400, 600))),
    "Shampoo": Peer("pytorch_optimizer", shampoo, grid((0.3, 1.0, 3.0), (400, 800), **SHAMPOO)),
    "K-FAC": Peer("singd", singd, grid((0.03, 0.04, 0.06), (250, 300, 400), **KFAC), linear=True),
}

# on seeds 0 and 1: docs/notes/log/solver.md says how much of each grid was run
CHOSEN = {
    "Muon": Setting(0.2, 400),
    "SOAP": Setting(0.1, 400),
    "Shampoo": Setting(1.0, 800, tuple((name, value) for name, (value,) in SHAMPOO.items())),
    "K-FAC": Setting(0.04, 400, tuple((name, value) for name, (value,) in KFAC.items())),
}


def missing(names: list[str]) -> dict[str, str]:
    """Which of these cannot be made, and why."""
    net = Loop(Problem(LeakyResNet(2, 2, width=4, depth=2, effective_depth=1.0), torch.eye(2), torch.eye(2)), False)
    linear = Loop(Problem(LeakyResNet(2, 2, width=4, depth=2, effective_depth=1.0), torch.eye(2), torch.eye(2)), True)
    found = {}
    for name in names:
        peer = PEERS[name]
        try:
            peer.make(linear if peer.linear else net, 1e-3, **dict(peer.grid[0].extra))
        except ImportError as error:
            found[name] = f"{error}: pip install {peer.package}"
    return found


def race(
    peer: Peer, setting: Setting, problem: Problem, target: float, limit: float, most: float = math.inf
) -> dict[str, float]:
    """Train until the objective is at or below the target, or for ``limit`` seconds: of the processor on one thread,
    of the clock on more; or for ``most`` steps.

    Returns:
        ``seconds`` and ``cpu_seconds`` to the target (infinite where it was not reached); ``spent``, those of the
        limit's clock in all, and ``gradients``, the part of them for value and gradient; ``steps``; ``least``, the
        least objective seen; ``censored``, 1 where the limit stopped it (else, without the target, its rate had fallen
        to 0, or it diverged).
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    began, started, cpu = clock(), time.perf_counter(), time.process_time()
    net = Loop(problem, peer.linear)
    optimiser = peer.make(net, setting.rate, **dict(setting.extra))
    gradients, best, step = 0.0, math.inf, 0
    found = {"seconds": math.inf, "cpu_seconds": math.inf, "censored": 0.0}
    while step < setting.steps or setting.steps == 0:
        for group in optimiser.param_groups:
            group["lr"] = setting.rate_at(step)
        optimiser.zero_grad()
        before = clock()
        objective = net.objective()
        value = float(objective.detach())
        best = min(best, value)
        if value <= target or not math.isfinite(value):
            if value <= target:
                found |= {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
            break
        objective.backward()
        gradients += clock() - before
        if clock() - began > limit or step >= most:
            found["censored"] = 1.0
            break
        optimiser.step()
        step += 1
    return found | {"spent": clock() - began, "gradients": gradients, "steps": step, "least": best}


def choose(peer: Peer, problems: Callable[[int], Problem], targets: dict[int, float]) -> Setting | None:
    """The setting of the grid with the fewest steps to the targets, summed over the seeds of these; None: none.

    Steps, not seconds: those of one optimiser cost the same, whatever its rate. A setting is given up when it has taken
    more than the best so far, or its rate has fallen to 0.
    """
    best, chosen = math.inf, None
    for setting in peer.grid:
        total = 0.0
        for seed, target in targets.items():
            found = race(peer, setting, problems(seed), target, math.inf, best - total)
            total += found["steps"] if math.isfinite(found["seconds"]) else math.inf
            print(f"  {setting}: seed {seed}, steps {found['steps']}, least {found['least']:.4f}", flush=True)
            if total >= best:
                break
        if total < best:
            best, chosen = total, setting
    return chosen
