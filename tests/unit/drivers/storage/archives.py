# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tar archives for tests, friendly and hostile."""

import io
import tarfile
from collections.abc import Iterable
from typing import Any

Entry = tuple[tarfile.TarInfo, bytes]

REGULAR, LINK, SYMLINK, CHAR, BLOCKDEV, FOLDER, FIFO = (
    *(tarfile.REGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE),
    *(tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE),
)


def entry(name: str, kind: bytes = REGULAR, data: bytes = b"", **fields: Any) -> Entry:
    """An entry as `archive` takes it; `fields` are those of TarInfo."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(data)
    info.mode = 0o755 if kind == FOLDER else 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def archive(entries: Iterable[Entry], form: int = tarfile.PAX_FORMAT) -> bytes:
    """The archive that holds these entries, exactly as they are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8") as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
