# Everything runs in .venv, which is made on first use. `make` alone lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The oldest versions that pyproject.toml allows, on the oldest Python at hand that has wheels of them; what they are tested with.
OLDEST        := .venv-oldest
OLDEST_PYTHON ?= $(shell for v in 3.10 3.11 3.12; do \
	PYENV_VERSION=$$v python$$v -c "import sys; print(sys.executable)" 2>/dev/null && break; done)
OLDEST_PINS    = $(shell sed -n '/^dependencies/,/^]/p; /^test = /p' pyproject.toml | grep -oE '[a-z]+>=[0-9.]+' | sed 's/>=/==/')
OLDEST_TESTS  := $(addprefix tests/test_,$(addsuffix .py,checkpoint false_alarms files kernels kernels_jit kernels_training \
	nn nn_layers ops ops_products optim plot pool serialize tables tensor training))

.DEFAULT_GOAL := help
.PHONY: help demo test test-nojit test-oldest lint perf perf-peers notebooks size clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.base  ## teacher, student, pruning, int8 on real data; results in runs/demo/
	$(BIN)/minidistill demo

test: $(VENV)/.dev  ## the tests
	$(BIN)/python -m pytest

test-nojit: $(VENV)/.dev  ## the tests on the reference kernels, nothing compiled
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest

test-oldest: $(OLDEST)/.test  ## some of the tests with the oldest packages that are allowed
	NUMBA_CACHE_DIR=$(OLDEST)/cache $(OLDEST)/bin/python -m pytest -W ignore::DeprecationWarning $(OLDEST_TESTS)

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

clean:  ## remove .venv, .venv-oldest, runs and everything generated
	rm -rf $(VENV) $(OLDEST) runs build dist .pytest_cache .hypothesis .ruff_cache .benchmarks tutorials/*/*.ipynb
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.base: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

$(OLDEST)/.test: pyproject.toml
	@test -n "$(OLDEST_PYTHON)" || { echo "Python 3.10, 3.11 or 3.12 is needed: OLDEST_PYTHON=/path/to/python"; exit 1; }
	rm -rf $(OLDEST)
	$(OLDEST_PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --editable . $(OLDEST_PINS)
	touch $@
