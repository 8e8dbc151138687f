# make demo | test | test-faults | check | check-pins | format | setup | clean
# Each target first installs the pinned packages into .venv if needed. VOLLEY_EXTRA=cuda selects the GPU stack.
PYTHON ?= python3
VOLLEY_EXTRA ?= cpu
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready-$(VOLLEY_EXTRA)
SOURCES := volley rollout rewards learner cluster tests benchmarks examples
# Tests that start Ray clusters, and those that share one engine in the test process, run one after another. All other
# tests run in two processes, one file at a time each.
SERIAL := tests/rollout tests/cluster/on_ray
PARALLEL := -n 2 --dist loadfile $(addprefix --ignore=,$(SERIAL))

.PHONY: setup demo test test-faults check check-pins format clean

setup: $(READY)

$(READY): $(wildcard requirements/*.txt) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Volley needs Python 3.11 or newer; this is %s. Set PYTHON=/path/to/python3.11" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@command -v c++ >/dev/null || { echo "Volley needs a C++ compiler (vLLM compiles kernels): install g++ or clang++" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(VOLLEY_EXTRA),cpu)
	$(BIN)/python -m pip install -q --no-deps -r requirements/cpu.txt -r requirements/dev.txt
else
	$(BIN)/python -m pip install -q -r requirements/$(VOLLEY_EXTRA).txt -r requirements/dev.txt
endif
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)
	$(BIN)/volley demo

test: $(READY)
	$(BIN)/python -m pytest -q -m "not faults" $(PARALLEL)
	$(BIN)/python -m pytest -q -m "not faults" $(SERIAL)

test-faults: $(READY)
	$(BIN)/python -m pytest -q -m faults $(PARALLEL)
	$(BIN)/python -m pytest -q -m faults $(SERIAL)

check: $(READY)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py

# Part of `make test-faults`, too: do the pins of the CUDA stack still resolve? (1 to 2 minutes, needs a package index)
check-pins: $(READY)
	$(BIN)/python -m pytest -q tests/test_requirements.py

format: $(READY)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

clean:
	rm -rf $(VENV) build *.egg-info
