# make demo | test | test-faults | check | setup | clean
# Everything is set up on the first call and found ready on the next; VOLLEY_EXTRA=cuda picks the GPU stack.
PYTHON ?= python3
VOLLEY_EXTRA ?= cpu
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready-$(VOLLEY_EXTRA)
SOURCES := volley rollout rewards learner cluster tests benchmarks
# Tests with clusters of their own, and those of one engine in the tests' process, run one after another; all others on
# two cores, file by file.
ALONE := tests/rollout tests/cluster/on_ray
BESIDE := -n 2 --dist loadfile $(addprefix --ignore=,$(ALONE))

.PHONY: setup demo test test-faults check format clean

setup: $(READY)

$(READY): requirements/common.txt requirements/$(VOLLEY_EXTRA).txt requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Volley needs Python 3.11 or newer; this is %s. Set PYTHON=/path/to/python3.11" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@command -v c++ >/dev/null || { echo "Volley needs a C++ compiler (vLLM compiles kernels): install g++ or clang++" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(VOLLEY_EXTRA),cpu)
	$(BIN)/python -m pip install -q --no-deps -r requirements/cpu.txt -r requirements/dev.txt
else
	$(BIN)/python -m pip install -q -c requirements/common.txt -r requirements/common.txt -r requirements/$(VOLLEY_EXTRA).txt -r requirements/dev.txt
endif
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)
	$(BIN)/volley demo

test: $(READY)
	$(BIN)/python -m pytest -q -m "not faults" $(BESIDE)
	$(BIN)/python -m pytest -q -m "not faults" $(ALONE)

test-faults: $(READY)
	$(BIN)/python -m pytest -q -m faults $(BESIDE)
	$(BIN)/python -m pytest -q -m faults $(ALONE)

check: $(READY)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py

format: $(READY)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

clean:
	rm -rf $(VENV) build *.egg-info
