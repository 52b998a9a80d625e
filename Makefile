# Two commands do everything: `make learn` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: help learn stack test test-all lint format clean

help:
	@echo "make learn     set up, then start (or go on with) the course"
	@echo "make stack     install what the language model needs (PyTorch, Numba)"
	@echo "make test      lint, types and tests: what every change must pass"
	@echo "make test-all  the slow tests too"
	@echo "make format    let ruff put the code in its usual form"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "firsthand needs Python 3.11 or newer; found: $$($(PYTHON) --version 2>&1)."; \
	    echo "Name another one: make learn PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "python3 -m venv does not work here. On Debian: apt-get install python3-venv"; exit 1; }

# The stamps make the second run quick: nothing is installed again until the lists change.
$(VENV)/.learn: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing firsthand (once; under a minute)..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what the tests need (once; a minute or two)..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.learn $(VENV)/.stack

$(VENV)/.stack: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what the language model needs (once; a minute or two)..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[stack,data,serve]'
	@touch $@ $(VENV)/.learn

learn: $(VENV)/.learn
	@$(BIN)/firsthand learn --workspace mine

stack: $(VENV)/.stack

lint: $(VENV)/.test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

test: lint
	@$(BIN)/python -m pytest -n $(JOBS)

test-all: lint
	@$(BIN)/python -m pytest -n $(JOBS) -m ''

format: $(VENV)/.test
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
