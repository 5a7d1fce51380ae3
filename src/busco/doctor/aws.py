"""Checks what AWS, or the endpoint that replaces it, allows this process to do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any

import boto3
from botocore import UNSIGNED
from botocore.exceptions import BotoCoreError, ClientError

from busco import container
from busco.catalog.glue_drift import Catalog
from busco.doctor import Skipped, Surroundings
from busco.errors import BuscoError
from busco.events import attach
from busco.lake.layout import EnvironmentLayout, new_id
from busco.lake.objects import AlreadyExists, Moved, ObjectStore
from busco.lake.records import Current
from busco.lake.releases import read_live
from busco.settings import LAYERS, require_lake
from busco.text import count

# S3 rejects the requests of a machine whose clock is off by 15 minutes (S3 API reference, RequestTimeTooSkewed).
_SKEW, _REFUSED = 60.0, 15
_RACES = 5  # attempts; in each, one of several simultaneous `busco doctor` processes succeeds


def first_answer(around: Surroundings) -> tuple[str, str, float]:
    """Sends S3 a request without credentials and returns the value of `Surroundings.answered`; any response will do."""
    settings = require_lake(around.settings)
    s3 = around.client("s3", signature_version=UNSIGNED)
    try:
        answer = s3.head_bucket(Bucket=settings.lake_bucket)
    except ClientError as error:
        answer = error.response
    headers = answer["ResponseMetadata"].get("HTTPHeaders", {})
    return str(s3.meta.endpoint_url), str(headers.get("date", "")), time.time()


def endpoint(around: Surroundings) -> str:
    """S3's endpoint responds."""
    began = time.monotonic()
    try:
        url, _, _ = around.answered
    except (BotoCoreError, OSError) as error:
        if around.settings.platform == "embedded":
            raise BuscoError(f"the local AWS is not responding: {error}", "start it: busco aws up") from error
        raise
    return f"{url} (region {around.settings.region}) responded in {(time.monotonic() - began) * 1000:.0f} ms"


def clock(around: Surroundings) -> str:
    """This machine's clock is close to S3's."""
    _, date, came = around.answered
    if not date:
        raise Skipped("S3's response has no date")
    skew = came - parsedate_to_datetime(date).timestamp()
    if abs(skew) > _SKEW:
        raise BuscoError(
            f"this machine's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} S3's",
            f"synchronize it (NTP): S3 rejects requests if the clock is off by {_REFUSED} minutes",
        )
    return f"{abs(skew):.0f} s off S3's clock"


def role(around: Surroundings) -> str:
    """There are credentials, and STS identifies their owner unless it can't be reached."""
    found = boto3.session.Session(region_name=around.settings.region).get_credentials()
    if found is None:
        raise BuscoError(
            "there are no AWS credentials",
            "in a container, set the task definition's task role (deploy/aws/ecs.yaml, RunnerRole); elsewhere, "
            "set AWS_PROFILE",
        )
    source = f"credentials from {found.method}"
    task = container.this_task()
    where = f", in ECS task {task.arn.rpartition('/')[2]} ({task.family}:{task.revision})" if task else ""
    try:
        identity = around.client("sts").get_caller_identity()
    except (BotoCoreError, OSError) as error:
        # a network that allows only what models need has no route to STS
        return f"{source}{where}; their owner is unknown: {error}"
    return f"{identity['Arn']}, {source}{where}"


def lake_bucket(around: Surroundings) -> str:
    """The lake bucket exists, and can be listed and read."""
    settings = around.settings
    environment = EnvironmentLayout(settings.environment)
    try:
        around.s3.list_objects_v2(Bucket=settings.lake_bucket, Prefix=environment.root, MaxKeys=1)
    except ClientError as error:
        _refuse_bucket(error, settings.lake_bucket, "BUSCO_LAKE_BUCKET")
        raise
    current = ObjectStore(around.s3, settings.lake_bucket).read(environment.current, Current)
    live = f"release {current.release} is live" if current else "nothing is published yet"
    return f"{settings.lake_bucket}: {live} in {settings.environment}"


