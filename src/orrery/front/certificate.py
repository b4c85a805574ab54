# SPDX-License-Identifier: AGPL-3.0-or-later
"""The node's own certificate: self-signed, for the node's name, localhost and its addresses; renewed before it ends.

Clients of this API pin the fingerprint or do not verify, so there is no authority behind it. The key belongs to the
front's user; the folder to root, so that only the front's jail shows it.
"""

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orrery.errors import Corrupt
from orrery.system.files import write_atomic

DAYS = 730
RENEW_BEFORE = dt.timedelta(days=30)


def make_certificate(node: str, addresses: Sequence[str], now: dt.datetime) -> tuple[bytes, bytes]:
    """A new key and certificate, both PEM. `addresses` are numeric; those that are no addresses are left out."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Orrery"), x509.NameAttribute(NameOID.COMMON_NAME, node)]
    )
    names: list[x509.GeneralName] = [x509.DNSName(node), x509.DNSName("localhost")]
    for address in dict.fromkeys(["127.0.0.1", "::1", *addresses]):
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            continue
        if not found.is_unspecified:
            names.append(x509.IPAddress(found))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return key_pem, certificate.public_bytes(serialization.Encoding.PEM)


def ensure_certificate(
    key_file: Path, cert_file: Path, node: str, addresses: Sequence[str], owner: tuple[int, int] | None = None
) -> bool:
    """Makes key and certificate where there are none, or ours ends soon; whether it did.

    A certificate of somebody else (another issuer than itself) is left alone, whatever its dates. `owner` is the
    (uid, gid) that the key is given to. Raises `Corrupt` for files that cannot be read as what they are.
    """
    now = dt.datetime.now(dt.UTC)
    if key_file.exists() and cert_file.exists() and not _wants_renewal(key_file, cert_file, now):
        return False
    key, certificate = make_certificate(node, addresses, now)
    write_atomic(key_file, key, 0o600)
    if owner is not None:
        os.chown(key_file, *owner)
    write_atomic(cert_file, certificate, 0o644)
    return True


def fingerprint(cert_file: Path) -> str:
    """SHA-256 of the certificate as clients pin it: hex pairs with colons."""
    return _load(cert_file).fingerprint(hashes.SHA256()).hex(":").upper()


def _wants_renewal(key_file: Path, cert_file: Path, now: dt.datetime) -> bool:
    certificate = _load(cert_file)
    if certificate.issuer != certificate.subject:
        return False
    # A crash between the two writes leaves a key that is not the certificate's.
    return certificate.not_valid_after_utc - now < RENEW_BEFORE or not _belong_together(key_file, certificate)


def _belong_together(key_file: Path, certificate: x509.Certificate) -> bool:
    try:
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
    except (ValueError, TypeError) as error:
        raise Corrupt(
            f"'{key_file}' is not a private key; put the right one back, or remove it to get a new one"
        ) from error
    return key.public_key() == certificate.public_key()


def _load(cert_file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(cert_file.read_bytes())
    except ValueError as error:
        raise Corrupt(
            f"'{cert_file}' is not a certificate; put the right one back, or remove it and its key to get new ones"
        ) from error
