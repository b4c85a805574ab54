# SPDX-License-Identifier: AGPL-3.0-or-later
"""Downloads from a real server on loopback, and from addresses that are none of a mirror's."""

import contextlib
import http.server
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from orrery.drivers.storage import fetch
from orrery.drivers.storage.fetch import Metadata, check_address, metadata, opened, shown
from orrery.errors import Cancelled, Failure

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Site(http.server.ThreadingHTTPServer):
    daemon_threads = True
    pages: dict[str, Answer]
    seen: list[tuple[str, dict[str, str]]]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Site)
        self.server.seen.append((self.command, {name.lower(): value for name, value in self.headers.items()}))
        self.server.pages[self.path](self)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None:
        pass


def page(body: bytes = b"", status: int = 200, **headers: str) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)

    return answer


def redirect(target: str) -> Answer:
    return page(status=302, Location=target)


@contextlib.contextmanager
def serving(pages: dict[str, Answer], tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    site = Site(("127.0.0.1", 0), Handler)
    site.pages, site.seen = pages, []
    if tls is not None:
        site.socket = tls.wrap_socket(site.socket, server_side=True)
    thread = threading.Thread(target=site.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.shutdown()
        site.server_close()
        thread.join()


def body(url: str, **options: Any) -> bytes:
    pieces: list[bytes] = []
    with opened(url, verify=options.pop("verify", True), **options) as download:
        assert download.read(pieces.append, lambda: None) == len(b"".join(pieces))
    return b"".join(pieces)


def test_plain_download() -> None:
    data = bytes(range(256)) * 20_000
    with serving({"/a/x.iso": page(data)}) as site:
        assert body(f"{site.url}/a/x.iso") == data
        ((method, headers),) = site.seen
    assert method == "GET"
    assert headers["host"].startswith("127.0.0.1:")
    assert headers["accept-encoding"] == "identity"


def test_name_of_the_host_is_kept() -> None:
    with serving({"/x": page(b"x")}) as site:
        body(f"http://localhost:{site.server_address[1]}/x")
        assert site.seen[0][1]["host"] == f"localhost:{site.server_address[1]}"


def test_redirections_are_followed_up_to_five() -> None:
    pages: dict[str, Answer] = {f"/{number}": redirect(f"/{number + 1}") for number in range(6)}
    with serving({**pages, "/5": page(b"end")}) as site:
        assert body(f"{site.url}/0") == b"end"
    with serving({**pages, "/6": page(b"end")}) as site, pytest.raises(Failure, match="more than 5 redirections"):
        body(f"{site.url}/0")


@pytest.mark.parametrize("target", ["file:///etc/shadow", "ftp://127.0.0.1/x", "gopher://127.0.0.1/"])
def test_other_schemes_are_refused(target: str) -> None:
    with pytest.raises(Failure):
        body(target)
    with serving({"/x": redirect(target)}) as site, pytest.raises(Failure):
        body(f"{site.url}/x")


@pytest.mark.parametrize("status", [204, 206, 404, 403, 500])
def test_only_200_is_a_file(status: int) -> None:
    with serving({"/x": page(b"", status)}) as site, pytest.raises(Failure, match=f"answered {status}"):
        body(f"{site.url}/x")


REFUSED = [
    "169.254.169.254",
    "169.254.1.1",
    "0.0.0.0",
    "224.0.0.1",
    "100.100.100.200",
    "[fe80::1]",
    "[fd00:ec2::254]",
    "[::]",
    "[ff02::1]",
    "[::ffff:169.254.169.254]",
    "[64:ff9b::a9fe:a9fe]",
    "[2002:a9fe:a9fe::]",
    "2852039166",
    "0xa9fea9fe",
]


@pytest.mark.parametrize("host", REFUSED)
def test_addresses_that_no_mirror_has(host: str) -> None:
    with pytest.raises(Failure, match=r"nothing is downloaded|not known"):
        body(f"http://{host}/latest/meta-data/")
    with serving({"/x": redirect(f"http://{host}/")}) as site, pytest.raises(Failure, match=r"nothing is|not known"):
        body(f"{site.url}/x")


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "10.0.0.1", "192.168.1.1", "fd12::1", "8.8.8.8", "2001:db8::1"]
)
def test_addresses_that_mirrors_have(address: str) -> None:
    check_address("x", ipaddress.ip_address(address))


