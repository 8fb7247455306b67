# Each target is a line or two that call a tool; what they do is in that tool's files.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header

.PHONY: help install quickstart test test-fast lint format lock steps clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

$(BIN)/mlcore: docker/requirements/dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "mlcore needs Python 3.11 or newer: make PYTHON=python3.11 install")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r docker/requirements/dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

install: $(BIN)/mlcore  ## make .venv with everything for development

quickstart: install  ## the whole chain on a generated data set, with a report
	$(BIN)/python -m examples.quickstart

test: install lint  ## all checks and tests
	$(BIN)/pytest

test-fast: install  ## the tests that take seconds
	$(BIN)/pytest -m "not slow"

lint: install  ## style, types, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m steps.generate --check

format: install  ## put the code into the project's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

steps: install  ## write the generated parts of steps/ anew
	$(BIN)/python -m steps.generate

# The development set first: the others take its versions, so that images run what the tests ran.
lock:  ## resolve the requirement files with hashes from pyproject.toml
	$(LOCK) pyproject.toml docker/requirements/tensorflow.in --extra detection --extra dev -o docker/requirements/dev.txt
	$(LOCK) pyproject.toml -c docker/requirements/dev.txt -o docker/requirements/light.txt
	$(LOCK) pyproject.toml docker/requirements/tensorflow.in -c docker/requirements/dev.txt -o docker/requirements/tensorflow.txt
	$(LOCK) pyproject.toml docker/requirements/tensorflow.in --extra detection -c docker/requirements/dev.txt -o docker/requirements/detection.txt

clean:  ## remove what the targets made
	rm -rf build $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
