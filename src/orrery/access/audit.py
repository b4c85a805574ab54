# SPDX-License-Identifier: AGPL-3.0-or-later
"""The audit log: one JSON line for every change and every refused attempt.

Each line is one `write` to a file opened for appending, so lines of several processes do not mix and a crash loses no
line whose `record` returned. A log that cannot be written does not stop the node: refusing changes would let whoever
fills the disk lock the administrator out of the very node that needs help. Each lost line goes to the daemon's log as
an error instead, with its content.
"""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import structlog

from orrery.errors import OrreryError
from orrery.model.volume import CONTENT_TYPES
from orrery.system.files import FileLock

REDACTED = "(secret)"
SECRET_WORDS = ("password", "passwd", "secret", "token-value", "private", "ticket", "otp", "challenge", "cookie")
SECRET_NAMES = frozenset(
    {
        *("cipassword", "key", "client-key", "certkey", "encryption-key", "product-key", "keyring"),
        *("value", "data", "input-data", "env"),
    }
)
TEXT_LIMIT = 1000
DEPTH_LIMIT = 4
ITEM_LIMIT = 200
SIZE_LIMIT = 16 * 1024 * 1024
KEPT_FILES = 8
BLOCK = 64 * 1024

DAMAGED: Mapping[str, Any] = {
    "time": 0,
    "who": "-",
    "origin": "-",
    "action": "(damaged line)",
    "result": "",
    "status": 500,
    "parameters": {},
    "pid": 0,
}
"""What is shown of a line that cannot be read, with the line as its result."""

log = structlog.get_logger()


class AuditLog:
    """The log at `path` (0600); at `size_limit` bytes it becomes path.1, which becomes path.2, and so on."""

    def __init__(
        self,
        path: Path,
        *,
        size_limit: int = SIZE_LIMIT,
        kept_files: int = KEPT_FILES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._size_limit = size_limit
        self._kept = kept_files
        self._clock = clock

    def record(
        self,
        *,
        who: str,
        origin: str,
        action: str,
        parameters: Mapping[str, Any] | Sequence[str] = (),
        result: str = "OK",
        status: int = 200,
    ) -> None:
        """Appends one line: `who` (user or token id) did `action` (`POST /access/users`) from the address `origin`.

        `parameters` by name, or as `name=value` texts; secrets are recognized by the name. `result` is `OK` or why not.
        Never raises for a log that cannot be written (see above).
        """
        line = _line(
            {
                "time": round(self._clock(), 3),
                "who": _clip(who),
                "origin": _clip(origin),
                "action": _clip(action),
                "result": _clip(result),
                "status": status,
                "parameters": redact(parameters),
                "pid": os.getpid(),
            }
        )
        try:
            if self._append(line) >= self._size_limit:
                self._rotate()
        except (OSError, OrreryError) as error:
            text = line.decode().rstrip()
            log.error(
                "AUDIT LINE LOST: the audit log cannot be written", path=str(self.path), reason=str(error), line=text
            )

    def read(self, start: int = 0, limit: int = 50, *, who: str | None = None) -> list[dict[str, Any]]:
        """`limit` lines (of one user or token), newest first, without the `start` newest.

        Each has the keys of `record` with time (Unix seconds) and pid; a damaged line is shown as such, not hidden.
        """
        lines = (line for line in map(_parse, self._lines_backwards()) if who is None or line["who"] == who)
        return list(itertools.islice(lines, start, start + limit))

    def _append(self, line: bytes) -> int:
        """Writes the line at the end and returns the size of the file."""
        try:
            descriptor = self._open()
        except FileNotFoundError:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = self._open()
        try:
            written = os.write(descriptor, line)
            if written != len(line):
                # A full disk took a part; the rest of the line is lost, but not the next one.
                os.write(descriptor, b"\n")
                raise OSError(f"only {written} of {len(line)} bytes were written")
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def _rotate(self) -> None:
        """Shifts the files by one; somebody else may have been faster."""
        with FileLock(self.path.with_name(self.path.name + ".lock")):
            if not self.path.exists() or self.path.stat().st_size < self._size_limit:
                return
            for number in range(self._kept, 0, -1):
                older = self._file(number - 1)
                if older.exists():
                    older.replace(self._file(number))

    def _file(self, number: int) -> Path:
        return self.path if number == 0 else self.path.with_name(f"{self.path.name}.{number}")

    def _lines_backwards(self) -> Iterator[bytes]:
        for number in range(self._kept + 1):
            try:
                descriptor = os.open(self._file(number), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            try:
                yield from _file_backwards(descriptor)
            finally:
                os.close(descriptor)


def _file_backwards(descriptor: int) -> Iterator[bytes]:
    """The lines of a file from the last to the first, without reading all of it."""
    position = os.fstat(descriptor).st_size
    rest = b""
    while position > 0:
        size = min(BLOCK, position)
        position -= size
        first, *lines = (os.pread(descriptor, size, position) + rest).split(b"\n")
        yield from (line for line in reversed(lines) if line)
        rest = first
    if rest:
        yield rest


def _line(document: Mapping[str, Any]) -> bytes:
    # ASCII alone: no character of a foreign name can end the line early or deceive the terminal that shows it.
    return json.dumps(document, separators=(",", ":"), default=str).encode("ascii") + b"\n"


def _parse(line: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict) or not document.keys() >= DAMAGED.keys():
        return {**DAMAGED, "result": _clip(line.decode("ascii", "backslashreplace"))}
    return document


def redact(parameters: Any, depth: int = 0) -> Any:
    """The parameters without anything that is secret by its name, cut to a size that a line can hold."""
    if depth >= DEPTH_LIMIT:
        return "..."
    if isinstance(parameters, Mapping):
        return {
            _clip(str(name)): REDACTED if is_secret(str(name), value) else redact(value, depth + 1)
            for name, value in list(parameters.items())[:ITEM_LIMIT]
        }
    if isinstance(parameters, list | tuple | set | frozenset):
        return [redact(value, depth + 1) for value in list(parameters)[:ITEM_LIMIT]]
    if isinstance(parameters, int | float) or parameters is None:
        return parameters
    text = str(parameters)
    name, equals, value = text.partition("=")
    return f"{name}={REDACTED}" if equals and is_secret(name, value) else _clip(text)


def is_secret(name: str, value: Any) -> bool:
    """Whether this value of a parameter of this name must not be written down."""
    lowered = name.lower().replace("_", "-")
    if lowered == "content":
        # A list of content types for a storage, but a whole file for a guest's agent.
        return not set(str(value).split(",")) <= {*CONTENT_TYPES, "none"}
    return lowered in SECRET_NAMES or any(word in lowered for word in SECRET_WORDS)


def _clip(text: str) -> str:
    return text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]}... ({len(text)} characters)"
