# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which package mirrors a distribution is built from: those of the host's own apt where it has some, else the usual.

Reads the two forms of sources.list(5): a line `deb [options] URI SUITE COMPONENT…`, and stanzas of `Key: value` lines.
Only mirrors of the distribution itself are taken; a host's other repositories are none of a guest's business.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from orrery.model.images import Debootstrap

_LINE = re.compile(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.+)")
_URI = re.compile(r"https?://[^\s\[\]#]+")
_NAMES: Final = {
    "debian": ("buster", "bullseye", "bookworm", "trixie", "forky", "sid", "stable", "testing", "oldstable"),
    "ubuntu": ("bionic", "focal", "jammy", "noble", "plucky", "questing", "resolute"),
}
_SECURITY: Final = {"debian": "http://security.debian.org/debian-security", "ubuntu": ""}


@dataclass(frozen=True, slots=True)
class Repository:
    """A suite at an address."""

    uri: str
    suite: str
    components: tuple[str, ...]


def parse(text: str) -> list[Repository]:
    """The binary repositories of a file of either form; what cannot be read is left out."""
    stanzas = re.split(r"\n[ \t]*\n", text) if re.search(r"^Types:", text, re.MULTILINE) else []
    found = [repository for stanza in stanzas for repository in _stanza(stanza)]
    if not stanzas:
        lines = [_LINE.fullmatch(line.partition("#")[0].strip()) for line in text.splitlines()]
        found = [Repository(match[1], match[2], tuple(match[3].split())) for match in lines if match]
    return [repository for repository in found if _URI.fullmatch(repository.uri)]


def _stanza(text: str) -> Iterator[Repository]:
    fields: dict[str, str] = {}
    last = ""
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if line[:1] in " \t" and last:
            fields[last] += " " + line.strip()
        elif ":" in line:
            key, _, value = line.partition(":")
            last = key.strip().lower()
            fields[last] = value.strip()
    if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false"):
        return
    for uri in fields.get("uris", "").split():
        for suite in fields.get("suites", "").split():
            yield Repository(uri, suite, tuple(fields.get("components", "").split()))


def lines_for(source: Debootstrap, system: str, host: Iterable[Repository]) -> list[str]:
    """The `deb` lines that a system is built from: the release, its updates and its security fixes."""
    known = [each for each in host if "main" in each.components]
    archive = _mirror(known, system, "") or source.mirror
    updates = _mirror(known, system, "-updates") or archive
    security = _mirror(known, system, "-security") or _SECURITY[system] or archive
    wanted = ((archive, source.suite), (updates, f"{source.suite}-updates"), (security, f"{source.suite}-security"))
    return [f"deb [signed-by={source.keyring}] {uri} {suite} {source.components}" for uri, suite in wanted]


def _mirror(host: Iterable[Repository], system: str, suffix: str) -> str | None:
    suites = {f"{name}{suffix}" for name in _NAMES[system]}
    return next((each.uri.rstrip("/") for each in host if each.suite in suites), None)