def conditional_writes(around: Surroundings) -> str:
    """S3 supports conditional writes, and rejects those whose condition fails: the lake has no other locking."""
    bucket, key = around.settings.lake_bucket, EnvironmentLayout(around.settings.environment).doctor
    store = ObjectStore(around.s3, bucket)
    _written(store, key, None)
    if _written(store, key, None):
        raise _ignored("If-None-Match", bucket)
    for _ in range(_RACES):
        etag = around.s3.get_object(Bucket=bucket, Key=key)["ETag"]
        if _written(store, key, etag):
            break
    else:
        raise BuscoError(f"s3://{bucket}/{key}: every write with If-Match and the object's current ETag was rejected")
    if _written(store, key, etag):
        raise _ignored("If-Match", bucket)
    return f"s3://{bucket}/{key}: If-None-Match and If-Match are honored (a write whose condition fails gets a 412)"


def landing_bucket(around: Surroundings) -> str:
    """The landing bucket exists, and the role that ingests can list it."""
    bucket = around.settings.landing_bucket
    if not bucket:
        raise Skipped("BUSCO_LANDING_BUCKET is not set")
    with allowed(f"s3:ListBucket on {bucket}", "only the ingest role has it"):
        try:
            around.s3.list_objects_v2(Bucket=bucket, MaxKeys=1)
        except ClientError as error:
            _refuse_bucket(error, bucket, "BUSCO_LANDING_BUCKET")
            raise
    return bucket


def queue(around: Surroundings) -> str:
    """The landing bucket notifies the queue of all new files. Without a configured queue: if it notifies queues of new
    files, these queues exist."""
    settings = around.settings
    if not settings.landing_bucket:
        raise Skipped("BUSCO_LANDING_BUCKET is not set")
    sqs = around.client("sqs")
    if not settings.events_queue:
        return _notified_queues(around, sqs)
    with allowed("s3:GetBucketNotification or sqs:GetQueueAttributes"):
        how = attach.check(around.s3, sqs, settings.landing_bucket, settings.events_queue)
        return f"{how}; {_waiting(sqs, settings.events_queue)}"


def _notified_queues(around: Surroundings, sqs: Any) -> str:
    bucket = around.settings.landing_bucket
    with allowed("s3:GetBucketNotification"):
        notifications = around.s3.get_bucket_notification_configuration(Bucket=bucket)
    arns = [one["QueueArn"] for one in notifications.get("QueueConfigurations", [])]
    if not arns:
        raise Skipped(f"BUSCO_EVENTS_QUEUE is not set, and {bucket} does not notify any queue about new files")
    lines = []
    for arn in arns:
        _, _, _, _, account, name = arn.split(":")
        with allowed("sqs:GetQueueAttributes"):
            try:
                url = sqs.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)["QueueUrl"]
                lines.append(f"{name}: {_waiting(sqs, url)}")
            except sqs.exceptions.QueueDoesNotExist as error:
                raise BuscoError(
                    f"{bucket} notifies {arn} of new files, but there is no such queue",
                    "create the queue, or fix the bucket's notification configuration",
                ) from error
    return "; ".join(lines)


def _waiting(sqs: Any, url: str) -> str:
    found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages"])["Attributes"]
    return f"{count(int(found['ApproximateNumberOfMessages']), 'message')} waiting"


def glue_databases(around: Surroundings) -> str:
    """Each layer has its Glue database."""
    settings, glue = around.settings, around.client("glue")
    missing = []
    for database in map(settings.database, LAYERS):
        try:
            _look_at_database(glue, database)
        except glue.exceptions.EntityNotFoundException:
            missing.append(database)
    if missing:
        raise BuscoError(
            f"these Glue databases do not exist: {', '.join(missing)}",
            "deploy deploy/aws/lake.yaml, or set BUSCO_GLUE_PREFIX to the prefix of your databases",
        )
    return ", ".join(map(settings.database, LAYERS))


