# Two commands do everything, set-up included:  make leaderboard   make test
# PRESET=cpu_real (or mvtec) makes another leaderboard; CORES=4 uses that many cores.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
PRESET ?= demo
CORES ?= all
CONFIG ?=
REV ?= HEAD
STORE_GB ?= 20
BIN := .venv/bin

.PHONY: leaderboard test test-all test-matrix lint format schemas docs benchmark compare gc clean help notebook

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

leaderboard: .venv/ready  ## make the data, train, predict, evaluate; print the table and where the report is
	$(BIN)/snakemake --cores $(CORES) --config preset=$(PRESET) $(CONFIG)
	@$(BIN)/python -m workflow.show $$($(BIN)/python -m workflow.plan \
	  --config preset=$(PRESET) $(CONFIG) --targets aggregate | xargs -n1 dirname)
	@echo; echo "Open $(CURDIR)/results/report/index.html"

test: .venv/ready lint  ## lint, types, tests
	$(BIN)/python -m pytest

test-all: test test-matrix  ## all tests: also the whole matrix of edits, through both engines

test-matrix: .venv/ready
	MATRIX=all $(BIN)/python -m pytest tests/workflow/test_matrix.py

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check -l 100 Snakefile workflow/rules
	$(BIN)/mypy params algorithms stages workflow metrics/visionad_metrics
	@# Silent when clean, whole when not.
	@echo '$(BIN)/snakemake --lint'; said=$$($(BIN)/snakemake --lint 2>&1) || { echo "$$said"; exit 1; }

format: .venv/ready  ## format code and rules
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt -l 100 Snakefile workflow/rules

schemas: .venv/ready  ## write workflow/schemas/ from the models
	$(BIN)/python -m params.schemas

docs: .venv/ready  ## write docs/algorithms/ from the algorithms' docstrings and YAML
	$(BIN)/python -m workflow.describe

notebook: .venv/ready  ## write a new algorithm in a notebook: opens JupyterLab
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[notebook]'
	$(BIN)/jupyter lab notebooks/new_algorithm.ipynb

benchmark: .venv/ready  ## measure the coreset and the metrics against their peers
	$(BIN)/python benchmarks/coreset.py
	$(BIN)/python benchmarks/metrics.py

# Remade when what to install changes; a half-made environment has no `ready`.
.venv/ready: pyproject.toml metrics/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade 'pip>=24' 'setuptools>=77' wheel
	$(BIN)/pip install --quiet --constraint constraints.txt --editable metrics --editable '.[dev,backbones]'
	touch $@

compare: .venv/ready  ## what has changed since a Git revision: REV=HEAD~1
	@$(BIN)/python -m workflow.compare $(REV)

gc: .venv/ready  ## shrink the store of finished results to STORE_GB
	@$(BIN)/python -m workflow.plan --gc $(STORE_GB)

clean:  ## delete results and demo data, keep the environment and the store
	rm -rf results/[!R]* data/demo .plan .snakemake
