# `make demo` and `make test` are all a newcomer needs. .venv is kept until the requirements change.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-examples lint types check docs docs-links wheel lowest

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("rankgap needs Python 3.11 or later") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/rankgap demo

# A process for each core, so each takes one thread; a module's tests share what they have trained.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile

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
	$(BIN)/zizmor --offline --no-progress --quiet --strict-collection .github
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema custom.github-workflows-require-timeout .github/workflows/*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[0-9]*.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.citation-file-format CITATION.cff

types: install
	$(BIN)/mypy

check: lint types test

# The documentation site, in docs/_build/html.
docs: install
	$(BIN)/python -m sphinx -W --keep-going -q -c docs . docs/_build/html

# Its links to other sites, which need a network.
docs-links: install
	$(BIN)/python -m sphinx -W --keep-going -q -D nb_execution_mode=off -b linkcheck -c docs . docs/_build/links

# The wheel and the sdist in dist/, and the wheel in use in a fresh environment.
wheel: install
	PYTHON=$(PYTHON) .ci/wheel

# The tests with the lowest versions that pyproject.toml allows, in their own environment.
lowest: .venv-lowest/installed
	.venv-lowest/bin/python -m pytest -W default -m 'not slow'

.venv-lowest/installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt \
		--editable '.[train,export,notebook]' pytest hypothesis playwright nbclient
	touch $@
