# SPDX-License-Identifier: AGPL-3.0-or-later
"""The file trees of demonstration guests: busybox under all its names, programs from packages, our own files."""

import contextlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from orrery.errors import Failure
from orrery.system.process import run

_LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
_LOADER = "lib64/ld-linux-x86-64.so.2"
_TOOL_TIMEOUT = 30.0


def find(trees: Iterable[Path], path: str) -> Path:
    """The file of that path in the first tree that has it. Raises Failure."""
    for tree in trees:
        if (tree / path).is_file():
            return tree / path
    raise Failure(f"none of the packages for the demonstration guest holds '{path}'")


def skeleton(root: Path, busybox: Path) -> None:
    """Folders in the merged layout (/bin is /usr/bin …) and busybox under all its names."""
    for folder in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "boot", "dev", "etc", "mnt", "proc", "root"):
        (root / folder).mkdir(parents=True)
    for folder in ("run", "sys", "tmp", "var/log"):
        (root / folder).mkdir(parents=True)
    (root / "root").chmod(0o700)
    (root / "tmp").chmod(0o1777)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "var/run").symlink_to("/run")
    shutil.copy(busybox, root / "usr/bin/busybox")
    for applet in run([str(busybox), "--list-full"], timeout=_TOOL_TIMEOUT).text.split():
        folder = "usr/sbin" if "sbin/" in applet else "usr/bin"
        with contextlib.suppress(FileExistsError):
            (root / folder / Path(applet).name).symlink_to("/usr/bin/busybox")


def add_programs(root: Path, trees: Sequence[Path], programs: Sequence[str]) -> None:
    """Programs, their libraries and the loader, all from the packages and none from this host."""
    folders = [str(tree / folder) for tree in trees for folder in _LIBRARY_FOLDERS if (tree / folder).is_dir()]
    loader = find(trees, _LOADER)
    _install(loader, root / "usr" / "lib64" / loader.name)
    for program in programs:
        source = find(trees, program)
        _install(source, root / "usr" / Path(program).parent.name / source.name)
        command = [str(loader), "--inhibit-cache", "--library-path", ":".join(folders), "--list", str(source)]
        for line in run(command, timeout=_TOOL_TIMEOUT).text.splitlines():
            # `NAME => PATH (ADDRESS)`; the kernel's own page and the loader itself have no arrow or are there already
            name, arrow, place = line.strip().partition(" => ")
            if arrow and place.startswith("/") and not name.startswith("/"):
                _install(Path(place.split(" (")[0]), root / "usr/lib/x86_64-linux-gnu" / name)


def _install(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # busybox may have a link of the same name there
    shutil.copyfile(source, target)
    target.chmod(0o755)


def overlay(source: Path, root: Path) -> None:
    """Our own files over the tree; whatever begins with `#!` becomes executable, however it was checked out."""
    for path in source.rglob("*"):
        target = root / path.relative_to(source)
        if path.is_dir():
            target.mkdir(exist_ok=True)
            continue
        content = path.read_bytes()
        target.unlink(missing_ok=True)
        target.write_bytes(content)
        target.chmod(0o755 if content.startswith(b"#!") else 0o644)
