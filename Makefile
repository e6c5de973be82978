PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
CORES := $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() or 1))')

.PHONY: demo test bench lint clean
.DEFAULT_GOAL := test

# One environment for every target, from the exact versions of constraints.txt; a target adds what
# it needs, again only when the dependencies change.
$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zeitgeist needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.demo $(VENV)/.test: $(VENV)/.%: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --constraint constraints.txt torch
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[$*]'
	touch $@

demo: $(VENV)/.demo
	$(BIN)/zeitgeist demo --output demo --overwrite

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# The processes share the cores, so each runs one thread.
test: lint
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(CORES) --jaxtyping-packages=zeitgeist,beartype.beartype

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
