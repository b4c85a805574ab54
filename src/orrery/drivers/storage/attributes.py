# SPDX-License-Identifier: AGPL-3.0-or-later
"""Notes and protection of backups, kept in files beside them as Proxmox keeps them.

`x.vma.zst.notes` holds the notes as text, an empty `x.vma.zst.protected` forbids removal, and `x.log` (without the
archive's ending) is the log of the backup run.
"""

import contextlib
import os
from pathlib import Path

from orrery.errors import Failure
from orrery.system import files

MAX_NOTES = 128 << 10


def notes_path(archive: Path) -> Path:
    return archive.with_name(archive.name + ".notes")


def protection_path(archive: Path) -> Path:
    return archive.with_name(archive.name + ".protected")


def log_path(archive: Path, ending: str) -> Path:
    """The run's log; `ending` is the archive's ending without its first dot."""
    return archive.with_name(archive.name.removesuffix(f".{ending}") + ".log")


def read_notes(archive: Path) -> str | None:
    """The notes, or None. A link in their place is not followed."""
    try:
        descriptor = os.open(notes_path(archive), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as stream:
        text = stream.read(MAX_NOTES).decode("utf-8", "replace").rstrip("\n")
    return text or None


def write_notes(archive: Path, notes: str) -> None:
    """Replaces the notes; empty ones are removed. Raises NoSpace or Failure."""
    data = notes.encode()
    if len(data) > MAX_NOTES:
        raise Failure(f"notes may only be {MAX_NOTES} bytes long")
    if data:
        files.write_atomic(notes_path(archive), data + b"\n", 0o600)
    else:
        notes_path(archive).unlink(missing_ok=True)


def is_protected(archive: Path) -> bool:
    return os.path.lexists(protection_path(archive))


def protect(archive: Path, protected: bool) -> None:
    """Forbids or allows removal. Raises NoSpace or Failure."""
    if protected:
        files.write_atomic(protection_path(archive), b"", 0o600)
    else:
        protection_path(archive).unlink(missing_ok=True)
        files.sync_dir(archive.parent)


def remove_all(archive: Path, ending: str) -> None:
    """Removes what lies beside a backup that is being removed; absent files are fine."""
    for path in (notes_path(archive), protection_path(archive), log_path(archive, ending)):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
