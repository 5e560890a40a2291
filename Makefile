# The two commands: `make demo` and `make test`. Neither asks anything; both say what they install before they do.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup setup-test models pair templates demo test bench bench-own rows rust net features c python wheel demo-test

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/swarmllm/models
export SWARMLLM_TEST_SMOLLM2 ?= $(CACHE)/smollm2-135m-q4_1.gguf
export SWARMLLM_TEST_GEMMA3 ?= $(CACHE)/gemma3-270m-q4_k_m.gguf
# A real model of a usual size and its draft, which only benchmarks need.
export SWARMLLM_TEST_CODER15 ?= $(CACHE)/qwen2.5-coder-1.5b-q4_k_m.gguf
export SWARMLLM_TEST_CODER05 ?= $(CACHE)/qwen2.5-coder-0.5b-q4_k_m.gguf
# Stock chat templates, and the Python whose Jinja2 renders them for comparison.
export SWARMLLM_TEST_TEMPLATES ?= $(CACHE)/templates-llama-cpp-python-0.3.36
export SWARMLLM_TEST_JINJA ?= $(PYTHON)

# Everything of Python's lives here, nothing in the tree or in the user's own packages.
VENV := $(CURDIR)/target/venv
PYTHON := $(VENV)/bin/python
# Features that every consumer ships; the workspace has one set of dependencies, built once.
CARGO ?= cargo
NEXTEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo yes)

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what building needs (says so first)
	@tests/scripts/setup.sh build

setup-test:
	@tests/scripts/setup.sh test

$(PYTHON):
	python3 -m venv $(VENV)

models: $(PYTHON) ## Fetch and check both test models
	@$(PYTHON) tests/scripts/fetch_models.py smollm2 $(SWARMLLM_TEST_SMOLLM2)
	@$(PYTHON) tests/scripts/fetch_models.py gemma3 $(SWARMLLM_TEST_GEMMA3)

# Packages of third parties: where they are gone, what needs the models says so and is left out.
pair: $(PYTHON)
	@$(PYTHON) tests/scripts/fetch_models.py coder05 $(SWARMLLM_TEST_CODER05) || echo "make: without the real 0.5B"
	@$(PYTHON) tests/scripts/fetch_models.py coder15 $(SWARMLLM_TEST_CODER15) || echo "make: without the real 1.5B"

templates: $(PYTHON)
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check jinja2==3.1.6
	@$(PYTHON) tests/scripts/fetch_templates.py $(SWARMLLM_TEST_TEMPLATES)

demo: setup ## Three processes with a third of a model each answer together
	@$(MAKE) --no-print-directory $(PYTHON)
	@$(PYTHON) tests/scripts/fetch_models.py smollm2 $(SWARMLLM_TEST_SMOLLM2)
	$(CARGO) build --release -p swarmllm-cli
	@BIN=target/release/swarmllm tests/scripts/demo.sh

# One build from nothing: what would make the next one faster is as large as the rest, and slows this one.
test: export CARGO_INCREMENTAL = 0
test: setup-test ## Everything: Rust, an unkind network, C, Python, the demo
	@$(MAKE) --no-print-directory models
	@$(MAKE) --no-print-directory templates
	$(MAKE) --no-print-directory rust
	$(MAKE) --no-print-directory net
	$(MAKE) --no-print-directory features
	$(MAKE) --no-print-directory c
	$(MAKE) --no-print-directory python
	$(MAKE) --no-print-directory demo-test
	@echo "make test: all of it passed"

# candle's threads spin while they wait for each other: with one each, tests that run side by side do not stall.
rust: export CANDLE_NUM_THREADS = 1
rust: export RAYON_NUM_THREADS = 1
rust:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) build --workspace --all-targets --locked
ifeq ($(NEXTEST),yes)
	$(CARGO) nextest run --workspace --locked
else
	@echo "cargo-nextest is not installed (see https://nexte.st); one test after another instead"
	$(CARGO) test --workspace --locked --tests -- --test-threads=1
endif

# One after another: each has a network of its own, and the machine's cores to itself.
net: ## Routers, lost packets and cut lines, in network namespaces where the machine has them (after `make rust`)
ifeq ($(NEXTEST),yes)
	tests/scripts/net.sh $(CARGO) nextest run --workspace --locked -E 'binary(wild)' --run-ignored only -j 1
else
	tests/scripts/net.sh $(CARGO) test --workspace --locked --test wild -- --ignored --test-threads=1
endif

# The core as others may build it: without llama.cpp and server, and without any engine. Its tests run with the workspace's
# features; what others' features can break is whether it compiles, tests included.
features:
	$(CARGO) check -p swarmllm-core --all-targets --locked
	$(CARGO) check -p swarmllm-core --locked --no-default-features

c: ## The C story, also under valgrind where it is there (after `make rust`)
	tests/c/run.sh $(CURDIR)/target/debug

python: $(PYTHON) ## The Python story on the workspace's own build (after `make rust`)
	$(PYTHON) -m pip install --quiet pytest mypy
	swarmllm-py/tests/run.sh $(CURDIR)/target/debug

wheel: $(PYTHON) ## A self-contained wheel in target/wheels, as `pip install .` builds it
	$(PYTHON) -m pip wheel --quiet --no-deps -w target/wheels .
	@ls -l target/wheels

demo-test:
	BIN=target/debug/swarmllm tests/scripts/demo.sh

bench: setup ## What splitting costs, and llama.cpp's own server beside us; writes target/bench.json
	@$(MAKE) --no-print-directory models pair
	$(CARGO) build --release --locked -p swarmllm-cli -p swarmllm-tests --bins
	target/release/bench
	target/release/bench_server "$$(tests/scripts/llama_server.sh $(dir $(CACHE)) $(PYTHON))"
	$(CARGO) test --release --locked -p swarmllm-tests --test real -- --ignored --nocapture --test-threads=1

bench-own: setup ## What of it needs no server of llama.cpp; BENCH_PARTS names parts
	@$(MAKE) --no-print-directory models pair
	$(CARGO) build --release --locked -p swarmllm-tests --bins
	target/release/bench_server

rows: setup ## What steps of several rows cost, ours beside llama.cpp's own
	@$(MAKE) --no-print-directory models
	$(CARGO) test --workspace --lib --locked what_rows_cost -- --ignored --nocapture
