# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a fetcher needs of those above it, and what it answers.

Fetchers know the formats of their sources, and nothing of storages, tasks or HTTP: they are handed a `Workshop`.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import orjson

from orrery.errors import Failure

SMALL: Final = 1 << 20
"""Bytes that a list of checksums or a manifest may have."""
INDEX: Final = 64 << 20
"""Bytes that the index of an image server may have; the great ones have about ten."""
IMAGE: Final = 64 << 30
"""Bytes that an image may have, packed or not."""

_HEX = re.compile(r"[0-9a-f]+")
_LENGTHS: Final = {"md5": 32, "sha1": 40, "sha224": 56, "sha256": 64, "sha384": 96, "sha512": 128}


@dataclass(frozen=True, slots=True)
class Reply:
    """The whole answer to a request for something small; header names are in small letters."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Digest:
    """What a file's bytes must add up to. ValueError for what cannot be a checksum."""

    algorithm: str
    value: str

    def __post_init__(self) -> None:
        if _LENGTHS.get(self.algorithm) != len(self.value) or not _HEX.fullmatch(self.value):
            raise ValueError(f"'{self.algorithm}:{self.value[:140]}' is not a checksum")

    @classmethod
    def of_text(cls, text: str) -> "Digest":
        """Reads `sha256:0123…`. Raises Failure."""
        algorithm, _, value = text.partition(":")
        try:
            return cls(algorithm, value.lower())
        except ValueError as error:
            raise Failure(str(error)) from error

    def check(self, data: bytes, what: str) -> None:
        """Raises Failure unless these bytes are the ones that are meant."""
        computed = hashlib.new(self.algorithm, data, usedforsecurity=False).hexdigest()
        if computed != self.value:
            raise Failure(f"checksum mismatch of {what}: got '{computed}' != expect '{self.value}' ({self.algorithm})")

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value}"


class Workshop(Protocol):
    """The place where an image is made. Everything may raise Failure, NoSpace or Cancelled."""

    def ask(self, url: str, headers: Mapping[str, str] | None = None, *, limit: int = SMALL) -> Reply:
        """The answer of a server, whatever its status, of at most `limit` bytes."""
        ...

    def download(
        self,
        url: str,
        digest: Digest | None,
        *,
        headers: Mapping[str, str] | None = None,
        size: int | None = None,
        what: str = "",
    ) -> Path:
        """A new private file with what a server has there, verified; it is gone when the workshop closes.

        `size`, where it is known, is the most that is read.
        """
        ...

    def unpacked(self, packed: Path, compression: str) -> Path:
        """A new private file with what is compressed (`gz`, `zst`, `xz`) in another."""
        ...

    def blank(self) -> Path:
        """A new private empty file on the target's file system."""
        ...

    def room(self, size: int) -> None:
        """Raises NoSpace unless the target can take so many bytes more."""
        ...

    def discard(self, file: Path) -> None:
        """Removes a private file before the workshop closes, to have its space."""
        ...

    def log(self, text: str) -> None:
        """Writes a line to the task's log."""
        ...

    def progress(self, done: int, total: int, step: str) -> None:
        """Bytes that are done; raises Cancelled when asked to stop."""
        ...


@dataclass(frozen=True, slots=True)
class Fetched:
    """A private file that holds a whole, verified image.

    `ending` is the one that its file name must have; `mark` tells its version (`model.images.ImageRecord.mark`).
    """

    file: Path
    ending: str
    mark: str
    origin: str
    oci: Mapping[str, Any] = field(default_factory=dict)


def read(workshop: Workshop, url: str, *, limit: int = SMALL) -> bytes:
    """What a server has at an address. Raises Failure when it does not have it."""
    reply = workshop.ask(url, limit=limit)
    if reply.status != 200:
        raise Failure(f"the server answered {reply.status} for '{url}'")
    return reply.body


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object from outside. Raises Failure."""
    try:
        document = orjson.loads(data)
    except (orjson.JSONDecodeError, RecursionError) as error:
        raise Failure(f"{what} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Failure(f"{what} is not a JSON object")
    return document
