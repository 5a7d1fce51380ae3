"""Evaluates policies with the emulator's evaluator.

Its SimulatePrincipalPolicy is not sufficient: it accepts no context and only one resource.
"""

from __future__ import annotations

from typing import Any

from ministack.core.iam_evaluator import EvalContext, evaluate, evaluate_resource_policy, parse_policy_document

ACCOUNT, REGION = "000000000000", "us-east-1"


def request(action: str, resource: str, context: dict[str, str], who: str = "any") -> EvalContext:
    return EvalContext(
        principal_arn=f"arn:aws:sts::{ACCOUNT}:assumed-role/{who}/any",
        principal_type="AssumedRole",
        principal_account=ACCOUNT,
        action=action,
        resource_arn=resource,
        region=REGION,
        secure_transport=True,
        service_context={key.lower(): value for key, value in context.items()},
    )


def decision(documents: list[dict[str, Any]], action: str, resource: str, context: dict[str, str]) -> str:
    """Returns the decision of a role's policies: Allow, Deny or ImplicitDeny."""
    return str(evaluate(request(action, resource, context), [parse_policy_document(one) for one in documents]).decision)


def resource_decision(
    document: dict[str, Any], action: str, resource: str, context: dict[str, str], who: str = "any", service: str = ""
) -> str:
    """Returns the decision of a resource's own policy for a role or for an AWS service."""
    return str(evaluate_resource_policy(document, request(action, resource, context, who), service or None).decision)


def managed(iam: Any, arn: str) -> dict[str, Any]:
    """Returns the document of a managed policy."""
    version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
    document: dict[str, Any] = iam.get_policy_version(PolicyArn=arn, VersionId=version)["PolicyVersion"]["Document"]
    return document
