"""What one step costs (path, momenta, gradient, penalty, float32) against its matrix products alone, and against peers.

    python benchmarks/step.py --threads 1 --json step.json
    python benchmarks/step.py --shapes 512,4096,20 --peers none

Shapes are width,samples,layers. The products are the 3·L that a step needs, as a bare loop of torch.mm into buffers, in
the same layout. Ratios are to them, round by round; on one thread of CPU time, else of wall time. Peers that cannot be
imported are left out, and named. JAX may live elsewhere: PYTHONPATH=/path/to/it python benchmarks/step.py.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

from _common import interleaved, options, show, summary, write

PEERS = ("eager", "compile", "torchdiffeq", "jax")
SHAPES = ("100,1000,20", "100,1000,200", "512,4096,20")
MU, EFFECTIVE_DEPTH, ENDS = 1e-3, 7.0, 30


def threads_of_jax(threads: int) -> None:
    """Hold JAX to as many threads; it reads this when it is imported."""
    if threads == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["JAX_PLATFORMS"] = "cpu"


def ours(width: int, samples: int, layers: int) -> tuple[Any, dict[str, Callable[[], object]]]:
    """The products, our step, and our step with each optimiser's update."""
    import torch

    from isthmus import LeakyResNet, Problem
    from isthmus.optimise import Adam, Muon

    torch.manual_seed(0)
    model = LeakyResNet(ENDS, ENDS, width=width, depth=layers, effective_depth=EFFECTIVE_DEPTH)
    problem = Problem(model, torch.randn(samples, ENDS), torch.randn(samples, ENDS), mu=MU)
    problem.evaluate()
    kept = Problem(model, problem.x, problem.y, mu=MU)
    kept.keep_path = True
    W, S = model.weight.detach(), problem.workspace(path=False).S
    G, pulled, gradient = torch.randn(width, samples), torch.empty(width, samples), torch.empty_like(W)

    def products() -> None:
        for layer in range(layers):
            torch.mm(W[layer], S[layer], out=pulled)
        for layer in range(layers - 1, -1, -1):
            torch.mm(G, S[layer].T, out=gradient[layer])
            torch.mm(W[layer, :, :width].T, G, out=pulled)

    by_adam, by_muon = Adam().start(problem), Muon().start(problem)
    return problem, {
        "products alone": products,
        "isthmus": problem.evaluate,
        "isthmus, path kept": kept.evaluate,
        "isthmus + Adam": lambda: by_adam.step(problem.evaluate, 0.0),
        "isthmus + Muon": lambda: by_muon.step(problem.evaluate, 0.0),
    }


