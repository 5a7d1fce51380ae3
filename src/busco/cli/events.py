"""`busco events`: new objects in the landing bucket start runs."""

from __future__ import annotations

import logging
import os
import sys

import click

from busco.cli.releases import me
from busco.errors import BuscoError
from busco.output import echo, say, table
from busco.settings import Settings, get_settings
from busco.text import count, printable


@click.group("events")
def events_command() -> None:
    """Process new objects in the landing bucket."""


def with_airflow() -> Settings:
    """Returns the settings, in a process that uses the platform's Airflow.

    In the embedded platform, the process is replaced by one with Airflow's environment: Airflow reads it when it is
    imported, and would otherwise create a database of its own in the user's home folder.
    """
    settings = get_settings()
    if settings.platform == "embedded" and "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN" not in os.environ:
        from busco.embedded.airflow import environment

        os.execve(sys.executable, [sys.executable, "-m", "busco", *sys.argv[1:]], environment(settings))  # noqa: S606
    # Airflow logs to standard output, into this command's own output
    logging.getLogger().setLevel(logging.WARNING)
    return settings


@events_command.command("listen")
@click.option("--if-configured", is_flag=True, help="if no queue is configured, do nothing instead of failing")
def listen_command(if_configured: bool) -> None:
    """Ingest objects as they arrive, and start the runs that need them, until stopped (SIGTERM)."""
    from busco.orchestration.events import listen
    from busco.orchestration.service_health import idle

    settings = get_settings()
    if if_configured and not settings.events_queue:
        say("BUSCO_EVENTS_QUEUE is not set: new objects in the landing bucket start nothing")
        idle(settings.state, "events")
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for noisy in ("botocore", "aiobotocore", "airflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    listen(settings, say)


def health(service: str) -> None:
    """Prints whether a service of our own on this machine is healthy.

    Raises:
        SystemExit: it is not; the status is 1.
    """
    from busco.orchestration.service_health import obstacle, unhealthy

    state = get_settings().state
    if problem := unhealthy(state, service):
        say(f"not healthy: {printable(problem)}")
        raise SystemExit(1)
    echo(f"healthy, but {printable(problem)}" if (problem := obstacle(state, service)) else "healthy")


@events_command.command("health")
def health_command() -> None:
    """Print what prevents the service on this machine from working; exit with status 1 if it hangs or is down."""
    health("events")


@events_command.command("status")
def status_command() -> None:
    """Show the queue, the last orders to ingest, and what each project has not published yet."""
    from busco.orchestration.events_status import lines, status

    for line in lines(status(with_airflow())):
        echo(printable(line))


@events_command.command("attach")
@click.argument("queue_arn")
def attach_command(queue_arn: str) -> None:
    """Let a landing bucket that our templates did not create notify the queue of its new objects.

    QUEUE_ARN is the output EventsQueueArn of deploy/aws/events.yaml. The bucket is BUSCO_LANDING_BUCKET. Its other
    notifications are kept. Safe to run twice.
    """
    from busco.aws import client
    from busco.events.attach import attach

    settings = get_settings()
    if not settings.landing_bucket:
        raise BuscoError("BUSCO_LANDING_BUCKET is not set", "set it to the name of the bucket")
    changed = attach(client("s3", settings), settings.landing_bucket, queue_arn)
    echo(f"s3://{settings.landing_bucket} {'now notifies' if changed else 'already notifies'} {queue_arn}")


@events_command.command("pause")
@click.option("--reason", required=True, help="why, for others who look at the status")
def pause_command(reason: str) -> None:
    """Stop processing new objects and starting runs. Messages stay in the queue for up to seven days."""
    with_airflow()
    from busco.orchestration.events import pause

    pause(me(), reason)
    echo("paused; to continue: busco events resume")


@events_command.command("resume")
def resume_command() -> None:
    """Process what has arrived since `busco events pause`."""
    with_airflow()
    from busco.orchestration.events import resume

    before = resume()
    echo(f"resumed; it was paused by {printable(before)}" if before else "it was not paused")


@events_command.command("reconcile")
def reconcile_command() -> None:
    """Ingest everything in the landing bucket that was never ingested, and start the runs that need it."""
    settings = with_airflow()
    from busco.orchestration.events import reconcile

    lines: list[str] = []

    def show(line: str) -> None:
        lines.append(line)
        echo(printable(line))

    done = reconcile(settings, show, say)
    echo(f"{count(len(lines), 'object')} processed")
    if not done:
        raise BuscoError("some objects could not be ingested", "see the messages above; then run this again")


@events_command.group("dead-letters")
def dead_letters_command() -> None:
    """Handle messages that could not be processed."""


@dead_letters_command.command("list")
def list_command() -> None:
    """Show each dead letter with its reason and the beginning of its text."""
    from busco.orchestration.events import events_queue

    queue = events_queue(get_settings())
    found = list(queue.dead(hidden=30))
    queue.release_dead(found)
    rows = [
        (
            one.id,
            f"{one.sent_at:%Y-%m-%d %H:%M} UTC",
            one.reason or "received ten times without success; see `busco events status`",
            one.body[:120],
        )
        for one in found
    ]
    if rows:
        table(("id", "sent", "reason", "message"), [tuple(map(printable, row)) for row in rows])
    echo(count(len(rows), "dead letter"))


@dead_letters_command.command("replay")
@click.argument("ids", nargs=-1)
@click.option("--all", "every", is_flag=True, help="replay all of them")
def replay_command(ids: tuple[str, ...], every: bool) -> None:
    """Send dead letters to the queue again, after the cause was fixed. IDS are those that `list` shows."""
    from busco.orchestration.events import events_queue

    if bool(ids) == every:
        raise click.UsageError("name the dead letters to replay, or use --all")
    queue = events_queue(get_settings())
    found = list(queue.dead(hidden=60))
    wanted = [one for one in found if every or one.id in ids]
    queue.release_dead([one for one in found if one not in wanted])
    if missing := set(ids) - {one.id for one in wanted}:
        queue.release_dead(wanted)
        raise BuscoError(f"there is no dead letter {sorted(missing)[0]}", "see: busco events dead-letters list")
    for one in wanted:
        queue.replay(one)
    echo(f"{count(len(wanted), 'message')} sent to the queue again")
