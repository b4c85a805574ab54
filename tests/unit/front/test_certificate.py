# SPDX-License-Identifier: AGPL-3.0-or-later
"""The node's certificate: what it names, when it is made anew, whom its key belongs to."""

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from orrery.errors import Corrupt
from orrery.front.certificate import ensure_certificate, fingerprint, make_certificate

NOW = dt.datetime.now(dt.UTC)


def names(certificate: x509.Certificate) -> set[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in found}


def test_names_and_dates() -> None:
    _, pem = make_certificate("n1", ["192.0.2.7", "0.0.0.0", "::", "not an address"], NOW)
    certificate = x509.load_pem_x509_certificate(pem)
    assert names(certificate) == {"n1", "localhost", "127.0.0.1", "::1", "192.0.2.7"}
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "n1"
    assert certificate.not_valid_before_utc < NOW < certificate.not_valid_after_utc
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc < dt.timedelta(days=825)


def test_it_is_made_once(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    assert ensure_certificate(key, cert, "n1", [])
    assert key.stat().st_mode & 0o777 == 0o600
    mark = fingerprint(cert)
    assert len(mark) == 95
    assert not ensure_certificate(key, cert, "n1", [])
    assert fingerprint(cert) == mark


def test_it_is_renewed_before_it_ends(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    old_key, old = make_certificate("n1", [], NOW - dt.timedelta(days=710))
    key.write_bytes(old_key)
    cert.write_bytes(old)
    assert ensure_certificate(key, cert, "n1", [])


def test_a_key_that_is_not_the_certificate_s_is_replaced(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    ensure_certificate(key, cert, "n1", [])
    key.write_bytes(make_certificate("n1", [], NOW)[0])
    assert ensure_certificate(key, cert, "n1", [])
    assert not ensure_certificate(key, cert, "n1", [])


def test_what_is_no_certificate_is_not_overwritten(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    key.write_bytes(b"x")
    cert.write_bytes(b"y")
    with pytest.raises(Corrupt, match="is not a certificate"):
        ensure_certificate(key, cert, "n1", [])
    assert cert.read_bytes() == b"y"
