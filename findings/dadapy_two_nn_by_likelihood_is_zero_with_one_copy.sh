#!/usr/bin/env bash
# DADApy's intrinsic dimension by two nearest neighbours, on data in which one row is there twice.
#
# Where it bites: tokens, images and crops repeat. A sweep over layers that asks for the maximum-likelihood estimate gets
# the dimension 0 wherever one pair of rows coincides, with an error of 0.0, and no exception.
#
# Guessed before running: one copy among a thousand rows moves a likelihood estimate by about a thousandth, or raises.
# Found (dadapy 0.3.4, NumPy 1.26.4; 1000 Gaussian rows of dimension 5): algorithm="ml" goes from 4.97 to 0.0, because
# one ratio of distances is infinite; the default algorithm "base" moves by 0.001, since it leaves out the largest tenth;
# and Gride at its finest scale, which is the same likelihood estimate, moves by less than its error, since that routine
# drops extreme ratios before it begins. With data_fraction=1 the reported error is 0.0 for every one of them.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" --quiet --disable-pip-version-check install dadapy==0.3.4 numpy==1.26.4 scipy==1.17.1
"$work/venv/bin/python" -W ignore - <<'PY'
import numpy
from dadapy import Data

draw = numpy.random.default_rng(0)
X = draw.normal(size=(1000, 5)) @ draw.normal(size=(5, 12))


def told(rows):
    found = {}
    for algorithm in ("ml", "base"):
        data = Data(rows, verbose=False)
        data.compute_distances(maxk=100)
        found[algorithm] = data.compute_id_2NN(algorithm=algorithm, data_fraction=1)[:2]
    data = Data(rows, verbose=False)
    data.compute_distances(maxk=100)
    found["gride"] = float(data.return_id_scaling_gride(range_max=64)[0][0])
    return found


whole, copied = told(X), told(numpy.concatenate((X, X[:1])))
print("1000 rows:     ", whole)
print("one of them twice:", copied)
assert 4.5 < whole["ml"][0] < 5.5 and copied["ml"][0] == 0.0, "CHANGED: ml with one copy"
assert abs(copied["base"][0] - whole["base"][0]) < 0.05, "CHANGED: base with one copy"
assert abs(copied["gride"] - whole["gride"]) < 0.1, "CHANGED: gride with one copy"
assert copied["ml"][1] == copied["base"][1] == 0.0, "CHANGED: the reported error"
PY
