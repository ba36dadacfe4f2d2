#!/usr/bin/env bash
# A factor of torch.linalg, saved with safetensors and loaded again, is equal in every value and gives other bits.
#
# Where it bites: optimisers that keep eigenvectors or QR factors in their state (K-FAC, Shampoo, SOAP, L-BFGS in a metric)
# and checkpoints that promise to resume to the same bits. The first step after resuming differs in the last digit, and a
# chaotic training run ends elsewhere.
#
# Guessed before running: tensors that torch.equal calls equal give equal products, so that a lossless file is enough.
# Found (torch 2.13.0, safetensors 0.8.0): eigh, svd and qr return column-major tensors. safetensors refuses them as "non
# contiguous"; after the .contiguous() that its message asks for, the file holds row-major ones. All values are equal, and
# U @ x differs from V @ x in the last bits at every size tried, since the library sums rows in one order and columns in
# another. torch.save keeps the strides, and its copy gives the same bits. Cure: make the factor contiguous *before its first
# use*, not when it is saved.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 safetensors==0.8.0
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import safetensors
import torch
from safetensors.torch import load_file, save_file

torch.manual_seed(0)
torch.set_num_threads(1)
SIZES = (16, 40, 100, 256)
FACTORS = {
    "eigh": lambda A: torch.linalg.eigh(A @ A.T).eigenvectors,
    "svd": lambda A: torch.linalg.svd(A).U,
    "qr": lambda A: torch.linalg.qr(A).Q,
}
print(f"torch {torch.__version__}, safetensors {safetensors.__version__}")
for name, factor in FACTORS.items():
    differing = 0
    for size in SIZES:
        U, x = factor(torch.randn(size, size)), torch.randn(size)
        assert U.stride() == (1, size), f"{name} returns rows first now: {U.stride()}"
        try:
            save_file({"U": U}, "direct.safetensors")
            raise SystemExit("safetensors takes column-major tensors now")
        except ValueError as error:
            assert "non contiguous" in str(error)
        save_file({"U": U.contiguous()}, "copy.safetensors")
        torch.save(U, "copy.pt")
        V, T = load_file("copy.safetensors")["U"], torch.load("copy.pt")
        assert torch.equal(U, V) and torch.equal(U, T) and T.stride() == U.stride()
        assert torch.equal(U @ x, T @ x)
        differing += int(not torch.equal(U @ x, V @ x))
    print(f"  {name}: U == V in every value; U @ x and V @ x differ in bits at {differing} of {len(SIZES)} sizes")
    if differing == 0:
        raise SystemExit(f"{name}: the bits agree now")
print("as found")
PYTHON
