# Everything runs in .venv, which is made on first use. `make` alone lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-nojit lint perf perf-peers notebooks size clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.base  ## teacher, student, pruning, int8 on real data; results in runs/demo/
	$(BIN)/minidistill demo

test: $(VENV)/.dev  ## the tests
	$(BIN)/python -m pytest

test-nojit: $(VENV)/.dev  ## the tests on the reference kernels, nothing compiled
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest

lint: $(VENV)/.dev  ## ruff: format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

perf: $(VENV)/.dev  ## performance tests; peers that are not installed are skipped by name
	$(BIN)/python -m perf
	$(BIN)/python -m pytest perf --benchmark-autosave --benchmark-columns=median,iqr

perf-peers: $(VENV)/.dev  ## install the peers that `make perf` compares with
	$(BIN)/pip install --quiet --editable ".[peers]"

notebooks: $(VENV)/.dev  ## tutorials/*/lesson.py as .ipynb, beside them
	$(BIN)/pip install --quiet --editable ".[notebooks]"
	$(BIN)/jupytext --to ipynb tutorials/*/lesson.py

size: $(VENV)/.base  ## code lines per file and in total (no docstrings, comments, blank lines)
	@$(BIN)/python perf/code_size.py

clean:  ## remove .venv, runs and everything generated
	rm -rf $(VENV) runs build dist .pytest_cache .hypothesis .ruff_cache .benchmarks tutorials/*/*.ipynb
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.base: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@
