"""Makes the local ECS run tasks as Fargate does: limits, user, read-only root, volumes, exit codes, reasons and logs.

MiniStack starts a task's containers but passes few of the definition's properties to Docker, reports a stopped task as
STOPPED before its containers have stopped, and loses the end of the containers' output. With this module, a task
becomes STOPPED only after its containers have ended, their output is in CloudWatch Logs, and nothing of the task is
left in Docker. Only a starter (`busco.embedded.starter`) talks to Docker; this module has no Docker client.
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from busco.embedded import ecs_containers, ministack_contract, task_shape
from busco.embedded.ecs_roles import TaskRoles
from busco.embedded.starter import LostError, PullError, StartError, TaskStarter

# The functions of ministack.services.ecs that this module replaces or wraps, with the parameters that they had when it
# was written.
EXPECTED = {
    "_get_docker": [],
    "_run_task": ["data"],
    "_stop_task": ["data"],
    "_run_task_worker": ["task", "td", "container_overrides", "docker_client", "account_id", "region"],
    "_register_metadata": [
        *("task_arn", "cluster_arn", "td", "cdef", "launch_type", "env", "host_mode", "ministack_net_ip"),
    ],
    "_build_run_kwargs": [
        *("cdef", "td", "env", "port_bindings", "ecs_network", "host_mode", "task_id", "task_arn"),
        *("ministack_net_ip", "cluster_arn"),
    ],
    "_run_docker_container": [
        *("docker_client", "cdef", "run_kwargs", "refresh_image", "allow_cached", "cache_image", "fallback_image"),
        "auth_config",
    ],
    "_start_awslogs_forwarder": ["container", "cdef", "task_id"],
    "_watch_task_lifecycle": ["task", "docker_client", "account_id", "region"],
    "_maybe_mark_stopped": ["task", "docker_client"],
    "_fail_task_start": ["task", "docker_client", "reason"],
    "_cleanup_task_resources": ["task", "docker_client", "extra_container"],
}
MOST_OVERRIDES = 8192  # characters (API reference, TaskOverride)
MOST_TOKEN = 64  # characters (API reference, RunTask)
SHUTDOWN_GRACE = 3  # seconds that containers get to stop when the local AWS shuts down
LOGS_LIMIT = 30.0  # seconds without another line after which copying a stopped container's output is given up
OUT_OF_MEMORY = "OutOfMemoryError: Container killed due to memory usage"
EXITED = "Essential container in task exited"
_NO_LOG = (
    "ResourceInitializationError: failed to validate logger args: failed to create Cloudwatch log stream: "
    "ResourceNotFoundException: The specified log group does not exist."
)
_START_FAILED = "ResourceInitializationError: unable to pull image or start container: "


@dataclass(frozen=True)
class _Started:
    """The RunTask request made with a client token, and the tasks that it started."""

    parameters: dict[str, Any]
    tasks: list[str]


def install(endpoint: str, starter: TaskStarter, roles: TaskRoles) -> None:
    """Patches `ministack.services.ecs` in this process. Call this before serving requests.

    Args:
        endpoint: the URL at which containers reach the local AWS.
        starter: starts the containers.
        roles: issues role credentials to tasks.

    Raises:
        RuntimeError: the installed MiniStack is not the version that this patch was written for.
    """
    import ministack.services.ecs as ecs

    expected = {f"services.ecs.{name}": parameters for name, parameters in EXPECTED.items()}
    ministack_contract.check(__name__, expected, "tests/stack/test_local_ecs.py")
    corrected = _LocalEcs(ecs, endpoint, starter, roles)
    for name in EXPECTED:
        setattr(ecs, name, getattr(corrected, name.lstrip("_")))
    ecs._ACTION_MAP.update(RunTask=corrected.run_task, StopTask=corrected.stop_task)


def join_while_busy(thread: threading.Thread, progress: Callable[[], int], limit: float) -> None:
    """Waits until a thread has ended, or until its progress has been the same for `limit` seconds."""
    before = None
    while thread.is_alive() and (now := progress()) != before:
        before = now
        thread.join(limit)


class _LocalEcs:
    """Replaces MiniStack's functions; each public method is named after the function that it replaces."""

    def __init__(self, ecs: Any, endpoint: str, starter: TaskStarter, roles: TaskRoles) -> None:
        self._ecs, self._starter, self._roles = ecs, starter, roles
        self._endpoint = endpoint
        self._original = {name.lstrip("_"): getattr(ecs, name) for name in EXPECTED}
        self._tokens: dict[tuple[str, str, str], _Started] = {}
        self._launched: dict[str, threading.Event] = {}
        self._forwarders: dict[str, threading.Thread] = {}
        # how many lines of each container's output have been copied
        self._forwarded: dict[str, int] = {}

    def get_docker(self) -> object | None:
        """Returns a placeholder with none of the methods of MiniStack's Docker client; None if no starter answers."""
        try:
            self._starter.about()
        except LostError:
            return None
        return self

    # requests --------------------------------------------------------------------------------------------------

    def run_task(self, data: dict[str, Any]) -> Any:
        ecs, token = self._ecs, data.get("clientToken")
        refused = ecs.error_response_json
        if len(json.dumps(data.get("overrides") or {})) > MOST_OVERRIDES:
            text = f"Container Overrides length must be at most {MOST_OVERRIDES}"
            return refused("InvalidParameterException", text, 400)
        definition = ecs._task_defs.get(ecs._resolve_td_key(data.get("taskDefinition", ""))) or {}
        if definition and (why := task_shape.refused(definition, data.get("overrides") or {})):
            return refused("ClientException", why, 400)
        if wrong := self._roles.refused(definition, data.get("overrides") or {}):
            return refused(*wrong, 400)
        if ecs._get_docker() is None:
            failure = {"reason": "AGENT", "detail": "Docker can't be reached"}
            return ecs.json_response({"tasks": [], "failures": [failure]})
        if not token:
            return self._run_task(data)
        if len(token) > MOST_TOKEN:
            return refused("InvalidParameterException", f"clientToken must be at most {MOST_TOKEN} characters", 400)
        key = (ecs.get_account_id(), ecs.get_region(), token)
        parameters = {name: value for name, value in data.items() if name != "clientToken"}
        with ecs.resource_lock("busco-client-token", "/".join(key)):
            if (known := self._tokens.get(key)) is None:
                response = self._run_task(data)
                if started := [one["taskArn"] for one in json.loads(response[2]).get("tasks", [])]:
                    self._tokens[key] = _Started(parameters, started)
                return response
        if known.parameters != parameters:
            text = "The provided clientToken is already in use with a different RunTask request."
            return refused("ConflictException", text, 400, {"resourceIds": known.tasks})
        tasks = [ecs._sanitize(ecs._tasks[arn]) for arn in known.tasks]
        return ecs.json_response({"tasks": tasks, "failures": []})

    def _run_task(self, data: dict[str, Any]) -> Any:
        response = self._original["run_task"](data)
        overrides = data.get("overrides") or {}
        size = {name: overrides[name] for name in ("cpu", "memory") if overrides.get(name)}
        if size and response[0] == 200:
            content = json.loads(response[2])
            for shown in content["tasks"]:
                self._ecs._tasks[shown["taskArn"]].update(size)
                shown.update(size)
            return self._ecs.json_response(content)
        return response

    def stop_task(self, data: dict[str, Any]) -> Any:
        ecs = self._ecs
        cluster = ecs._resolve_cluster_name(data.get("cluster", "default"))
        if cluster is None:
            return ecs.error_response_json("ClusterNotFoundException", "Cluster not found.", 400)
        task = ecs._resolve_task(data.get("task", ""), cluster)
        if not task:
            return ecs.error_response_json("InvalidParameterException", "The referenced task was not found.", 400)
        if self._mark_stopping(task, data.get("reason") or "Task stopped by user", "UserInitiated"):
            ecs.spawn_background(self._finish, task, thread_name="busco-ecs-stop")
        with ecs.resource_lock("ecs-task", task["taskArn"]):
            return ecs.json_response({"task": ecs._sanitize(task)})

    # start -----------------------------------------------------------------------------------------------------

    def run_task_worker(self, task: dict[str, Any], *rest: Any) -> None:
        try:
            self._original["run_task_worker"](task, *rest)
        finally:
            self._launch(task).set()

    def register_metadata(
        self, task_arn: str, cluster: str, td: Any, cdef: Any, launch_type: str, env: dict[str, str], *rest: Any
    ) -> Any:
        ecs, given = self._ecs, dict(env)
        token = self._original["register_metadata"](task_arn, cluster, td, cdef, launch_type, env, *rest)
        env.clear()
        credentials = self._roles.variables(
            {"taskArn": task_arn} | (ecs._tasks.get(task_arn) or {}), td, self._endpoint
        )
        env.update(ecs_containers.environment(given, self._endpoint, ecs.get_region(), launch_type, credentials))
        env["ECS_CONTAINER_METADATA_URI_V4"] = f"{self._endpoint}/v4/{token}"
        whole, own = self._limits(task_arn, td, cdef)
        metadata = ecs.ecs_metadata
        with metadata._LOCK:
            metadata._TASKS[task_arn]["Limits"] = whole.metadata()
            metadata._TOKEN_TO_CONTAINER[token]["Limits"] = {"CPU": cdef.get("cpu") or 0, "Memory": own.memory}
        return token

    def build_run_kwargs(self, cdef: Any, td: Any, env: dict[str, str], *rest: Any) -> dict[str, Any]:
        """Returns the order for the starter. MiniStack also calls this for tasks of services, which bypass RunTask."""
        task_arn = rest[EXPECTED["_build_run_kwargs"].index("task_arn") - 3]
        overrides = (self._ecs._tasks.get(task_arn) or {}).get("overrides") or {}
        definition = task_shape.registered(td)
        return {
            "task": task_arn, "definition": definition, "overrides": overrides, "container": cdef["name"],
            "environment": env,
        }  # fmt: skip

    def run_docker_container(self, _client: Any, cdef: Any, order: dict[str, Any], **_for_services: Any) -> Any:
        self._open_log(cdef, order["task"])
        try:
            return SimpleNamespace(id=self._starter.start(order))
        except PullError as error:
            raise self._ecs._ImagePullError(str(error)) from error
        except StartError as error:
            raise RuntimeError(f"CannotStartContainerError: {error}") from error

    def _open_log(self, cdef: Any, task_arn: str) -> None:
        """Creates a container's log stream; Fargate does not start a container without one."""
        ecs = self._ecs
        config = ecs._awslogs_config(cdef, task_arn.rpartition("/")[2], "")
        if config and config["stream"]:
            with ecs.request_scope(ecs.get_account_id(), config["region"] or ecs.get_region()):
                if not ecs._ensure_awslogs_stream(config):
                    raise RuntimeError(f"{_NO_LOG}: log group {config['group']}")

    def start_awslogs_forwarder(self, container: Any, cdef: Any, task_id: str) -> None:
        config = self._ecs._awslogs_config(cdef, task_id, container.id)
        if config:
            self._forwarders[container.id] = self._ecs.spawn_background(
                self._forward, container, config, thread_name=f"busco-ecs-logs-{task_id[:8]}"
            )

    def fail_task_start(self, task: dict[str, Any], client: Any, reason: str) -> None:
        known = reason.removeprefix(_START_FAILED)
        if known.startswith(("CannotStart", "ResourceInitializationError")):
            reason = known
        try:
            self._ecs._cleanup_task_resources(task, client)
        finally:
            # Has no effect on a task that is already stopping: `_finish` marks that task as STOPPED.
            self._ecs._mark_task_stopped(task["taskArn"], task, reason, "TaskFailedToStart")

    # end -------------------------------------------------------------------------------------------------------

    def watch_task_lifecycle(self, task: dict[str, Any], *_: Any) -> None:
        for index, identifier in enumerate(list(task["_docker_ids"])):
            self._ecs.spawn_background(self._watch, task, index, identifier, thread_name="busco-ecs-watch")

    def maybe_mark_stopped(self, task: Any, docker_client: Any = None) -> None:
        """Does nothing: `_watch` detects a task's end by waiting for its containers."""

    def cleanup_task_resources(self, task: dict[str, Any], _client: Any, extra: Any = None) -> None:
        containers = [*task["_docker_ids"], *([extra.id] if extra is not None else [])]
        self._original["cleanup_task_resources"](task, None, None)
        self._roles.forget(task["taskArn"])
        for container in dict.fromkeys(containers):
            self._starter.remove(container)

    def _watch(self, task: dict[str, Any], index: int, identifier: str) -> None:
        self._starter.wait(identifier)
        essential = task["_container_essentials"]
        if not essential[index]:
            self._record_exit(task, index, *self._outcome(identifier))
            with self._ecs.resource_lock("ecs-task", task["taskArn"]):
                if any(one["lastStatus"] != "STOPPED" for one in task["containers"]):
                    return
        if self._mark_stopping(task, EXITED, "EssentialContainerExited"):
            self._finish(task)

    def _mark_stopping(self, task: dict[str, Any], reason: str, code: str) -> bool:
        """Marks a task as stopping, with the reason. Returns False if the task is already stopping."""
        ecs, arn = self._ecs, task["taskArn"]
        with ecs.resource_lock("ecs-task", arn):
            if not ecs._task_is_active(arn, task):
                return False
            ecs._bump_task_version(task)
            task.update(desiredStatus="STOPPED", stoppingAt=ecs._iso(), stoppedReason=reason, stopCode=code)
        ecs.ecs_metadata.set_task_status(arn, desired_status="STOPPED")
        return True

    def _finish(self, task: dict[str, Any]) -> None:
        """Stops a task's containers, collects their output and exit codes, then marks the task as STOPPED."""
        ecs, arn = self._ecs, task["taskArn"]
        self._launch(task).wait()
        with ecs.resource_lock("ecs-task", arn):
            task["lastStatus"] = "STOPPING"
            identifiers = list(task["_docker_ids"])
        if identifiers:
            with ThreadPoolExecutor(len(identifiers)) as pool:
                for index, outcome in enumerate(pool.map(self._outcome, identifiers)):
                    self._record_exit(task, index, *outcome)
        for identifier in identifiers:
            if (forwarder := self._forwarders.pop(identifier, None)) is not None:
                join_while_busy(forwarder, functools.partial(self._copied, identifier), LOGS_LIMIT)
            self._forwarded.pop(identifier, None)
        with ecs.resource_lock("ecs-task", arn):
            task.update(lastStatus="DEPROVISIONING", executionStoppedAt=ecs._iso())
            ecs._bump_task_version(task)
        ecs._cleanup_task_resources(task, None)
        with ecs.resource_lock("ecs-task", arn):
            for container in task["containers"]:
                container["lastStatus"] = "STOPPED"
            task.update(lastStatus="STOPPED", stoppedAt=ecs._iso())
            ecs._bump_task_version(task)
        self._launched.pop(arn, None)
        cluster = ecs._cluster_name_from_arn(task["clusterArn"])
        ecs._recount_cluster(cluster)
        ecs._refresh_service_state(cluster, task.get("group", ""))
        if task["stopCode"] == "EssentialContainerExited":
            ecs._record_service_task_failure(task)

    def _copied(self, identifier: str) -> int:
        """Returns how many lines of a container's output have been copied to its log stream."""
        return self._forwarded.get(identifier, 0)

    def _record_exit(self, task: dict[str, Any], index: int, code: int | None, reason: str) -> None:
        with self._ecs.resource_lock("ecs-task", task["taskArn"]):
            container = task["containers"][index]
            container.update(lastStatus="STOPPED", exitCode=code, **({"reason": reason} if reason else {}))

    def _forward(self, container: Any, config: dict[str, Any]) -> None:
        """Copies a container's output to its log stream, with the time at which each line was written."""
        from ministack.services import cloudwatch_logs

        ecs = self._ecs
        with ecs.request_scope(ecs.get_account_id(), config["region"] or ecs.get_region()):
            if not ecs._ensure_awslogs_stream(config):
                return
            with contextlib.suppress(LostError):
                for lines in self._starter.lines(container.id):
                    events = [{"timestamp": written, "message": line} for written, line in lines]
                    cloudwatch_logs._put_log_events(
                        {"logGroupName": config["group"], "logStreamName": config["stream"], "logEvents": events}
                    )
                    self._forwarded[container.id] = self._forwarded.get(container.id, 0) + len(events)

    # helpers ---------------------------------------------------------------------------------------------------

    def _launch(self, task: dict[str, Any]) -> threading.Event:
        """Returns the event that is set once a task's start has succeeded or failed."""
        return self._launched.setdefault(task["taskArn"], threading.Event())

    def _limits(self, task_arn: str, td: Any, cdef: Any) -> tuple[ecs_containers.Limits, ecs_containers.Limits]:
        """Returns the limits of a task and of one of its containers."""
        overrides = (self._ecs._tasks.get(task_arn) or {}).get("overrides") or {}
        own: Iterable[Any] = overrides.get("containerOverrides") or ()
        override: dict[str, Any] = next((one for one in own if one.get("name") == cdef["name"]), {})
        task = ecs_containers.task_limits(td, overrides)
        return task, ecs_containers.container_limits(cdef, task, override)

    def _outcome(self, identifier: str) -> tuple[int | None, str]:
        """Stops a container if it is running; returns its exit code and, after an error, the reason as ECS words it."""
        try:
            ended = self._starter.end(identifier)
        except LostError as error:
            return None, f"CannotInspectContainerError: {error}"
        return ended.code, OUT_OF_MEMORY if ended.out_of_memory else ""
