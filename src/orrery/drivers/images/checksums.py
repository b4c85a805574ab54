# SPDX-License-Identifier: AGPL-3.0-or-later
"""Lists of checksums as distributions publish them.

Three forms: lines `HEX  NAME` or `HEX *NAME` as sha256sum(1) prints them, lines `SHA256 (NAME) = HEX` as BSD's tools
and `sha256sum --tag` print them, and a lone `HEX`. Any may stand within a signed message (RFC 9580, 7: the text begins
after the headers' empty line, and lines that begin with `- ` are escaped); who signed it is not looked at: trust comes
from the server's certificate, as for the image itself.
"""

import re
from typing import Final

from orrery.drivers.images.base import Digest
from orrery.errors import Failure

_GNU = re.compile(r"\\?([0-9A-Fa-f]{32,128})(?: [ *]?|\t)(?:\./)?(\S.*)")
_BSD = re.compile(r"([A-Za-z0-9-]+) ?\((?:\./)?(.+)\) ?= ?([0-9A-Fa-f]{32,128})")
_LONE = re.compile(r"[0-9A-Fa-f]{32,128}")
_SIGNED: Final = "-----BEGIN PGP SIGNED MESSAGE-----"
_SIGNATURE: Final = "-----BEGIN PGP SIGNATURE-----"


def find_checksum(text: bytes, name: str, algorithm: str) -> Digest:
    """The checksum of the file `name` in a list. Raises Failure when there is none, or two that differ."""
    lines = _payload(text.decode("utf-8", "replace").splitlines())
    found = {value.lower() for value in (_of_line(line.strip(), name, algorithm) for line in lines) if value}
    if not found and len(content := [line.strip() for line in lines if line.strip()]) == 1:
        found = {content[0].lower()} if _LONE.fullmatch(content[0]) else set()
    if len(found) != 1:
        what = "no checksum" if not found else "several checksums"
        raise Failure(f"the list of checksums has {what} ({algorithm}) for '{name}'")
    try:
        return Digest(algorithm, found.pop())
    except ValueError as error:
        raise Failure(f"the checksum of '{name}': {error}") from error


def _payload(lines: list[str]) -> list[str]:
    if _SIGNED not in lines:
        return lines
    inside = lines[lines.index(_SIGNED) + 1 :]
    if "" in inside:
        inside = inside[inside.index("") + 1 :]
    if _SIGNATURE in inside:
        inside = inside[: inside.index(_SIGNATURE)]
    return [line.removeprefix("- ") for line in inside]


def _of_line(line: str, name: str, algorithm: str) -> str | None:
    if (match := _BSD.fullmatch(line)) is not None:
        fits = match[1].replace("-", "").lower() == algorithm
        return match[3] if fits and match[2] == name else None
    if (match := _GNU.fullmatch(line)) is not None and match[2].strip() == name:
        return match[1]
    return None