def in_torch(problem: Any, peers: list[str]) -> dict[str, Callable[[], Any]]:
    """An nn.Linear loop under autograd, the same compiled, and torchdiffeq's Euler; each returns the gradients."""
    import torch
    from torch import nn

    model, L = problem.model, problem.model.depth
    step, leak = 1 / L, EFFECTIVE_DEPTH / L
    linears = nn.ModuleList(nn.Linear(model.width, model.width) for _ in range(L))
    with torch.no_grad():
        for linear, W in zip(linears, model.weight, strict=True):
            linear.weight.copy_(W[:, :-1])
            linear.bias.copy_(W[:, -1])
    parameters = [p for linear in linears for p in (linear.weight, linear.bias)]

    def penalised(A: torch.Tensor) -> torch.Tensor:
        cost = (A @ model.out_map.T - problem.y).square().sum() / A.shape[0]
        return cost + 0.5 * MU * step * sum(p.square().sum() for p in parameters)

    def loop(x: torch.Tensor) -> torch.Tensor:
        A = x @ model.in_map.T
        for linear in linears:
            A = (1 - leak) * A + step * linear(torch.relu(A))
        return penalised(A)

    compiled = torch.compile(loop)
    found: dict[str, Callable[[], Any]] = {}
    if "eager" in peers:
        found["eager nn.Linear loop"] = lambda: torch.autograd.grad(loop(problem.x), parameters)
    if "compile" in peers:
        found["the same, torch.compile"] = lambda: torch.autograd.grad(compiled(problem.x), parameters)
    if "torchdiffeq" in peers:
        from torchdiffeq import odeint

        times = torch.arange(L + 1) / L

        def field(p: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
            return -EFFECTIVE_DEPTH * A + linears[min(int(p * L + 0.5), L - 1)](torch.relu(A))

        def euler() -> Any:
            path = odeint(field, problem.x @ model.in_map.T, times, method="euler")
            return torch.autograd.grad(penalised(path[-1]), parameters)

        found["torchdiffeq, Euler"] = euler
    return found


def in_jax(problem: Any) -> dict[str, Callable[[], Any]]:
    """A jitted scan over layers, value and gradient: columns, as ours, and batch-first."""
    import jax
    import jax.numpy as jnp

    model, L = problem.model, problem.model.depth
    step, leak = 1 / L, EFFECTIVE_DEPTH / L
    x, y, in_map, out_map = (jnp.asarray(t.numpy()) for t in (problem.x, problem.y, model.in_map, model.out_map))
    weight = jnp.asarray(model.weight.detach().numpy())

    def penalised(error: Any, weight: Any) -> Any:
        return jnp.square(error).sum() / x.shape[0] + 0.5 * MU * step * jnp.square(weight).sum()

    def columns(weight: Any) -> Any:
        def layer(A: Any, W: Any) -> Any:
            return (1 - leak) * A + step * (W[:, :-1] @ jnp.maximum(A, 0) + W[:, -1:]), None

        return penalised(out_map @ jax.lax.scan(layer, in_map @ x.T, weight)[0] - y.T, weight)

    def rows(weight: Any) -> Any:
        def layer(A: Any, W: Any) -> Any:
            return (1 - leak) * A + step * (jnp.maximum(A, 0) @ W[:, :-1].T + W[:, -1]), None

        return penalised(jax.lax.scan(layer, x @ in_map.T, weight)[0] @ out_map.T - y, weight)

    def jitted(objective: Callable[[Any], Any]) -> Callable[[], Any]:
        gradient = jax.jit(jax.value_and_grad(objective))
        return lambda: jax.block_until_ready(gradient(weight))

    return {"jax, jitted scan": jitted(columns), "jax, the same, batch-first": jitted(rows)}


def agree(problem: Any, contestants: dict[str, Callable[[], Any]]) -> None:
    """Check that every peer computes the gradient that we compute: a faster wrong answer is no contestant."""
    import numpy as np
    import torch

    problem.evaluate()
    expected = problem.model.weight.grad
    for name, call in contestants.items():
        got = call()
        if name.startswith("jax"):
            gradient = torch.from_numpy(np.array(got[1]))
        else:
            gradient = torch.stack([torch.cat((w, b[:, None]), 1) for w, b in zip(got[::2], got[1::2], strict=True)])
        error = float((gradient - expected).norm() / expected.norm())
        if not error < 1e-4:
            raise SystemExit(f"{name} computes another gradient: relative error {error:.2g}")


def main() -> None:
    """Time all shapes and print a table."""
    parser = options(__doc__)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="WIDTH,SAMPLES,LAYERS")
    parser.add_argument("--peers", nargs="+", default=PEERS, choices=(*PEERS, "none"))
    parser.add_argument("--rounds", type=int, default=30, help="for 20 layers of width 100 (fewer for larger shapes)")
    arguments = parser.parse_args()
    threads_of_jax(arguments.threads)
    import torch

    torch.set_num_threads(arguments.threads)
    clock = "cpu" if arguments.threads == 1 else "wall"
    results = []
    for shape in arguments.shapes:
        width, samples, layers = (int(n) for n in shape.split(","))
        problem, contestants = ours(width, samples, layers)
        peers: dict[str, Callable[[], Any]] = {}
        missing = []
        for peer in arguments.peers:
            if peer == "none":
                continue
            try:
                peers |= in_jax(problem) if peer == "jax" else in_torch(problem, [peer])
            except ImportError as error:
                missing.append(peer)
                print(f"left out: {peer} ({error})", file=sys.stderr)
        agree(problem, peers)
        work = layers * width**2 * samples / (20 * 100**2 * 1000)
        rounds = max(5, round(arguments.rounds / max(1.0, work**0.5)))
        rows = summary(interleaved({**contestants, **peers}, rounds), "products alone", clock)
        print(f"width {width}, samples {samples}, layers {layers}; threads {arguments.threads}, ratios of {clock} time")
        show(rows)
        results.append(
            {"width": width, "samples": samples, "layers": layers, "clock": clock, "rounds": rounds, "rows": rows}
            | {"left_out": missing}
        )
    write(arguments.json, {"benchmark": "step", "shapes": results})


if __name__ == "__main__":
    main()
