# SPDX-License-Identifier: AGPL-3.0-or-later
"""Alpine's mini root file system.

`latest-releases.yaml` lists the files of a release. Its form is a small part of YAML: a list whose items are flat
mappings of plain or quoted scalars, with one block of text (`desc: |`) in between. Only this part is read; anything
else in a line that matters is refused.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urljoin

from orrery.drivers.images.base import Digest, Fetched, Workshop, read
from orrery.errors import Failure

FLAVOR: Final = "alpine-minirootfs"
_FIELD = re.compile(r"(?:- | {2})([a-z0-9_]+):[ \t]*(.*?)[ \t]*")
_FILE = re.compile(r"alpine-minirootfs-[A-Za-z0-9._-]+\.tar\.gz")


@dataclass(frozen=True, slots=True)
class Release:
    """The newest archive: its address, what it must add up to, its version, and its size in bytes (0: not told)."""

    url: str
    digest: Digest
    version: str
    size: int


def parse_items(text: str) -> list[dict[str, str]]:
    """The items of such a list; fields that are no plain scalars are left out."""
    items: list[dict[str, str]] = []
    for line in text.splitlines():
        if line.startswith("-") and not line.startswith("---"):
            items.append({})
        match = _FIELD.fullmatch(line)
        if match is None or not items:
            continue
        value = match[2]
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
            value = value[1:-1]
        if value and value[0] not in "|>&*!{[":
            items[-1].setdefault(match[1], value)
    return items


def latest(workshop: Workshop, index: str) -> Release:
    """The archive that the index at this address names. Raises Failure."""
    for item in parse_items(read(workshop, index).decode("utf-8", "replace")):
        if item.get("flavor") == FLAVOR:
            return _release(index, item)
    raise Failure(f"'{index}' names no {FLAVOR}")


def _release(index: str, item: dict[str, str]) -> Release:
    file = item.get("file", "")
    if not _FILE.fullmatch(file):
        raise Failure(f"'{index}' names the file '{file[:100]}', which is no root archive's name")
    for algorithm in ("sha512", "sha256"):
        if algorithm in item:
            size = item.get("size", "")
            digest = Digest.of_text(f"{algorithm}:{item[algorithm]}")
            return Release(urljoin(index, file), digest, item.get("version", ""), int(size) if size.isdecimal() else 0)
    raise Failure(f"'{index}' has no checksum for '{file}'")


def fetch(workshop: Workshop, release: Release) -> Fetched:
    """The archive. Raises Failure."""
    file = workshop.download(release.url, release.digest, size=release.size or None, what="root archive")
    return Fetched(file, "tar.gz", str(release.digest), release.url)
