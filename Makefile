# Every target sets up what it needs; on a fresh machine only make and Python >= 3.11 are assumed.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.docs-installed

.DELETE_ON_ERROR:
.PHONY: demo test lint docs benchmark zoo clean distclean

demo: $(INSTALLED)
	$(BIN)/secateur demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m alone
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m standin -n 2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not alone and not standin' -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Build the documentation into site/; a warning is an error.
docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Produce every number quoted in the documentation.
benchmark: $(INSTALLED)
	@set -e; for script in benchmarks/[!_]*.py; do echo "$$script"; $(BIN)/python "$$script"; done

# Retrain the bundled model.
zoo: $(INSTALLED)
	$(BIN)/python -m secateur.zoo.train_digits

# The newest Python that runs and can make environments; a name on the path may be an empty shim.
$(BIN)/python:
	@for python in python3.13 python3.12 python3.11 python3; do \
		if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
			2>/dev/null; then exec $$python -m venv $(VENV); fi; \
	done; \
	echo "No Python >= 3.11 with venv and ensurepip on PATH: install one, then run make again." >&2; \
	exit 1

# One pip command, so that torch, torchvision and timm are resolved together.
$(INSTALLED): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install -e '.[dev,export,data,train,hf]'
	@touch $@

# Apart from the others, since nobody else needs a site generator.
$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install -e '.[docs]'
	@touch $@

clean:
	rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
