PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
  --no-loadscope-reorder

.PHONY: help install demo test test-quick fuzz lint clean

help:
	@echo "make demo   train an ANN and a 4-bit student on digits (about 4 minutes after installing)"
	@echo "make test   run the tests (make test-quick: without those that take longer than 10 s)"
	@echo "make fuzz   10,000 damaged artifacts and 2,000 checkpoints, each of which must be refused;"
	@echo "            1,000 random graphs in the native engine"
	@echo "make lint   ruff, mypy, and that imports point one way"
	@echo "make clean  remove .venv and caches"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt $(wildcard native/*.txt native/*/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Python's venv module is missing: sudo apt-get install python3-venv, then make again"; exit 1; }
	@rm -f src/qsdformer/runtimes/libqsd.*  # not an older one where this build fails
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed \
	  --constraint constraints.txt --editable ".[dev,export,hardware,plots,segmentation,tensorboard]"
	# Tests compare with SpikingJelly's counter, which needs none of its other dependencies.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt spikingjelly loguru
	@$(BIN)/python -c 'from qsdformer.runtimes import native; \
	  why = native.absence(); print(f"note: {why}; then rm $@ and make again") if why else None'
	@touch $@

demo: install
	$(BIN)/qsd quickstart

test: install
	$(PYTEST)

test-quick: install
	$(PYTEST) -m "not slow"

fuzz: install
	QSD_FUZZ_MUTANTS=10000 $(BIN)/python -m pytest tests/graph/test_artifact_fuzz.py
	QSD_FUZZ_MUTANTS=10000 $(BIN)/python -m pytest tests/runtimes/test_native_build.py -k mutants
	QSD_NATIVE_GRAPHS=1000 $(BIN)/python -m pytest tests/runtimes/test_native.py -k random_graphs
	QSD_FUZZ_MUTANTS=2000 $(BIN)/python -m pytest tests/models/test_checkpoint_fuzz.py

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

clean:
	rm -rf $(VENV) build dist src/qsdformer/runtimes/libqsd.* .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -exec rm -rf {} +
