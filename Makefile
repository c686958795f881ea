# videotext: every target with one line of help is listed by `make help`.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
# Two pytest workers on two cores; each test process then uses one thread.
WORKERS ?= 2
export OMP_NUM_THREADS ?= 2

.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else "error: found Python %d.%d, expected 3.11 or 3.12; type make PYTHON=python3.11 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps --require-hashes -r requirements.lock
	@touch $@

.PHONY: help
help: ## list every target
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: install
install: .venv/installed ## make .venv from the pinned lock

.PHONY: demo
demo: .venv/installed ## train a small model on the toy benchmark, print its table and its report
	$(BIN)/python -m src.run

.PHONY: test
test: .venv/installed lint ## lint, types and the default test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations=15 --nbmake --nbmake-timeout=300 tests notebooks

.PHONY: test-slow
test-slow: .venv/installed ## the longer checks as well
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "slow or not slow"

.PHONY: lint
lint: .venv/installed ## format, lint, types and spelling, without changing files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell src conf tests docs README.md CHANGELOG.md

.PHONY: format
format: .venv/installed ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: bench
bench: .venv/installed ## throughput and memory of evaluation, loader and model on this machine
	$(BIN)/python -m src.run task=bench

.PHONY: lock
lock: .venv/installed ## resolve requirements.lock anew for every platform
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --extra dev --quiet --upgrade pyproject.toml --output-file requirements.lock

.PHONY: clean
clean: ## remove caches and run folders; data and .venv stay
	rm -rf runs outputs multirun .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
