# make demo: train, fit, forecast and draw the embedded default. make test: the tests. make docs: the site, build/site.
# Each sets .venv up first.
PYTHON ?= python3
VENV := .venv
# Files side by side, one a core: a file's fixtures are made once; the longest first (tests/conftest.py). More than four
# want more memory than they save time.
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: install demo test test-slow lint docs notebooks gpu-bundle clean

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(VENV)/bin/tsl demo --out runs/demo

test: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

# What is left out of `make test`: runs in several processes, kills, kernels by an interpreter; then what compares the
# bits of two programs, with the compiler's usual settings instead of the fast ones of tests/conftest.py.
test-slow: $(VENV)/.installed-dev
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS) -m slow
	XLA_FLAGS=--xla_backend_optimization_level=0 $(VENV)/bin/python -m pytest $(PYTEST_ARGS) -m exact_bits

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pyright

# Strictly: a page outside the menu or a link to nowhere is an error. Reads the library without importing it.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tsl_jax needs Python 3.11 or newer, found " + sys.version.split()[0] + ": call make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) -e '.[docs]'
	@touch $@

# Run the tutorials and store their outputs.
notebooks: $(VENV)/.installed
	$(PIP) -e '.[notebooks]'
	$(VENV)/bin/python docs/execute_notebooks.py

# Text and wheels for experiments/gpu/quarter_hour.sh; the domains' text must be installed, see docs/corpora.md.
gpu-bundle: $(VENV)/.installed
	$(VENV)/bin/python experiments/gpu/bundle.py

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .ruff_cache
