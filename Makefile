# Two targets set everything up by themselves: `make demo` and `make test`.
# Set PYTHON=python3.12 for another interpreter; pip's own settings (PIP_EXTRA_INDEX_URL, …) are honoured.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo figure1 docs-figures results test lint types slow bench clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "isthmus needs Python 3.11 or newer; set PYTHON=python3.11, say")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(STAMP)  ## make .venv and install into it (once)

demo: $(STAMP)  ## solve a small network to a critical point, then follow it as L grows: runs/demo-branch/report.html
	$(BIN)/isthmus train --config examples/demo.yaml --out runs/demo --resume
	$(BIN)/isthmus follow runs/demo --parameter effective_depth --to 9 --out runs/demo-branch

figure1: $(STAMP)  ## train the network of the paper's Figure 1 and show it: runs/figure1/report.html
	$(BIN)/isthmus train --config examples/figure1.yaml --out runs/figure1 --resume

docs-figures: demo  ## draw the curve of docs/how-to/branches.md anew
	cp runs/demo-branch/figures/curve.svg docs/images/branch-curve.svg

results: $(STAMP)  ## the paper's figures and claims, with ten seeds (two hours): docs/results.md and results/
	$(BIN)/isthmus reproduce all
	$(BIN)/isthmus claims
	$(BIN)/python docs/write_results.py runs/paper

lint: $(STAMP)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy
	$(BIN)/mypy

test: lint types  ## lint, types and tests
	$(BIN)/python -m pytest -q -m "not slow"

slow: $(STAMP)  ## the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

bench: $(STAMP)  ## the short benchmarks, some minutes each; how to read them: docs/benchmarks.md
	cd benchmarks && ../$(BIN)/python step.py --shapes 100,1000,20 --rounds 10 --peers eager none
	cd benchmarks && ../$(BIN)/python time_to_objective.py --seeds 1 --scale 0.1 --own-time 0
	cd benchmarks && ../$(BIN)/python ensemble.py --shapes 16,64,8 --rounds 2
	cd benchmarks && ../$(BIN)/python mesh_study.py --steps 10 20 40 --reference 40

clean:  ## remove what make made, not your runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
