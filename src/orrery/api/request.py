# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a request says, before anybody judges it: its format, its path, and the parameters merged from all their places.

Form bodies are the rule, JSON objects are understood, a body without content type is read as a form (or as JSON when it
looks like it). The query wins over the body; what the path says cannot be said otherwise.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson

from orrery.api.endpoint import VERBS, split
from orrery.api.manners import plain
from orrery.errors import NotSupported, OrreryError, ParameterError

BODY_LIMIT = 512 * 1024
FORMATS = ("json", "extjs")
DUPLICATE = "duplicate parameter (already defined in URI)"


class BadContentType(OrreryError):
    """The body is of a kind that no method takes."""

    code = "content-type"
    status = 506


class Malformed(OrreryError):
    """The body is not what its content type says."""

    code = "malformed"
    status = 400


@dataclass(frozen=True)
class Target:
    """Where a request goes: the reply's format and the path below it."""

    verb: str
    format: str
    segments: tuple[str, ...]

    @property
    def path(self) -> str:
        return "/" + "/".join(self.segments)


def target(verb: str, path: str) -> Target:
    """Takes a decoded path apart. Raises `NotSupported` for verbs and formats that there are not."""
    if verb not in VERBS:
        raise NotSupported(f"method '{verb}' not available")
    segments = split(path)
    if not segments or segments[0] != "api2":
        raise OrreryError(f"no such file '{path}'")
    if len(segments) < 2:
        raise NotSupported("no such uri")
    rest = segments[2:]
    if segments[1] not in FORMATS:
        raise NotSupported(f"no formatter for uri /{'/'.join(rest)}, format {segments[1]}")
    return Target(verb, segments[1], rest)


def check_body(verb: str, headers: Mapping[str, str]) -> int:
    """The announced length of the body. Raises for what no method takes: chunks, or a body where none belongs."""
    if headers.get("transfer-encoding") or headers.get("x-transfer-encoding"):
        raise NotSupported("chunked transfer encoding not supported")
    # The front names the length of a body that it did not pass on because it is too large.
    announced = (headers.get(name, "") for name in ("content-length", "x-body-length"))
    size = max((int(length) for length in announced if re.fullmatch(r"[0-9]{1,18}", length)), default=0)
    if size and verb in ("GET", "DELETE"):
        raise NotSupported(f"Unexpected content for method '{verb}'")
    return size


def form(text: bytes) -> dict[str, Any]:
    """Parameters of a query or a form. A key that repeats becomes a list; a second `=` ends the value."""
    found: dict[str, Any] = {}
    for pair in re.split(rb"[&;]", text):
        if not pair:
            continue
        key, value = ([*pair.split(b"="), b""])[:2]
        name, text_value = _decode(key), _decode(value)
        if name not in found:
            found[name] = text_value
        elif isinstance(found[name], list):
            found[name].append(text_value)
        else:
            found[name] = [found[name], text_value]
    return found


def _decode(text: bytes) -> str:
    try:
        return unquote_to_bytes(text.replace(b"+", b" ")).decode()
    except UnicodeDecodeError as wrong:
        raise Malformed("parameters must be UTF-8 text") from wrong


def body_parameters(content_type: str, body: bytes) -> dict[str, Any]:
    """Parameters in a body."""
    kind = content_type.partition(";")[0].strip().lower()
    if not body:
        return {}
    if kind == "application/json" or (not kind and body.lstrip()[:1] == b"{"):
        return _json(body)
    if kind in ("", "application/x-www-form-urlencoded"):
        return form(body)
    raise BadContentType(f"Content-Type '{kind}' not supported")


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as wrong:
        raise Malformed(f"body is not valid JSON: {wrong}") from wrong
    if not isinstance(found, dict):
        raise Malformed("a JSON body must be an object with the parameters")
    return found


def merge(path: Mapping[str, str], query: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a request. Raises `ParameterError` when query or body contradict the path."""
    sent = {name: value for name, value in {**body, **query}.items() if name != "_dc"}
    if twice := {name: DUPLICATE for name in path if name in sent and plain(sent[name]) != path[name]}:
        raise ParameterError(twice)
    return {**sent, **path}
