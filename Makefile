# Every target sets up what it needs. PYTHON=python3.12 chooses the interpreter of a new .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.loracle-ready
# Nothing here needs the hub: a test or the demo that asked for it would fail at once in place of hanging.
OFFLINE := HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow notebooks lint format docs bench bench-cpu clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## make .venv with everything in it

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "loracle needs Python 3.11 or 3.12: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) (once; a few minutes where torch has to be downloaded)"
	@$(BIN)/python -m pip install --quiet --quiet --upgrade pip || echo "pip stays as it is"
	@$(BIN)/python -m pip install --quiet --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## a complete study on the built-in model and task; ends with the path of its report
	@$(OFFLINE) $(BIN)/loracle demo

test: $(READY)  ## the tests (no network, no GPU), on all cores
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal --durations 15

test-slow: $(READY)  ## the tests that take minutes
	$(OFFLINE) $(BIN)/python -m pytest -m slow

notebooks: $(READY)  ## execute the notebooks as they stand (minutes)
	$(OFFLINE) $(BIN)/python -m pytest -m slow tests/notebooks

lint: $(READY)  ## ruff, mypy, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## let ruff write what lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## write docs/study.md anew from the study file's types
	$(BIN)/python tools/study_reference.py

bench-cpu: $(READY)  ## benchmarks that need no GPU: cohorts, agreement with PEFT, and a trial of the step benchmark
	$(OFFLINE) $(BIN)/python benchmarks/cohort_cpu.py
	$(OFFLINE) $(BIN)/python benchmarks/agreement_cuda.py --device cpu --no-random --steps 50
	$(OFFLINE) $(BIN)/python benchmarks/steps_cuda.py --device cpu --tiny --members 1 4 --out runs/bench-trial

# ARGS=--quick shortens all; DATA (Alpaca's file), TOKENIZER (GPT-2's folder) and UNSLOTH_SITE (a folder with unsloth) are optional.
BENCHES := steps agreement ledger memory_table study crossover sensitivity unsloth
ARGS ?=
STUDY_ARGS := $(if $(DATA),--data $(DATA)) $(if $(TOKENIZER),--tokenizer $(TOKENIZER))
UNSLOTH_ARGS := $(if $(UNSLOTH_SITE),--unsloth-site $(UNSLOTH_SITE))

bench: $(READY)  ## the whole comparison on a CUDA GPU: dated tables and figures in benchmarks/
	@$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || \
	  { echo "no CUDA GPU here: make bench-cpu runs what needs none"; exit 1; }
	@failed=; for name in $(BENCHES); do \
	  case $$name in study) more="$(STUDY_ARGS)";; unsloth) more="$(UNSLOTH_ARGS)";; *) more=;; esac; \
	  echo "benchmarks/$${name}_cuda.py $(ARGS) $$more"; \
	  $(OFFLINE) $(BIN)/python benchmarks/$${name}_cuda.py $(ARGS) $$more || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "not as it should be:$$failed"; exit 1; }

clean:  ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find src tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
