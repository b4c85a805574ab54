# SPDX-License-Identifier: AGPL-3.0-or-later
"""Archives that strangers made, unpacked into the trees of containers.

Three programs in a row, none of which can reach more than it needs: a decompressor that sees no file at all, we, who
judge the stream (`tarstream`), and GNU tar in a jail whose only writable place is the new tree. It is root there, with
the capabilities that give files to others and nothing else: no device can be made, nothing be mounted, nothing outside
be named. Ids are stored as the archive has them, as the container sees them.
"""

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from orrery.drivers.storage import signature, tarpipe, trees, untrusted
from orrery.drivers.storage.base import Progress
from orrery.drivers.storage.tarstream import TarFilter
from orrery.drivers.storage.usage import reserve_of
from orrery.errors import Failure, OrreryError
from orrery.system import files, process

PROGRAMS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"gz": ("gzip", "-dc"), "xz": ("xz", "-dc"), "zst": ("zstd", "-dc", "-q", "--no-sparse"), "bz2": ("bzip2", "-dc")}
)
"""The program for each kind of compression, from standard input to standard output."""

_MADE_BY_MKE2FS: Final = "lost+found"
_PAUSE: Final = 0.5  # seconds between two looks at whether to go on


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out: `size` in bytes of the archive unpacked, `skipped` entries that were left out."""

    entries: int
    size: int
    skipped: int


def unpack(
    archive: Path,
    tree: Path,
    limit: int | None = None,
    progress: Progress | None = None,
    log: Callable[[str], None] | None = None,
    rate: int | None = None,
) -> Unpacked:
    """Unpacks a tar archive, packed by whatever program, into the empty folder `tree` (a file system's top is one).

    `limit`: bytes that may come out of the decompressor, by default what is free there, less a reserve. `progress`
    counts the bytes of the archive file; what it raises ends it. `log` is told what was left out. `rate`: bytes of the
    archive file that are read in a second, at most. When it returns, all is on the disk. Raises NoSpace or Failure;
    then the tree is empty again.
    """
    _require_empty(tree)
    try:
        descriptor = os.open(archive, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            kind = _kind(archive)
            room = files.space(tree)
            bound = room.available - reserve_of(room.total) if limit is None else min(limit, room.available)
            made = TarFilter(bound)
            _pass_on(descriptor, kind, tree, made, progress or _unseen, rate)
        finally:
            os.close(descriptor)
        for note in made.notes:
            (log or _silent)(note)
        if made.skipped > len(made.notes):
            (log or _silent)(f"left out {made.skipped - len(made.notes)} more")
        _sync(tree)
    except BaseException as error:
        with contextlib.suppress(OrreryError):  # what went wrong first is what counts
            trees.empty(tree, keep=(_MADE_BY_MKE2FS,))
        if isinstance(error, OSError):
            raise files.failure(error, f"unable to unpack '{archive.name}'") from error
        raise
    return Unpacked(made.entries, made.size, made.skipped)


def _silent(note: str) -> None:
    del note


def _unseen(done: int, total: int) -> None:
    del done, total


def _kind(archive: Path) -> str:
    """Compression by the file's first bytes, empty for none, whatever its name says. Raises Failure, OSError."""
    kind = signature.detect(archive)
    if kind in PROGRAMS:
        process.find(PROGRAMS[kind][0])
        return kind
    if kind not in ("tar", ""):
        raise Failure(f"'{archive.name}' is no tar archive: it is {signature.WORDS.get(kind, kind)}")
    return ""


def _require_empty(tree: Path) -> None:
    try:
        names = [name for name in os.listdir(tree) if name != _MADE_BY_MKE2FS]  # noqa: PTH208
    except OSError as error:
        raise files.failure(error, f"unable to look at '{tree}'") from error
    if names:
        raise Failure(f"'{tree}' is not empty")


def _sync(tree: Path) -> None:
    descriptor = os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor) < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(descriptor)


def _pass_on(archive: int, kind: str, tree: Path, judge: TarFilter, progress: Progress, rate: int | None) -> None:
    size = os.fstat(archive).st_size
    begun = time.monotonic()

    def report() -> None:
        # The decompressor reads from the same open file, so its place in it is ours.
        done = os.lseek(archive, 0, os.SEEK_CUR)
        progress(done, size)
        while rate and (ahead := begun + done / rate - time.monotonic()) > 0:
            time.sleep(min(ahead, _PAUSE))
            progress(done, size)

    source = tarpipe.Producer(PROGRAMS[kind], untrusted.filter_jail(), archive) if kind else archive
    tarpipe.run(source, tree, judge, "the archive cannot be unpacked", report)
    progress(size, size)
