# SPDX-License-Identifier: AGPL-3.0-or-later
"""Uploads: a multipart body (RFC 7578) that streams into a file, hashed on its way, in memory that does not grow.

The fields come first, the file last and once. Parsing, hashing and writing happen in threads of their own, a batch at a
time; reading waits for them, so a client is never read faster than the storage takes it. Whatever ends an upload early
(the disk is full, the client went away, the node stops) removes what had been written.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, BinaryIO, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from orrery.api.request import BadContentType, Malformed
from orrery.errors import ParameterError
from orrery.system import files

FILE_PART: Final = "filename"
BATCH: Final = 1 << 20
"""Bytes that are handed to a thread at once."""
THREADS: Final = 8
MAX_FIELD: Final = 4096
MAX_PARTS: Final = 16
CHECK_EVERY: Final = 64 << 20

_pool = ThreadPoolExecutor(THREADS, thread_name_prefix="upload")


@dataclass(frozen=True)
class Destination:
    """Where a file goes: an empty file that exists, a hash to feed, and how to get rid of it all.

    `watch` is called now and then with nothing written lately; it raises when there should be no more.
    """

    path: Path
    digest: Any | None
    discard: Callable[[], None]
    watch: Callable[[], None]


@dataclass(frozen=True)
class Upload:
    """A whole upload. `computed` is the checksum in hexadecimal, if one was wanted; `size` in bytes."""

    path: Path
    size: int
    computed: str | None


Begin = Callable[[Mapping[str, str], str], Destination]
"""Called with the fields and the file's name before its first byte; raises what is wrong with them."""


async def receive_upload(request: Request, begin: Begin) -> Upload:
    """Reads the request's body.

    Raises `BadContentType`, `Malformed`, `ParameterError`, `NoSpace`, and what `begin` does.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise BadContentType("an upload must be multipart/form-data")
    receiver = Receiver(options[b"boundary"], begin)
    loop = asyncio.get_running_loop()
    try:
        batch = bytearray()
        async for part in request.stream():
            batch += part
            if len(batch) >= BATCH:
                await loop.run_in_executor(_pool, receiver.feed, bytes(batch))
                batch.clear()
        return await loop.run_in_executor(_pool, receiver.finish, bytes(batch))
    except BaseException:
        # Not awaited when this very task is being cancelled twice: the thread does its work all the same.
        await asyncio.shield(loop.run_in_executor(_pool, receiver.abort))
        raise


class Receiver:
    """Takes the body piece by piece. Each method may run in another thread, one at a time."""

    def __init__(self, boundary: bytes, begin: Begin) -> None:
        self._begin = begin
        self._lock = threading.Lock()
        self._fields: dict[str, str] = {}
        self._parts = 0
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._name = ""
        self._text = bytearray()
        self._destination: Destination | None = None
        self._file: BinaryIO | None = None
        self._size = 0
        self._ended = False
        self._over = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._part_begins,
                    "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._header_ends,
                    "on_headers_finished": self._headers_end,
                    "on_part_data": self._data,
                    "on_part_end": self._part_ends,
                    "on_end": self._body_ends,
                },
            )
        except FormParserError as error:
            raise Malformed(f"malformed upload: {error}") from error

    def feed(self, data: bytes) -> None:
        """Takes the next piece of the body."""
        with self._lock:
            if self._over:
                return
            try:
                self._parser.write(data)
            except FormParserError as error:
                raise Malformed(f"malformed upload: {error}") from error

    def finish(self, data: bytes) -> Upload:
        """Takes the last piece; the upload is whole, or this raises."""
        if data:
            self.feed(data)
        with self._lock:
            if self._destination is None:
                raise ParameterError({FILE_PART: "property is missing and it is not optional"})
            if not self._ended or self._file is not None:
                raise Malformed("the upload broke off")
            digest = self._destination.digest
            return Upload(self._destination.path, self._size, None if digest is None else digest.hexdigest())

    def abort(self) -> None:
        """Removes what was written; waits for a `feed` in another thread, and stops those that come after."""
        with self._lock:
            self._over = True
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.close()
                self._file = None
            if self._destination is not None:
                self._destination.discard()

    # --- what the parser finds

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise Malformed("malformed upload: too many parts")
        self._disposition = b""
        self._text.clear()

    def _header_ends(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = _text(options.get(b"name", b""))
        if not self._name:
            raise Malformed("malformed upload: a part without a name")
        if self._destination is not None:
            raise ParameterError({self._name: "the file must be the last part of an upload"})
        if self._name in self._fields:
            raise ParameterError({self._name: "duplicate parameter"})
        filename = _filename(self._disposition, options)
        if self._name == FILE_PART and filename is not None:
            self._open(filename)

    def _open(self, filename: str) -> None:
        self._destination = self._begin(dict(self._fields), filename)
        try:
            self._file = self._destination.path.open("wb", buffering=0)
        except OSError as error:
            raise files.failure(error, "unable to write the upload") from error

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is None or self._destination is None:
            self._text += data[start:end]
            if len(self._text) > MAX_FIELD:
                raise ParameterError({self._name: f"value may only be {MAX_FIELD} characters long"})
            return
        piece = memoryview(data)[start:end]
        if self._destination.digest is not None:
            self._destination.digest.update(piece)
        before, self._size = self._size, self._size + len(piece)
        try:
            while piece:
                piece = piece[self._file.write(piece) :]
        except OSError as error:
            raise files.failure(error, "unable to write the upload") from error
        if before // CHECK_EVERY != self._size // CHECK_EVERY:
            self._destination.watch()

    def _part_ends(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        else:
            self._fields[self._name] = _text(bytes(self._text))

    def _body_ends(self) -> None:
        self._ended = True


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Malformed("names and values must be UTF-8 text") from error


def _filename(disposition: bytes, options: Mapping[bytes, bytes]) -> str | None:
    """The file's name; also in the encoded form `filename*=` (RFC 8187), which some clients use."""
    if b"filename" in options:
        return _text(options[b"filename"])
    if b"filename*" not in disposition:
        return None
    header = Message()
    header["content-disposition"] = disposition.decode("latin-1")
    return header.get_filename()
