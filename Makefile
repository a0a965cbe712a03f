# `make demo` and `make test` are all a newcomer needs. .venv is kept until the requirements change.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-examples lint types check

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("rankgap needs Python 3.11 or later") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/rankgap demo

test: install
	$(BIN)/python -m pytest

# The examples with the real peer libraries, in their own environment: one of them changes every Lightning trainer.
test-examples: .venv-examples/installed
	.venv-examples/bin/python -m pytest tests/test_examples.py

.venv-examples/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-examples
	.venv-examples/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[dev,examples]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

check: lint types test
