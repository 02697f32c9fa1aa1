# Each target sets itself up: a .venv from requirements.txt, made once and reused until that file changes.
#   make run    the three notebooks into build/ (minutes)         make test   the tests
#   make full   the same, training everything again (a day)       make lint   ruff
#   make bench  side-by-side timings, on a quiet machine          make clean  what the others made (not data/, not runs/)
# DATA=sketches runs on synthetic drawings, DATA=auto (default) on the photos where they are or can be fetched.

DATA ?= auto
NOTEBOOKS ?=
PYTEST_ARGS ?=
# a process of tests for each core, four at most; whole files, so that what a file's tests share is made once
PARALLEL := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
SUPPORTED := import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
# the first interpreter of a supported version; PYTHON=… overrides
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c '$(SUPPORTED)' >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := .venv/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup run full test lint format bench tables clean

help:
	@sed -n '2,4p' Makefile | sed 's/^# *//'

setup: .venv/.ready

.venv/.ready: requirements.txt
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11, 3.12 or 3.13 found (TensorFlow 2.21 has no build for others);" \
		"install one, or name it: make $(firstword $(MAKECMDGOALS)) PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "make: $(PYTHON) is not Python 3.11, 3.12 or 3.13"; exit 1; }
	@echo "setting up .venv with $$($(PYTHON) --version): about 3 GB on disk, two to ten minutes, once"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv || { echo "make: could not create .venv;" \
		"on Debian and Ubuntu install the package python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -r requirements.txt
	@touch $@

run: .venv/.ready
	@$(BIN)/python -m study notebooks --data $(DATA) $(NOTEBOOKS)

full: .venv/.ready
	@$(BIN)/python -m study notebooks --retrain --data $(DATA) $(NOTEBOOKS)

test: .venv/.ready
	@$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

lint: .venv/.ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: .venv/.ready
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# bench_old_runtimes needs a Python 3.8 and 10 GB of old wheels: only when asked for by name
bench: .venv/.ready
	@for script in $(filter-out benchmarks/bench_old_runtimes.py,$(wildcard benchmarks/bench_*.py)); do echo "== $$script"; $(BIN)/python -m benchmarks.$$(basename $$script .py) || exit 1; done

tables: .venv/.ready
	@$(BIN)/python -m study tables

clean:
	rm -rf build .pytest_cache .ruff_cache .hypothesis .venv
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
