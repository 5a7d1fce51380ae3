"""The GitHub workflows and the hooks of pre-commit, for those who fork the repository."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in yaml.safe_load(workflow.read_text())["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_no_more_rights_than_it_needs_and_pinned_actions(workflow: Path) -> None:
    content = yaml.safe_load(workflow.read_text())
    assert content["permissions"] == {}
    assert content["concurrency"]["group"]
    for name, job in content["jobs"].items():
        # the token that AWS exchanges for credentials is only given to jobs of an environment with protection rules
        token = {"id-token": "write"} if job.get("environment") == "production" else {}
        assert job["permissions"] == {"contents": "read", **token}, name
        assert job["timeout-minutes"] <= 350, "GitHub ends jobs after six hours without a message"
    for step in steps(workflow):
        if uses := step.get("uses"):
            assert "secrets." not in str(step), "no key is stored"
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", uses), "a tag could be moved"
            if uses.startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_each_step_is_a_command_that_people_run_too(workflow: Path) -> None:
    commands = [step["run"] for step in steps(workflow) if "run" in step]
    assert commands
    for command in commands:
        if workflow.name == "deploy.yml":
            # tests/unit/test_deploy_scripts.py runs them
            assert os.access(ROOT / command.split()[0], os.X_OK), command
            assert "${{" not in command, "a variable could hold a command"
            continue
        match = re.fullmatch(r"make ([a-z-]+)( ALL=1)?", command)
        assert match, command
        assert match[1] in TARGETS, command


def test_all_tests_run_in_some_workflow() -> None:
    commands = {step["run"] for workflow in WORKFLOWS for step in steps(workflow) if "run" in step}
    assert commands >= {"make lint", "make audit", "make test", "make test ALL=1", "make test-stack", "make test-long"}


def test_pictures_of_the_site_are_an_artifact_of_a_pull_request_s_tests() -> None:
    job = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text())["jobs"]["test"]["steps"]
    tests = next(step for step in job if step.get("run") == "make test")
    kept = next(step for step in job if step.get("uses", "").startswith("actions/upload-artifact@"))
    assert job.index(kept) > job.index(tests)
    assert kept["with"]["path"] == tests["env"]["BUSCO_TEST_SCREENSHOTS"]
    assert kept["if"] == "${{ !cancelled() }}", "also if a test has failed"


def test_pre_commit_runs_the_checks_of_make_lint_with_its_tools() -> None:
    lint = (ROOT / "scripts/lint.sh").read_text()
    # mypy needs the whole program
    checked = set(re.findall(r'^check "?(?!mypy)([a-z -]+?)"? "\$bin', lint, re.MULTILINE))
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local", "nothing is downloaded"
    assert {hook["name"] for hook in repository["hooks"]} == checked
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv-dbt/bin/")


def test_one_deployment_runs_at_a_time_from_the_main_branch_and_is_never_cancelled() -> None:
    content = yaml.safe_load((ROOT / ".github/workflows/deploy.yml").read_text())
    assert content["concurrency"] == {"group": "deploy", "cancel-in-progress": False}
    job = content["jobs"]["deploy"]
    assert job["if"] == "github.ref_name == github.event.repository.default_branch"
    (credentials,) = [step["with"] for step in job["steps"] if "configure-aws" in step.get("uses", "")]
    assert set(credentials) == {"role-to-assume", "aws-region", "role-duration-seconds"}
