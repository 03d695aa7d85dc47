# What CI runs and what people run are the same targets. Each does its own set-up.
SHELL := /bin/sh
BIN := .venv/bin
# Extras of packages/autogen, no two of which can be installed together: GENERATION[-VARIANT].
AUTOGEN := classic classic-pyautogen agentchat ag2
# Of these, another package with their generation's code: test-slow has them.
VARIANTS := classic-pyautogen
STATICCHECK := v0.8.2
define test-autogen
for extra in $(1); do \
	echo "AutoGen, $$extra:"; \
	PATH="$$PWD/.venvs/autogen-$$extra/bin:$$PATH" .venvs/autogen-$$extra/bin/pytest packages/autogen/tests/test_autogen_$${extra%%-*}*.py \
		$$(ls tests/*/test_autogen_$${extra%%-*}*.py 2>/dev/null) || exit 1; \
done
endef
# The race detector needs a C compiler; without one the tests run all the same.
GO_RACE := $(shell command -v $${CC:-cc} >/dev/null 2>&1 && echo -race)

.PHONY: help setup environments demo test test-engine test-contract test-whole test-attacks test-server test-packages test-slow test-pods bench bench-quick bench-environment lint format docs component wheels image lock clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

setup: ## virtual environment, tools and engine; done by every other target
	@./scripts/bootstrap.sh all

environments: setup ## virtual environments for each AutoGen and for schemathesis; done by test and lint
	@./scripts/bootstrap.sh autogen $(AUTOGEN)
	@./scripts/bootstrap.sh schemathesis

demo: setup ## the whole story on this machine, without root
	@$(BIN)/lattice demo

# Tests mostly wait: for deadlines, for the kernel, for processes to end. So six lanes run at once, also on two cores.
test: environments ## the tests, but those of test-slow and test-pods; each lane's output when it has ended
	@$(MAKE) --no-print-directory --jobs --keep-going --output-sync=target \
		test-engine test-contract test-whole test-attacks test-server test-packages

test-engine: setup ## a lane of test: the engine, with the race detector where there is a C compiler
	cd packages/engine && $$(../../scripts/bootstrap.sh go) test -timeout 60m $(GO_RACE) ./...

test-contract: environments ## a lane of test: the contract, then AutoGen's generations, each in its environment
	$(BIN)/pytest -m 'not slow and not pods' tests/contract
	@$(call test-autogen,$(filter-out $(VARIANTS),$(AUTOGEN)))

test-whole: environments ## a lane of test: everything together
	$(BIN)/pytest -m 'not slow and not pods' tests/e2e

test-attacks: environments ## a lane of test: attacks, and what pods run
	$(BIN)/pytest -m 'not slow and not pods' tests/security tests/k8s

test-server: setup ## a lane of test: the control plane and the gateway's daemon
	$(BIN)/pytest -m 'not slow' packages/server

test-packages: environments ## a lane of test: each other package, then what the documentation says
	$(BIN)/pytest -m 'not slow' --ignore=packages/server packages
	$(BIN)/pytest -m 'not slow and not pods' tests/test_*.py

test-slow: environments ## the tests that take long: the policy's truth table and its mutants, wheels, benchmarks, crowds, pyautogen
	$(BIN)/pytest -m 'slow and not pods' tests packages
	@$(call test-autogen,$(VARIANTS))

test-pods: setup ## whole pods under podman; needs what tests/k8s names, and root
	$(BIN)/pytest -m pods tests

bench: environments bench-environment ## measure everything, in less than 15 minutes: benchmarks/results
	$(BIN)/python -m benchmarks --size full

bench-quick: environments bench-environment ## the same in less than 2 minutes, with fewer rounds and smaller sizes
	$(BIN)/python -m benchmarks --size quick

bench-environment: setup
	@./scripts/bootstrap.sh bench

lint: environments ## formatting, ruff, mypy (strict), gofmt, go vet, staticcheck
	$(BIN)/ruff format --check conftest.py packages scripts tests benchmarks examples
	$(BIN)/ruff check conftest.py packages scripts tests benchmarks examples
	$(BIN)/mypy packages/*/src
	@for generation in classic agentchat ag2; do \
		$(BIN)/mypy --cache-dir .mypy_cache/autogen-$$generation \
			--python-executable .venvs/autogen-$$generation/bin/python \
			packages/autogen/src/lattice_autogen/$$generation.py || exit 1; \
	done
	cd packages/engine && GO=$$(../../scripts/bootstrap.sh go) && \
		test -z "$$($$(dirname $$GO)/gofmt -l cmd internal 2>&1 | tee -a /dev/stderr)" && \
		$$GO vet ./... && $$GO run honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK) ./...

