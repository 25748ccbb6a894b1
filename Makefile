# The two commands: `make quickstart` and `make test`. Both need Python 3.11 or newer and nothing else; the first one
# that runs makes the environment `.venv` and installs the package with the versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
PYTEST_WORKERS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The packages of $(VENV), and DeepSpeed, whose presence alone changes what other libraries do.
SHARDED := $(VENV)-distributed
# One thread per test worker: threads of several workers on the same cores only slow each other down.
BENCHMARK := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/benchmarks
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: quickstart test test-properties test-ray test-distributed test-vllm test-versions lint format typecheck figures docs docs-serve env clean help
.DEFAULT_GOAL := help

help:  ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

quickstart: $(STAMP)  ## Train small policies with process rewards on the CPU, in a few minutes
	$(BIN)/trl-prl quickstart

test: lint typecheck docs  ## Run every check, and every test that needs no Ray, DeepSpeed or vLLM
	$(PYTEST) -n $(PYTEST_WORKERS) -m "not slow and not ray and not sharded and not vllm"
	$(PYTEST) -n $(PYTEST_WORKERS) --dist worksteal -m "slow and not ray and not sharded and not vllm"

test-properties: $(STAMP)  ## Test the properties with a thousand examples each
	$(PYTEST) -n $(PYTEST_WORKERS) -m hypothesis --hypothesis-profile thorough

test-ray: $(STAMP)  ## Test jobs on a Ray cluster of several nodes on this machine, a few minutes
	$(PYTEST) -m ray

test-versions: $(STAMP)  ## Test the oldest and newest supported releases, in environments of their own
	$(BIN)/python tests/scripts/check_versions.py --again

test-distributed: $(SHARDED)/.installed  ## Test trainings whose weights two processes share (ZeRO-2, ZeRO-3, FSDP2)
	OMP_NUM_THREADS=1 $(SHARDED)/bin/python -m pytest -m sharded --durations 5

test-vllm: $(VLLM_VENV)/.installed  ## Test generation, training and scoring with vLLM on the CPU, in its own environment
	OMP_NUM_THREADS=1 $(VLLM_VENV)/bin/python -m pytest -m vllm --durations 10 tests/generation/test_vllm.py \
		tests/training/test_vllm_colocate.py tests/prms/test_vllm_served.py

$(VLLM_VENV)/.installed: pyproject.toml constraints.txt tests/scripts/make_vllm_environment.py
	$(PYTHON) tests/scripts/make_vllm_environment.py $(VLLM_VENV)
	@touch $@

lint: $(STAMP)  ## Check formatting and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(STAMP)  ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(STAMP)  ## Check the types
	$(BIN)/mypy

figures: $(STAMP)  ## Make the tables and figures of the experiments from the runs that are kept, two minutes
	$(BENCHMARK)/planted_figure3.py --seeds 5 --output docs/figures/planted.json
	$(BENCHMARK)/planted_curve.py --seeds 10 10 10 10 5 5 --output docs/figures/planted_curve.json
	$(BENCHMARK)/planted_provers.py --seeds 5 --output docs/figures/planted_provers.json
	$(BENCHMARK)/path_runs.py table --output docs/figures/paths.json
	$(BENCHMARK)/path_verifier.py --strategies
	$(BENCHMARK)/path_search.py --report
	PYTHONPATH=. $(BENCHMARK)/kl_placement.py --seeds 2 --output docs/figures/kl_placement.json
	$(BENCHMARK)/bench_search.py --verifier tests/benchmarks/arithmetic/verifier --terms 4 --sizes 1 2 4 8 --samples 128 \
		--output docs/figures/search.json

docs: $(STAMP)  ## Build the documentation into site/, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

docs-serve: $(STAMP)  ## Show the documentation while it is written
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

env: $(STAMP)  ## Make the environment and install the package

# Made once, and again when the requirements change.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) was not found. Install Python 3.11 or newer, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), but TRL needs Python 3.11 or newer." \
			"Name another one: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --progress-bar on -c constraints.txt -e ".[dev]"
	@touch $@

$(SHARDED)/.installed: $(STAMP)
	$(BIN)/python -m venv $(SHARDED)
	@packages="import sysconfig; print(sysconfig.get_path('purelib'))"; \
		echo "import site; site.addsitedir('$$($(BIN)/python -c "$$packages")')" \
		> "$$($(SHARDED)/bin/python -c "$$packages")/packages.pth"
	$(SHARDED)/bin/python -m pip install -c constraints.txt deepspeed
	@touch $@

clean:  ## Remove the environment, caches and outputs
	rm -rf $(VENV) $(SHARDED) $(VLLM_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks site quickstart-out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
