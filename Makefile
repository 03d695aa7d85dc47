# What CI runs and what people run are the same targets. Each does its own set-up.
SHELL := /bin/sh
BIN := .venv/bin
STATICCHECK := v0.8.2
# The race detector needs a C compiler; without one the tests run all the same.
GO_RACE := $(shell command -v $${CC:-cc} >/dev/null 2>&1 && echo -race)

.PHONY: help setup demo test lint format docs wheels lock clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

setup: ## virtual environment, tools and engine; done by every other target
	@./scripts/bootstrap.sh all

demo: setup ## the whole story on this machine, without root
	@$(BIN)/lattice demo

test: setup ## every Python and Go test
	cd packages/engine && $$(../../scripts/bootstrap.sh go) test $(GO_RACE) ./...
	$(BIN)/pytest

lint: setup ## formatting, ruff, mypy (strict), gofmt, go vet, staticcheck
	$(BIN)/ruff format --check conftest.py packages scripts tests benchmarks
	$(BIN)/ruff check conftest.py packages scripts tests benchmarks
	$(BIN)/mypy packages/*/src
	cd packages/engine && GO=$$(../../scripts/bootstrap.sh go) && \
		test -z "$$($$(dirname $$GO)/gofmt -l cmd internal 2>&1 | tee /dev/stderr)" && \
		$$GO vet ./... && $$GO run honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK) ./...

format: setup ## rewrite the files as the linters want them
	$(BIN)/ruff format conftest.py packages scripts tests benchmarks
	$(BIN)/ruff check --fix conftest.py packages scripts tests benchmarks

docs: setup ## write docs/cli.md from the commands
	$(BIN)/python scripts/cli_reference.py > docs/cli.md

wheels: setup ## the seven wheels into dist/, the engine's with its binary
	@rm -rf dist && LATTICE_GO=$$(./scripts/bootstrap.sh go) && export LATTICE_GO && \
	for package in packages/*/; do \
		.tools/bin/uv build --quiet --wheel --no-build-isolation --python $(BIN)/python \
			--out-dir dist "$$package" || exit 1; \
	done
	@ls dist

lock: ## resolve all dependencies again into requirements.lock (hashes, no registry named)
	@./scripts/bootstrap.sh tools
	.tools/bin/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 \
		--no-emit-package lattice-sdk --no-emit-package lattice-engine --no-emit-package lattice-server \
		--no-header --no-annotate --no-emit-index-url --group dev --extra demo \
		packages/core/pyproject.toml packages/engine/pyproject.toml packages/server/pyproject.toml -o requirements.lock

clean: ## remove what set-up and builds made
	rm -rf .venv .tools .build dist packages/engine/src/lattice_engine/_bin
