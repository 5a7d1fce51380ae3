# make demo   run the main job: files → tested, published tables → Athena      make test   unit, dbt, integration
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
AIRFLOW := .venv/bin/python
DBT := .venv-dbt/bin/python
PIP := -m pip --disable-pip-version-check --no-input install --quiet --no-deps

.PHONY: help setup setup-dev demo ui down up stop destroy test test-stack test-engines image test-long audit audit-update bench lint fmt lock clean check-tools

help: ## list these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

check-tools:
	@scripts/check_tools.sh "$(PYTHON)"

# A stamp is newer than the requirements from which an environment was set up, so nothing is set up twice.
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
	@echo "setting up the tools for tests and checks"
	@$(DBT) $(PIP) --require-hashes -r requirements/dev-dbt.txt
	@touch $@

setup: ## create the two Python environments
	@$(MAKE) --silent --no-print-directory -j2 .venv/.stamp-embedded .venv-dbt/.stamp-local

setup-dev: ## the same, plus the tools for tests and checks
	@$(MAKE) --silent --no-print-directory -j2 .venv/.stamp-dev .venv-dbt/.stamp-dev

demo: setup ## run the main job on generated data, or on DATA=<folder>
	@.venv/bin/busco demo $(if $(DATA),--data "$(DATA)") $(if $(ORDERS),--orders $(ORDERS))

ui: setup ## start everything that isn't running, and print the URLs
	@.venv/bin/busco ui

down: ## stop everything that is running here; all data is kept
	@if test -x .venv/bin/busco; then .venv/bin/busco down; fi

test: setup-dev ## run the unit, dbt and integration tests (no Docker, about 10 minutes); ALL=1 adds the slow ones
	@scripts/test.sh $(if $(ALL),--all)

test-stack: setup-dev ## run tests with real containers (needs Docker)
	@scripts/test_stack.sh

test-engines: setup-dev ## run tests with your Trino and other engines (docs/contributing.md); ALL=1 adds the long ones
	@scripts/test_engines.sh $(if $(ALL),--all)

image: ## build the runner's image, busco-dbt:<commit> and busco-dbt:local
	@scripts/local_build.sh dbt

up: ## start the whole platform in Docker Compose: images, services, sample data, URLs
	@scripts/compose_up.sh

stop: ## stop the Compose platform; data and history are kept
	@docker compose down

destroy: ## stop the Compose platform and delete all its data, after asking for confirmation
	@scripts/compose_destroy.sh

test-long: setup-dev ## run the tests marked long: real data in every execution mode, and others (needs Docker)
	@scripts/test_long.sh

audit: setup-dev ## check pinned packages for known vulnerabilities
	@$(DBT) scripts/audit.py

audit-update: setup-dev ## update the snapshot of advisories, from a clone of a database (FROM=<clone>)
	@$(DBT) scripts/advisories.py $(if $(FROM),"$(FROM)")

bench: setup-dev ## measure speed, as ratios within one run
	@$(AIRFLOW) bench/run.py

lint: setup-dev ## run ruff, mypy, import-linter, sqlfluff, shellcheck, hadolint, cfn-lint
	@scripts/lint.sh

fmt: setup-dev ## format Python and SQL
	@$(DBT) -m ruff check --fix --quiet . ; $(DBT) -m ruff format .

lock: setup-dev ## compile requirements/*.in
	@cd requirements && for name in dbt local airflow embedded dev-dbt dev-airflow; do \
		../.venv-dbt/bin/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-strip-extras \
			--universal --python-version 3.11 $$name.in --output-file $$name.txt || exit 1; done

clean: down ## delete the environments and all local state
	@if test -d .busco/engines; then scripts/test_engines.sh stop; fi
	@rm -rf .venv .venv-dbt .busco
