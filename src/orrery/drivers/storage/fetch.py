# SPDX-License-Identifier: AGPL-3.0-or-later
"""Files from other people's web servers, fetched with care.

Whoever may download (Sys.AccessNetwork) may make this node speak with its networks, private addresses and loopback
included: that is what the privilege is for, and mirrors often live there. What no mirror ever is, is refused all the
same, for it would hand out secrets of the machine: link-local addresses (the metadata services of clouds, which give
out credentials), multicast, and the unspecified address. A name is resolved once, checked, and the connection goes to
the very address that was checked; every redirection is judged anew.
"""

import contextlib
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import unquote

import httpx2

from orrery import __version__
from orrery.errors import Failure

MAX_REDIRECTS: Final = 5
STALL_SECONDS: Final = 60.0
ANSWER_STALL_SECONDS: Final = 20.0
ANSWER_SECONDS: Final = 120.0
CONNECT_SECONDS: Final = 15.0
CHUNK: Final = 1 << 20
_WAITING_CHUNKS: Final = 4
_TICK_SECONDS: Final = 0.5
_METADATA_SECONDS: Final = 8.0
_CLOUD_METADATA: Final = frozenset({ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")})
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a server tells of a file; None for what it does not tell. `size` is in bytes."""

    filename: str | None
    size: int | None
    mimetype: str | None


def shown(url: str) -> str:
    """The address without what may be secret in it (password, query), for logs."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL:
        return "an invalid address"
    return str(parsed.copy_with(username=None, password=None, query=None, fragment=None))


def metadata(url: str, *, verify: bool, proxy: str | None = None) -> Metadata:
    """Asks a server what it has there, without fetching it. Raises Failure."""
    timeout = httpx2.Timeout(_METADATA_SECONDS)
    for method in ("HEAD", "GET"):
        with _exchange(method, url, verify, proxy, timeout) as response:
            if response.status_code in (405, 501) and method == "HEAD":
                continue
            _require_ok(response)
            kind = response.headers.get("content-type", "").partition(";")[0].strip()
            return Metadata(_filename(response), _length(response), kind or None)
    raise AssertionError("unreachable")  # pragma: no cover


@dataclass(frozen=True, slots=True)
class Answer:
    """The whole answer to a request for something small; header names are in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def ask(
    url: str, *, verify: bool, limit: int, proxy: str | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """What a server answers, whatever its status. Raises Failure for more than `limit` bytes, or when it takes long."""
    body = bytearray()
    deadline = time.monotonic() + ANSWER_SECONDS

    def sink(piece: bytes) -> None:
        body.extend(piece)
        if len(body) > limit:
            raise Failure(f"the answer for '{shown(url)}' is larger than {limit} bytes")

    def tick() -> None:
        if time.monotonic() > deadline:
            raise Failure(f"the answer for '{shown(url)}' did not come within {ANSWER_SECONDS:g} seconds")

    timeout = httpx2.Timeout(ANSWER_STALL_SECONDS, connect=CONNECT_SECONDS)
    with _exchange("GET", url, verify, proxy, timeout, headers) as response:
        Download(response, _length(response)).read(sink, tick)
        return Answer(
            response.status_code, {name.lower(): text for name, text in response.headers.items()}, bytes(body)
        )


@contextlib.contextmanager
def opened(
    url: str, *, verify: bool, proxy: str | None = None, headers: Mapping[str, str] | None = None
) -> Iterator["Download"]:
    """A download that has begun. Raises Failure."""
    timeout = httpx2.Timeout(STALL_SECONDS, connect=CONNECT_SECONDS)
    with _exchange("GET", url, verify, proxy, timeout, headers) as response:
        _require_ok(response)
        yield Download(response, _length(response))


@dataclass(frozen=True)
class Download:
    """`length` in bytes as the server announced it, None when it did not."""

    response: httpx2.Response
    length: int | None

    def read(self, sink: Callable[[bytes], None], tick: Callable[[], None]) -> int:
        """Hands every piece to `sink`; calls `tick` at least twice a second, also while nothing comes. Total bytes.

        What these raise ends the download. Raises Failure when it stalls or breaks off.
        """
        pieces: queue.Queue[bytes | BaseException | None] = queue.Queue(_WAITING_CHUNKS)
        stop = threading.Event()
        reader = threading.Thread(target=self._pump, args=(pieces, stop), name="download", daemon=True)
        reader.start()
        done = 0
        try:
            while True:
                tick()
                try:
                    piece = pieces.get(timeout=_TICK_SECONDS)
                except queue.Empty:
                    continue
                if piece is None:
                    break
                if isinstance(piece, BaseException):
                    raise _failure(self.response.request.url, piece) from piece
                done += len(piece)
                sink(piece)
        finally:
            stop.set()
        if self.length is not None and done != self.length:
            raise Failure(f"the download broke off after {done} of {self.length} bytes")
        return done

    def _pump(self, pieces: "queue.Queue[bytes | BaseException | None]", stop: threading.Event) -> None:
        last: BaseException | None = None
        try:
            for piece in self.response.iter_raw(CHUNK):
                if not _offer(pieces, piece, stop):
                    return
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            last = error
        _offer(pieces, last, stop)


def _offer(
    pieces: "queue.Queue[bytes | BaseException | None]", piece: bytes | BaseException | None, stop: threading.Event
) -> bool:
    """Waits for room in the queue; False when nobody wants anything any more."""
    while not stop.is_set():
        try:
            pieces.put(piece, timeout=_TICK_SECONDS)
        except queue.Full:
            continue
        return True
    return False


# --- the exchange


@contextlib.contextmanager
def _exchange(
    method: str,
    url: str,
    verify: bool,
    proxy: str | None,
    timeout: httpx2.Timeout,
    extra: Mapping[str, str] | None = None,
) -> Iterator[httpx2.Response]:
    try:
        target = httpx2.URL(url)
        transport = _Guarded(verify, proxy)
    except (httpx2.InvalidURL, ValueError) as error:
        raise Failure(f"'{shown(url)}' cannot be downloaded: {error}") from error
    headers = {"accept-encoding": "identity", "user-agent": f"orrery/{__version__}", **(extra or {})}
    with httpx2.Client(
        transport=transport,
        headers=headers,
        follow_redirects=True,
        max_redirects=MAX_REDIRECTS,
        timeout=timeout,
        trust_env=False,
    ) as client:
        try:
            response = client.send(client.build_request(method, target), stream=True)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise _failure(target, error) from error
        try:
            yield response
        finally:
            with contextlib.suppress(httpx2.HTTPError, OSError):
                response.close()


class _Guarded(httpx2.HTTPTransport):
    """Connects only to addresses that were checked, and never goes back from https to http."""

    def __init__(self, verify: bool, proxy: str | None) -> None:
        super().__init__(verify=_tls(verify), trust_env=False, proxy=proxy)
        self._proxied = proxy is not None
        self._secure = False

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        if url.scheme not in ("http", "https") or not url.host:
            raise Failure(f"'{shown(str(url))}' is not an http or https address")
        if self._secure and url.scheme == "http":
            raise Failure(
                f"refused to be sent from https to '{shown(str(url))}', which anybody could have tampered with"
            )
        self._secure = url.scheme == "https"
        if self._proxied:
            _check_literal(url.host)
            return super().handle_request(request)
        return self._connect(request)

    def _connect(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        last: httpx2.ConnectError | httpx2.ConnectTimeout | None = None
        for address in resolve(url.host, url.port or (443 if url.scheme == "https" else 80)):
            pinned = httpx2.Request(
                request.method,
                url.copy_with(host=str(address)),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": url.host},
            )
            try:
                return super().handle_request(pinned)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                last = error
        raise last or httpx2.ConnectError(f"'{url.host}' has no address")


def _tls(verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def resolve(host: str, port: int) -> list[Address]:
    """Addresses of a host, every one of them checked. Raises Failure when a single one is refused."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Failure(f"host '{host}' is not known: {error}") from error
    addresses = list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))
    for address in addresses:
        check_address(host, address)
    return addresses


