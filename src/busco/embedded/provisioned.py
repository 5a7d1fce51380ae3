"""Limits the local CloudFormation to the resource types that our templates use; its errors name the types it refuses.

MiniStack provisions every type that it supports, including types of services that the local AWS does not offer. For
example, a Lambda function and a custom resource that calls the function would run code in the local AWS's process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from busco.embedded import ministack_contract

# The types that were reviewed: creating them runs no code, starts nothing, and connects to no other machine.
# `busco.embedded.confinement` blocks deliveries to the recipients that some of them name (a topic's subscriptions). An
# alarm's actions only reach topics.
# A test compares this list with the templates.
PROVISIONED = frozenset(
    {
        "AWS::Athena::WorkGroup",
        "AWS::CloudWatch::Alarm",
        "AWS::CloudWatch::Dashboard",
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
        "AWS::SQS::Queue",
        "AWS::SQS::QueuePolicy",
    }
)
# Identifies the list, so that a local AWS that is still running with an older list is restarted.
REVIEWED = hashlib.sha256(" ".join(sorted(PROVISIONED)).encode()).hexdigest()[:16]
CUSTOM = "AWS::CloudFormation::CustomResource"  # the type of a resource that specifies none
# the operations that accept a template; ExecuteChangeSet uses the template given to CreateChangeSet
_WITH_TEMPLATE = ("CreateStack", "UpdateStack", "CreateChangeSet")
# The MiniStack functions that this module wraps or calls, with the parameters that they had when it was written.
EXPECTED = {
    "services.cloudformation.custom_resource.invoke_custom_resource": [
        *("request_type", "logical_id", "props", "stack_name", "stack_id", "resource_type", "physical_id", "old_props"),
    ],
    "services.cloudformation.helpers._resolve_template": ["params"],
    "services.cloudformation.helpers._error": ["code", "message", "status"],
    "services.cloudformation.engine._parse_template": ["template_body"],
}


def install() -> None:
    """Patches `ministack.services.cloudformation` in this process. Call this before serving requests.

    Raises:
        RuntimeError: the installed MiniStack is not the version that this patch was written for.
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
                    return original(params)  # reports what is wrong with the template
                if found := unreviewed(template):
                    why = f"the local AWS cannot create {', '.join(found)}: see busco.embedded.provisioned"
                    return helpers._error("ValidationError", why)
                # Passes on the text that was checked, because the content at TemplateURL may change meanwhile.
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
    """Returns the unsupported resource types and macros in a template, even those that its conditions exclude."""
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
    raise ValueError(f"the local AWS cannot create {CUSTOM}")
