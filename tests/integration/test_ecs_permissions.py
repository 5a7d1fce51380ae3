"""The roles of `deploy/aws/ecs.yaml` have sufficient permissions and no more: a run, and attacks with stolen roles, on
a local AWS that checks every request.

The emulator checks requests to S3, Glue and SNS this way, but not the resources that a request to ECS names:
test_ecs_template.py only simulates those.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import pytest
from own_aws import Server, code_of, quiet, started

import busco.aws
from busco.aws import client, publisher_client
from busco.cli.releases import publishing, show_glue
from busco.embedded import aws
from busco.errors import BuscoError
from busco.ingest.orders import carry_out, report_key
from busco.lake import pins, releases
from busco.lake.layout import RunLayout, ingest_order, local_run_key
from busco.lake.objects import ObjectStore
from busco.lake.records import DOCS_NODE, Arrival, Ending, IngestOrder, Order, utc_now
from busco.lake.runs import open_run
from busco.projects import all_contracts
from busco.settings import Settings, get_settings
from busco.warehouse.dbt import ensure_manifests, opened
from busco.warehouse.runner import work
from tests.platforms import ENVIRONMENT, ROOT, Platform, csv_text

ANYBODY_IN_THE_ACCOUNT = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::000000000000:root"}, "Action": "sts:AssumeRole"}
    ],
}


@dataclass
class Checked:
    """A project, a local AWS that checks permissions, and credentials for `acting_as`: `runner`, `ingest`, `airflow`.

    Airflow's credentials belong to the template's own role, because only that role can assume the publisher's. The
    other roles can be assumed only by ECS tasks, so their credentials belong to new roles with the same policies.
    """

    platform: Platform
    server: Server
    outputs: dict[str, str]

    def __post_init__(self) -> None:
        self.runner, self.ingest = self._like("runner"), self._like("ingest")
        self.airflow = self._assumed(self.outputs["AirflowRoleArn"])
        self.reader = self._reader()

    def root(self, service: str) -> Any:
        return self.server.client(service)

    def _like(self, duty: str) -> dict[str, str]:
        """Returns credentials of a new role with the same policy as a duty's role."""
        iam = self.root("iam")
        named = self.outputs[f"{duty.title()}RoleArn"].rpartition("/")[2]
        return self.role(duty, iam.get_role_policy(RoleName=named, PolicyName="lake")["PolicyDocument"])

    def role(self, name: str, policy: dict[str, Any]) -> dict[str, str]:
        """Returns credentials of a new role with a policy."""
        iam = self.root("iam")
        role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(ANYBODY_IN_THE_ACCOUNT))["Role"]
        iam.put_role_policy(RoleName=name, PolicyName="given", PolicyDocument=json.dumps(policy))
        return self._assumed(role["Arn"])

    def _reader(self) -> dict[str, str]:
        """Returns credentials of a new role that has only ReadersPolicy."""
        iam = self.root("iam")
        role = iam.create_role(RoleName="reader", AssumeRolePolicyDocument=json.dumps(ANYBODY_IN_THE_ACCOUNT))["Role"]
        iam.attach_role_policy(RoleName="reader", PolicyArn=self.outputs["ReadersPolicy"])
        return self._assumed(role["Arn"])

    def _assumed(self, role: str) -> dict[str, str]:
        credentials = self.root("sts").assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
        return {
            "AWS_ACCESS_KEY_ID": credentials["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": credentials["SecretAccessKey"],
            "AWS_SESSION_TOKEN": credentials["SessionToken"],
        }

    @contextmanager
    def acting_as(self, credentials: dict[str, str]) -> Iterator[Settings]:
        variables = {
            "BUSCO_HOME": str(self.platform.home),
            "BUSCO_PLATFORM": "aws",
            "BUSCO_ENDPOINT_URL": self.server.endpoint,
            "BUSCO_LAKE_BUCKET": self.outputs["LakeBucket"],
            "BUSCO_PUBLISHER_ROLE_ARN": self.outputs["PublisherRoleArn"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUSCO_", "AWS_"))}
        with mock.patch.dict(os.environ, kept | variables | credentials, clear=True):
            self.clear_caches()
            yield get_settings()
        self.clear_caches()

    def clear_caches(self) -> None:
        get_settings.cache_clear()
        # another process would assume the role itself
        busco.aws.assumed.cache_clear()


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checked]:
    folder = tmp_path_factory.mktemp("checked")
    home = folder / "home"
    shutil.copytree(ROOT / "tests/projects/mini/dbt_project", home / "dbt_project")
    with mock.patch.dict(os.environ):
        server = started((home / ".busco").resolve())
        stacks_there = server.client("cloudformation").describe_stacks()["Stacks"]
        made = {one["OutputKey"]: one["OutputValue"] for stack in stacks_there for one in stack["Outputs"]}
        yield Checked(Platform(home), server, made)
        aws.down(server.settings, quiet)


def test_each_duty_needs_no_more_than_its_role(checked: Checked) -> None:
    platform, key = checked.platform, local_run_key(utc_now())
    with checked.acting_as(checked.ingest):
        bad = ("o2", "x", "1.50", "no day", 1)
        rows = [("o1", "x", "1.50", "2018-01-01", 1), bad]
        file = platform.write("in/orders.csv", csv_text(("id", "customer", "amount", "day", "n"), rows))
        report = platform.take(file)
        assert [(one.written, one.quarantined) for one in report.loaded] == [(1, 1)]
    with checked.acting_as(checked.airflow) as settings:
        with opened(settings) as dbt:
            project = dbt.parse()
        run = pins.pin(platform.store, ENVIRONMENT, key, 1, project.contracts, project.hash)
        # the records that Airflow's triggerer writes
        platform.store.create(run.layout.order("shared", 1), Order(name="shared", generation=1, kind="shared"))
        platform.store.create(run.layout.ending(9), Ending(number=9, reason="gone"))
        platform.store.create(run.layout.follower("models.fct_run"), b"{}")
    with checked.acting_as(checked.runner) as settings:
        outcome = work(settings, key)
        assert outcome is not None
        assert outcome.good
        platform.store.create(ENVIRONMENT.selection("0f3c"), b"{}")
    with checked.acting_as(checked.airflow) as settings:
        store = publishing(settings)
        run = open_run(store, ENVIRONMENT, key)
        first = releases.publish(run, platform.audit(run), "test", run.docs)
        assert store.get(f"{run.docs}site.json") is not None, run.log(DOCS_NODE, 1)
        shown = show_glue(settings, store, ENVIRONMENT)
        assert shown is not None
        assert shown.created == ("busco_bronze.orders", "busco_gold.fct", "busco_silver.orders")
        releases.rollback(store, ENVIRONMENT, first.release, "test", "to try it")
        assert releases.resume(store, ENVIRONMENT) is not None
        # the page and those that it links to, if there are several projects
        pages = ObjectStore(publisher_client("s3", settings), settings.lake_bucket)
        pages.create("docs/projects/bakery.html", b"<html>")
        glue = publisher_client("glue", settings)
        glue.delete_table(DatabaseName="busco_gold", Name="fct")
        assert client("glue", settings).get_tables(DatabaseName="busco_gold")["TableList"] == []
        assert "busco_gold.fct is missing" in in_airflow(checked, "release", "repair", "--check", status=1)
        in_airflow(checked, "release", "repair")
        assert len(client("glue", settings).get_tables(DatabaseName="busco_gold")["TableList"]) == 1
    with checked.acting_as(checked.airflow):
        # a run whose base release has pages, which its runner reads
        second = pins.pin(platform.store, ENVIRONMENT, local_run_key(utc_now()), 1, project.contracts, project.hash)
    with checked.acting_as(checked.runner) as settings:
        outcome = work(settings, second.name)
        assert outcome is not None
        assert outcome.good
    with checked.acting_as(checked.airflow):
        assert platform.store.get(f"{second.docs}site.json") is not None, second.log(DOCS_NODE, 1)
    with checked.acting_as(checked.runner):
        assert platform.duckdb("select count(*) from busco_gold.fct") == [(1,)]


def in_airflow(checked: Checked, *arguments: str, status: int = 0) -> str:
    """Runs the command in Airflow's environment, with this process's credentials."""
    return python_in_airflow(checked, f"from busco.cli.main import main; main({list(arguments)!r})", status)


def python_in_airflow(checked: Checked, code: str, status: int = 0) -> str:
    done = subprocess.run(
        [str(ROOT / ".venv/bin/python"), "-c", code],
        env=dict(os.environ), cwd=checked.platform.home, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_what_a_runners_role_overwrote_and_what_was_deleted_is_restored_by_the_publishers_role(
    checked: Checked,
) -> None:
    lake, platform, sql = checked.outputs["LakeBucket"], checked.platform, "select * from busco_gold.fct"
    with checked.acting_as(checked.runner) as settings:
        before, s3 = platform.duckdb(sql), client("s3", settings)
        (gold,), (silver,) = (platform.version(table).files for table in ("gold.fct", "silver.orders"))
        s3.put_object(Bucket=lake, Key=gold.key, Body=b"x" * gold.bytes)
    checked.root("s3").delete_object(Bucket=lake, Key=silver.key)
    for who in (checked.runner, checked.ingest, checked.airflow, checked.reader):
        with checked.acting_as(who) as settings:
            s3 = client("s3", settings)
            for older in checked.root("s3").list_object_versions(Bucket=lake, Prefix=gold.key)["Versions"]:
                get = partial(s3.get_object, Bucket=lake, Key=gold.key, VersionId=older["VersionId"])
                assert code_of(get) == "AccessDenied"
            assert code_of(partial(s3.list_object_versions, Bucket=lake, Prefix=gold.key)) == "AccessDenied"
    with checked.acting_as(checked.airflow):
        printed = in_airflow(checked, "release", "repair")
        assert f"gold.fct: the data file s3://{lake}/{gold.key} was overwritten at " in printed
        assert f"silver.orders: the data file s3://{lake}/{silver.key} was deleted at " in printed
        assert printed.count("restored from S3 object version ") == 2
        in_airflow(checked, "release", "repair", "--check")
    with checked.acting_as(checked.runner):
        assert platform.duckdb(sql) == before
        assert {file.key: file.etag for file in (gold, silver)} == {
            key: platform.store.sizes(key)[key][0] for key in (gold.key, silver.key)
        }


def test_drift_is_found_and_repaired_by_airflows_task(checked: Checked) -> None:
    with checked.acting_as(checked.airflow) as settings:
        live = releases.read_live(checked.platform.store, ENVIRONMENT)
        assert live is not None
        lost = live.release.tables["silver.orders"].metadata
        checked.root("s3").delete_object(Bucket=settings.lake_bucket, Key=lost)
        code = "from busco.orchestration import control; control.{}"
        assert "to repair them, run the `drift` DAG" in python_in_airflow(checked, code.format("check()"), 1)
        python_in_airflow(checked, code.format("repair_drift('ana')"))
        python_in_airflow(checked, code.format("check()"))
        assert checked.platform.store.missing([lost]) == []


def test_airflows_task_sees_with_its_role_that_the_landing_bucket_s_notification_was_removed(checked: Checked) -> None:
    s3, landing = checked.root("s3"), checked.outputs["LandingBucket"]
    before = s3.get_bucket_notification_configuration(Bucket=landing)
    queues = {
        "BUSCO_LANDING_BUCKET": landing,
        "BUSCO_EVENTS_QUEUE": checked.outputs["EventsQueue"],
        "BUSCO_EVENTS_DEAD_LETTERS": checked.outputs["DeadLetters"],
    }
    code = "from busco.orchestration import control; control.check_notification()"
    with checked.acting_as(checked.airflow) as settings, mock.patch.dict(os.environ, queues):
        python_in_airflow(checked, code)
        s3.put_bucket_notification_configuration(Bucket=landing, NotificationConfiguration={})
        try:
            failed = python_in_airflow(checked, code, 1)
        finally:
            before.pop("ResponseMetadata")
            s3.put_bucket_notification_configuration(Bucket=landing, NotificationConfiguration=before)
        assert f"busco events attach {checked.outputs['EventsQueueArn']}" in failed
        # the role can't change it
        put = client("s3", settings).put_bucket_notification_configuration
        assert code_of(partial(put, Bucket=landing, NotificationConfiguration={})) == "AccessDenied"


def test_a_producer_with_the_documented_permissions_delivers_and_reads_reports_and_nothing_else(
    checked: Checked,
) -> None:
    landing, key = checked.outputs["LandingBucket"], "orders/late.csv"
    text = (ROOT / "docs/producing.md").read_text().replace("<landing bucket>", landing).replace("<table>", "orders")
    allowed = [
        {"Effect": "Allow", "Action": action, "Resource": resource}
        for action, resource in re.findall(r"^(s3:\w+) on (arn:\S+)$", text, re.MULTILINE)
    ]
    assert len(allowed) == 2
    producer = checked.role("producer", {"Version": "2012-10-17", "Statement": allowed})
    with checked.acting_as(producer) as settings:
        made = client("s3", settings).put_object(Bucket=landing, Key=key, Body=b"")
    with checked.acting_as(checked.airflow):
        arrived = Arrival(key=key, version=made["VersionId"], etag=made["ETag"].strip('"'), size=0)
        order = IngestOrder(order="20260101T000000-ab", objects=(arrived,), ordered_at=utc_now())
        checked.platform.store.create(ingest_order(order.order), order)
    with checked.acting_as(checked.ingest) as settings:
        contracts = all_contracts(ensure_manifests(settings))
        mine = settings.model_copy(update={"landing_bucket": landing})
        (refused,) = carry_out(mine, checked.platform.store, contracts, order.order).objects
        assert (refused.outcome, refused.reason) == ("refused", "the file is empty (zero bytes)")
        # besides reports, it changes nothing that producers have delivered
        s3 = client("s3", settings)
        assert code_of(partial(s3.put_object, Bucket=landing, Key=key)) == "AccessDenied"
        assert code_of(partial(s3.delete_object, Bucket=landing, Key=key)) == "AccessDenied"
    with checked.acting_as(producer) as settings:
        s3 = client("s3", settings)
        report = json.loads(s3.get_object(Bucket=landing, Key=report_key(key))["Body"].read())
        assert report["versions"][0]["reason"] == refused.reason
        for call in (
            partial(s3.get_object, Bucket=landing, Key=report_key("items/late.csv")),
            partial(s3.put_object, Bucket=landing, Key=report_key(key)),
            partial(s3.put_object, Bucket=landing, Key="items/late.csv"),
            partial(s3.list_objects_v2, Bucket=landing),
            partial(s3.get_object, Bucket=checked.outputs["LakeBucket"], Key=ingest_order(order.order)),
        ):
            assert code_of(call) == "AccessDenied", call


def test_a_stolen_role_neither_publishes_nor_destroys(checked: Checked) -> None:
    lake, table = checked.outputs["LakeBucket"], {"DatabaseName": "busco_gold", "Name": "kept"}
    kept, quarantined = "gold/kept/prod-1a/a.parquet", "_lake/quarantine/s.t/a.csv/1a.parquet"
    run = RunLayout(ENVIRONMENT.epoch("stolen", 1))
    publishing_keys = [ENVIRONMENT.current, ENVIRONMENT.release("r1"), "docs/index.html", "docs/projects/bakery.html"]
    steering = [run.pin, run.order("shared", 1), run.ending(1), run.follower("a")]
    working = [run.entry("gold.a"), run.runner(1), run.result("a", 1), "docs/stolen/1/index.html"]
    everything = [kept, quarantined, "bronze/s/t/a.parquet", "_lake/deliveries/s.t/a.csv/1.json"]
    everything += [*publishing_keys, *steering, *working]
    checked.root("s3").put_object(Bucket=lake, Key=kept, Body=b"rows")
    checked.root("s3").put_object(Bucket=lake, Key=quarantined, Body=b"rows")
    checked.root("glue").create_table(DatabaseName="busco_gold", TableInput={"Name": "kept"})
    stolen = {
        "runner": (checked.runner, {kept, *working}),
        "ingest": (checked.ingest, {quarantined, "bronze/s/t/a.parquet", "_lake/deliveries/s.t/a.csv/1.json"}),
        "airflow": (checked.airflow, set(steering)),
    }
    for who, (credentials, its_own) in stolen.items():
        with checked.acting_as(credentials) as settings:
            s3, glue, sts = client("s3", settings), client("glue", settings), client("sts", settings)
            written = {key for key in everything if code_of(partial(s3.put_object, Bucket=lake, Key=key)) == "ok"}
            assert written == its_own, who
            for key in everything:
                assert code_of(partial(s3.delete_object, Bucket=lake, Key=key)) == "AccessDenied", (who, key)
            reads = code_of(partial(s3.get_object, Bucket=lake, Key=quarantined))
            assert reads == ("ok" if who == "ingest" else "AccessDenied"), who
            assert code_of(partial(s3.list_objects_v2, Bucket=lake, Prefix="elsewhere/")) == "AccessDenied"
            renamed = {"DatabaseName": "busco_gold", "TableInput": {"Name": "kept"}}
            for change in (partial(glue.delete_table, **table), partial(glue.update_table, **renamed)):
                assert code_of(change) == "AccessDeniedException", who
            roles = [checked.outputs[f"{duty}RoleArn"] for duty in ("Runner", "Ingest", "Airflow", "Publisher")]
            taken = [
                arn for arn in roles if code_of(partial(sts.assume_role, RoleArn=arn, RoleSessionName="stolen")) == "ok"
            ]
            assert taken == (roles[-1:] if who == "airflow" else []), who
            if who == "airflow":
                # the topic's policy allows the whole account; the other roles lack its key (test_lake_policies.py)
                alert = {"TopicArn": checked.outputs["AlertsTopic"], "Message": "a run failed"}
                assert code_of(partial(client("sns", settings).publish, **alert)) == "ok"
    assert checked.root("glue").get_table(**table)["Table"]["Name"] == "kept"


def test_a_role_that_can_t_publish_gets_a_clear_error_or_keeps_its_own_permissions(checked: Checked) -> None:
    with checked.acting_as(checked.runner) as settings:
        with pytest.raises(BuscoError, match="PublisherRoleArn"):
            publisher_client("s3", settings)
        own = publishing(settings)
        assert code_of(lambda: own.create(ENVIRONMENT.release("r2"), b"{}")) == "AccessDenied"


@pytest.mark.parametrize("side", ["dbt", "airflow"])
def test_doctor_needs_no_more_than_the_policy_of_its_environment(checked: Checked, side: str) -> None:
    landing = checked.outputs["LandingBucket"]
    who, folder = {"dbt": (checked.runner, ".venv-dbt"), "airflow": (checked.airflow, ".venv")}[side]
    with checked.acting_as(who):
        checked.platform.busco("dbt", "parse")
        done = subprocess.run(
            [str(ROOT / folder / "bin/python"), "-m", "busco", "doctor", "--format", "json"],
            env={
                **os.environ, "BUSCO_LANDING_BUCKET": landing, "BUSCO_LOGS_BUCKET": checked.outputs["LogsBucket"],
                "BUSCO_AIRFLOW_URL": "https://airflow.example.com",
            },
            cwd=checked.platform.home, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
        assert [check for check in checks.values() if check["state"] == "failed"] == []
        name = "runner" if side == "dbt" else checked.outputs["AirflowRoleArn"].rpartition("/")[2]
        assert f":assumed-role/{name}/" in checks["role"]["seen"]
        assert checks["conditional writes"]["state"] == "ok"
        if side == "dbt":
            assert checks["landing bucket"]["seen"].endswith("only the ingest role has it")