def check_address(host: str, address: Address) -> None:
    """Raises Failure for an address that no download can be meant for."""
    for one in (address, _embedded(address)):
        if one is not None and (one.is_link_local or one.is_multicast or one.is_unspecified or one in _CLOUD_METADATA):
            raise Failure(f"host '{host}' has the address {address}, from which nothing is downloaded")


def _embedded(address: Address) -> Address | None:
    """The IPv4 address within an IPv6 address, where a translator would take it out."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def _check_literal(host: str) -> None:
    with contextlib.suppress(ValueError):
        check_address(host, ipaddress.ip_address(host.strip("[]")))


# --- what the server says


def _require_ok(response: httpx2.Response) -> None:
    if response.status_code != 200:
        reason = re.sub(r"[^\x20-\x7e]", "?", response.reason_phrase)[:100]
        raise Failure(f"the server answered {response.status_code} {reason} for '{shown(str(response.url))}'")


def _length(response: httpx2.Response) -> int | None:
    text = response.headers.get("content-length", "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _filename(response: httpx2.Response) -> str | None:
    """The name that the server proposes, else the last part of the address."""
    header = Message()
    header["content-disposition"] = response.headers.get("content-disposition", "")
    proposed = header.get_filename() or unquote(response.url.path)
    name = PurePosixPath(proposed.replace("\\", "/")).name
    name = "".join(letter for letter in name if letter.isprintable())
    return name if name not in ("", ".", "..") else None


def _failure(url: httpx2.URL, error: BaseException) -> Failure:
    where = f"unable to download from '{url.host}'"
    if isinstance(error, httpx2.TooManyRedirects):
        return Failure(f"{where}: more than {MAX_REDIRECTS} redirections")
    if isinstance(error, httpx2.ReadTimeout):
        return Failure(f"{where}: no data came in time")
    if isinstance(error, httpx2.TimeoutException):
        return Failure(f"{where}: no connection within {CONNECT_SECONDS:g} seconds")
    return Failure(f"{where}: {str(error) or type(error).__name__}")
