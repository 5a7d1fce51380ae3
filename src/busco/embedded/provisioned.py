"""The local CloudFormation makes resources of the types that our templates have, and refuses all others by name.

MiniStack provisions every type that it knows, also those of services that are not offered here: a function and a
custom resource that calls it are code that runs in the local AWS's process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from busco.embedded import ministack_contract

# The types that were looked at: making them runs no code, starts nothing, and reaches no other machine. What of them
# names somebody to deliver to (a topic's subscriptions) is held by `busco.embedded.confinement`. A test compares them
# with the templates.
PROVISIONED = frozenset(
    {
        "AWS::Athena::WorkGroup",
        "AWS::ECR::Repository",
        "AWS::ECS::Cluster",
        "AWS::ECS::TaskDefinition",
        "AWS::Glue::Database",
        "AWS::IAM::ManagedPolicy",
        "AWS::IAM::Role",
        "AWS::KMS::Key",
        "AWS::Logs::LogGroup",
        "AWS::S3::Bucket",
        "AWS::S3::BucketPolicy",
        "AWS::SNS::Topic",
        "AWS::SNS::TopicPolicy",
    }
)
# tells one list from another: a local AWS that runs with an older one is restarted
REVIEWED = hashlib.sha256(" ".join(sorted(PROVISIONED)).encode()).hexdigest()[:16]
CUSTOM = "AWS::CloudFormation::CustomResource"  # what a resource without a type is
# the operations that take a template; ExecuteChangeSet has that of CreateChangeSet
_WITH_TEMPLATE = ("CreateStack", "UpdateStack", "CreateChangeSet")
# What is wrapped or called of ministack, with the parameters that it had when this was written.
EXPECTED = {
    "services.cloudformation.custom_resource.invoke_custom_resource": [
        *("request_type", "logical_id", "props", "stack_name", "stack_id", "resource_type", "physical_id", "old_props"),
    ],
    "services.cloudformation.helpers._resolve_template": ["params"],
    "services.cloudformation.helpers._error": ["code", "message", "status"],
    "services.cloudformation.engine._parse_template": ["template_body"],
}


def install() -> None:
    """Corrects `ministack.services.cloudformation` in this process, before it serves.

    Raises:
        RuntimeError: this MiniStack is not the one that the correction was written for.
    """
    from ministack.services.cloudformation import custom_resource, engine, handlers, helpers, provisioners

    ministack_contract.check(__name__, EXPECTED, "tests/integration/test_local_aws_code.py")

    def only(original: Any) -> Any:
        def operation(params: dict[str, Any]) -> Any:
            text, error = helpers._resolve_template(params)
            if error is None and text:
                try:
                    template = engine._parse_template(text)
                except Exception:
                    return original(params)  # which says what is wrong with it
                if found := unreviewed(template):
                    why = f"the local AWS makes no {', '.join(found)}: see busco.embedded.provisioned"
                    return helpers._error("ValidationError", why)
                # the very text that was looked at: what lies at an address may be another one by now
                params = {name: value for name, value in params.items() if name != "TemplateURL"}
                params["TemplateBody"] = [text]
            return original(params)

        return operation

    for name in _WITH_TEMPLATE:
        handlers._ACTION_HANDLERS[name] = only(handlers._ACTION_HANDLERS[name])
    for kind in set(provisioners._RESOURCE_HANDLERS) - PROVISIONED:
        del provisioners._RESOURCE_HANDLERS[kind]
    custom_resource.invoke_custom_resource = _no_custom_resource


def unreviewed(template: Any) -> list[str]:
    """What a template has that is not provisioned: resource types and macros, whatever its conditions say."""
    if not isinstance(template, Mapping):
        return []
    found = {key for key in _keys(template) if key.startswith(("Fn::Transform", "Fn::ForEach"))}
    found |= {"Transform"} & set(template)
    resources = template.get("Resources")
    for resource in (resources if isinstance(resources, Mapping) else {}).values():
        kind = resource.get("Type", CUSTOM) if isinstance(resource, Mapping) else CUSTOM
        if not isinstance(kind, str) or kind not in PROVISIONED:
            found.add(kind if isinstance(kind, str) else json.dumps(kind, default=str))
    return sorted(found)


def _keys(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield str(key)
            yield from _keys(value)
    elif isinstance(node, list):
        for value in node:
            yield from _keys(value)


def _no_custom_resource(*_: Any, **__: Any) -> Any:
    raise ValueError(f"the local AWS makes no {CUSTOM}")
