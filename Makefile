# The house's commands. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LOWEST := $(VENV)/lowest

# The tests start hundreds of processes; without bytecode each of them compiles torch and Dagster again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo ui test slow test-browser test-lowest guarantees audit bench coverage docs dist release check lint types \
  imports format clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## *' '{printf "  make %-12s %s\n", $$1, $$2}'

$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing ccassets and its libraries into $(VENV) (torch is large: this takes a while once) ..."
	@$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(INSTALLED)  ## build and validate the demo study; print its path
	@database=$$($(BIN)/ccassets build demo) && \
	$(BIN)/ccassets validate "$$database" --study demo && \
	echo && echo "Database:  $$database" && \
	echo "Open it:   $(BIN)/ccassets info \"$$database\"" && \
	echo "Atlas:     $$(dirname "$$database")/analysis/concept_atlas.html" && \
	echo "See it:    $(BIN)/ccassets ui    (then http://127.0.0.1:3000)"

ui: $(INSTALLED)  ## start the Dagster UI on loopback
	@$(BIN)/ccassets ui

test: $(INSTALLED)  ## run the tests
	@$(BIN)/python -m pytest -q -m "not slow and not browser" -n auto --dist loadfile --durations=10

slow: $(INSTALLED)  ## run the long tests: notebooks, pages, builds, the daemon
	@$(BIN)/python -m pytest -q -m slow

test-browser: $(INSTALLED)  ## press the buttons of the UI in Chromium (/usr/bin/chromium)
	@$(BIN)/python -m pytest -q -m "browser and not slow"

test-lowest:  ## run the tests with the oldest allowed libraries
	@$(PYTHON) -m venv $(LOWEST) && $(LOWEST)/bin/python -m pip install --quiet uv 'setuptools>=78.1.1'
	@$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct -e '.[dev]'
	@$(LOWEST)/bin/python -m pytest -q -m "not slow and not browser" -n auto --dist loadfile $(TESTS)

guarantees: $(INSTALLED)  ## try to break every guarantee (hours; `SHORT=1`: minutes)
	@$(BIN)/python -m ccassets_tests.campaigns $(if $(SHORT),--short)

audit: $(INSTALLED)  ## look up known vulnerabilities of what is installed (network)
	@$(PYTHON) -m venv $(VENV)/audit && $(VENV)/audit/bin/python -m pip install --quiet pip-audit
	@$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/audit/installed.txt
	@$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r $(VENV)/audit/installed.txt

bench: $(INSTALLED)  ## measure every stage (minutes; `SIZE=small` only tries it)
	@$(BIN)/python -m benchmarks $(if $(SIZE),--size $(SIZE))

coverage: $(INSTALLED)  ## measure how often intervals are right (ten minutes)
	@$(BIN)/python -m benchmarks.coverage

docs: $(INSTALLED)  ## build the docs site into build/site; dead links are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet && echo "Open build/site/index.html"

dist: $(INSTALLED)  ## build wheel and sdist into dist/, and try the wheel
	@rm -rf dist build/wheel && mkdir -p build
	@$(BIN)/python -m build --no-isolation > build/dist.log || { cat build/dist.log; false; }
	@$(BIN)/python -m pip install --quiet --no-deps --target build/wheel dist/*.whl
	@git ls-files ccassets | (cd build/wheel && xargs ls) > /dev/null
	@cd build/wheel && PYTHONPATH=$$PWD $(abspath $(BIN))/python -m ccassets.cli --version

release:  ## check, build wheel and sdist, say what is left to do
	@.ci/release

check: lint types imports  ## lint, types and import rules

lint: $(INSTALLED)  ## ruff: rules and formatting
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(INSTALLED)  ## mypy, strict on the library
	@$(BIN)/mypy

imports: $(INSTALLED)  ## the import rules
	@$(BIN)/lint-imports

format: $(INSTALLED)  ## let ruff mend and format
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:  ## remove the virtual environment and caches, never data
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
