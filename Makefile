# Everything starts here: `make run` and `make test` need Python 3.11 or newer, git and make, and install the rest themselves.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed
AUDITED := constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install run ui up down test test-fast test-slow lint format audit numbers constraints clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED) ## make .venv with the exact versions of constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Python {v[0]}.{v[1]} is too old: make PYTHON=/path/to/python3.11 run")'
	@$(PYTHON) -m venv .venv
	@echo "installing into .venv, which takes a minute or two"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip setuptools
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[dev]'
	@touch $@

run: $(INSTALLED) ## train what is stale, elect champions, run a batch job, print the results
	@$(BIN)/sevenfold run

ui: $(INSTALLED) ## serve MLflow's and Prefect's pages on this machine until Ctrl-C
	@$(BIN)/python -m flows.pages

up: $(INSTALLED) ## start a Prefect server, its worker and an MLflow server that stay, with the schedules of prefect.yaml
	@$(BIN)/python -m flows.services up

down: $(INSTALLED) ## end what `make up` has started
	@$(BIN)/python -m flows.services down

test: lint test-fast ## what every change has to pass

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

test-slow: $(INSTALLED) ## the tests that take minutes: whole runs on the built-in data
	$(BIN)/python -m pytest -n auto --dist loadfile -m slow --ignore tests/test_dispatch.py
	$(BIN)/python -m pytest -m slow tests/test_dispatch.py

lint: $(INSTALLED) ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## mend style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

audit: ## look up known holes of the pinned versions, which needs the internet; .ci/known-holes lists exceptions
	@$(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	@.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement $(AUDITED) \
		$$(sed -n 's/^\([A-Z][^ ]*\) .*/--ignore-vuln \1/p' .ci/known-holes)

numbers: $(INSTALLED) ## repeat the contests whose numbers the README shows over several splits, and write its tables
	$(BIN)/python benchmarks/seeds.py wdbc anomaly --seeds 5
	$(BIN)/python benchmarks/seeds.py digits anomaly --seeds 5
	$(BIN)/python benchmarks/seeds.py digits reduction --seeds 5
	$(BIN)/python benchmarks/readme.py

constraints: ## after a change of dependencies: keep the pins there are, add exact versions of what is new
	@$(PYTHON) -m venv .venv-constraints
	@.venv-constraints/bin/python -m pip install --quiet -c constraints.txt pip setuptools
	@.venv-constraints/bin/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[bench,dev,postgres,ray,s3,team]'
	@{ head -2 constraints.txt; .venv-constraints/bin/python -m pip freeze --all --exclude sevenfold | sed 's/+cpu//' | sort -f; } > constraints.new
	@mv constraints.new constraints.txt && rm -rf .venv-constraints

clean: ## remove what can be made again; the private folder .sevenfold stays
	rm -rf .venv .venv-audit .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
