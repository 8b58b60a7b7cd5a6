# The one list of commands. `make help` prints it.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# The Python that makes the environment (3.11 or newer).
PYTHON ?= python3
# Downloads, the installer and the cluster's binaries live here, outside the tree and shared between clones.
export FINETUNE_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/finetune-operator
export UV_CACHE_DIR ?= $(FINETUNE_CACHE)/uv
export UV_PYTHON_DOWNLOADS := never
# Small models on shared cores: two OpenMP threads under any other load are twenty times slower than one.
export OMP_NUM_THREADS ?= 1
# Every stage is a process that imports torch: without compiled bytecode each one compiles it anew.
unexport PYTHONDONTWRITEBYTECODE
# Nothing here may ask a public service for anything, or tell it anything.
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Keyed by its lock: another version of the installer is another folder.
UV_HOME := $(FINETUNE_CACHE)/installer-$(firstword $(shell cksum requirements/bootstrap.lock))
UV := $(UV_HOME)/bin/uv
# What `make generate` writes, and nobody edits.
GENERATED := 'crds/*.yaml' docs/reference
PACKAGES := crds/finetune_api operator/finetune_operator runner/finetune_runner cli/finetune_cli
# Test processes. The cluster's tests are groups with a control plane each, and mostly wait.
TEST_WORKERS ?= 3
PYTEST_ARGS ?=

COMPILE = $(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	--no-emit-index-url --no-emit-find-links --quiet $(LOCK_ARGS)

##@ Use it
.PHONY: help
help: ## Print this list
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-zA-Z_-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: env
env: $(STAMP) ## Create .venv with every locked dependency (a no-op when nothing changed)

.PHONY: demo
demo: env ## From nothing to a tuned adapter that waits for approval, on this machine
	@examples/support-triage/demo

##@ Test it
.PHONY: test
test: env cluster-binaries ## Run every test, the cluster's included
	@$(BIN)/pytest -n $(TEST_WORKERS) $(PYTEST_ARGS) tests

.PHONY: test-unit
test-unit: env ## Run the tests that need no cluster
	@$(BIN)/pytest -n $(TEST_WORKERS) $(PYTEST_ARGS) tests --ignore=tests/cluster --ignore=tests/kueue

.PHONY: test-cluster
test-cluster: env cluster-binaries ## Run the tests against a real control plane
	@$(BIN)/pytest $(PYTEST_ARGS) tests/cluster tests/kueue

.PHONY: cluster-binaries
cluster-binaries: env ## Build etcd, the Kubernetes control plane and Kueue into the cache
	@$(BIN)/python -m tests.cluster.harness.binaries etcd kubernetes kueue

##@ Check it
.PHONY: lint
lint: env ## Style: ruff check and ruff format
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: format
format: env ## Rewrite the files in the project's style
	@$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: types
types: env ## Types: mypy, strict
	@$(BIN)/mypy $(PACKAGES)

.PHONY: layers
layers: env ## Layers: who may import whom
	@$(BIN)/lint-imports

.PHONY: generate
generate: env ## Regenerate what is generated: the CRDs and their reference
	@$(BIN)/python -m finetune_api.generate

.PHONY: verify
verify: env ## Fail where something generated, or a lock, is not what its source says
	@$(MAKE) --no-print-directory generate
	$(BIN)/python requirements/check_locks.py
	git diff --exit-code -- $(GENERATED)
	untracked=$$(git ls-files --others --exclude-standard -- $(GENERATED))
	if [[ -n "$$untracked" ]]; then echo "generated, but not committed:"; echo "$$untracked"; exit 1; fi

.PHONY: ci
ci: lint types layers verify test ## Everything a change has to pass

##@ Maintain it
.PHONY: lock
lock: | $(UV) ## Resolve the dependencies anew into requirements/*.lock (LOCK_ARGS=--upgrade for newer ones)
	@$(COMPILE) pyproject.toml --extra dev -o requirements/dev.lock
	$(COMPILE) pyproject.toml --extra operator -c requirements/dev.lock -o requirements/operator.lock
	$(COMPILE) pyproject.toml --extra runner --extra deepspeed -c requirements/dev.lock -o requirements/runner.lock
	$(COMPILE) requirements/bootstrap.in -o requirements/bootstrap.lock

.PHONY: clean
clean: ## Remove the environment and what tools left behind (the cache stays)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; say which one: make env PYTHON=python3.12")'
	mkdir -p $(FINETUNE_CACHE)
	$(PYTHON) -m venv --clear $(UV_HOME)
	$(UV_HOME)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/bootstrap.lock

$(STAMP): requirements/dev.lock pyproject.toml | $(UV)
	@[[ -x $(BIN)/python ]] || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	$(UV) pip sync --quiet --python $(BIN)/python --require-hashes --build-constraints requirements/bootstrap.lock --strict requirements/dev.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/python -c 'import sys; print("environment ready: Python", sys.version.split()[0], "in $(VENV)")'
	touch $(STAMP)
