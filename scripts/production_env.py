#!/usr/bin/env python3
"""Creates .env for the production stack from .env.production.example; `scripts/make_env.sh --production` runs this.

An existing .env keeps its values; variables that are missing in it are added, and placeholders are filled in. Values
come from --outputs, or are asked for. Without a terminal, all missing values are listed, and nothing is written.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import getpass
import json
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))
from busco.orchestration import production  # noqa: E402 (it needs only the standard library)

EXAMPLE, ENV = ROOT / ".env.production.example", ROOT / ".env"
_LINE = re.compile(r"([A-Z][A-Z0-9_]*)=(.*)")
# an output's name, and the value without this output; if there is none, it is asked for
_OUTPUT = re.compile(r"<output:([A-Za-z]+)(?:\|([^>]*))?>")
# what Compose reads unchanged without quotes
_PLAIN = re.compile(r"[A-Za-z0-9_./:@+,=-]*")
_SECRET = re.compile(r"PASSWORD|SECRET|KEY")
# what nothing works without, and what the services' own checks do not cover
_NEEDED = ("DB_HOST", "BUSCO_REGION", "LETSENCRYPT_EMAIL", "BUSCO_ECS_SUBNETS", "BUSCO_ECS_SECURITY_GROUPS")


class Refused(Exception):
    """The file can't be written; the message says why."""


def main() -> int:
    """Writes .env; returns the exit status: 1 after an error message."""
    parser = argparse.ArgumentParser(prog="make_env.sh --production", description=__doc__)
    parser.add_argument(
        "--outputs",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="JSON with the templates' outputs: what `aws cloudformation describe-stacks` or `terraform output -json` "
        "prints; can be given several times",
    )
    parser.add_argument("--check", action="store_true", help="only check the existing .env")
    given = parser.parse_args()
    try:
        if given.check:
            check(read(ENV.read_text()))
            return 0
        write(outputs(given.outputs), sys.stdin.isatty())
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 1
    return 0


def write(found: Mapping[str, str], can_ask: bool) -> None:
    """Creates or completes .env.

    Raises:
        Refused: values are missing and nobody can be asked, or the result would be refused in production.
    """
    target = Path(os.path.realpath(ENV))
    before = read(target.read_text()) if target.exists() else {}
    lines, values, missing = [], {}, []
    comment = ""
    for line in EXAMPLE.read_text().splitlines():
        match = _LINE.fullmatch(line)
        if not match:
            comment = line.removeprefix("# ") if line.startswith("# ") and not line.startswith("# --") else ""
            lines.append(line)
            continue
        name, placeholder = match.groups()
        if name in before and not placeholder_of(before[name]):
            # tasks in the subnets that .env keeps need the kind of addresses that it has
            is_of_subnets = name == "BUSCO_ECS_ASSIGN_PUBLIC_IP" and keeps_other_subnets(before, found)
            value: str | None = before[name] if is_of_subnets else kept(name, before[name], placeholder, found)
        elif before.get(f"{name}_SECRET"):
            # the value is in Secrets Manager or SSM; a generated one would replace it
            continue
        elif name == "DB_PASSWORD" and (managed := found.get("databasesecret")):
            # RDS manages the password
            values |= {"DB_PASSWORD": "", "DB_PASSWORD_SECRET": managed}
            lines += ["DB_PASSWORD=", f"DB_PASSWORD_SECRET={quoted(managed)}"]
            continue
        else:
            value = filled(name, placeholder, found, comment if can_ask else None)
        if value is None:
            missing.append(f"  {name}: {comment or placeholder}")
            continue
        values[name] = value
        lines.append(f"{name}={quoted(value)}")
        if name == "DB_PASSWORD" and not value and can_ask and not before.get("DB_PASSWORD_SECRET"):
            values["DB_PASSWORD_SECRET"] = input("DB_PASSWORD_SECRET (name or ARN of the secret): ").strip()
            lines.append(f"DB_PASSWORD_SECRET={quoted(values['DB_PASSWORD_SECRET'])}")
    if missing:
        raise Refused(
            "these values are missing; write them to .env as NAME=VALUE and run this again, or run it in a terminal:\n"
            + "\n".join(missing)
        )
    further = {name: value for name, value in before.items() if name not in values}
    if further:
        lines += ["", "# -- further variables ---", *(f"{name}={quoted(value)}" for name, value in further.items())]
    check({**values, **further})
    store(target, "\n".join(lines) + "\n")
    added = len(values.keys() - before.keys())
    print(f"wrote .env with mode 600: {added} new, {len(values) - added + len(further)} kept")