format: setup ## rewrite the files as the linters want them
	$(BIN)/ruff format conftest.py packages scripts tests benchmarks examples
	$(BIN)/ruff check --fix conftest.py packages scripts tests benchmarks examples

docs: setup ## write docs/cli.md from the commands
	$(BIN)/python scripts/cli_reference.py > docs/cli.md

component: setup ## write the Kustomize component of packages/k8s-job/deploy/agents from the injection
	$(BIN)/python scripts/kustomize_component.py

wheels: setup ## the seven wheels into dist/, the engine's with its binary
	@rm -rf dist && LATTICE_GO=$$(./scripts/bootstrap.sh go) && export LATTICE_GO && \
	for package in packages/*/; do \
		.tools/bin/uv build --quiet --wheel --no-build-isolation --python $(BIN)/python \
			--out-dir dist "$$package" || exit 1; \
	done
	@ls dist

COMPILE := .tools/bin/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 \
	--no-emit-package lattice-sdk --no-emit-package lattice-engine --no-emit-package lattice-server \
	--no-header --no-annotate --no-emit-index-url
FABRIC := packages/core/pyproject.toml packages/engine/pyproject.toml packages/server/pyproject.toml

BASE ?= python:3.13-slim-bookworm
IMAGE ?= lattice-k8s-job:0.1.0
PACKAGE ?= lattice-k8s-job
BUILD_IMAGE ?= podman build

image: setup ## the image of a pod's two containers: make image BASE=… IMAGE=… [PACKAGE=lattice-server]
	LATTICE_GO=$$(./scripts/bootstrap.sh go) && export LATTICE_GO && \
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) && export SOURCE_DATE_EPOCH && \
	$(BIN)/python packages/k8s-job/image/context.py .build/image/$(PACKAGE) --package $(PACKAGE) \
		--python "$$($(BUILD_IMAGE:build=run) --rm --entrypoint python3 $(BASE) -c 'import sys; print("%d.%d" % sys.version_info[:2])')" && \
	$(BUILD_IMAGE) --file packages/k8s-job/image/Containerfile --tag $(IMAGE) --build-arg BASE=$(BASE) \
		--build-arg TITLE=$(PACKAGE) --build-arg COMMAND=$(if $(filter lattice-server,$(PACKAGE)),lattice,lattice-k8s) \
		--build-arg REVISION="$$(git rev-parse HEAD)" --build-arg CREATED="$$(git log -1 --format=%cI)" \
		.build/image/$(PACKAGE)

lock: ## resolve all dependencies again into the lock files (hashes, no registry named)
	@./scripts/bootstrap.sh tools
	$(COMPILE) --group dev --extra demo $(FABRIC) packages/k8s-job/pyproject.toml -o requirements.lock
	@mkdir -p locks
	for extra in $(AUTOGEN); do \
		$(COMPILE) --group test --extra $$extra $(FABRIC) packages/autogen/pyproject.toml \
			-o locks/autogen-$$extra.lock || exit 1; \
	done
	echo 'schemathesis>=4.30' | $(COMPILE) - -o locks/schemathesis.lock
	$(COMPILE) --group bench -o locks/bench.lock

clean: ## remove what set-up and builds made
	rm -rf .venv .venvs .tools .build dist packages/engine/src/lattice_engine/_bin
