# What CI runs and what people run are the same targets. Each does its own set-up.
SHELL := /bin/sh
BIN := .venv/bin
# Extras of packages/autogen, no two of which can be installed together: GENERATION[-VARIANT].
AUTOGEN := classic classic-pyautogen agentchat ag2
STATICCHECK := v0.8.2
# The race detector needs a C compiler; without one the tests run all the same.
GO_RACE := $(shell command -v $${CC:-cc} >/dev/null 2>&1 && echo -race)

.PHONY: help setup environments demo test lint format docs wheels lock clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

setup: ## virtual environment, tools and engine; done by every other target
	@./scripts/bootstrap.sh all

environments: setup ## a virtual environment for each AutoGen, for its tests; done by test and lint
	@./scripts/bootstrap.sh autogen $(AUTOGEN)

demo: setup ## the whole story on this machine, without root
	@$(BIN)/lattice demo

test: environments ## every Python and Go test
	cd packages/engine && $$(../../scripts/bootstrap.sh go) test $(GO_RACE) ./...
	$(BIN)/pytest
	@for extra in $(AUTOGEN); do \
		echo "AutoGen, $$extra:"; \
		.venvs/autogen-$$extra/bin/pytest packages/autogen/tests/test_autogen_$${extra%%-*}*.py \
			$$(ls tests/*/test_autogen_$${extra}*.py 2>/dev/null) || exit 1; \
	done

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
		test -z "$$($$(dirname $$GO)/gofmt -l cmd internal 2>&1 | tee /dev/stderr)" && \
		$$GO vet ./... && $$GO run honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK) ./...

format: setup ## rewrite the files as the linters want them
	$(BIN)/ruff format conftest.py packages scripts tests benchmarks examples
	$(BIN)/ruff check --fix conftest.py packages scripts tests benchmarks examples

docs: setup ## write docs/cli.md from the commands
	$(BIN)/python scripts/cli_reference.py > docs/cli.md

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

lock: ## resolve all dependencies again into the lock files (hashes, no registry named)
	@./scripts/bootstrap.sh tools
	$(COMPILE) --group dev --extra demo $(FABRIC) -o requirements.lock
	@mkdir -p locks
	for extra in $(AUTOGEN); do \
		$(COMPILE) --group test --extra $$extra $(FABRIC) packages/autogen/pyproject.toml \
			-o locks/autogen-$$extra.lock || exit 1; \
	done

clean: ## remove what set-up and builds made
	rm -rf .venv .venvs .tools .build dist packages/engine/src/lattice_engine/_bin
