# Everything sets itself up in .venv; nothing but python3 (3.10 or later) is needed.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
PHOENIX ?= .venv-phoenix
BIN := $(VENV)/bin
# Hundreds of processes import the package, and each would compile it again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup docs test coverage test-telemetry test-stack matrix matrix-ends lint layers types demo telemetry-demo bench-startup hooks changelog \
	changelog-draft release-check native wheels test-qemu clean

help:
	@echo "make demo    run the example under syncagent (on the GPU, or on the simulated device)"
	@echo "make telemetry-demo   the same through a Collector, with its traces in Jaeger and Phoenix and its metrics in Prometheus"
	@echo "make test    all tests that need no GPU, as many at once as there are cores"
	@echo "make coverage   which lines and branches the unit tests reach; fails below the floor in pyproject.toml"
	@echo "make test-telemetry  those of telemetry, with 8 ranks at 1,000 syncs a second each for three minutes"
	@echo "make test-stack   the agent with a real Collector, Jaeger, Phoenix and Prometheus"
	@echo "make matrix   all tests on every supported torch and Python, and with the lowest versions of all dependencies (hours)"
	@echo "make matrix-ends   of these, the simulated device, sensors, faults and demo on the oldest and the newest torch"
	@echo "make docs    the documentation site, in site/"
	@echo "make lint    ruff, and layers: which room of the package may import which;  make types: mypy --strict"
	@echo "make hooks   have each commit checked;  make changelog VERSION=1.2.0: CHANGELOG.md from the fragments in news/"
	@echo "make native  compile the native library again after a change of its sources, as every target here does first"
	@echo "make wheels   what a release consists of, in dist/;  make release-check TAG=v1.2.0: can this checkout be released?"
	@echo "make test-qemu   the native library's own tests on aarch64, under qemu"
	@echo "make bench-startup   how long an interpreter takes to start with and without SYNCAGENT=1"

# If torch is installed already (in the image of a GPU machine), it is used: a second one would take gigabytes.  Packages of an
# activated virtual environment are not visible from another one, so the new environment decides.
$(VENV)/.ready: pyproject.toml constraints.txt hatch_build.py syncagent_autostart.pth
	@if $(PYTHON) -c "import torch" 2>/dev/null; then shared=--system-site-packages; fi; \
	$(PYTHON) -m venv $$shared $(VENV)
	@$(BIN)/python -c "import torch" 2>/dev/null || \
	$(BIN)/pip install --quiet --disable-pip-version-check numpy $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

# Installing the package has compiled the native library once; here it is compiled with warnings as errors, and again after
# each change. Where there is no C compiler, this says so, and the tests that need the library are skipped.
$(VENV)/.native: $(VENV)/.ready $(wildcard syncagent/native/build.py syncagent/native/src/*.[ch] syncagent/native/src/*/*.[ch])
	$(BIN)/python syncagent/native/build.py
	@touch $@

native: $(VENV)/.native

setup: native

# One worker per core. A file stays with one worker, since its tests share processes that are expensive to start; whole scripts
# come first, since they take longest. WORKERS=0 runs all in this one process, ARGS are pytest's own.
WORKERS ?= auto
TESTS ?= tests/integration tests/native tests/unit
test: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS) $(TESTS)

# The unit tests, measured: they take half as long again. CI runs this, and `make test` for the whole scripts alone.
coverage: setup
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report= $(ARGS) tests/unit
	$(BIN)/coverage report

# What make test runs for seconds with two ranks; SOAK_RESULT=FILE.json keeps its figures.
test-telemetry: export SOAK_RANKS ?= 8
test-telemetry: export SOAK_RATE ?= 1000
test-telemetry: export SOAK_SECONDS ?= 180
test-telemetry: setup
	$(BIN)/python -m pytest tests/integration/telemetry tests/unit/telemetry

# The tests of what cannot be installed are skipped, with the reason. Each file has servers of its own, and mostly waits for them.
test-stack: setup
	@otel/local/install.sh "$(PYTHON)" "$(abspath $(PHOENIX))" || true
	SYNCAGENT_PHOENIX="$(abspath $(PHOENIX))" $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS) tests/stack

# Each session has its own environment in .nox, 5 GB with a torch for CUDA; ENDS names other sessions.
matrix: setup
	$(BIN)/nox

ENDS ?= sim_oldest sim_newest
matrix-ends: setup
	$(BIN)/nox --error-on-missing-interpreters -s $(ENDS)

# The site, in site/; a link that leads nowhere, or a page that is not in the table of contents, is an error.
docs: setup
	@$(BIN)/python -c "import material, mkdocstrings" 2>/dev/null || \
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: setup layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

layers: setup
	$(BIN)/lint-imports --no-logo

# Twice: for this Python, and for the oldest that is supported.
types: setup
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10

# Checks before each commit: .pre-commit-config.yaml runs the targets above.
hooks: setup
	$(BIN)/pre-commit install

# make changelog VERSION=1.2.0: the fragments in news/ become a section of CHANGELOG.md, and are deleted.
changelog: setup
	$(BIN)/towncrier build --yes --version "$(VERSION)"

changelog-draft: setup
	$(BIN)/towncrier build --draft --version next

# make release-check TAG=v1.2.0: can this checkout be released under this tag?
release-check: setup
	$(BIN)/python .ci/release_check.py "$(TAG)"

# sdist, manylinux wheels for both processors, and a wheel without the native library: see noxfile.py.
wheels: setup
	$(BIN)/nox -s wheels

# The native library on aarch64, under qemu; skipped, with what to install, where that is not there.
test-qemu: setup
	$(BIN)/nox -s aarch64

demo: setup
	@$(BIN)/python examples/demo.py

telemetry-demo: setup
	@otel/local/install.sh "$(PYTHON)" "$(abspath $(PHOENIX))" || true
	@SYNCAGENT_PHOENIX="$(abspath $(PHOENIX))" $(BIN)/python examples/telemetry_demo.py

bench-startup: setup
	$(BIN)/python tests/benchmarks/startup.py

clean:
	rm -rf $(VENV) $(PHOENIX) .nox .pytest_cache .mypy_cache .ruff_cache
