# What CI runs and what people run are the same targets. Each does its own set-up.
SHELL := /bin/sh
BIN := .venv/bin

.PHONY: help setup test lint format lock clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

setup: ## virtual environment, tools and engine; done by every other target
	@./scripts/bootstrap.sh all

test: setup ## every Python and Go test
	$(BIN)/pytest

lint: setup ## formatting, ruff, mypy (strict), go vet
	$(BIN)/ruff format --check packages tests
	$(BIN)/ruff check packages tests
	$(BIN)/mypy packages/*/src

format: setup ## rewrite the files as the linters want them
	$(BIN)/ruff format packages tests
	$(BIN)/ruff check --fix packages tests

lock: ## resolve all dependencies again into requirements.lock (hashes, no registry named)
	@./scripts/bootstrap.sh tools
	.tools/bin/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 \
		--no-emit-package lattice-sdk --no-emit-package lattice-engine --no-emit-package lattice-server \
		--no-header --no-annotate --no-emit-index-url --group dev \
		packages/core/pyproject.toml packages/server/pyproject.toml -o requirements.lock

clean: ## remove what set-up and builds made
	rm -rf .venv .tools .build dist packages/engine/src/lattice_engine/_bin
