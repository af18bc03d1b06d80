# `make run` and `make test` do all of their own set-up: they need Python 3.11 or newer, git and make, and no root.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST_ARGS ?=
SERVE_ARGS ?=

.PHONY: help run tour test lint format eval test-slow clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.m27-run ## the server and its playground on http://127.0.0.1:8000, until Ctrl-C
	$(BIN)/m27 serve $(SERVE_ARGS)

tour: $(VENV)/.m27-run ## a tour: talks, sees, draws, hears and sounds (writes out/tour/index.html)
	$(BIN)/m27 tour

test: $(VENV)/.m27-dev lint ## style, types and the default test suite (under ten minutes on two cores)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.m27-dev ## ruff and mypy alone
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.m27-dev ## sort imports and apply ruff's safe fixes
	$(BIN)/ruff check --fix .

test-slow: $(VENV)/.m27-dev ## the tests that take minutes or need every weight
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

eval: $(VENV)/.m27-dev ## the table of the model card (needs ../shared/data or the named origins)
	$(BIN)/m27 eval nano

clean: ## removes what tests and lint leave behind; keeps .venv and downloads
	rm -rf out build .pytest_cache .ruff_cache .mypy_cache *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp each, so that a second run installs nothing; a change of what is installed installs again.
$(VENV)/.m27-run: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e '.[serve]'
	@touch $@

$(VENV)/.m27-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.m27-run
