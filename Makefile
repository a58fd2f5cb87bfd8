# The commands a newcomer types; more in README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
TESTS := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal
PEERS := .peers-venv
STORES := .stores-venv
PURELIB := -c "import sysconfig; print(sysconfig.get_path('purelib'))"
SHELL := /bin/bash

.PHONY: setup train test test-all test-cluster peers stores docs lint clean

setup: $(READY)  ## create the environment in .venv; safe to repeat

$(READY): pyproject.toml setup.py requirements.txt requirements-dev.txt requirements-report.txt requirements-dashboard.txt requirements-hf.txt requirements-onnx.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[dev,report,dashboard,hf,onnx]'
	touch $@

train: setup  ## the demo: a LIMoE with its experts on two processes
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node 2 -m trainer.train experiment=demo $(ARGS)

test: setup  ## quick tests
	$(TESTS) -m "not slow and not cluster" $(ARGS)

test-all: setup  ## the quick tests, and those that start several processes
	$(TESTS) -m "not cluster" $(ARGS)

test-cluster: setup  ## jobs of a real SLURM, started on this machine (root; Debian); skipped where that is impossible
	OMP_NUM_THREADS=1 $(BIN)/pytest -m cluster tests/cluster $(ARGS)

peers: $(PEERS)/.ready  ## CLIP_benchmark and open_clip beside our own packages; tests/peers needs them

$(PEERS)/.ready: $(READY) requirements-open-clip.txt requirements-tokenizers.txt requirements-clip-benchmark.txt
	$(BIN)/python -m venv $(PEERS)
	echo "import site; site.addsitedir('$$($(BIN)/python $(PURELIB))')" > $$($(PEERS)/bin/python $(PURELIB))/limoe.pth
	$(PEERS)/bin/pip install --quiet -r requirements-open-clip.txt -r requirements-tokenizers.txt -r requirements-clip-benchmark.txt
	touch $@

stores: $(STORES)/.ready  ## what reads s3:// and a server that answers so, beside our own packages; tests/stores needs them

$(STORES)/.ready: $(READY) requirements-s3.txt requirements-stores.txt
	$(BIN)/python -m venv $(STORES)
	echo "import site; site.addsitedir('$$($(BIN)/python $(PURELIB))')" > $$($(STORES)/bin/python $(PURELIB))/limoe.pth
	$(STORES)/bin/pip install --quiet -r requirements-s3.txt -r requirements-stores.txt
	touch $@

docs: setup  ## docs/configuration.md, from the schema and conf/
	$(BIN)/python -m trainer.config.document > docs/configuration.md

lint: setup  ## ruff and mypy
	@unlinted=$$(comm -23 <(git ls-files '*.py' | sort) <($(BIN)/ruff check . --show-files | sed "s#^$$PWD/##" | sort)); \
	if [ -n "$$unlinted" ]; then echo "error: ruff skips tracked files (does .gitignore hide them?):" $$unlinted >&2; exit 1; fi
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:  ## remove the tools' caches; runs/ and .venv stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
