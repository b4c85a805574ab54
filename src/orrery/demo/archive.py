# SPDX-License-Identifier: AGPL-3.0-or-later
"""The archive that a kernel takes as its first file system: cpio in the "new ASCII" format, compressed by gzip.

Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import gzip
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_MAGIC = b"070701"
_END = "TRAILER!!!"


def _member(name: str, number: int, mode: int, data: bytes) -> bytes:
    """One header with its name and its data, both padded to four bytes; owner is root, times are zero."""
    encoded = os.fsencode(name) + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    head = _MAGIC + b"".join(b"%08X" % field for field in fields) + encoded
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def _members(root: Path) -> Iterator[bytes]:
    paths = sorted(root.rglob("*"), key=lambda path: path.relative_to(root).parts)
    for number, path in enumerate(paths, 1):
        status = path.lstat()
        name = str(path.relative_to(root))
        if stat.S_ISLNK(status.st_mode):
            data = os.fsencode(path.readlink())
        elif stat.S_ISREG(status.st_mode):
            data = path.read_bytes()
        elif stat.S_ISDIR(status.st_mode):
            data = b""
        else:
            raise ValueError(f"{path} is neither file, folder nor link")
        yield _member(name, number, status.st_mode, data)
    yield _member(_END, 0, 0, b"")


def initial_ramdisk(root: Path) -> bytes:
    """The tree below `root` as a compressed archive; the same tree gives the same bytes.

    Raises ValueError for anything that is neither file, folder nor symbolic link.
    """
    return gzip.compress(b"".join(_members(root)), compresslevel=6, mtime=0)
