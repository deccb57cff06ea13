# make up      everything on this machine, ready to answer; make up ARGS="--help" tells what can be chosen
# make test    linters, types and all tests
# make bench   measured figures beside their budgets
# make lock    write the two lock files anew from pyproject.toml
# make system-packages   as root: the Debian packages that tests run (`make test` as root does it itself)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := up
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
# Test files at once: most of them wait for processes of their own.
JOBS ?= 3
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
PACKAGES := api workers shared compose
COMPILE := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --quiet

.PHONY: up test check bench lock system-packages clean

up: $(VENV)/up.stamp
	@exec $(BIN)/inferbase up $(ARGS)

test: $(VENV)/test.stamp node_modules/.package-lock.json check
	@infra/system_packages.sh --missing
ifeq ($(strip $(ARGS)),)
	@echo "pytest, $(JOBS) files at a time"
	@$(BIN)/python -m pytest -q --numprocesses $(JOBS) --dist loadfile --ignore tests/chaos
	@echo "pytest, one fault at a time"
	@$(BIN)/python -m pytest -q tests/chaos
else
	@echo "pytest"
	@$(BIN)/python -m pytest -q $(ARGS)
endif

check: $(VENV)/test.stamp
	@echo "ruff check";  $(BIN)/ruff check --quiet .
	@echo "ruff format"; $(BIN)/ruff format --quiet --check .
	@echo "mypy";        $(BIN)/mypy --no-error-summary $(foreach package,$(PACKAGES),-p $(package))

bench: $(VENV)/test.stamp
	@exec $(BIN)/python -m tests.bench $(ARGS)

lock: $(VENV)/test.stamp
	@$(PIP) install --quiet uv
	@$(COMPILE) --group build --output-file requirements.lock $(ARGS)
	@$(COMPILE) --group build --group test --constraints requirements.lock --output-file requirements-test.lock $(ARGS)
	@! grep -nE '://|^-|^torch' requirements.lock requirements-test.lock

system-packages:
	@infra/system_packages.sh

clean:
	@rm -rf $(VENV) node_modules build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

# The environment: made once, filled again only when its lock file changed. A stamp is written last, so that an
# interrupted installation is taken up again.

$(BIN)/python:
	@test -w . || { echo "make: this folder is not writable: copy it to one that is" >&2; exit 1; }
	@command -v $(PYTHON) > /dev/null || { echo "make: $(PYTHON) is missing: run  apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "make: $$($(PYTHON) --version) is too old: 3.11 or newer is needed, name it by  make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null \
		|| { echo "make: python3 cannot make environments: run  apt install python3-venv" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)

define install
	@echo "Installing the packages of $(1), checked by hash"
	@$(PIP) install --require-hashes -r $(1) \
		| sed -u -n -E '/^ *(Downloading|Using cached|Installing)/ { s/^ */  /; s/^(.{110}).+/\1 …/; p }'
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
endef

$(VENV)/up.stamp: requirements.lock pyproject.toml | $(BIN)/python
	$(call install,requirements.lock)

$(VENV)/test.stamp: requirements-test.lock pyproject.toml | $(BIN)/python
	$(call install,requirements-test.lock)
	@touch $(VENV)/up.stamp

# What tests run in Node.js: the openai SDK, and playwright-core (14 MB, brings no browser of its own: it drives Debian's
# chromium; the Python package would bring a second Node.js, 53 MB). node and npm come from the wheel in the test lock.
node_modules/.package-lock.json: package-lock.json package.json $(VENV)/test.stamp
	@echo "Installing the packages of package-lock.json"
	@$(BIN)/python -m tests.node npm ci --silent --no-audit --no-fund
	@touch $@
