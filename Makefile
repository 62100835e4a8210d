# Two commands do everything: `make demo` and `make test`. `make` alone lists the rest.
# Prerequisites: apt-get install -y git make python3 python3-venv

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON := .venv/bin/python
# The import rules and the documentation check: part of `make lint`.
RULES := tests/test_architecture.py tests/test_documentation.py tests/test_documented_commands.py
# One worker runs the end-to-end tests in order, one the fault tests, one those of packages, and all wait much; whoever is free runs the rest
# (tests/conftest.py).
JOBS ?= 4
PYTEST_ARGS ?=
UNIT ?= tests/unit tests/property tests/contract
# Workers must find the same tests in the same order, also where names come out of a set.
export PYTHONHASHSEED ?= 0
# Tests of whole machines and sites (tests/conftest.py) would double a run's time.
export BLOCKFERRY_HEAVY ?= $(HEAVY)
# Daemons are started hundreds of times: whoever forbids the cache of compiled modules has each of them compiled every time.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help venv demo test tests packages lint format unit e2e postgres soak mutants bench fresh installers lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: ## Make or update .venv from requirements.lock
	@deploy/setup/make-venv.sh

demo: venv ## Replicate a live disk and cut it over; KEEP=1 leaves the site running
	@$(PYTHON) -m deploy.demo $(DEMO_ARGS)

test: venv packages ## Lint beside the tests; HEAVY=1 adds those that take minutes each, as CI does
	@$(MAKE) -j2 lint tests

tests: venv ## The tests alone, without lint (which takes one core for a minute while many tests wait for others)
	@$(PYTHON) -m pytest -n $(JOBS) $(addprefix --ignore=,$(RULES)) $(PYTEST_ARGS)

packages: ## Install what the tests need of Debian (as root; only what is missing)
	@deploy/setup/install-debian-packages.sh

lint: venv ## ruff, mypy --strict, import rules, documentation check
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m ruff format --check --quiet
	@$(PYTHON) -m mypy
	@$(PYTHON) -m pytest -q $(RULES)

format: venv ## Format the code, apply ruff's safe fixes
	@$(PYTHON) -m ruff check --fix --quiet || true
	@$(PYTHON) -m ruff format

unit: venv ## Tests that need nothing of the machine: unit, property, contract
	@$(PYTHON) -m pytest -n $(JOBS) $(UNIT) $(PYTEST_ARGS)

e2e: venv packages ## End-to-end tests on real loop devices (as root)
	@$(PYTHON) -m pytest tests/e2e $(PYTEST_ARGS)

postgres: venv packages ## Every test of the configuration server on PostgreSQL (`make test` runs a part of them on it)
	@BLOCKFERRY_DATABASES=postgresql $(PYTHON) -m pytest -n $(JOBS) tests/unit/config_server tests/hostile/test_hostile_config_server.py tests/fault/test_config_server_failover.py $(PYTEST_ARGS)

soak: venv ## Go on with the simulation for SECONDS=60, from FIRST=2000; SEED=n replays one seed and tells all of it
	@$(PYTHON) -m tests.simulation.soak $(if $(SEED),--seed $(SEED),--first $(or $(FIRST),2000) --seconds $(or $(SECONDS),60))

mutants: venv ## Plant defects in copies of the tree: the simulation must catch every one; ONLY=R1 takes some of them
	@$(PYTHON) -m tests.simulation.mutants $(if $(ONLY),--only $(ONLY)) $(if $(SEEDS),--seeds $(SEEDS))

bench: venv ## Measure speed next to others, as root; BENCH_ARGS="--rounds 5 --only images" (docs/performance.md)
	@deploy/setup/install-debian-packages.sh bench-packages.txt
	@$(PYTHON) -m tests.bench $(BENCH_ARGS)

fresh: packages ## Prove the set-up on a bare Debian 12 (as root); FRESH_TARGETS="demo" proves the demo there
	@deploy/setup/prove-fresh-debian.sh $(FRESH_TARGETS)

installers: venv packages ## Build the agent's installer and the Debian packages into dist/ (as root); VERSION= names another version
	@$(PYTHON) -m deploy.packaging $(if $(VERSION),--version $(VERSION))

lock: ## Write requirements.lock anew from pyproject.toml; UPGRADE=1 takes the newest versions
	@deploy/setup/lock.sh

clean: ## Remove .venv and every cache
	@rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
