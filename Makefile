# Every target sets up what it needs; on a fresh machine only make and Python >= 3.11 are assumed.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.docs-installed
OLDEST := .venv-oldest
OLDEST_TESTS := tests/storage/test_saved.py tests/data tests/cli/test_verbs.py \
	tests/verbs/test_load.py tests/presets tests/request

.DELETE_ON_ERROR:
.PHONY: demo test test-oldest lint docs benchmark zoo clean distclean

demo: $(INSTALLED)
	$(BIN)/secateur demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m alone
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m standin -n 2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not alone and not standin' -n 2

# Run part of the tests with the lowest versions of all dependencies, in an environment of their own.
# It downloads a second torch, so continuous integration leaves it out.
test-oldest: $(OLDEST)/.installed
	PYTHONPATH=src OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest $(OLDEST_TESTS) \
		-m 'not alone and not standin and not slow and not gpu'

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

# The requirements with each lower bound as the version.
$(OLDEST)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m venv $(OLDEST)
	$(BIN)/python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))\
	['project']['dependencies'], sep='\n')" | sed 's/>=/==/' > $(OLDEST)/requirements.txt
	$(OLDEST)/bin/python -m pip install -r $(OLDEST)/requirements.txt \
		'pytest==8.3.*' 'hypothesis==6.100.*'
	@touch $@

# Apart from the others, since nobody else needs a site generator.
$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install -e '.[docs]'
	@touch $@

clean:
	rm -rf site build dist .pytest_cache .mypy_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(OLDEST)
