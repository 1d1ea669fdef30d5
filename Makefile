# make demo   the main job, end to end          make bench  speed beside other runtimes
# make test   lint, types, format and tests     make clean  forgets everything that was made
# Each sets itself up from nothing in .venv; with no C++ compiler on the machine, the ziglang package serves.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
STAMP := $(VENV)/.installed
LIBRARY := runtime/_lib/librunnel.so
RECIPE := $(wildcard runtime/build_core.py)
CORE := $(shell find runtime/core -type f 2>/dev/null)
CXX_FILES := $(shell find runtime tests tools -name '*.cc' -o -name '*.cpp' -o -name '*.h' -o -name '*.hpp' 2>/dev/null)
# Programs that tests use and their Debian packages; a test whose program is missing skips and names it.
SYSTEM := qemu-aarch64:qemu-user sshd:openssh-server valgrind:valgrind
export PYTHONNOUSERSITE := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench bench-search bench-window bench-kv bench-llm bench-memory bench-moe bench-sparse bench-compile nightly coverage lint system format check-style types clean

help:
	@sed -n '1,3s/^# //p' Makefile

setup: $(STAMP) $(if $(RECIPE),$(LIBRARY))

$(STAMP): setup.py pyproject.toml $(wildcard tools/packaging/*.py)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "runnel needs Python 3.10 or newer; name one with: make PYTHON=python3.11" >&2; exit 1; }
	@test -x $(PY) || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; }
	@echo "installing runnel and its tools into $(VENV)"
	@$(PIP) install 'setuptools>=77' $$($(PYTHON) tools/packaging/find_compiler.py)
	@$(PIP) install --no-build-isolation -e '.[compiler,demo,test]'
	@touch $@

$(LIBRARY): $(STAMP) $(RECIPE) $(CORE)
	@$(PY) setup.py --quiet build_core --inplace
	@touch $@

demo: setup
	@$(PY) -m runnel.tools.demo

bench: setup $(VENV)/.bench
	@$(PY) -m runnel.tools.benchmark --page docs/performance.md $(BENCH)

$(VENV)/.bench: $(STAMP)
	@echo "installing the runtimes that the bench compares with into $(VENV)"
	@$(PIP) install --no-build-isolation -e '.[bench]'
	@$(PIP) install --no-deps pnnx==20261020  # its Python part needs torch, its converter does not
	@touch $@

bench-compile: setup
	@$(PY) -m runnel.tools.compile_time

bench-search: setup $(VENV)/.bench
	@$(PY) -m runnel.tools.tuning.metaschedule --rows build/bench/search.json

nightly: setup
	RUNNEL_GRAPHS=10000 RUNNEL_RUNNERS=reference $(PY) -m pytest -q -s -o timeout=0 tests/streaming/test_random_graphs.py
	RUNNEL_GRAPHS=1000 RUNNEL_RUNNERS=native $(PY) -m pytest -q -s -o timeout=0 tests/streaming/test_random_graphs.py
	RUNNEL_MATH=all $(PY) -m pytest -q -s -o timeout=0 tests/codegen/test_math.py -k everywhere
	RUNNEL_MUTANTS=20000 $(PY) -m pytest -q tests/acceptance/test_fuzzed_models.py
	RUNNEL_TOKENS=1000000 $(PY) -m pytest -q -o timeout=0 tests/kv/test_stories.py
	RUNNEL_LIMITED=100 $(PY) -m pytest -q -o timeout=0 tests/board/test_memory.py -k charges
	RUNNEL_KILLS=100 $(PY) -m pytest -q -o timeout=0 tests/deploy/test_remote.py -k dies
	RUNNEL_LANES=zoo $(PY) -m pytest -q -o timeout=0 tests/emulated/test_lanes.py

coverage: setup
	RUNNEL_COVERAGE=docs/coverage.json $(PY) -m pytest -q -n 2 tests/streaming
	$(PY) -m runnel.tools.coverage

bench-kv: setup
	@$(PY) -m runnel.tools.bench_kv --rows build/bench/kv.json

EXPERTS ?= build/verse_experts/verse_experts.onnx
bench-moe: setup
	@$(PY) -m runnel.tools.bench_experts --model $(EXPERTS) --rows build/bench/experts.json

bench-sparse: setup  # SPARSE='model.onnx --predictor predictor.npz', of models/verse_wide for example
	@$(PY) -m runnel.tools.bench_sparse $(SPARSE)

bench-memory: setup
	@$(PY) -m runnel.tools.bench_memory --rows build/bench/memory.json

bench-llm: setup $(VENV)/.bench-llm
	@$(PY) -m runnel.tools.decoding --rows build/bench/llm.json $(BENCH)

$(VENV)/.bench-llm: $(STAMP)
	@echo "compiling llama.cpp into $(VENV), which takes some minutes"
	@$(PIP) install -e '.[bench-llm]'
	@touch $@

bench-window: setup
	@$(PY) -m runnel.tools.bench_window --rows build/bench/window.json

lint: setup check-style types

check-style: setup
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(if $(CXX_FILES),$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES))

types: setup
	$(PY) tools/packaging/check_types.py

format: setup
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format
	$(if $(CXX_FILES),$(VENV)/bin/clang-format -i $(CXX_FILES))

# Where nobody may install them, the tests go on without.
system:
	@for pair in $(SYSTEM); do \
	    command -v $${pair%%:*} >/dev/null && continue; \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        echo "installing $${pair#*:}"; \
	        { apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
            apt-get -qq install -y --no-install-recommends $${pair#*:}; } >/dev/null 2>&1 \
	            && continue; \
	    fi; \
	    echo "$${pair%%:*} is missing (Debian's $${pair#*:} has it): the tests that need it are skipped"; \
	done

test: lint system
	$(PY) -m pytest -q -n 2 --durations=25

clean:
	rm -rf $(VENV) build dist runtime/_lib *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
