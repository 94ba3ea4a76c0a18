# Everything sets itself up in .venv; nothing but python3 (3.10 or later) is needed.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
PHOENIX ?= .venv-phoenix
BIN := $(VENV)/bin
# Hundreds of processes import the package: each would compile it anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup test test-units test-whole-scripts test-telemetry test-stack matrix matrix-ends lint layers types demo telemetry-demo bench-startup clean

help:
	@echo "make demo    run the example under syncagent (on the GPU, or on the simulated device)"
	@echo "make telemetry-demo   the same with its traces in Phoenix and its metrics in Prometheus, until Ctrl-C"
	@echo "make test    all tests that need no GPU"
	@echo "make test-telemetry  those of telemetry, with 8 ranks at 1,000 syncs a second each for three minutes"
	@echo "make test-stack   the agent with a real Phoenix and a real Prometheus"
	@echo "make matrix   all tests on every supported torch and Python, and with the lowest versions of all else (hours)"
	@echo "make matrix-ends   of these, the simulated device, sensors, faults and demo on the oldest and the newest torch"
	@echo "make lint    ruff, and layers: which room of the package may import which;  make types: mypy --strict"
	@echo "make bench-startup   what an interpreter pays with and without SYNCAGENT=1"

# Where torch is installed already (a GPU machine's image), that one is used: a second build would cost gigabytes.  The
# packages of an activated virtual environment are not seen from within another one, so what counts is the new one's word.
$(VENV)/.ready: pyproject.toml constraints.txt syncagent_autostart.pth
	@if $(PYTHON) -c "import torch" 2>/dev/null; then shared=--system-site-packages; fi; \
	$(PYTHON) -m venv $$shared $(VENV)
	@$(BIN)/python -c "import torch" 2>/dev/null || \
	$(BIN)/pip install --quiet --disable-pip-version-check numpy $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

setup: $(VENV)/.ready

# Two processes at once, about as long as each other; what each printed comes in one piece when it is done.
test: setup
	@$(MAKE) --no-print-directory --output-sync=target -j2 test-whole-scripts test-units

test-units: setup
	$(BIN)/python -m pytest tests/unit tests/integration/telemetry

test-whole-scripts: setup
	$(BIN)/python -m pytest tests/integration --ignore tests/integration/telemetry

# What make test runs for seconds with two ranks; SOAK_RESULT=FILE.json keeps its figures.
test-telemetry: export SOAK_RANKS ?= 8
test-telemetry: export SOAK_RATE ?= 1000
test-telemetry: export SOAK_SECONDS ?= 180
test-telemetry: setup
	$(BIN)/python -m pytest tests/integration/telemetry tests/unit/sinks

# What cannot be installed is said, and its tests are skipped.
test-stack: setup
	@otel/local/install.sh "$(PYTHON)" "$(abspath $(PHOENIX))" || true
	SYNCAGENT_PHOENIX="$(abspath $(PHOENIX))" $(BIN)/python -m pytest tests/stack

# Each session makes an environment of its own in .nox, 5 GB with a torch for CUDA; ENDS names other sessions.
matrix: setup
	$(BIN)/nox

ENDS ?= sim_oldest sim_newest
matrix-ends: setup
	$(BIN)/nox --error-on-missing-interpreters -s $(ENDS)

lint: setup layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

layers: setup
	$(BIN)/lint-imports --no-logo

# Twice: for this Python, and for the oldest that is supported.
types: setup
	$(BIN)/mypy
	$(BIN)/mypy --python-version 3.10

demo: setup
	@$(BIN)/python examples/demo.py

telemetry-demo: setup
	@otel/local/install.sh "$(PYTHON)" "$(abspath $(PHOENIX))" || true
	@SYNCAGENT_PHOENIX="$(abspath $(PHOENIX))" $(BIN)/python examples/telemetry_demo.py

bench-startup: setup
	$(BIN)/python tests/benchmarks/startup.py

clean:
	rm -rf $(VENV) $(PHOENIX) .nox .pytest_cache .mypy_cache .ruff_cache
