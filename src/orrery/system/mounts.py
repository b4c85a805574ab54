# SPDX-License-Identifier: AGPL-3.0-or-later
"""Mounts that belong to one program or task: as data, for `process.spawn(view=…)`, and put together for a while.

A program's mounts live in a mount namespace of its own and go with its last process, however it ends. A task that works
on a container's tree has one for a while (`aside`). Those of a running container are changed by
`orrery.system.livemounts`.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from orrery.errors import Failure
from orrery.system import kernel, launch_view
from orrery.system.kernel import StepError

_FLAGS: Final = {
    "noatime": kernel.MS_NOATIME,
    "nodev": kernel.MS_NODEV,
    "noexec": kernel.MS_NOEXEC,
    "nosuid": kernel.MS_NOSUID,
    "lazytime": kernel.MS_LAZYTIME,
}


@dataclass(frozen=True, slots=True)
class LoopImage:
    """A file-system image. An empty `fstype` is found out from the image."""

    path: Path
    fstype: str = ""


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """A file system on a block device of the host."""

    path: Path
    fstype: str = ""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder or file of the host. `recursive`: with what is mounted below it."""

    path: Path
    recursive: bool = True


Source = LoopImage | BlockDevice | Folder


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount at a place of the host. `options`: those of mount(8) without values; others go to the file system."""

    source: Source
    target: Path
    read_only: bool = False
    options: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """As `orrery.system.launch_view` reads it."""
        flags, rest = _split(self.options)
        described = {
            "source": str(self.source.path),
            "target": str(self.target),
            "flags": flags,
            "read_only": self.read_only,
        }
        match self.source:
            case Folder(_, recursive):
                return described | {"kind": "folder", "recursive": recursive}
            case LoopImage(_, fstype):
                return described | {"kind": "image", "fstype": fstype, "options": ",".join(rest)}
            case BlockDevice(_, fstype):
                return described | {"kind": "device", "fstype": fstype, "options": ",".join(rest)}


@dataclass(frozen=True, slots=True)
class ContainerMount:
    """A mount of a container: `rootfs` or `mpN`, its `target` as the container sees it (`/` for the root).

    `mapped`: the ids of its files are those of the container, as on volumes; folders and devices of the host that are
    shown in a container have the host's.
    """

    key: str
    source: Source
    target: str = "/"
    read_only: bool = False
    options: tuple[str, ...] = ()
    mapped: bool = True

    def at(self, place: Path) -> Mount:
        """The same, mounted at a place of the host."""
        return Mount(self.source, place, self.read_only, self.options)


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A device node: `name` below its folder, `mode` with its kind, the device's number, its owner on the host."""

    name: str
    mode: int
    number: int
    uid: int = 0
    gid: int = 0

    @classmethod
    def like(cls, path: Path, name: str, *, mode: int | None = None, uid: int = 0, gid: int = 0) -> "DeviceNode":
        """A node for the device that `path` is one of. Raises Failure when that is no device."""
        try:
            state = path.stat()
        except OSError as error:
            raise Failure(f"Device {path} does not exist: {error.strerror}") from error
        if not stat.S_ISCHR(state.st_mode) and not stat.S_ISBLK(state.st_mode):
            raise Failure(f"Device {path} is not a device")
        bits = 0o660 if mode is None else mode & 0o7777
        return cls(name, stat.S_IFMT(state.st_mode) | bits, state.st_rdev, uid, gid)

    @property
    def rule(self) -> str:
        """Kind and numbers as the control groups write them: `c 10:200`."""
        kind = "c" if stat.S_ISCHR(self.mode) else "b"
        return f"{kind} {os.major(self.number)}:{os.minor(self.number)}"


@dataclass(frozen=True, slots=True)
class DeviceNodes:
    """Device nodes in a small file system in memory."""

    target: Path
    nodes: tuple[DeviceNode, ...]

    def describe(self) -> dict[str, Any]:
        nodes = [[node.name, node.mode, node.number, node.uid, node.gid] for node in self.nodes]
        return {"kind": "nodes", "target": str(self.target), "nodes": nodes}


@dataclass(frozen=True, slots=True)
class Memory:
    """An empty file system in memory; `size` in bytes."""

    target: Path
    size: int = 1 << 20
    mode: int = 0o755

    def describe(self) -> dict[str, Any]:
        return {"kind": "memory", "target": str(self.target), "size": self.size, "mode": self.mode}


@dataclass(frozen=True, slots=True)
class Spot:
    """A place `target` to mount at in the tree `root` of a stranger: made there where it is missing, and nowhere else.

    A symbolic link on the way to it is an error.
    """

    root: Path
    target: str
    folder: bool = True

    def describe(self) -> dict[str, Any]:
        return {"kind": "spot", "root": str(self.root), "target": self.target, "folder": self.folder}


Shown = Mount | DeviceNodes | Memory | Spot
"""What a program's view may hold."""


def _split(options: Iterable[str]) -> tuple[int, list[str]]:
    """Options as flags of the kernel, and those that only the file system knows."""
    flags, rest = 0, []
    for option in options:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        else:
            rest.append(option)
    return flags, rest


# --- a view for a while


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """Within the block this thread and the programs that it starts have a mount namespace of their own.

    What is mounted in it shows nowhere else and is gone after it, or with the process. What the host mounts and
    unmounts meanwhile is seen. For processes without other threads. Raises Failure.
    """
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    folder = os.getcwd()  # noqa: PTH109  (entering a namespace leads to its root)
    try:
        with telling("unable to make a mount namespace"):
            leave()
        try:
            yield
        finally:
            os.chdir("/")
            back = f"/proc/self/fd/{before}"
            with telling("unable to return to the mount namespace"):
                kernel.enter(back, kernel.CLONE_NEWNS)
            with contextlib.suppress(OSError):
                os.chdir(folder)
    finally:
        os.close(before)


def assemble(mounts: Mapping[str, ContainerMount], below: Path) -> Path:
    """Mount a container's mounts one upon the other, the root at `below`; gives that folder. For use within `aside`.

    Folders that mount points need are made in the tree, for root; paths in it are resolved as the container would.
    Raises Failure.
    """
    for mount in mounts.values():
        with telling(f"unable to mount '{mount.key}'"):
            if mount.target == "/":
                launch_view.place(mount.at(below).describe())
            else:
                _place_inside(mount, below)
    return below


def _place_inside(mount: ContainerMount, below: Path) -> None:
    folder = not isinstance(mount.source, Folder) or mount.source.path.is_dir()
    top = os.open(below, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        spot = kernel.make_inside(top, mount.target, folder=folder)
    finally:
        os.close(top)
    try:
        launch_view.place(mount.at(Path(f"/proc/self/fd/{spot}")).describe())
    finally:
        os.close(spot)


def leave() -> None:
    """Give this thread a mount namespace of its own, as it was, from which nothing gets out. Raises StepError."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_SLAVE)


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Errors of the kernel as Failure, with `what` could not be done."""
    try:
        yield
    except StepError as error:
        raise Failure(f"{what}: {error.step}: {os.strerror(error.code)}") from error
    except OSError as error:
        raise Failure(f"{what}: {error.strerror}") from error
