"""`busco replay` builds a model that failed in a run again, on this machine and with the run's inputs."""

from __future__ import annotations

import getpass
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest

from busco.errors import BuscoError
from busco.lake import pins, releases, replays
from busco.lake.records import RUNNER_NODE, Release
from busco.lake.runs import Run, open_run
from busco.warehouse.dbt import ensure_manifest
from tests.integration.conftest import MINI
from tests.platforms import ENVIRONMENT, ROOT, Platform, csv_text, platform

HEADER = ("id", "customer", "amount", "day", "n")
OWN = replays.environment_of(getpass.getuser())
STRICT = "model.busco.strict"
# fails on an id that is not a number; the number of days comes from a table that the run didn't build
BROKEN = (
    "select id, {cast}(id as integer) as number, (select count(*) from {{{{ ref('fct') }}}}) as days\n"
    "from {{{{ ref('orders') }}}}"
)

pytestmark = pytest.mark.slow
STRICT_YAML = "models: [{name: strict, columns: [{name: id, data_tests: [unique]}]}]"


@dataclass
class Failed:
    """A run in which gold.strict failed; since then, the model was fixed, and prod has published another run."""

    platform: Platform
    run: str
    commit: str
    base: Release
    error: str

    def replay(self, *arguments: str, status: int = 0, run: str = "") -> str:
        return self.platform.busco("replay", run or self.run, *arguments, status=status)

    @property
    def source(self) -> Run:
        return open_run(self.platform.store, ENVIRONMENT, self.run)

    @property
    def replayed(self) -> Run:
        return open_run(self.platform.store, OWN, self.run)

    def objects(self) -> dict[str, str]:
        """Returns the ETag of every object in the lake."""
        store = self.platform.store
        pages = store.client.get_paginator("list_objects_v2").paginate(Bucket=store.bucket)
        return {item["Key"]: item["ETag"] for page in pages for item in page.get("Contents", [])}

    @property
    def worktree(self) -> Path:
        return self.platform.home / ".busco/replay" / self.commit


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    return subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def order(number: str, day: int) -> str:
    return csv_text(HEADER, [(number, "x", "1.50", f"2018-01-{day:02}", 1)])


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Failed]:
    with platform(tmp_path_factory.mktemp("replay"), MINI) as made:
        made.write(".gitignore", ".busco/\nin/\ndeploy/\n__pycache__/\ntarget/\n")
        made.model("gold/strict", BROKEN.format(cast="cast"), STRICT_YAML)
        # the commit also contains the platform's code, changed here so that its output differs from the current code's
        shutil.copytree(ROOT / "src/busco", made.home / "src/busco", ignore=shutil.ignore_patterns("__pycache__"))
        runner = made.home / "src/busco/warehouse/runner.py"
        made.write("src/busco/warehouse/runner.py", runner.read_text().replace('f"runner={', 'f"then: runner={'))
        git(made.home, "init", "--quiet")
        git(made.home, "add", ".")
        git(made.home, "commit", "--quiet", "-m", "strict")
        commit = git(made.home, "rev-parse", "--short=12", "HEAD")
        made.deliver(order("1", 1))
        assert made.build().good
        base = made.live()
        made.deliver(order("x2", 2), "orders-more.csv")
        printed = made.busco("dbt", "build", "--select", "orders strict", status=1)
        (run,) = set(re.findall(r"^run (local\.\S+)$", printed, re.MULTILINE))
        error = open_run(made.store, ENVIRONMENT, run).latest_results()[STRICT].error
        assert "Could not convert string" in error
        made.model("gold/strict", BROKEN.format(cast="try_cast"))
        git(made.home, "commit", "--quiet", "--all", "-m", "strict takes any id")
        made.deliver(order("3", 3), "orders-third.csv")
        assert made.build().good
        assert made.live().tables["gold.fct"].rows > base.tables["gold.fct"].rows
        yield Failed(made, run, commit, base, error)


@dataclass
class Fixed:
    """A replay with the current code, in which the model is fixed."""

    printed: str
    run: Run
    out: Path


@pytest.fixture(scope="module")
def fixed(failed: Failed) -> Fixed:
    out = failed.platform.home / "in/strict.parquet"
    return Fixed(failed.replay("gold.strict", "--code", "here", "--out", str(out)), failed.replayed, out)


