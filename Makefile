# Whence. `make help` lists what there is; `make demo` and `make test` need nothing but Python 3.11.
PYTHON ?= python3
BIN := .venv/bin
# Worker processes of the tests; each holds its own torch, so more than the cores does not help.
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo evidence test lint types unit integration e2e gpu ui compiled component-docs surface lock docs \
  images test-containers pictures clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*?## ' $(MAKEFILE_LIST) | sort | awk -F ':.*?## ' '{printf "  %-16s %s\n", $$1, $$2}'

setup: .venv/.installed ## Create .venv with everything in it, as locked (once, and again when the lock changes)

# pip installs, so that its index, certificates and a torch without CUDA are those of this machine; uv only reads the lock.
.venv/.installed: pyproject.toml uv.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep -o 'uv==[0-9.]*' pyproject.toml)"
	$(BIN)/uv export --quiet --frozen --no-hashes --no-emit-project --extra dev --group influence > .venv/locked.txt
	$(BIN)/python -m pip install --quiet --constraint .venv/locked.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint .venv/locked.txt --no-deps kronfluence
	touch $@

demo: setup ## Run the whole pipeline on the built-in demo: train, fit factors, score, validate, compare
	$(BIN)/whence run --profile demo

# The artifacts of the last `whence run`.
LAST := whence-output/latest/artifacts
evidence: setup ## The full evidence on the last run, and its report anew: trains many times; goes on where it was stopped
	$(BIN)/whence validate --full --model $(LAST)/train/model --factors $(LAST)/fit-factors/factors \
	  --train-data $(LAST)/prepare/train_data --scores $(LAST)/score/scores --evidence whence-output/latest/evidence
	$(BIN)/whence report --scores $(LAST)/score/scores --comparison $(LAST)/compare/comparison \
	  --spectra $(LAST)/inspect/spectra --evidence whence-output/latest/evidence --benchmark $(LAST)/mmlu/benchmark \
	  --report whence-output/latest/report.html --tables whence-output/latest/tables

ui: setup ## Open MLflow's UI on the runs made here (http://127.0.0.1:5000)
	$(BIN)/mlflow ui --backend-store-uri sqlite:///mlflow.db

test: setup lint types docs unit integration e2e ## Everything CI runs

lint: setup ## Style, common mistakes, and the layers' imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache

types: setup ## Static types
	$(BIN)/mypy

# A process per core, so one thread each. In CI also how much of the code they run, which takes a third longer.
unit: setup ## Fast tests of each module
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/unit -n $(JOBS) -q $(if $(CI),--cov --cov-report=)

integration: setup ## What trains or starts processes; real servers, real data and a real small model
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/integration -n $(JOBS) --dist loadfile -q

e2e: setup ## The real pipeline, end to end
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/e2e -n $(JOBS) --dist loadfile -q

gpu: setup ## What must hold on a CUDA device, beside a CPU (not in `make test`: needs one, and 30 GB of disk)
	$(BIN)/pytest tests/gpu -q -s

compiled: setup ## Compile the checked-in pipelines again
	$(BIN)/whence compile --profile chat-lora -o pipelines/compiled/chat-lora.yaml
	$(BIN)/whence compile --profile demo -o pipelines/compiled/demo.yaml
	$(BIN)/whence compile --profile patents-tinyllama -o pipelines/compiled/patents-tinyllama.yaml
	$(BIN)/whence compile --profile patents-tinyllama --pipeline retraining \
	  -o pipelines/compiled/patents-tinyllama-retraining.yaml

component-docs: setup ## Write the input/output tables of the components' READMEs again
	$(BIN)/python -m whence.components.docs

surface: setup ## Write the list of settings, commands and options again (tests/data/surface.txt)
	$(BIN)/python tests/unit/test_surface.py

lock: ## Lock the packages again after pyproject.toml has changed (UPGRADE=1: the newest of what is not pinned)
	test -x $(BIN)/uv || $(MAKE) setup
	UV_DEFAULT_INDEX=https://pypi.org/simple $(BIN)/uv lock $(if $(UPGRADE),--upgrade)

docs: setup ## Build the documentation's site in build/site
	$(BIN)/mkdocs build --strict --quiet

images: ## Build the stages' images with docker or podman (REGISTRY=..., PUSH=1, TORCH=cpu: docker/README.md)
	docker/build.sh

test-containers: setup ## Build the images and run the demo in them (takes docker, or podman and root)
	tests/containers/run.sh

pictures: setup ## Take the README's pictures from the last run (needs Chromium)
	$(BIN)/python docs/pictures.py

clean: ## Remove what runs have made here (not .venv)
	rm -rf whence-output .whence mlruns mlflow.db
