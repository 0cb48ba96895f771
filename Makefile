# Everything runs inside .venv; nothing needs to be activated. `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint types docs bench reliability format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "%-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## Create .venv and install the package and its tools, at the pinned versions

# The CPU build of torch wins over a CUDA build of the same version wherever pip is offered both;
# installed first, no other package can ask for a different one. The build backend comes along so
# that no unpinned copy of it is fetched for an isolated build.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip --constraint constraints.txt
	$(PIP) install torch hatchling --constraint constraints.txt
	$(PIP) install --no-build-isolation --editable '.[dev]' --constraint constraints.txt
	@touch $@

demo: $(STAMP) ## Train with and without an attack and with SkyMask, on the embedded digits
	$(BIN)/skymask demo

test: $(STAMP) ## Run the tests, without the long ones
	$(BIN)/python -m pytest -m "not long"

test-all: $(STAMP) ## Run every test, the long ones too
	$(BIN)/python -m pytest

lint: $(STAMP) ## Check style and formatting
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(STAMP) ## Check the types of src/skymask
	$(BIN)/python -m mypy

docs: $(STAMP) ## Build the documentation site into the folder site, warnings being errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

reliability: $(STAMP) ## Try to break it: hostile updates and bytes, kills, many clients (an hour)
	$(BIN)/python -m benchmarks.reliability

bench: $(STAMP) ## Measure the SkyMask stage and whole rounds (Fashion-MNIST and HAR must be there)
	$(BIN)/python -m benchmarks.stage
	$(BIN)/python -m benchmarks.rounds

format: $(STAMP) ## Format the code and mend what the linter can
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean: ## Remove .venv, caches and builds
	rm -rf $(VENV) dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
