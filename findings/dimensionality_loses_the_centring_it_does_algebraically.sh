#!/usr/bin/env bash
# The authors' package for the participation ratio without sampling bias, on activations whose mean is not near 0.
#
# Where it bites: hidden states of language models have neurons whose mean is tens to thousands of times their spread.
# The package asks for raw data ("do not pre-center"): it takes means off within its formulas.
#
# Guessed before running: the answer does not depend on a constant that is added to all entries, but for rounding in the
# last digits, since float64 has sixteen of them.
# Found (dimensionality 0.1.4, NumPy 2.4.6; 500 rows of 40 independent neurons): exact to four digits with 10 added. With
# 100 added γ_both falls from 8972 to 3350; with 1000 every estimator is wrong (row: 2.4 for 10.9), without a warning:
# the formulas subtract fourth powers of the mean, so that digits go with its fourth power. Subtracting one fixed number
# or row from all rows, which is not the data's own mean, is allowed by the derivation and gives the answer back.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" --quiet --disable-pip-version-check install dimensionality==0.1.4 numpy==2.4.6
"$work/venv/bin/python" - <<'PY'
import numpy
from dimensionality import participation_ratio

draw = numpy.random.default_rng(0)
X = draw.normal(size=(500, 40)) * numpy.arange(1, 41) ** -0.5
found = {shift: participation_ratio(X + shift, return_all=True) for shift in (0.0, 10.0, 100.0, 1000.0)}
for shift, one in found.items():
    print(f"shift {shift:6g}: row {one['row']:.4f}, both {one['both']:.1f}")
fixed = participation_ratio((X + 1000.0) - 999.0, return_all=True)
print(f"1000 added, 999 taken off again: row {fixed['row']:.4f}")
right = found[0.0]["row"]
assert abs(found[10.0]["row"] / right - 1) < 1e-3, "CHANGED: 10 added moves it"
assert abs(found[100.0]["both"] / found[0.0]["both"] - 1) > 0.3, "CHANGED: 100 added no longer moves both"
assert found[1000.0]["row"] < 0.5 * right, "CHANGED: 1000 added no longer ruins it"
assert abs(fixed["row"] / right - 1) < 1e-3, "CHANGED: a fixed shift does not mend it"
PY
