#!/usr/bin/env bash
# rliable, the usual package for bootstrap intervals over seeds, in a fresh environment of 2026.
#
# Where it bites: a paper's artefact that lists `rliable` in its requirements. Its intervals over seeds can no longer be
# recomputed, although the package installs without a word, and pip's check finds nothing wrong.
#
# Guessed before running: pip picks versions that work together; importing rliable.library works.
# Found (rliable 1.2.0, arch 7.2.0, pandas 3.1.1): the import fails with a TypeError far below, where arch is imported:
# pandas 3 has given a decorator, which arch takes from pandas' private utilities, another first argument. rliable wants
# arch 7.2.0 exactly, and arch sets no upper limit on pandas. With pandas below 3 the same import works.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip() { "$work/venv/bin/pip" --quiet --disable-pip-version-check "$@"; }
pip install rliable==1.2.0 arch==7.2.0 pandas==3.1.1 numpy==2.4.6 scipy==1.17.1
pip check && echo "pip check: no broken requirements"
if "$work/venv/bin/python" -c "import rliable.library" 2> "$work/error"; then
    echo "CHANGED: rliable.library imports beside pandas 3"
    exit 1
fi
tail -n 1 "$work/error"
grep -q "deprecate_kwarg" "$work/error" || { echo "CHANGED: another error"; exit 1; }
pip install "pandas<3"
"$work/venv/bin/python" -c "import pandas, rliable.library; print('with pandas', pandas.__version__, 'it imports')"
