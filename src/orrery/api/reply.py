# SPDX-License-Identifier: AGPL-3.0-or-later
"""What goes back: the envelope of a result or an error, its status line and its headers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from orrery.errors import OrreryError

JSON = "application/json;charset=UTF-8"
SERVER = "pve-api-daemon/3.0"
ERROR_HEADER = "orrery-error"
"""Our own: the error's code, since one status stands for many errors on this wire."""

FORWARDING = range(595, 600)
"""Failures to reach the node that owns the thing; they have no body."""


@dataclass(frozen=True)
class Result:
    """What a handler may return instead of bare data: keys beside `data` (`total`, `changes`) and headers."""

    data: Any
    beside: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """A finished answer. `reason` goes into the status line, since clients read the error there."""

    status: int
    reason: str
    body: bytes = b""
    content_type: str | None = JSON
    headers: tuple[tuple[str, str], ...] = ()


def succeed(result: Any, format: str) -> Reply:  # noqa: A002 - the wire's word
    """The envelope of what a handler returned."""
    found = result if isinstance(result, Result) else Result(result)
    envelope = {"data": found.data, **found.beside}
    if format == "extjs":
        envelope |= {"success": 1}
    return Reply(200, "OK", encode(envelope), headers=tuple(found.headers.items()))


def fail(error: OrreryError, format: str) -> Reply:  # noqa: A002
    """The envelope of an error."""
    reason = first_line(error.message)
    if error.status in FORWARDING:
        return Reply(error.status, reason, b"", None)
    envelope: dict[str, Any] = {"data": None, "message": error.message.rstrip("\n") + "\n"}
    if error.errors:
        envelope["errors"] = error.errors
    if format == "extjs":
        return Reply(200, "OK", encode(envelope | {"success": 0, "status": error.status}))
    return Reply(error.status, reason, encode(envelope), headers=((ERROR_HEADER, error.code),))


def refuse(status: int, reason: str) -> Reply:
    """An answer without body: what is said to those whom nobody knows."""
    return Reply(status, first_line(reason), b"", None)


def unexpected(reference: str, format: str) -> Reply:  # noqa: A002
    """The answer to a fault in the program: its traceback is in the log under the reference, and only there."""
    return fail(OrreryError(f"internal error; see the log of this node for {reference}"), format)


def encode(value: Any) -> bytes:
    """JSON with booleans as 1 and 0, as clients of this API expect."""
    body = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS, default=_plain)
    if b"true" in body or b"false" in body:
        return orjson.dumps(_without_booleans(value), option=orjson.OPT_NON_STR_KEYS, default=_plain)
    return body


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def _without_booleans(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, Mapping):
        return {key: _without_booleans(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_booleans(item) for item in value]
    return value


def first_line(text: str) -> str:
    """The part of a message that a status line can carry: one line, no control characters, Latin-1, 500 at most."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    shown = "".join(c if c.isprintable() else " " for c in line)
    return shown.encode("latin-1", "replace").decode("latin-1")[:500].strip()
