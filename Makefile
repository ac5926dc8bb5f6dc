# Everything a user or CI runs. Needs Python 3.11 and make; installs the rest into .venv.
PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/.installed
RLLIB := .venv-rllib/bin
RLLIB_INSTALLED := .venv-rllib/.installed
export DAGSTER_HOME ?= $(CURDIR)/.dagster
WORKERS ?= 2

.PHONY: demo dev test test-rllib bench soak lint lock clean

demo: $(INSTALLED) home ## from raw prices to two finished reports, on real data
	$(BIN)/python -m trade_pipeline.demo

dev: $(INSTALLED) home ## web UI on port 3000, with schedules and sensors
	$(BIN)/dagster dev -w workspace.yaml

test: $(INSTALLED) ## the whole suite
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

test-rllib: $(RLLIB_INSTALLED) ## training by RLlib, in its own environment: it pins gymnasium
	$(RLLIB)/pytest trade_pipeline_tests/training/rllib

bench: $(INSTALLED) ## what we claim of speed, beside peers, as JSON lines
	$(BIN)/python benchmarks/market_data.py
	$(BIN)/python benchmarks/env_speed.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/features.py
	$(BIN)/python benchmarks/audit.py
	$(BIN)/python benchmarks/backtest.py

soak: $(INSTALLED) ## the long fault runs; `make test` holds a short version of each
	SOAK=1 $(BIN)/pytest -n 0 -s trade_pipeline_tests/soak trade_pipeline_tests/compute/runpod/test_kills.py

lint: $(INSTALLED) ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: $(INSTALLED) ## constraints.txt from pyproject.toml
	$(BIN)/pip-compile --quiet --no-header --no-emit-index-url --no-emit-find-links --allow-unsafe --strip-extras --extra dev --output-file constraints.txt pyproject.toml
	sed -i 's/^torch==2.13.0+cpu$$/torch==2.13.0/' constraints.txt # any build of that version

clean: ## forget everything that was computed
	rm -rf store .dagster benchmarks/peers/.venv

.PHONY: home
home:
	mkdir -p $(DAGSTER_HOME)
	test -e $(DAGSTER_HOME)/dagster.yaml || cp configs/deploy/development.yaml $(DAGSTER_HOME)/dagster.yaml

# torch first: asked for through another package, pip may take a build of several gigabytes.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

$(RLLIB_INSTALLED): pyproject.toml constraints.txt constraints-rllib.txt
	$(PYTHON) -m venv --clear .venv-rllib
	grep -v '^gymnasium==' constraints.txt | cat - constraints-rllib.txt > .venv-rllib/constraints.txt
	$(RLLIB)/python -m pip install --quiet --constraint .venv-rllib/constraints.txt pip setuptools
	$(RLLIB)/python -m pip install --quiet --constraint .venv-rllib/constraints.txt torch==2.13.0
	$(RLLIB)/python -m pip install --quiet --constraint .venv-rllib/constraints.txt --editable '.[rllib]' hypothesis pytest-timeout
	touch $(RLLIB_INSTALLED)