def live_release(around: Surroundings) -> str:
    """Glue points to the live release's metadata, all of which exists.

    `busco release repair --check` compares everything.
    """
    settings, environment = around.settings, EnvironmentLayout(around.settings.environment)
    store = ObjectStore(around.s3, settings.lake_bucket)
    live = read_live(store, environment)
    if live is None:
        raise Skipped("nothing is published yet")
    tables, wrong = live.release.tables, []
    if environment.environment == "prod":
        api = around.client("glue", max_pool_connections=settings.glue_calls)
        entries = Catalog(api, settings.database, LAYERS, settings.glue_calls).entries()
        shown = {table: entry.get("Parameters", {}).get("metadata_location") for table, entry in entries.items()}
        wrong = [f"Glue does not show {table}" for table in sorted(tables) if table not in shown]
        wrong += [
            f"Glue does not show the released version of {table}"
            for table, one in sorted(tables.items())
            if table in shown and shown[table] != store.url(one.metadata)
        ]
    by_key = {one.metadata: table for table, one in sorted(tables.items())}
    wrong += [f"the Iceberg metadata of {by_key[key]} does not exist" for key in store.missing(by_key)]
    if wrong:
        raise BuscoError(
            f"{live.release.release}: {'; '.join(wrong)}",
            "repair it: busco release repair. If a release went live a moment ago, wait until Glue shows it and "
            "check again",
        )
    which = "the only table matches" if len(tables) == 1 else f"all {count(len(tables), 'table')} match"
    return f"{live.release.release}: {which} the release"


def ecs_cluster(around: Surroundings) -> str:
    """The ECS cluster exists, and its tasks can be listed."""
    settings = around.settings
    if settings.execution == "local":
        raise Skipped("BUSCO_EXECUTION is local: models run on this machine")
    ecs = around.client("ecs")
    try:
        found = ecs.list_tasks(cluster=settings.ecs_cluster, maxResults=100)["taskArns"]
    except ecs.exceptions.ClusterNotFoundException as error:
        raise BuscoError(
            f"the cluster {settings.ecs_cluster} does not exist", "deploy deploy/aws/ecs.yaml, or set BUSCO_ECS_CLUSTER"
        ) from error
    return f"{settings.ecs_cluster}: {count(len(found), 'task')} running"


@contextmanager
def allowed(action: str, hint: str = "run doctor as the role that deployed the platform") -> Iterator[None]:
    """Raises Skipped if this role lacks the permission for the requests in the `with` block."""
    try:
        yield
    except ClientError as error:
        if error.response["Error"]["Code"] in ("AccessDenied", "AccessDeniedException"):
            raise Skipped(f"this role has no permission for {action}: {hint}") from error
        raise


def _look_at_database(glue: Any, name: str) -> None:
    try:
        glue.get_database(Name=name)
    except glue.exceptions.AccessDeniedException:
        # Airflow's role can only list a database's tables, which also fails if the database does not exist
        glue.get_tables(DatabaseName=name, MaxResults=1)


def _written(store: ObjectStore, key: str, etag: str | None) -> bool:
    """Returns whether S3 accepted a conditional write; False only if S3 reports that the condition failed.

    A 409 response means that another write is in progress; the store then retries.
    """
    body = f'{{"id": "{new_id()}"}}'.encode()
    try:
        if etag is None:
            store.create(key, body)
        else:
            store.swap(key, body, etag)
    except (AlreadyExists, Moved):
        return False
    return True


def _ignored(header: str, bucket: str) -> BuscoError:
    return BuscoError(
        f"the S3 service that hosts {bucket} ignores {header}: concurrent publishes would overwrite each other",
        "use an S3 service that supports conditional writes: AWS's, or a newer version of this one",
    )


def _refuse_bucket(error: ClientError, bucket: str, setting: str) -> None:
    """Raises BuscoError if the error means that the bucket does not exist or is in another region."""
    code = error.response["Error"]["Code"]
    if code in ("NoSuchBucket", "404"):
        raise BuscoError(
            f"the bucket {bucket} does not exist", f"deploy deploy/aws/lake.yaml, or set {setting}"
        ) from error
    if code in ("PermanentRedirect", "301", "AuthorizationHeaderMalformed"):
        region = error.response["ResponseMetadata"].get("HTTPHeaders", {}).get("x-amz-bucket-region", "another region")
        raise BuscoError(
            f"the bucket {bucket} is in {region}", f"set BUSCO_REGION to that region, or correct {setting}"
        ) from error
