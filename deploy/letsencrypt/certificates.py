#!/usr/bin/env python3
"""Keeps the certificate of the production stack, in the container of the letsencrypt service.

serve    makes a self-signed certificate if there is none, so that nginx can start; then, if LETSENCRYPT_ISSUE is true
         and there is no certificate of the authority yet, obtains one; then waits, so that the container keeps running
renew    renews the certificate if it expires within 30 days, or obtains it if there is none; the host's cron runs this
show     prints the served certificate: its issuer, serial number and last day
install  certbot's deploy hook: switches nginx to the certificate that certbot has just obtained

Before each request to the authority, every address of the host name must lead to this machine: a wrong A or AAAA record
stops here. After a request that failed, no other is made for an hour, so that restarts can't use up the authority's
limits (Let's Encrypt's documentation, "Rate Limits": five failed validations per account, host name and hour).

BUSCO_DOMAIN         the host name
LETSENCRYPT_EMAIL    address for the authority's messages
LETSENCRYPT_ISSUE    `true`: obtain a certificate (docker-compose.prod.letsencrypt.yml)
LETSENCRYPT_STAGING  `true`: use Let's Encrypt's staging server, whose certificates browsers don't trust
LETSENCRYPT_SERVER   another authority's ACME directory
PUBLIC_ADDRESSES     addresses of this machine, separated by commas, that can't be reached from the container itself
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import ipaddress
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

# certbot's own files: the account's key, and all certificates
STATE = Path(os.environ.get("LETSENCRYPT_STATE", "/var/lib/letsencrypt"))
# what nginx reads: a folder for each certificate, and the link `current` to the one that is served
CERTIFICATES = Path(os.environ.get("LETSENCRYPT_CERTIFICATES", "/var/lib/certificates"))
# what nginx serves below http://<domain>/.well-known/acme-challenge/
CHALLENGES = Path(os.environ.get("LETSENCRYPT_CHALLENGES", "/var/www/challenges"))
WELL_KNOWN = ".well-known/acme-challenge"
SELF_SIGNED = "-self-signed"
KEPT = 3  # folders of certificates, including the current one
PAUSE = 3600  # seconds without a request after one that failed
# for tests: the port of HTTP, and how many seconds nginx gets to serve a file, because it may still be starting
PORT = int(os.environ.get("LETSENCRYPT_HTTP_PORT", "80"))
WAIT = float(os.environ.get("LETSENCRYPT_WAIT", "60"))


class Stop(Exception):
    """Ends the command with a message that says what to do."""


def main(arguments: list[str]) -> int:
    """Runs one command; returns its exit status: 0, or 1 after a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("serve", "renew", "show", "install"))
    parser.add_argument("--force", action="store_true", help="renew a certificate that is not about to expire")
    given = parser.parse_args(arguments)
    try:
        if given.command == "renew":
            renew(given.force)
        else:
            {"serve": serve, "show": show, "install": install}[given.command]()
    except Stop as stopped:
        print(f"letsencrypt: {stopped}", file=sys.stderr, flush=True)
        return 1
    return 0


def serve() -> None:
    # a failure is logged, and the next renewal tries again; a restart would only repeat it
    try:
        start()
    except Stop as stopped:
        say(str(stopped))
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


def start() -> None:
    if not (CERTIFICATES / "current" / "fullchain.pem").exists():
        put(*self_signed(domain()), suffix=SELF_SIGNED)
        say("made a self-signed certificate")
    if os.environ.get("LETSENCRYPT_ISSUE") != "true":
        say("not asked to obtain a certificate (docker-compose.prod.letsencrypt.yml)")
    elif lineage().exists():
        # an earlier start obtained it, but may have been killed before it switched
        switch(lineage())
        say("there is a certificate; the host's cron renews it")
    else:
        obtain()


def renew(force: bool = False) -> None:
    if not lineage().exists():
        if os.environ.get("LETSENCRYPT_ISSUE") != "true":
            raise Stop("there is no certificate to renew: start the stack with docker-compose.prod.letsencrypt.yml too")
        obtain()
        return
    check_addresses()
    certbot("renew", "--no-random-sleep-on-renew", *(["--force-renewal"] if force else []))
    switch(lineage())
    show()


def show() -> None:
    current = CERTIFICATES / "current"
    try:
        certificate = x509.load_pem_x509_certificate((current / "fullchain.pem").read_bytes())
    except OSError as error:
        raise Stop(f"there is no certificate: {error}") from error
    issuer = "self-signed" if current.readlink().name.endswith(SELF_SIGNED) else certificate.issuer.rfc4514_string()
    end = f"{last_day(certificate):%Y-%m-%d %H:%M} UTC"
    say(f"{domain()}: {issuer}, serial {certificate.serial_number:x}, valid until {end}")


def install() -> None:
    """Runs as certbot's deploy hook, with the certificate's folder in RENEWED_LINEAGE."""
    switch(Path(os.environ["RENEWED_LINEAGE"]))


# -- obtaining a certificate -------------------------------------------------------------------------------------------


def obtain() -> None:
    failed = STATE / "failed.json"
    if failed.exists():
        wait = json.loads(failed.read_text())["at"] + PAUSE - time.time()
        if wait > 0:
            raise Stop(
                f"the last request failed, so the next is made in {wait / 60:.0f} minutes at the earliest. Fix the "
                "cause that its log names. To try sooner, remove failed.json from the volume `letsencrypt`"
            )
    email = os.environ.get("LETSENCRYPT_EMAIL", "")
    if not email:
        raise Stop("LETSENCRYPT_EMAIL is not set; set it in .env")
    check_addresses()
    try:
        certbot(
            "certonly", "--webroot", "--webroot-path", str(CHALLENGES), "--cert-name", name(), "--domain", domain(),
            "--email", email, "--agree-tos", "--no-eff-email", "--keep-until-expiring", *server(),
        )  # fmt: skip
    except Stop:
        failed.write_text(json.dumps({"at": time.time()}))
        raise
    failed.unlink(missing_ok=True)
    switch(lineage())
    show()


