# make setup | demo | test | test-faults | test-browser | test-gpu | notebooks | bench | bench-peers | export-setup | lint | options | lock | help
SHELL := /bin/bash
PYTHON ?= python3
UV_VERSION := 0.13.9
VENV := .venv
PEERS := .venv-peers
EXPORT := .venv-export
BIN := $(VENV)/bin
PHOTOS ?=
DATA ?=
DEMO := demo-output
# Make would take a $ in a folder's name for one of its variables.
override PHOTOS := $(value PHOTOS)
override DATA := $(value DATA)
export PHOTOS DATA
# Files of tests run side by side, in the order of the folders: those that start Ray and wait come first. On two CPUs a
# third process makes the fault tests a little faster, but on a slow machine Ray then takes longer to start than it allows.
BY_FILES := --dist loadfile --no-loadscope-reorder
# The tests start a hundred processes. Each would compile the modules again if the environment forbids to keep them.
TEST := PYTHONDONTWRITEBYTECODE= CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -q $(BY_FILES)

.PHONY: help setup demo test test-faults test-browser test-gpu notebooks bench bench-peers export-setup lint options lock clean
.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## make .venv, install what requirements.lock pins, and the facelake command

# uv pip sync removes what the lock does not name, so the project itself is installed after it.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "facelake needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1); name another with make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); echo "the venv module is missing; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@$(BIN)/python -c 'import cv2' || { \
	  echo "OpenCV needs a library that this system lacks (named above); on Debian and Ubuntu: apt-get install libgl1 libglib2.0-0"; exit 1; }
	@touch $@

demo: setup ## find the faces on two photos, or on make demo PHOTOS=folder
	@photos="$$PHOTOS"; test -e "$$photos" || photos="$${photos/#'~/'/$$HOME/}"; \
	  test -n "$$photos" || photos="$$($(BIN)/python -c 'import importlib.util as u; print(u.find_spec("ultralytics").submodule_search_locations[0])')/assets"; \
	  $(BIN)/facelake extract --overwrite --preview $(DEMO)/preview.html -- "$$photos" $(DEMO)
	@echo
	@echo "Parquet:  $$PWD/$(DEMO)/{faces,images}/*.parquet"
	@echo "Preview:  $$PWD/$(DEMO)/preview.html"

test: setup ## run the tests that need no GPU and no browser
	@$(TEST) -n 2 -m 'not gpu and not browser' --durations=10

test-faults: setup ## break runs for real: kills, lost nodes, full disks, a failing S3; 20 to 30 minutes
	@$(TEST) -n 2 tests/faults --durations=10

test-browser: setup ## show the preview page to Chromium or Chrome; skipped without
	@$(BIN)/python -m pytest -q -rs -m browser tests

test-gpu: setup ## run the job on a CUDA device; skipped without
	@$(BIN)/python -m pytest -q -rs -m gpu tests

notebooks: setup ## run the notebooks from start to end, on make notebooks PHOTOS=folder DATA=folder; writes nothing
	@$(BIN)/python notebooks/run.py

bench: setup ## measure the job beside its limit, a loop and other libraries, on make bench PHOTOS=folder BENCH="--rounds 5"
	@$(BIN)/python -m jobs.bench all $${PHOTOS:+"$$PHOTOS"} $(BENCH)

bench-peers: $(PEERS)/.installed ## make .venv-peers, the environment of the other libraries for make bench

$(PEERS)/.installed: requirements-peers.lock $(VENV)/.installed
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { \
	  echo "the other libraries need Python 3.11 or 3.12; name one with make bench-peers PYTHON=python3.12"; exit 1; }
	@$(BIN)/uv venv --quiet --allow-existing --python $$(command -v $(PYTHON)) $(PEERS)
	$(BIN)/uv pip sync --quiet --python $(PEERS)/bin/python --require-hashes requirements-peers.lock
	@touch $@

export-setup: $(EXPORT)/.installed ## make .venv-export, the environment of jobs.convert_weights quantise

$(EXPORT)/.installed: requirements-export.lock $(VENV)/.installed
	@$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(EXPORT)
	$(BIN)/uv pip sync --quiet --python $(EXPORT)/bin/python --require-hashes requirements-export.lock
	@touch $@

lint: setup ## check style, imports and types
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/mypy

options: setup ## write docs/options.md, the table of all options
	@$(BIN)/python -m jobs.options_table > docs/options.md

lock: $(VENV)/.installed ## resolve pyproject.toml into the three locks again
	@$(BIN)/uv pip compile --quiet pyproject.toml --universal --python-version 3.11 --extra heif --extra train --group dev \
	  --generate-hashes --no-emit-index-url --no-header --output-file requirements.lock
	@for group in peers export; do \
	  $(BIN)/uv pip compile --quiet --group $$group --universal --python-version 3.11 \
	    --generate-hashes --no-emit-index-url --no-header --output-file requirements-$$group.lock || exit; done

clean: ## remove what make demo and the tests left
	rm -rf $(DEMO) .pytest_cache .ruff_cache
