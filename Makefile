# Everything runs inside .venv; nothing needs to be activated. `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
LOCKS := locks/dev.txt locks/torch.txt locks/torch-cpu.txt

APART := $(addprefix tests/test_,cli.py docs.py end_to_end.py examples.py packaging.py readme.py tabling.py tracking.py)
CORE := tests/attacks tests/data tests/defences $(filter-out $(APART),$(wildcard tests/test_*.py))

.DEFAULT_GOAL := help
.PHONY: help setup setup-unchecked lock demo test test-all lint types docs bench reliability oldest newest audit release format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "%-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## Create .venv and install the package and its tools, at the pinned versions

# Every file that is installed has a digest in locks/. The CPU build of torch is taken where the
# index has it, else PyPI's. The package itself is a folder, which has no digest; its build backend
# is among the locked packages, so that no other copy is fetched for an isolated build.
$(STAMP): pyproject.toml $(LOCKS)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --require-hashes --requirement locks/dev.txt
	$(PIP) install --require-hashes --no-deps --requirement locks/torch-cpu.txt \
		|| { echo "The CPU build of torch is not to be had here; taking the one of PyPI."; \
		$(PIP) install --require-hashes --no-deps --requirement locks/torch.txt; }
	$(PIP) install --no-deps --no-build-isolation --editable .
	$(PIP) check
	@touch $@

# Only for an index that builds packages itself, whose files have digests of their own.
setup-unchecked: ## As setup, with the same versions, but without comparing digests
	$(PYTHON) -m venv $(VENV)
	cat locks/dev.txt locks/torch.txt | sed -E 's/ *\\$$//; /^ +--hash/d' > $(VENV)/versions.txt
	$(PIP) install torch hatchling --constraint $(VENV)/versions.txt
	$(PIP) install --no-build-isolation --editable '.[dev]' --constraint $(VENV)/versions.txt
	@touch $(STAMP)

# With a uv of its own: what pyproject.toml asks for anew is not in .venv, nor in the lock, yet.
lock: ## Write the lock files anew after pyproject.toml changed (UPGRADE=--upgrade moves the pins)
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet $$(grep -o '^uv==[0-9.]*' locks/dev.txt)
	build/lock/bin/python tools/lock.py $(UPGRADE)

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

bench: $(STAMP) ## Measure what is asked of speed, the parts of a stage and the cost of larger models
	$(BIN)/python -m benchmarks.targets
	$(BIN)/python -m benchmarks.stage
	$(BIN)/python -m benchmarks.cost

# Both: what the library itself does, without Flower, browsers and trackers, which have bounds of
# their own. PYTHON=python3.12 tries another Python.
oldest: ## Run the library's tests with the oldest versions allowed (downloads several GB)
	$(PYTHON) -m venv --clear build/oldest
	build/oldest/bin/python tools/oldest.py > build/oldest/constraints.txt
	build/oldest/bin/python -m pip install --constraint build/oldest/constraints.txt \
		hatchling hypothesis pytest pytest-timeout
	build/oldest/bin/python -m pip install --no-build-isolation --editable . \
		--constraint build/oldest/constraints.txt
	build/oldest/bin/python -m pytest -m "not long" $(CORE)

newest: ## As oldest, with the newest versions that there are
	$(PYTHON) -m venv --clear build/newest
	build/newest/bin/python -m pip install --upgrade --upgrade-strategy eager --editable . \
		hypothesis pytest pytest-timeout
	build/newest/bin/python -m pip list
	build/newest/bin/python -m pytest -m "not long" $(CORE)

audit: ## Look for known weaknesses in the pinned versions (asks a database on the network)
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet pip-audit
	build/audit/bin/pip-audit --requirement locks/dev.txt --requirement locks/torch.txt \
		--require-hashes --disable-pip --strict \
		|| { echo "make audit: weaknesses were found, or the database could not be asked (see above)" >&2; exit 1; }

release: $(STAMP) ## Build the wheel, the source archive and the bill of materials into dist
	rm -rf dist
	$(BIN)/python -m hatchling build
	$(BIN)/python tools/sbom.py dist

format: $(STAMP) ## Format the code and mend what the linter can
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

clean: ## Remove .venv, caches and builds
	rm -rf $(VENV) build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