@pytest.mark.long
def test_a_replay_of_the_runs_commit_fails_with_the_same_error(
    failed: Failed,
) -> None:
    printed = failed.replay("strict", status=1)
    assert failed.error in printed
    assert f"code: commit {failed.commit}" in printed
    assert "then: runner=" in printed, "the platform's code must be the commit's too"
    result = failed.replayed.latest_results()[STRICT]
    assert (result.status, result.error, result.code_version) == ("error", failed.error, failed.commit)
    assert re.search(r"^strict +error +error", printed, re.MULTILINE)


def test_a_fix_is_tried_on_the_runs_data_although_prod_has_published_since(failed: Failed, fixed: Fixed) -> None:
    printed, out = fixed.printed, fixed.out
    assert re.search(r"^strict +error +success +2 ", printed, re.MULTILINE)
    assert re.search(r"^unique_strict_id\S* +skipped +success", printed, re.MULTILINE)
    rows = duckdb.sql(f"select id, number, days from '{out}' order by id").fetchall()
    assert rows == [("1", 1, 1), ("x2", None, 1)]
    result = fixed.run.latest_results()[STRICT]
    assert result.reads["gold.fct"] == failed.base.tables["gold.fct"].version
    entry = failed.source.entries()["silver.orders"]
    assert entry.version is not None
    assert result.reads["silver.orders"] == entry.version.version


def test_the_query_that_a_replay_prints_shows_the_table_that_it_built(failed: Failed, fixed: Fixed) -> None:
    (command,) = re.findall(r"^to look at \S+: busco (.*)$", fixed.printed, re.MULTILINE)
    printed = failed.platform.busco(*shlex.split(command), "--format", "csv")
    assert printed.splitlines()[0] == "id,number,days"
    assert sorted(printed.splitlines()[1:]) == ["1,1,1", "x2,,1"]


def test_a_replay_writes_only_below_its_own_environment(failed: Failed) -> None:
    before = failed.objects()
    failed.replay("strict", status=1)
    failed.replay("strict", "orders", "--code", "here", "--no-tests")
    after = failed.objects()
    assert {key: after.get(key) for key in before} == before
    fresh = after.keys() - before.keys()
    assert {key for key in fresh if not key.startswith(OWN.root) and f"/{OWN.environment}-" not in key} == set()
    assert any(key.startswith(f"gold/strict/{OWN.environment}-") for key in fresh)


def test_a_replay_of_a_run_that_had_no_runner_writes_no_bronze_metadata_of_prod(failed: Failed) -> None:
    made = failed.platform
    made.deliver(order("4", 4), "orders-fourth.csv")
    project = ensure_manifest(made.settings)
    pins.pin(made.store, ENVIRONMENT, "began", 1, project.contracts, project.hash, project_dir="dbt_project")
    before = failed.objects()
    printed = failed.replay("strict", "--code", "here", "--no-tests", run="began")
    assert "warning: the run has not built silver.orders (yet): strict reads the base release's version" in printed
    assert {key for key in failed.objects() if key.startswith(ENVIRONMENT.root)} <= before.keys()


def test_a_model_is_built_in_a_replay_even_if_its_version_could_be_kept(failed: Failed) -> None:
    made = failed.platform
    project = ensure_manifest(made.settings)
    pins.pin(made.store, ENVIRONMENT, "kept", 1, project.contracts, project.hash, project_dir="dbt_project")
    failed.replay("strict", "--code", "here", "--no-tests", run="kept")
    (result,) = [one for one in open_run(made.store, OWN, "kept").results() if one.node == STRICT]
    assert not result.kept
    assert result.made != made.live().tables["gold.strict"].version


def test_a_replay_can_be_neither_published_nor_rolled_back(failed: Failed, fixed: Fixed) -> None:
    audit = ensure_manifest(failed.platform.settings).audit()
    with pytest.raises(BuscoError, match=f"nothing can be published in {OWN.environment}"):
        releases.publish(fixed.run, audit, "test", "")
    own = {"BUSCO_ENVIRONMENT": OWN.environment}
    refused = failed.platform.busco("release", "rollback", "r1", "--reason", "x", status=1, environment=own)
    assert f"nothing can be published in {OWN.environment}" in refused
    assert failed.platform.store.get(OWN.current) is None


