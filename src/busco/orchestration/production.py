"""Refuses to start a service in production with unsafe settings: `python -m busco.orchestration.production`.

Checks the environment of one service, which contains only the variables that the service needs
(docker-compose.prod.yml). Prints which variables must be changed, but never their values.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import sys
from collections.abc import Iterator, Mapping

# Names the variables without which the service must not start, separated by spaces. Each may also be given as a secret,
# in a variable that ends in _SECRET (Airflow's documentation, "Setting configuration options").
REQUIRES = "BUSCO_REQUIRES"
# Set only by the tests' override of docker-compose.prod.yml; nothing that is deployed may set it (scripts/lib/env.sh).
TEST_ENDPOINT = "BUSCO_TEST_ENDPOINT_ACCEPTED"
# passwords that an attacker tries first, and those of examples and of the local AWS
_KNOWN = frozenset({"admin", "airflow", "password", "postgres", "redis", "busco", "busco-local", "changeme", "test"})
_PLACEHOLDER = re.compile(r"<[^<>]*>|\$\{.*\}")
_ENDPOINT = re.compile(r"BUSCO_ENDPOINT_URL|AWS_ENDPOINT_URL(_.*)?")
# the account of the local AWS
_LOCAL_ACCOUNT = re.compile(r"(?<!\d)0{12}(?!\d)")
_SECRETS = re.compile(r"PASSWORD|SECRET_KEY|FERNET_KEY|BASIC_AUTH")
_FERNET = "AIRFLOW__CORE__FERNET_KEY"


def problems(environment: Mapping[str, str]) -> Iterator[str]:
    """Yields what must be changed in a service's environment, a sentence for each variable."""
    for name in environment.get(REQUIRES, "").split():
        if not environment.get(name) and not environment.get(f"{name}_SECRET"):
            yield f"{name} is not set; set it in .env, or name its secret in {name}_SECRET"
    for name, value in sorted(environment.items()):
        if _SECRETS.search(name) and not name.endswith("_SECRET"):
            # Flower's login is user:password
            password = value.partition(":")[2] if name.endswith("BASIC_AUTH") else value
            if password.lower() in _KNOWN:
                yield f"{name} is a well-known password; set another one: openssl rand -hex 24"
        if name != REQUIRES and _PLACEHOLDER.fullmatch(value):
            yield f"{name} still has the placeholder from the example file; set a real value"
    yield from _of_fernet_keys(environment.get(_FERNET, ""))
    if not environment.get(TEST_ENDPOINT):
        yield from _of_a_local_aws(environment)


def _of_fernet_keys(text: str) -> Iterator[str]:
    """Airflow encrypts with the first of several keys, and decrypts with all of them."""
    for key in text.split(",") if text else ():
        try:
            valid = len(base64.b64decode(key.strip(), altchars=b"-_", validate=True)) == 32
        except (binascii.Error, ValueError):
            valid = False
        if not valid:
            yield f"{_FERNET} is not a Fernet key (32 bytes in URL-safe base64); make one: scripts/make_env.sh --help"
            return


def _of_a_local_aws(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in sorted(environment.items()):
        if _ENDPOINT.fullmatch(name) and value:
            yield f"{name} is set; production uses AWS's own endpoints, so remove it"
        elif (name.startswith("BUSCO_") or value.startswith("arn:")) and _LOCAL_ACCOUNT.search(value):
            yield f"{name} names account 000000000000, which is the local AWS; use the outputs of your own stacks"


def main() -> int:
    """Prints all problems of this process's environment; returns the exit status: 0 if there are none."""
    found = list(problems(os.environ))
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
