# SPDX-License-Identifier: AGPL-3.0-or-later
# `make help` lists what can be done here.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

ROOT ?= var
LISTEN ?= 127.0.0.1:8006
NODE ?= orrery
# Arguments for pytest, as in: make test PYTEST="tests/unit/store -k lease"
PYTEST ?= tests
# How many tests run at once.
WORKERS ?= 2

BIN := .venv/bin

# Tests that need a process without other threads run first, by themselves; there may be none among those chosen.
run-tests = $(BIN)/pytest -q -m '($(1)) and alone' $(PYTEST) || [ $$? = 5 ]; \
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m '($(1)) and not alone' $(PYTEST)

##@ Use it

.PHONY: run
run: setup ## Start a node on LISTEN (127.0.0.1:8006) with state under ROOT (./var), and a demonstration guest
	@exec $(BIN)/python -m orrery.demo.run --root '$(ROOT)' --listen '$(LISTEN)' --node-name '$(NODE)' --cache build/demo

.PHONY: down
down: ## Stop the node under ROOT, its guests and its network
	@if [ -d '$(ROOT)' ]; then packaging/setup.sh; $(BIN)/orrery down --root '$(ROOT)'; fi

.PHONY: clean
clean: down ## Stop everything and remove what was made here: state, downloads, images, the virtual environment
	@packaging/clean.sh '$(ROOT)'

##@ Work on it

.PHONY: setup
setup: ## Install what a node needs and lacks: Debian packages, the account, the virtual environment
	@packaging/setup.sh

.PHONY: setup-test
setup-test: ## The same, with what checks and tests need
	@packaging/setup.sh --test

.PHONY: test
test: lint types layers rules ## All checks and the tests, without the slow ones (at most 15 minutes)
	@$(call run-tests,not slow)

.PHONY: test-all
test-all: lint types layers rules ## All checks and all tests
	@$(call run-tests,slow or not slow)

.PHONY: lint
lint: setup-test ## Style and the layout of the code (ruff)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.PHONY: types
types: setup-test ## Types (mypy --strict)
	$(BIN)/mypy

.PHONY: layers
layers: setup-test ## Who may import whom (import-linter)
	$(BIN)/lint-imports --no-logo

.PHONY: rules
rules: setup-test ## The rules of the house: lengths, names, licences
	$(BIN)/python packaging/house_rules.py
	$(BIN)/python packaging/licences.py

.PHONY: bench
bench: setup ## Measure a node on this machine (BENCH="lists memory" measures some); see bench/README.md
	@$(BIN)/python -m bench $(BENCH)

.PHONY: docs
docs: setup ## Write the reference pages, docs/reference, from the code
	$(BIN)/python packaging/reference.py

.PHONY: changelog
changelog: setup-test ## Show what the next version's part of the changelog would be, from changes/
	@$(BIN)/towncrier build --draft

.PHONY: format
format: setup-test ## Rewrite the code in the common style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: lock
lock: ## Write uv.lock anew from pyproject.toml (UPGRADE=1 takes newer versions)
	@packaging/setup.sh --uv
	UV_CACHE_DIR=$${UV_CACHE_DIR:-build/uv} .venv/uv/bin/uv lock $(if $(UPGRADE),--upgrade)
	.venv/uv/bin/uv pip compile -q --generate-hashes --no-header --no-annotate packaging/uv-requirements.in \
		-o packaging/uv-requirements.txt

.PHONY: image
image: setup ## Build the demonstration guest's disk image: build/demo/demo.qcow2
	@$(BIN)/python -m orrery.demo.image --cache build/demo --output build/demo/demo.qcow2

##@ Help

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} \
		/^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'Variables: ROOT=var LISTEN=127.0.0.1:8006 NODE=orrery PYTEST="tests"'