def keeps_other_subnets(before: Mapping[str, str], found: Mapping[str, str]) -> bool:
    """Whether .env has other subnets for the ECS tasks than the outputs."""
    subnets = before.get("BUSCO_ECS_SUBNETS", "")
    return bool(subnets) and not placeholder_of(subnets) and subnets != found.get("tasksubnets", subnets)


def kept(name: str, value: str, placeholder: str, found: Mapping[str, str]) -> str:
    """Returns the value of a variable that .env has already: its own, unless it only had the default so far.

    Prints a note if the stacks have another value.
    """
    match = _OUTPUT.fullmatch(placeholder)
    known = found.get(_folded(match[1])) if match else None
    if match is None or known is None or known == value:
        return value
    if value == match[2]:
        return known
    print(f"note: .env keeps {name}={value}; the outputs have {known}. To use it, remove the line, and run this again")
    return value


def filled(name: str, placeholder: str, found: Mapping[str, str], comment: str | None) -> str | None:
    """Returns a variable's value; None if it is neither known nor can be asked for (`comment` is None)."""
    if placeholder == "<random>":
        return secrets.token_hex(24)
    if placeholder == "<fernet>":
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    if match := _OUTPUT.fullmatch(placeholder):
        if (known := found.get(_folded(match[1]))) is not None:
            return known
        if match[2] is not None:
            return match[2]
    elif placeholder != "<ask>":
        return placeholder
    if comment is None:
        return None
    asked = getpass.getpass if _SECRET.search(name) else input
    print(comment or placeholder, file=sys.stderr)
    return asked(f"{name}: ").strip()


def check(values: Mapping[str, str]) -> None:
    """Refuses what the services would refuse, before anything is deployed."""
    wrong = list(production.problems(values))
    if values.get(production.TEST_ENDPOINT):
        wrong.append(f"{production.TEST_ENDPOINT} is for tests only; remove it")
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", values.get("BUSCO_DOMAIN", "")):
        wrong.append("BUSCO_DOMAIN is not a host name in lower case")
    for name in ("DB_USER", "DB_NAME"):
        if not re.fullmatch(r"[A-Za-z0-9_-]+", values.get(name, "")):
            wrong.append(f"{name} may only have letters, digits, _ and -")
    wrong += [f"{name} is empty" for name in _NEEDED if not values.get(name)]
    if not values.get("DB_PASSWORD") and not values.get("DB_PASSWORD_SECRET"):
        wrong.append("DB_PASSWORD is not set, nor is DB_PASSWORD_SECRET")
    if bool(values.get("AWS_ACCESS_KEY_ID")) != bool(values.get("AWS_SECRET_ACCESS_KEY")):
        wrong.append("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are set together, or neither is")
    if wrong:
        raise Refused("\n".join(f"error: {one}" for one in wrong))


def outputs(paths: list[Path]) -> dict[str, str]:
    """Returns the outputs in the files, by their names in lower case without underscores.

    Raises:
        Refused: a file can't be read, or has another format.
    """
    found: dict[str, str] = {}
    for path in paths:
        try:
            content = json.loads(path.read_text())
            found.update({_folded(name): value for name, value in _of_file(content).items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(f"{path} has no outputs of CloudFormation or Terraform: {error}") from error
    return found


def _of_file(content: Any) -> dict[str, str]:
    if "Stacks" in content:
        return {one["OutputKey"]: one["OutputValue"] for stack in content["Stacks"] for one in stack.get("Outputs", [])}
    values = {name: one["value"] for name, one in content.items()}
    return {name: ",".join(value) if isinstance(value, list) else str(value) for name, value in values.items()}


def _folded(name: str) -> str:
    return name.replace("_", "").lower()


def placeholder_of(value: str) -> bool:
    return bool(re.fullmatch(r"<[^<>]*>", value))


def read(text: str) -> dict[str, str]:
    """Returns the variables in a file that this script wrote, or that has simple NAME=VALUE lines."""
    found = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*", line):
            found[match[1]] = unquoted(match[2])
    return found


def quoted(value: str) -> str:
    """Returns a value as Compose reads it from .env: within single quotes, nothing is expanded."""
    if _PLAIN.fullmatch(value):
        return value
    if "'" not in value:
        return f"'{value}'"
    return '"' + re.sub(r'([\\"$`])', r"\\\1", value) + '"'


def unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == "'":
        return text[1:-1]
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text.partition(" #")[0].rstrip()


def store(target: Path, text: str) -> None:
    descriptor, scratch = tempfile.mkstemp(dir=target.parent, prefix=".env.")  # with mode 600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        Path(scratch).replace(target)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            Path(scratch).unlink()
        raise


if __name__ == "__main__":
    sys.exit(main())
