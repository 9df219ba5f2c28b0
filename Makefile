# make demo    makes the environment .venv and runs the experiment "quickstart"
# make test    runs the default tests; those on real data too where WARDROUND_DATA says where it is
# make check   format, lint, types, tests, demo: what continuous integration runs
# make notebook  executes the course notebook and its hidden answers, into build/course
# make slow    runs the tests that take more than half a minute
# make format  formats the code
# make docs    writes docs/reference/ again from the code
# make clean   removes .venv and what the tools left behind; runs/ stays
#
# PYTHON=/path/to/python3 chooses the interpreter, 3.11 or newer.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -I -m pip install --disable-pip-version-check -c constraints.txt
# Stamps: the environment is renewed when one of the files that describe it changes.
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
DESCRIPTION := setup.cfg pyproject.toml constraints.txt
DEFAULT_TESTS := -m "not slow and not gpu"

# $(call step,NAME,COMMAND): runs a command and says how long it took.
step = @echo "== $(1)"; start=$$(date +%s); $(2) || exit 1; echo "== $(1): $$(($$(date +%s) - start)) s"

.PHONY: help venv demo test check notebook slow format docs clean
.DELETE_ON_ERROR:

help:
	@sed -n '/^# make/s/^# //p' Makefile

venv: $(DEV)

demo: $(RUNTIME)
	$(BIN)/wardround run quickstart

test: $(DEV)
	$(BIN)/pytest $(DEFAULT_TESTS)

check: $(DEV)
	$(call step,format,$(BIN)/ruff format --check .)
	$(call step,lint,$(BIN)/ruff check .)
	$(call step,types,MYPYPATH=.typing $(BIN)/mypy -p wardround)
	$(call step,tests,$(BIN)/pytest $(DEFAULT_TESTS))
	$(call step,demo,rm -rf build/demo && $(BIN)/wardround run quickstart --out build/demo)

notebook: $(DEV)
	$(call step,notebook,$(BIN)/python -I docs/course/execute.py --out build/course)

slow: $(DEV)
	$(BIN)/pytest -m slow

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DEV)
	$(BIN)/python -I docs/make_reference.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find aggregators clients datasets simulator tests -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "expected Python 3.11 or newer, got '$(PYTHON)': install one or give PYTHON=/path/to/python3" >&2; exit 1; }
	"$(PYTHON)" -I -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(RUNTIME): $(DESCRIPTION) | $(BIN)/python
	$(PIP_INSTALL) -e .
	@touch $@

$(DEV): $(RUNTIME)
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@