def test_a_name_is_judged_by_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*args: Any, **kwargs: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 80)) for ip in ("127.0.0.1", "169.254.169.254")]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    with pytest.raises(Failure, match=r"169\.254"):
        body("http://rebinding.example/x")


def test_unreachable_and_unknown_hosts() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(Failure, match="unable to download from '127"):
            body(f"http://127.0.0.1:{closed.getsockname()[1]}/x")
    with pytest.raises(Failure, match="not known"):
        body("http://no-such-host.invalid/x")
    with pytest.raises(Failure):
        body("http://[/x")


def test_a_download_that_breaks_off() -> None:
    def broken(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(b"x" * 10)

    with serving({"/x": broken}) as site, pytest.raises(Failure, match=r"unable to download|broke off"):
        body(f"{site.url}/x")


def sleepy(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b"x" * 10)
    request.wfile.flush()
    time.sleep(3)


def test_a_download_that_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "STALL_SECONDS", 0.3)
    with serving({"/x": sleepy}) as site, pytest.raises(Failure, match="no data came in time"):
        body(f"{site.url}/x")


def test_cancel_does_not_wait_for_data() -> None:
    def cancel() -> None:
        if time.monotonic() - started > 0.2:
            raise Cancelled

    with serving({"/x": sleepy}) as site:
        started = time.monotonic()
        with pytest.raises(Cancelled), opened(f"{site.url}/x", verify=True) as download:
            download.read(lambda piece: None, cancel)
        assert time.monotonic() - started < 2


def test_metadata() -> None:
    named = page(
        b"x" * 10, Content_Type="application/x-iso; charset=x", Content_Disposition='attachment; filename="a b.iso"'
    )
    evil = page(b"x", Content_Disposition='attachment; filename="../../etc/passwd"')
    headless = page(b"x" * 7)

    def get_only(request: http.server.BaseHTTPRequestHandler) -> None:
        if request.command == "HEAD":
            page(status=405)(request)
        else:
            headless(request)

    with serving({"/n": named, "/d/e%20f.iso": headless, "/evil": evil, "/get": get_only, "/": headless}) as site:
        assert metadata(f"{site.url}/n", verify=True) == Metadata("a b.iso", 10, "application/x-iso")
        assert metadata(f"{site.url}/d/e%20f.iso", verify=True) == Metadata("e f.iso", 7, None)
        assert metadata(f"{site.url}/evil", verify=True).filename == "passwd"
        assert metadata(f"{site.url}/get", verify=True).size == 7
        assert metadata(f"{site.url}/", verify=True).filename is None


def test_secrets_stay_out_of_logs() -> None:
    assert shown("https://anna:geheim@example.org:8443/a/x.iso?token=s3cret#f") == "https://example.org:8443/a/x.iso"


# --- TLS


@pytest.fixture
def tls(tmp_path: Path) -> ssl.SSLContext:
    """A certificate for 127.0.0.1 that nobody trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(1))
        .not_valid_after(now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "cert.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context


def test_certificates_are_verified_unless_told_not_to(tls: ssl.SSLContext) -> None:
    with serving({"/x": page(b"x")}, tls) as site:
        url = f"https://localhost:{site.server_address[1]}/x"
        with pytest.raises(Failure, match="certificate"):
            body(url)
        assert body(url, verify=False) == b"x"


def test_the_name_in_the_certificate_counts(
    tls: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection goes to a checked address, yet the certificate is judged by the name."""
    original = fetch._tls

    def trusting(verify: bool) -> ssl.SSLContext:
        context = original(verify)
        context.load_verify_locations(tmp_path / "cert.pem")
        return context

    monkeypatch.setattr(fetch, "_tls", trusting)
    with serving({"/x": page(b"x")}, tls) as site:
        assert body(f"https://localhost:{site.server_address[1]}/x") == b"x"
        with pytest.raises(Failure, match="certificate"):
            body(f"https://127.0.0.1:{site.server_address[1]}/x")


def test_no_way_back_from_https(tls: ssl.SSLContext) -> None:
    with serving({"/x": page(b"plain")}) as plain, serving({"/x": redirect(f"{plain.url}/x")}, tls) as site:
        with pytest.raises(Failure, match="from https"):
            body(f"https://localhost:{site.server_address[1]}/x", verify=False)
        assert plain.seen == []
