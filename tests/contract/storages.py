# SPDX-License-Identifier: AGPL-3.0-or-later
"""The storage drivers that the contract holds, each on a real place."""

import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orrery.drivers.storage.base import StorageDriver
from orrery.drivers.storage.registry import build

MIB = 1 << 20
CONTENT = "images,rootdir,iso,vztmpl,backup,snippets,import"


def _maker(kind: str) -> Callable[..., StorageDriver]:
    def make(folder: Path, **options: Any) -> StorageDriver:
        return build("tank", {"type": kind, "path": str(folder), "content": CONTENT, **options}, "n1")

    return make


DRIVERS: dict[str, Callable[..., StorageDriver]] = {kind: _maker(kind) for kind in ("dir", "btrfs")}

SMALL_MOUNT = {
    "dir": 'mount -t tmpfs -o size=32m small "$1"',
    "btrfs": 'truncate -s 64M "$1.img" && mkfs.btrfs -q --mixed "$1.img" && mount -o loop "$1.img" "$1"',
}
"""Shell text that mounts a small file system at $1 on which such a storage can be."""


def everything(root: Path) -> set[str]:
    """All that lies in the storage's folder, but for the folders of its content types."""
    return {
        str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir() or path.parent.name == "images"
    }


def payload(size: int) -> bytes:
    return bytes(range(256)) * (size // 256)


def mounting(kind: str, root: Path) -> list[str]:
    """Words before a program that is to run with a small file system at `root`."""
    script = f'( {SMALL_MOUNT[kind]} ) >&2; root="$1"; shift; exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script, "sh", str(root)]


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from tests.contract.storages import DRIVERS
driver = DRIVERS[{kind!r}](Path({root!r}), **{options!r})
"""


def child(kind: str, root: Path, code: str, prefix: Sequence[str] = (), **options: Any) -> subprocess.Popen[bytes]:
    """A process that runs `code` with a `driver` at hand; `prefix` are words before those of Python."""
    here = str(Path(__file__).resolve().parents[2])
    script = CHILD.format(here=here, kind=kind, root=str(root), options=options) + textwrap.dedent(code)
    return subprocess.Popen([*prefix, sys.executable, "-c", script], stdout=subprocess.PIPE)
