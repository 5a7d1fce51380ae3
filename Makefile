# make demo   the main job: files → tested, published tables → Athena      make test   unit, dbt, integration
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
AIRFLOW := .venv/bin/python
DBT := .venv-dbt/bin/python
PIP := -m pip --disable-pip-version-check --no-input install --quiet --no-deps

.PHONY: help setup setup-dev demo ui down up stop destroy test test-stack image test-long audit audit-update bench lint fmt lock clean check-tools

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

check-tools:
	@scripts/check_tools.sh "$(PYTHON)"

# A stamp names the requirements that an environment was made from: the same again sets nothing up.
.venv/.stamp-airflow: requirements/airflow.txt pyproject.toml | check-tools
	@echo "setting up Airflow's environment (.venv)"
	@test -x $(AIRFLOW) || $(PYTHON) -m venv .venv
	@$(AIRFLOW) $(PIP) --require-hashes -r requirements/airflow.txt
	@$(AIRFLOW) $(PIP) --no-build-isolation --editable .
	@touch $@

.venv-dbt/.stamp-dbt: requirements/dbt.txt pyproject.toml | check-tools
	@echo "setting up dbt's environment (.venv-dbt)"
	@test -x $(DBT) || $(PYTHON) -m venv .venv-dbt
	@$(DBT) $(PIP) --require-hashes -r requirements/dbt.txt
	@$(DBT) $(PIP) --no-build-isolation --editable .
	@touch $@

.venv-dbt/.stamp-local: requirements/local.txt .venv-dbt/.stamp-dbt
	@$(DBT) $(PIP) --require-hashes -r requirements/local.txt
	@touch $@

.venv/.stamp-embedded: requirements/embedded.txt .venv/.stamp-airflow
	@$(AIRFLOW) $(PIP) --require-hashes -r requirements/embedded.txt
	@touch $@

.venv/.stamp-dev: requirements/dev-airflow.txt .venv/.stamp-embedded
	@$(AIRFLOW) $(PIP) --require-hashes -r requirements/dev-airflow.txt
	@touch $@

.venv-dbt/.stamp-dev: requirements/dev-dbt.txt .venv-dbt/.stamp-local
	@echo "setting up the tools of tests and checks"
	@$(DBT) $(PIP) --require-hashes -r requirements/dev-dbt.txt
	@touch $@

setup: ## make the two Python environments
	@$(MAKE) --silent --no-print-directory -j2 .venv/.stamp-embedded .venv-dbt/.stamp-local

setup-dev: ## the same, and what tests and checks need
	@$(MAKE) --silent --no-print-directory -j2 .venv/.stamp-dev .venv-dbt/.stamp-dev

demo: setup ## the main job on made-up data, or on DATA=<folder>
	@.venv/bin/busco demo $(if $(DATA),--data "$(DATA)") $(if $(ORDERS),--orders $(ORDERS))

ui: setup ## start what isn't running, print the URLs
	@.venv/bin/busco ui

down: ## end everything that runs here; data stays
	@if test -x .venv/bin/busco; then .venv/bin/busco down; fi

test: setup-dev ## unit, dbt and integration tests (no Docker, about 10 minutes)
	@scripts/test.sh

test-stack: setup-dev ## tests with real containers (needs Docker)
	@scripts/test_stack.sh

image: ## build a runner's image, busco-dbt:<commit> and busco-dbt:local
	@scripts/local_build.sh dbt

up: ## the whole platform in Docker Compose: build, start, sample data, URLs
	@scripts/compose_up.sh

stop: ## end the Compose platform; data and history stay
	@docker compose down

destroy: ## end it and delete all of its data; asks first
	@scripts/compose_destroy.sh

test-long: setup-dev ## what takes minutes by itself: real data in every way to run (needs Docker)
	@scripts/test_long.sh

audit: setup-dev ## known vulnerabilities of what is pinned
	@$(DBT) scripts/audit.py

audit-update: setup-dev ## the snapshot of advisories anew, from a clone of a database: FROM=<clone>
	@$(DBT) scripts/advisories.py $(if $(FROM),"$(FROM)")

bench: setup-dev ## speed, as ratios in one run
	@$(AIRFLOW) bench/run.py

lint: setup-dev ## ruff, mypy, import-linter, sqlfluff, shellcheck, hadolint, cfn-lint
	@scripts/lint.sh

fmt: setup-dev ## format Python and SQL
	@$(DBT) -m ruff check --fix --quiet . ; $(DBT) -m ruff format .

lock: setup-dev ## compile requirements/*.in
	@cd requirements && for name in dbt local airflow embedded dev-dbt dev-airflow; do \
		../.venv-dbt/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-strip-extras \
			--universal --python-version 3.11 $$name.in --output-file $$name.txt || exit 1; done

clean: down ## take away the environments and all local state
	@rm -rf .venv .venv-dbt .busco
