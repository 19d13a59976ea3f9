# Everything works in a fresh clone: each target makes the environment it needs first.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# What is imported is compiled once and kept: without, each command compiles PyTorch and Lightning again, ten seconds.
export PYTHONDONTWRITEBYTECODE :=

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
ARGS ?=

# Each test process computes on one thread: more would fight for the same cores and make the tests slower.
# The tests of a file run in one process (loadfile), so that what they share is made once.
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: help setup try train reproduce-shapes test test-full coverage audit lint format type docs check clean clean-all

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed-dev ## make .venv with the package and its tools (again only when pyproject.toml changed)

# Into .venv, by uv where there is one, else by a uv of .venv's own, else by pip. A training needs only the package.
define INSTALL
	@if uv --version >/dev/null 2>&1; then \
		uv venv --quiet --allow-existing --python '>=3.11' $(VENV); \
		install="uv pip install --quiet --python $(BIN)/python"; \
	else \
		$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, found " + sys.version.split()[0] + ": set PYTHON=...") if sys.version_info < (3, 11) else None'; \
		$(PYTHON) -m venv $(VENV); \
		install="$(BIN)/python -m pip install --quiet --disable-pip-version-check"; \
		if $$install uv 2>/dev/null && $(BIN)/uv --version >/dev/null 2>&1; then \
			install="$(BIN)/uv pip install --quiet --python $(BIN)/python"; \
		fi; \
	fi; \
	$$install --editable '$(1)'
	@touch $(2)
endef

$(VENV)/.installed: pyproject.toml
	$(call INSTALL,.,$@)
$(VENV)/.installed-dev: pyproject.toml
	$(call INSTALL,.[dev],$@ $(VENV)/.installed)
$(VENV)/.installed-docs: pyproject.toml
	$(call INSTALL,.[docs],$@ $(VENV)/.installed)

try: $(VENV)/.installed ## the packaged segmenter on drawn pictures: masks in half a minute
	$(BIN)/python -m hdmnet try $(ARGS)

train: $(VENV)/.installed ## train and test on the embedded shapes, on a CPU, in minutes (ARGS="fold=1 shot=5" passes overrides)
	$(BIN)/python -m hdmnet.train $(ARGS)

reproduce-shapes: $(VENV)/.installed ## the paper's ablations on the embedded shapes, on a CPU, in hours, and their report
	PYTHON=$(BIN)/python scripts/reproduce.sh shapes $(ARGS)

test: setup ## the tests of a change, in minutes
	$(PYTEST) $(ARGS)

test-full: setup ## all tests, also those marked long and slow
	$(PYTEST) -m "slow or not slow" $(ARGS)

coverage: setup ## all tests with the share of lines that they run (at least 90 %), also in the processes they start
	$(PYTEST) -m "slow or not slow" --cov --cov-report=term $(ARGS)

# OSV answers for every version; an advisory service that cannot be reached is a failure, not a clean bill.
audit: setup ## known security holes in what .venv holds (asks the advisory service osv.dev)
	@packages=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	if uv --version >/dev/null 2>&1; then \
		uv tool run --quiet pip-audit --vulnerability-service osv --skip-editable --path "$$packages"; \
	else \
		$(PYTHON) -m venv $(VENV)/audit; \
		$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit; \
		$(VENV)/audit/bin/pip-audit --vulnerability-service osv --skip-editable --path "$$packages"; \
	fi

lint: setup ## ruff: rules and format; which room of the package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

format: setup ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: setup ## mypy --strict
	$(BIN)/mypy

docs: $(VENV)/.installed-docs ## the documentation as a site, in site/; strict: a dead link is an error
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --quiet

check: lint type test docs ## all that a change has to pass

clean: ## remove caches and build output (not .venv, data or runs)
	rm -rf build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

clean-all: clean ## remove .venv too
	rm -rf $(VENV)
