# SPDX-License-Identifier: AGPL-3.0-or-later
"""Multipart bodies, however they are cut into pieces, become one file or nothing."""

import asyncio
import errno
import hashlib
import itertools
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from orrery.api import upload
from orrery.api.request import BadContentType, Malformed
from orrery.api.upload import Destination, Upload, receive_upload
from orrery.errors import NoSpace, OrreryError, ParameterError

BOUNDARY = "0123456789abcdef"


def part(name: str, data: bytes, filename: str | None = None, *headers: str) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"'
    if filename is not None:
        disposition += f'; filename="{filename}"'
    head = "\r\n".join([f"--{BOUNDARY}", disposition, *headers]).encode()
    return head + b"\r\n\r\n" + data + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


class Place:
    """A destination in a folder that notes what happened to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "staged"
        self.fields: Mapping[str, str] = {}
        self.filename = ""
        self.begun = 0
        self.watched = 0
        self.refuse: OrreryError | None = None

    def begin(self, fields: Mapping[str, str], filename: str) -> Destination:
        self.fields, self.filename = fields, filename
        self.begun += 1
        if self.refuse is not None:
            raise self.refuse
        self.path.touch()
        return Destination(self.path, hashlib.sha256(), lambda: self.path.unlink(missing_ok=True), self.watch)

    def watch(self) -> None:
        self.watched += 1


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def request(pieces: Iterator[bytes] | list[bytes], content_type: str | None = None, *, leave: bool = False) -> Request:
    source = iter(pieces)

    async def receive() -> dict[str, Any]:
        for piece in source:
            return {"type": "http.request", "body": piece, "more_body": True}
        return {"type": "http.disconnect"} if leave else {"type": "http.request", "body": b"", "more_body": False}

    kind = content_type or f"multipart/form-data; boundary={BOUNDARY}"
    return Request({"type": "http", "method": "POST", "headers": [(b"content-type", kind.encode())]}, receive)


def receive(place: Place, pieces: Iterator[bytes] | list[bytes], **options: Any) -> Upload:
    return asyncio.run(receive_upload(request(pieces, **options), place.begin))


FILE = bytes(range(256)) * 40
WHOLE = body(
    part("content", b"iso"),
    part("checksum-algorithm", b"sha256", None, "Content-Type: text/plain"),
    part("filename", FILE, "ä x.iso", "Content-Type: application/octet-stream"),
)


def test_fields_come_first_then_the_file(place: Place) -> None:
    received = receive(place, [WHOLE])
    assert place.fields == {"content": "iso", "checksum-algorithm": "sha256"}
    assert place.filename == "ä x.iso"
    assert received == Upload(place.path, len(FILE), hashlib.sha256(FILE).hexdigest())
    assert place.path.read_bytes() == FILE


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(cuts=st.lists(st.integers(0, len(WHOLE)), max_size=12), batch=st.sampled_from([1, 7, 1 << 20]))
def test_cuts_do_not_matter(place: Place, cuts: list[int], batch: int) -> None:
    edges = [0, *sorted(cuts), len(WHOLE)]
    pieces = [WHOLE[a:b] for a, b in itertools.pairwise(edges)]
    original, upload.BATCH = upload.BATCH, batch  # type: ignore[misc]
    try:
        assert receive(place, pieces).computed == hashlib.sha256(FILE).hexdigest()
    finally:
        upload.BATCH = original  # type: ignore[misc]
    assert place.path.read_bytes() == FILE


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.lists(st.sampled_from([b"\r\n", b"--", BOUNDARY.encode(), b"x", b"\n", b"-"])).map(b"".join))
def test_contents_that_look_like_boundaries(place: Place, data: bytes) -> None:
    if f"\r\n--{BOUNDARY}".encode() in b"\r\n" + data:
        return
    receive(place, [body(part("filename", data, "x.iso"))])
    assert place.path.read_bytes() == data


def test_encoded_file_name(place: Place) -> None:
    encoded = part("filename", b"x").replace(b'name="filename"', b"name=\"filename\"; filename*=UTF-8''%C3%A4.iso")
    receive(place, [body(encoded)])
    assert place.filename == "ä.iso"


def test_empty_file(place: Place) -> None:
    assert receive(place, [body(part("filename", b"", "x.iso"))]).size == 0


@pytest.mark.parametrize(
    ("pieces", "error", "name"),
    [
        ([body(part("content", b"iso"))], ParameterError, "filename"),
        ([body(part("filename", b"no file"))], ParameterError, "filename"),
        ([body(part("filename", b"x", "x.iso"), part("content", b"iso"))], ParameterError, "content"),
        ([body(part("filename", b"x", "x.iso"), part("filename", b"y", "y.iso"))], ParameterError, "filename"),
        ([body(part("content", b"iso"), part("content", b"iso"))], ParameterError, "content"),
        ([body(part("content", b"x" * 5000))], ParameterError, "content"),
        ([body(*[part(f"f{number}", b"") for number in range(20)])], Malformed, None),
        ([body(part("", b""))], Malformed, None),
        ([WHOLE[:-30]], Malformed, None),
        ([WHOLE[: len(WHOLE) // 2]], Malformed, None),
        ([b"no multipart at all"], Malformed, None),
        ([body(part("content", b"\xff\xfe"))], Malformed, None),
        ([body(part("x", b"", None, *[f"X-{number}: y" for number in range(50)]))], Malformed, None),
        ([body(part("x", b"", None, "X: " + "y" * 100_000))], Malformed, None),
    ],
)
def test_bad_bodies_leave_nothing(
    place: Place, pieces: list[bytes], error: type[OrreryError], name: str | None
) -> None:
    with pytest.raises(error) as raised:
        receive(place, pieces)
    if name is not None:
        assert list(raised.value.errors) == [name]
    assert not place.path.exists()


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data", "multipart/mixed; boundary=x", "application/x-www-form-urlencoded"]
)
def test_other_content_types(place: Place, kind: str) -> None:
    with pytest.raises(BadContentType):
        receive(place, [WHOLE], content_type=kind)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(data=st.binary(max_size=300), at=st.integers(0, len(WHOLE)))
def test_garbage_is_refused_calmly(place: Place, data: bytes, at: int) -> None:
    place.path.unlink(missing_ok=True)
    try:
        receive(place, [WHOLE[:at] + data + WHOLE[at:]])
    except OrreryError:
        assert not place.path.exists()


def test_refused_before_the_first_byte(place: Place) -> None:
    """A client that sends on and on is not read to its end."""
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        yield WHOLE[:400]
        while True:
            read += 1
            yield bytes(1 << 20)

    place.refuse = ParameterError({"filename": "wrong file extension"})
    with pytest.raises(ParameterError):
        receive(place, endless())
    assert read <= 2


def test_client_that_goes_away(place: Place) -> None:
    with pytest.raises(ClientDisconnect):
        receive(place, [WHOLE[:5000], bytes(2 << 20)], leave=True)
    assert place.begun == 1
    assert not place.path.exists()


def test_node_that_stops(place: Place) -> None:
    async def stopped() -> None:
        async def pieces() -> AsyncIterator[dict[str, Any]]:
            yield {"type": "http.request", "body": WHOLE[:5000] + bytes(2 << 20), "more_body": True}
            await asyncio.sleep(60)

        stream = pieces()
        scope: dict[str, Any] = {
            "type": "http",
            "method": "POST",
            "headers": [(b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode())],
        }
        task = asyncio.create_task(receive_upload(Request(scope, lambda: anext(stream)), place.begin))
        while not place.path.exists():  # noqa: ASYNC110  (it appears in another thread)
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(stopped())
    assert not place.path.exists()


def test_full_disk(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: memoryview) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None: ...

    original: Callable[..., Any] = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: Full() if self == place.path else original(self, *a, **k))
    with pytest.raises(NoSpace, match="free some space"):
        receive(place, [WHOLE])
    assert not place.path.exists()


def test_memory_does_not_grow_and_the_loop_stays_free(place: Place) -> None:
    """512 MiB in 64 KiB pieces: pieces are not kept, and another coroutine runs all the while."""
    pieces = 8192
    place.path.unlink(missing_ok=True)
    block = os.urandom(1 << 16)
    waits: list[float] = []

    def content() -> Iterator[bytes]:
        yield WHOLE[: -len(FILE) - 24]
        for _ in range(pieces):
            yield block
        yield f"\r\n--{BOUNDARY}--\r\n".encode()

    async def run() -> Upload:
        async def beat() -> None:
            while True:
                begun = time.monotonic()
                await asyncio.sleep(0)
                waits.append(time.monotonic() - begun)
                await asyncio.sleep(0.005)

        beating = asyncio.create_task(beat())
        try:
            return await receive_upload(request(content()), place.begin)
        finally:
            beating.cancel()

    before = resident()
    received = asyncio.run(run())
    assert received.size >= pieces * len(block)
    assert resident() - before < 64 << 20
    assert place.watched >= 7
    assert sorted(waits)[int(len(waits) * 0.99)] < 0.25
    assert threading.active_count() < 40


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
