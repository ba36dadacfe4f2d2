#!/usr/bin/env bash
# The derivative of a ReLU at exactly 0, as PyTorch and JAX compute it for ways of writing the same function.
#
# Where it bites: states that are exactly 0 are not rare. Layers that start at zero, a skip that vanishes (1 - rho L = 0),
# pruned neurons, padded rows and collapsed networks all have them. A hand-written backward pass, or a port from one library
# to the other, then differs from automatic differentiation by a whole layer's gradient, although every value agrees.
#
# Guessed before running: every spelling of max(z, 0) has derivative 0 at 0 but maximum, which halves it; forward and
# reverse mode agree; PyTorch and JAX agree, name by name.
# Found (torch 2.13.0, jax 0.10.2): all three guesses are wrong.
#   - torch.clamp(min=0) and clamp_min have 1, where torch.relu has 0 and torch.maximum 1/2.
#   - F.prelu with weight 0 has 0 in reverse and 1 in forward mode; torch.fmax(z, 0) has 1 in reverse and 0 in forward mode:
#     a Jacobian by jacfwd and one by jacrev differ, and so does a Hessian product by how it is nested.
#   - leaky_relu has its slope at 0 in PyTorch and 1 in JAX; fmax has 1 and 0; clip has 1 and 1/2; |z| has 0 and 1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 jax==0.10.2 jaxlib==0.10.2
"$work/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import torch
import torch.nn.functional as F

jax.config.update("jax_enable_x64", True)
zero, flat = torch.zeros((), dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
IN_TORCH = {  # name: function, reverse mode, forward mode
    "relu": (torch.relu, 0.0, 0.0),
    "clamp(min=0)": (lambda z: z.clamp(min=0), 1.0, 1.0),
    "clamp_min": (lambda z: torch.clamp_min(z, 0), 1.0, 1.0),
    "relu6": (F.relu6, 0.0, 0.0),
    "clamp(0, 6)": (lambda z: z.clamp(0, 6), 1.0, 1.0),
    "maximum": (lambda z: torch.maximum(z, torch.zeros_like(z)), 0.5, 0.5),
    "fmax": (lambda z: torch.fmax(z, torch.zeros_like(z)), 1.0, 0.0),
    "leaky_relu(0.1)": (lambda z: F.leaky_relu(z, 0.1), 0.1, 0.1),
    "prelu, weight 0": (lambda z: F.prelu(z.reshape(1, 1), flat).sum(), 0.0, 1.0),
    "abs": (torch.abs, 0.0, 0.0),
}
IN_JAX = {
    "relu": (jax.nn.relu, 0.0),
    "relu6": (jax.nn.relu6, 0.0),
    "clip": (lambda z: jnp.clip(z, 0.0, None), 0.5),
    "lax.clamp(0, 6)": (lambda z: jax.lax.clamp(0.0, z, 6.0), 0.0),
    "maximum": (lambda z: jnp.maximum(z, 0.0), 0.5),
    "fmax": (lambda z: jnp.fmax(z, 0.0), 0.0),
    "leaky_relu(0.1)": (lambda z: jax.nn.leaky_relu(z, 0.1), 1.0),
    "abs": (jnp.abs, 1.0),
}
changed = []
print(f"torch {torch.__version__}, jax {jax.__version__}: derivative at exactly 0")
for name, (f, reverse, forward) in IN_TORCH.items():
    z = zero.clone().requires_grad_()
    got = (float(torch.autograd.grad(f(z), z)[0]), float(torch.func.jvp(f, (zero,), (torch.ones_like(zero),))[1]))
    print(f"  torch {name:16s} reverse {got[0]:g}, forward {got[1]:g}")
    changed += [] if got == (reverse, forward) else [f"torch {name}: {got} for {(reverse, forward)}"]
for name, (f, expected) in IN_JAX.items():
    got = float(jax.grad(f)(0.0))
    print(f"  jax   {name:16s} {got:g}")
    changed += [] if got == expected else [f"jax {name}: {got} for {expected}"]
if changed:
    raise SystemExit("the behaviour changed: " + "; ".join(changed))
print("as found")
PYTHON