def certbot(*arguments: str) -> None:
    # the hook is named here for each command, so that a certificate that was restored from a backup has it too
    hook = f"{sys.executable} {Path(__file__).resolve()} install"
    common = (
        "--quiet", "--non-interactive", "--config-dir", str(STATE / "config"), "--work-dir", str(STATE / "work"),
        "--logs-dir", str(STATE / "log"), "--max-log-backups", "10", "--deploy-hook", hook,
    )  # fmt: skip
    if subprocess.run(["certbot", *arguments, *common], check=False).returncode:
        raise Stop(f"certbot failed; its log is {STATE}/log/letsencrypt.log in the volume `letsencrypt`")


def server() -> list[str]:
    if other := os.environ.get("LETSENCRYPT_SERVER"):
        return ["--server", other]
    return ["--staging"] if is_staging() else []


def is_staging() -> bool:
    return os.environ.get("LETSENCRYPT_STAGING") == "true"


def name() -> str:
    """Returns certbot's name of the certificate; the staging server's has another, so it never hides a real one."""
    return f"{domain()}-staging" if is_staging() else domain()


def lineage() -> Path:
    return STATE / "config" / "live" / name()


def domain() -> str:
    found = os.environ.get("BUSCO_DOMAIN", "")
    if not found:
        raise Stop("BUSCO_DOMAIN is not set; set it in .env")
    return found


# -- the host name's addresses -----------------------------------------------------------------------------------------


def check_addresses() -> None:
    """Requests a new file from each address of the host name, as the authority will.

    Raises:
        Stop: an address does not lead to this machine.
    """
    try:
        found = socket.getaddrinfo(domain(), PORT, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise Stop(f"{domain()} has no address ({error}); create its A record. Nothing was requested") from error
    own = {
        ipaddress.ip_address(one.strip()) for one in os.environ.get("PUBLIC_ADDRESSES", "").split(",") if one.strip()
    }
    token = secrets.token_hex(16)
    folder = CHALLENGES / WELL_KNOWN
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"busco-{token}"
    file.write_text(token)
    try:
        for address in sorted({str(one[4][0]) for one in found}):
            if ipaddress.ip_address(address) not in own:
                _check_address(address, token, time.monotonic() + WAIT)
    finally:
        file.unlink()


def _check_address(address: str, token: str, deadline: float) -> None:
    record = "AAAA" if ":" in address else "A"
    while True:
        try:
            if (answer := _requested(address, token)) == token:
                return
            problem = f"another server answers there ({answer[:60]!r})"
        except (OSError, http.client.HTTPException) as error:
            problem = f"it can't be reached from this machine ({error})"
        if time.monotonic() > deadline:
            break
        time.sleep(2)
    raise Stop(
        f"the {record} record of {domain()} is {address}, but {problem}. Correct or remove the record, open port 80 to "
        "everybody, or, if the address belongs to this machine, add it to PUBLIC_ADDRESSES in .env. "
        "Nothing was requested"
    )


def _requested(address: str, token: str) -> str:
    connection = http.client.HTTPConnection(address, PORT, timeout=5)
    try:
        connection.request("GET", f"/{WELL_KNOWN}/busco-{token}", headers={"Host": domain()})
        response = connection.getresponse()
        body = response.read(1000).decode(errors="replace")
        return body if response.status == 200 else f"status {response.status}"
    finally:
        connection.close()


# -- what nginx serves -------------------------------------------------------------------------------------------------


def switch(source: Path) -> None:
    """Makes nginx serve certbot's newest certificate, unless it is already served."""
    chain, key = (source / "fullchain.pem").read_bytes(), (source / "privkey.pem").read_bytes()
    current = CERTIFICATES / "current" / "fullchain.pem"
    if not current.exists() or current.read_bytes() != chain:
        put(chain, key)


def put(chain: bytes, key: bytes, suffix: str = "") -> None:
    """Writes a certificate in a folder of its own, switches the link to it, and removes the oldest folders."""
    now = datetime.datetime.now(datetime.UTC)
    folder = CERTIFICATES / f"{now:%Y%m%dT%H%M%S%f}{suffix}"
    folder.mkdir(mode=0o755)
    (folder / "fullchain.pem").write_bytes(chain)
    private = os.open(folder / "privkey.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(private, "wb") as file:
        file.write(key)
    link = CERTIFICATES / f".current-{folder.name}"
    link.symlink_to(folder.name)
    link.replace(CERTIFICATES / "current")
    served = [path for path in sorted(CERTIFICATES.iterdir()) if path.is_dir() and not path.is_symlink()]
    for old in served[:-KEPT]:
        shutil.rmtree(old)


def self_signed(host: str) -> tuple[bytes, bytes]:
    """Returns a certificate for one host name, valid for a year, and its key, both as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host[:64])])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=365))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(serialization.Encoding.PEM), pem


def last_day(certificate: x509.Certificate) -> datetime.datetime:
    # the UTC variant of the attribute is newer than the library in some images
    return getattr(certificate, "not_valid_after_utc", None) or certificate.not_valid_after


def say(text: str) -> None:
    print(f"letsencrypt: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