def test_a_commit_that_is_missing_from_this_clone_is_named_with_what_to_do(failed: Failed, tmp_path: Path) -> None:
    shallow = tmp_path / "shallow"
    git(failed.platform.home, "clone", "--quiet", "--depth", "1", f"file://{failed.platform.home}", str(shallow))
    state = str(failed.platform.settings.state)
    printed = failed.platform.busco(
        "replay", failed.run, "strict", status=1, environment={"BUSCO_HOME": str(shallow), "BUSCO_STATE_DIR": state}
    )
    assert f"the run's commit {failed.commit} is not in this clone" in printed
    assert "git fetch --unshallow" in printed
    assert "--code here" in printed
    # the printed command would run in the image; here, the current code runs it
    (command,) = re.findall(rf"docker run .* busco-dbt:{failed.commit} (runner .*)", printed)
    own = {"BUSCO_ENVIRONMENT": OWN.environment}
    assert "strict" in failed.platform.busco(*shlex.split(command), environment=own)
    assert failed.replayed.latest_results()[STRICT].status == "success"


def test_a_run_without_a_commit_and_one_with_changed_files_are_reported(failed: Failed) -> None:
    made = failed.platform
    project = ensure_manifest(made.settings)
    for run, version in (("nowhere", ""), ("changed", f"{failed.commit}+")):
        pins.pin(
            made.store, ENVIRONMENT, run, 1, project.contracts, project.hash, code_version=version, nodes=[STRICT],
            project_dir="dbt_project",
        )  # fmt: skip
    assert "has no record of its code's commit" in failed.replay("strict", run="nowhere", status=1)
    printed = failed.replay("strict", "--no-tests", run="changed", status=1)
    assert f"files that differ from commit {failed.commit}" in printed


def test_unknown_and_ambiguous_runs_and_models_are_reported_with_the_possible_ones(failed: Failed) -> None:
    made = failed.platform
    project = ensure_manifest(made.settings)
    known = [replays.run_key("lakehouse", f"scheduled__2026-11-{day}T01:00:00+00:00") for day in (24, 25)]
    for key in known:
        pins.pin(made.store, ENVIRONMENT, key, 1, project.contracts, project.hash)
    store = made.store
    assert replays.find(store, ENVIRONMENT, "lakehouse/scheduled__2026-11-25T01:00:00+00:00").name == known[1]
    assert replays.find(store, ENVIRONMENT, "lakehouse/2026-11-24").name == known[0]
    assert replays.find(store, ENVIRONMENT, "2026-11-24T01:00").name == known[0]
    several = failed.replay("strict", run="scheduled__", status=1)
    assert [line for line in several.splitlines() if line.strip() in known] == [f"    {key}" for key in known]
    assert "there is no run nosuch" in failed.replay("strict", run="nosuch", status=1)
    assert "did you mean strict" in failed.replay("strct", "--code", "here", status=1)


@pytest.mark.long
def test_a_model_whose_parent_failed_in_the_run_is_replayed_together_with_it(failed: Failed) -> None:
    made = failed.platform
    made.model("gold/child", "select number from {{ ref('strict') }}")
    try:
        refused = failed.replay("child", "--code", "here", status=1)
        assert f"replay both: busco replay {failed.run} gold.strict child" in refused
        failed.replay("gold.strict", "child", "--code", "here", "--no-tests")
    finally:
        (made.home / "dbt_project/models/gold/child.sql").unlink()
    results = failed.replayed.latest_results()
    assert results.keys() - {RUNNER_NODE} == {STRICT, "model.busco.child"}
    assert results["model.busco.child"].reads == {"gold.strict": results[STRICT].made}


@pytest.mark.long
def test_a_repeated_replay_begins_a_new_epoch_and_uses_the_same_worktree(failed: Failed) -> None:
    failed.replay("strict", "--no-tests", status=1)
    first, made = failed.replayed.pin, (failed.worktree / ".git").stat().st_mtime_ns
    assert failed.error in failed.replay("strict", "--no-tests", status=1)
    assert failed.replayed.pin.epoch == first.epoch + 1
    assert (failed.worktree / ".git").stat().st_mtime_ns == made
