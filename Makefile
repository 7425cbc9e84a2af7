# `make demo` and `make test` start from nothing: they need Python 3.11 or later, and make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Pinned, and installed before all else: unpinned, pip resolves to the newest build it finds, which
# on Linux brings several gigabytes of CUDA packages. For a CPU build, tell pip where to find one by
# its own settings (PIP_INDEX_URL, pip.conf).
TORCH ?= torch==2.13.0
JOBS ?= 2
# Of `make test-processors` and `make compat`: the shares of the tests and of the laws (a tenth of them
# for processors, all for versions of torch), which ones, and where to write the page of the docs.
SHARE ?= 1
LAW_SHARE ?=
SEED ?= 0
TABLE ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# What one process has compiled, the next need not: tests start many.
unexport PYTHONDONTWRITEBYTECODE

# The tests run side by side: one thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

.DEFAULT_GOAL := help
.PHONY: help install demo demo-short laws test test-slow test-processors test-clients test-geotorch promises compat catalogue architecture pages accuracy scale lint format types docs bench bench-gate yardsticks coverage notebooks clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(READY) ## a virtual environment in .venv with everything in it

# The stamp says that the environment was built from this pyproject.toml.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet "$(TORCH)" --editable ".[dev]"
	@touch $@

demo: $(READY) ## the main job: both experiments, in full
	$(BIN)/python -m constrained run examples/memory.yaml examples/pixels.yaml

demo-short: $(READY) ## the same for two epochs
	$(BIN)/python -m constrained run --epochs 2 examples/memory.yaml examples/pixels.yaml

test: $(READY) ## the tests that take seconds
	$(PYTEST) -m "not slow"

test-slow: $(READY) ## the others: several processes, compilers, thousands of steps
	$(PYTEST) -m slow

laws: $(READY) ## the laws on one constraint: NAME=sphere, or package.module:Class [SLOW=1]
	OMP_NUM_THREADS=1 $(BIN)/python -m constrained.testing "$(NAME)" $(if $(SLOW),--slow)

test-processors: $(READY) ## the tests under other processors' instructions
	$(BIN)/python -m tests.library.processors --jobs $(JOBS) --share $(SHARE) --law-share $(or $(LAW_SHARE),0.1) \
		--seed $(SEED) $(if $(TABLE),--table $(TABLE))

# Libraries that people use constrained models with, in an environment of their own beside .venv.
CLIENTS := .clients/venv

$(CLIENTS)/.ready: clients/requirements.txt pyproject.toml
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --requirement clients/requirements.txt
	$(CLIENTS)/bin/python -m pip install --quiet --no-deps --editable .
	@touch $@

test-clients: $(CLIENTS)/.ready ## the libraries that train, save and serve constrained models
	cd clients && OMP_NUM_THREADS=1 ../$(CLIENTS)/bin/python -m pytest

test-geotorch: $(CLIENTS)/.ready ## geotorch's own tests on both engines: GEOTORCH=its checkout
	$(CLIENTS)/bin/python clients/geotorch_suite.py "$(GEOTORCH)"

coverage: $(READY) ## which branches the tests reach that take seconds, into docs/coverage.md
	OMP_NUM_THREADS=1 $(BIN)/python docs/coverage.py --jobs $(JOBS) --share $(SHARE) \
		--law-share $(or $(LAW_SHARE),0.25)

promises: $(READY) ## run the engine's promises, slow ones too, and write docs/engine.md
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.promises --slow --jobs $(JOBS) --table docs/engine.md

# An environment for each version, beside .venv. What caps torch on this machine caps nothing here.
COMPAT_TORCH = $(patsubst torch==%,%,$(TORCH))
COMPAT_PYTHON = $(shell $(PYTHON) -c 'import sys; print("py%d.%d" % sys.version_info[:2])')
COMPAT = .compat/$(COMPAT_TORCH)-$(COMPAT_PYTHON)

compat: ## laws, promises and tests under another torch: TORCH=2.11.0 [PYTHON=python3.12] [SHARE=0.1]
	test -x $(COMPAT)/bin/python || $(PYTHON) -m venv $(COMPAT)
	PIP_CONSTRAINT=/dev/null $(COMPAT)/bin/python -m pip install --quiet \
		"torch==$(COMPAT_TORCH)" --editable ".[dev]"
	OMP_NUM_THREADS=1 $(COMPAT)/bin/python docs/compatibility.py --share $(SHARE) \
		--law-share $(or $(LAW_SHARE),1) --seed $(SEED)

catalogue: $(READY) ## write docs/catalogue/ from the docstrings, and draw its pictures
	OMP_NUM_THREADS=1 $(BIN)/python docs/pictures.py
	OMP_NUM_THREADS=1 $(BIN)/python docs/catalogue.py

architecture: $(READY) ## draw docs/architecture.svg from the imports
	$(BIN)/python docs/architecture.py

pages: $(READY) $(CLIENTS)/.ready ## run the code of the pages, and write in what it prints: PAGES="docs/faq.md"
	$(BIN)/python docs/pages.py $(PAGES)
	$(CLIENTS)/bin/python docs/pages.py $(PAGES)

accuracy: $(READY) ## measure optima and right inverses, and write docs/accuracy.md
	OMP_NUM_THREADS=1 $(BIN)/python docs/accuracy.py

scale: $(READY) ## measure what a step of several processes costs, and write docs/scale.md
	OMP_NUM_THREADS=1 $(BIN)/python docs/scale.py

lint: $(READY) ## ruff, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY) ## ruff, fixing what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(READY) ## pyright
	$(BIN)/pyright

docs: $(READY) ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(READY) ## the benchmarks, and their tables and pictures in the documents
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.report

yardsticks: $(READY) ## problems with known optima, every method on each, into docs/yardsticks.md; FULL=1 tunes
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks yardsticks
	$(BIN)/python -m benchmarks.report

# GROUPS are those of benchmarks/gate.py by default; SLOWER is the share by which a row may be.
GROUPS ?=
SLOWER ?= 0.1

bench-gate: $(READY) ## measure again: is a row slower than the committed ones? GROUPS="reading training" SLOWER=0.1
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gate $(GROUPS) --slower $(SLOWER)

notebooks: $(READY) ## execute the notebooks; in full with FULL=1
	OMP_NUM_THREADS=1 $(BIN)/python notebooks/run.py $(NOTEBOOKS_INTO)

clean: ## all that make and the tools have made
	rm -rf $(VENV) .compat .clients runs site build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
