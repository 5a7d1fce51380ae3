"""Makes certificates for tests: an authority, and certificates that it signs."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


def make(folder: Path, host: str, name: str = "server", days: float = 30) -> None:
    """Writes ca.pem, an authority, and <name>.pem and <name>.key, a certificate that it has signed for a host name.

    Args:
        days: how long the certificate is valid from now; it has been valid for an hour.
    """
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    authority = _name(f"authority of {host}"), ec.generate_private_key(ec.SECP256R1())
    own = _name(host), ec.generate_private_key(ec.SECP256R1())
    for file, (subject, key), last in (("ca", authority, 365.0), (name, own, days)):
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=last))
            .add_extension(x509.BasicConstraints(ca=file == "ca", path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
            .sign(authority[1], hashes.SHA256())
        )
        (folder / f"{file}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{file}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])
