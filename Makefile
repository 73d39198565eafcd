# One environment for all targets, made on first use outside the clone: see tools/environment.py.
SHELL := /bin/bash
PYTHON ?= python3
NAME ?= spine
SHORT ?=
MARKS ?= not slow and not hub
WORKERS ?= 2

# The clone in hand is what runs, also while another clone uses the same environment.
export PYTHONPATH := $(CURDIR)/src
# Evaluated where it is used, so that `make clean` installs nothing.
BIN = $(or $(shell env -u PYTHONPATH $(PYTHON) tools/environment.py),$(error the environment could not be made, see above))/bin

.PHONY: help install quickstart test test-all lint format accept clean

help:
	@echo "make quickstart      install, then attack a small CLIP, tune it and attack it again, in some minutes"
	@echo "make install         make the environment and print its folder"
	@echo "make test            lint, then the tests (not those marked slow or hub)"
	@echo "make test-all        all tests"
	@echo "make lint            ruff, mypy --strict, direction of imports"
	@echo "make format          put the source into ruff's format"
	@echo "make accept NAME=... what a capability must show; SHORT=1 for the short form"
	@echo "make clean           remove caches of tools (results and the environment stay)"

install:
	@echo "$(BIN)/ironclip"

quickstart:
	@"$(BIN)/ironclip" quickstart --out quickstart

# One thread a worker: the models of the tests are too small for more, and threads that wait for each other cost most.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

test: lint
	$(PYTEST) -m "$(MARKS)"

test-all: lint
	$(PYTEST)

lint:
	@bin="$(BIN)" && set -x && \
	$$bin/ruff check -q . && \
	$$bin/ruff format -q --check . && \
	$$bin/mypy && \
	$$bin/lint-imports

format:
	@bin="$(BIN)" && $$bin/ruff check --fix-only -q . && $$bin/ruff format .

accept:
	$(BIN)/python -m acceptance.run $(NAME) $(if $(SHORT),--short)

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
