# SPDX-License-Identifier: AGPL-3.0-or-later
"""Builds the template of the demonstration container: an archive of some 3 MB, made of Debian's packages.

Busybox, dropbear (SSH) and the files in `container/`. What is made from it reads its network from
`/etc/network/interfaces`, as Alpine does, and lets root in by SSH with the password or key that it was created with.

    python -m orrery.demo.template --output demo.tar.gz
"""

import argparse
import gzip
import hashlib
import io
import sys
import tarfile
import tempfile
from pathlib import Path

from orrery.demo.packages import DebianPackages
from orrery.demo.tree import add_programs, find, overlay, skeleton
from orrery.errors import OrreryError
from orrery.system.files import FileLock, write_atomic

_FILES = Path(__file__).parent / "container"
_PROGRAMS = ("usr/sbin/dropbear", "usr/bin/dropbearkey")
_PROGRAM_PACKAGES = ("dropbear-bin",)
_BUSYBOX_PACKAGE = "busybox-static"
_BUILD_TIMEOUT = 900.0


def prepared_template(cache: Path) -> Path:
    """The archive for this version of the container, built when it is not in the cache. Raises Failure."""
    cache.mkdir(parents=True, exist_ok=True)
    ready = cache / f"container-{_version()}.tar.gz"
    with FileLock(cache / "prepared.lock", timeout=_BUILD_TIMEOUT):
        if not ready.exists():
            write_atomic(ready, build(cache), 0o644)
    return ready


def build(cache: Path) -> bytes:
    """The archive's bytes; `cache` keeps packages between builds. Raises Failure when packages cannot be had."""
    with FileLock(cache / "lock", timeout=_BUILD_TIMEOUT), tempfile.TemporaryDirectory(dir=cache) as folder:
        packages = DebianPackages(cache)
        trees = packages.unpack([_BUSYBOX_PACKAGE, *packages.closure(_PROGRAM_PACKAGES)])
        root = Path(folder) / "root"
        skeleton(root, find(trees, "bin/busybox"))
        add_programs(root, trees, _PROGRAMS)
        overlay(_FILES, root)
        (root / "etc/dropbear").mkdir(mode=0o700)
        write_atomic(root / "etc/shadow", b"root:*:20000:0:99999:7:::\nnobody:*:20000:0:99999:7:::\n")
        return _archive(root)


def _archive(root: Path) -> bytes:
    """The tree as a compressed archive in which everything is root's."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for path in sorted(root.rglob("*")):
            archive.add(path, str(path.relative_to(root)), recursive=False, filter=_anonymous)
    return packed.getvalue()


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    member.mtime = 0
    return member


def _version() -> str:
    digest = hashlib.sha256()
    for path in sorted([*_FILES.rglob("*"), Path(__file__), Path(__file__).with_name("tree.py")]):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="orrery.demo.template", description="Build the demonstration template.")
    parser.add_argument("--output", type=Path, required=True, help="where to write the archive")
    parser.add_argument("--cache", type=Path, default=Path("build/demo"), help="folder for packages (%(default)s)")
    arguments = parser.parse_args()
    try:
        write_atomic(arguments.output.absolute(), prepared_template(arguments.cache.absolute()).read_bytes(), 0o644)
    except (OrreryError, OSError) as error:
        print(f"cannot build the demonstration template: {error}", file=sys.stderr)
        return 1
    print(f"template: {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
