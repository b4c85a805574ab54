# SPDX-License-Identifier: AGPL-3.0-or-later
"""Debian packages as raw material: found, downloaded, verified and unpacked by apt and dpkg, never installed.

Everything is kept in a cache folder: a package is downloaded and unpacked once per version.
"""

import hashlib
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orrery.errors import Failure
from orrery.system.process import run

_METADATA_TIMEOUT = 60.0
_DOWNLOAD_TIMEOUT = 900.0
_UNPACK_TIMEOUT = 120.0
_ONLY_NEEDED = (
    "--no-recommends",
    "--no-suggests",
    "--no-conflicts",
    "--no-breaks",
    "--no-replaces",
    "--no-enhances",
)
_NEED_LINE = re.compile(r"^ [ |](?:Pre)?Depends: (?P<name>[a-z0-9][a-z0-9.+-]+)$")
# 'URI' FILE SIZE SHA256:HEX, as `apt-get download --print-uris` prints it
_URI_LINE = re.compile(r"^'[^']+' (?P<file>\S+) \d+ SHA256:(?P<digest>[0-9a-f]{64})$")


@dataclass(frozen=True, slots=True)
class _Deb:
    """One package file that apt would download, with the checksum of the signed index."""

    name: str
    sha256: str

    def is_whole(self, path: Path) -> bool:
        """Whether `path` is this very file."""
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256


class DebianPackages:
    """Packages of this host's Debian release, below a cache folder that belongs to nobody else."""

    def __init__(self, cache: Path) -> None:
        self._debs = cache / "packages"
        self._trees = cache / "unpacked"

    def needed(self, kernel: str, programs: Sequence[str]) -> list[str]:
        """The kernel package that `linux-image-KERNEL` stands for now, then `programs` and the libraries they need."""
        meta = f"linux-image-{kernel}"
        graph = _dependencies([meta, *programs])
        kernels = [name for name in graph.get(meta, []) if name.startswith("linux-image-")]
        if not kernels:
            raise Failure(f"apt knows no kernel for '{meta}'; run apt-get update")
        return [kernels[0], *_with_libraries(graph, programs)]

    def closure(self, programs: Sequence[str]) -> list[str]:
        """`programs` and the libraries that they need."""
        return _with_libraries(_dependencies(programs), programs)

    def unpack(self, names: Sequence[str]) -> list[Path]:
        """The unpacked trees of the packages, in the order that apt names them.

        Raises Failure when apt does not know one of them or cannot download it.
        """
        self._debs.mkdir(parents=True, exist_ok=True)
        self._trees.mkdir(parents=True, exist_ok=True)
        wanted = _available(names)
        if any(not deb.is_whole(self._debs / deb.name) for deb in wanted):
            self._download(names, wanted)
        return [self._unpacked(deb) for deb in wanted]

    def _download(self, names: Sequence[str], wanted: Sequence[_Deb]) -> None:
        # apt verifies what it downloads by the signed index; what it left half done is not taken for whole here.
        run(["apt-get", "-q", "-q", "download", *names], timeout=_DOWNLOAD_TIMEOUT, cwd=self._debs)
        for deb in wanted:
            if not deb.is_whole(self._debs / deb.name):
                raise Failure(f"the package file '{self._debs / deb.name}' is damaged; remove it and try again")

    def _unpacked(self, deb: _Deb) -> Path:
        tree = self._trees / deb.name.removesuffix(".deb").replace("%3a", "_")
        if not tree.exists():
            partial = self._trees / f".{secrets.token_hex(4)}"
            try:
                run(["dpkg-deb", "-x", str(self._debs / deb.name), str(partial)], timeout=_UNPACK_TIMEOUT)
                partial.rename(tree)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return tree


def _dependencies(names: Sequence[str]) -> dict[str, list[str]]:
    """Who depends on whom, from the named packages down.

    A name at the margin begins a package; what it needs follows, indented. Virtual packages stand in angle brackets.
    """
    text = run(["apt-cache", "depends", "--recurse", *_ONLY_NEEDED, *names], timeout=_METADATA_TIMEOUT).text
    graph: dict[str, list[str]] = {}
    needs: list[str] = []
    for line in text.splitlines():
        if line[:1].isalnum():
            needs = graph.setdefault(line.strip(), [])
        elif match := _NEED_LINE.match(line):
            needs.append(match["name"])
    return graph


def _with_libraries(graph: Mapping[str, Sequence[str]], programs: Sequence[str]) -> list[str]:
    """Programs, then the libraries that they and these need, the nearest first."""
    found = dict.fromkeys(programs)
    level = list(programs)
    while level:
        needs = (need for name in level for need in graph.get(name, []))
        level = [need for need in dict.fromkeys(needs) if need.startswith("lib") and need not in found]
        found.update(dict.fromkeys(level))
    return list(found)


def _available(names: Sequence[str]) -> list[_Deb]:
    text = run(["apt-get", "-q", "-q", "download", "--print-uris", *names], timeout=_METADATA_TIMEOUT).text
    found = [_Deb(match["file"], match["digest"]) for line in text.splitlines() if (match := _URI_LINE.match(line))]
    if len(found) != len(set(names)):
        raise Failure(f"apt does not offer all of {', '.join(names)}; run apt-get update")
    return found
