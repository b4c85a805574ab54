# SPDX-License-Identifier: AGPL-3.0-or-later
"""Mounts that belong to one program: as data for `process.spawn(view=…)`, and changed while it runs.

A program's mounts live in a mount namespace of its own and go with its last process, however it ends. `attach` and
`detach` change the namespace of a running container; paths in it are resolved as the container itself would, so that
its links lead nowhere else.
"""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from orrery.errors import Failure
from orrery.system import kernel, launch_view
from orrery.system.kernel import StepError

_T = TypeVar("_T")

_FLAGS: Final = {
    "noatime": kernel.MS_NOATIME,
    "nodev": kernel.MS_NODEV,
    "noexec": kernel.MS_NOEXEC,
    "nosuid": kernel.MS_NOSUID,
    "lazytime": kernel.MS_LAZYTIME,
}
_RELEASE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class LoopImage:
    """A file-system image. `options`: those of mount(8) without values; unknown ones go to the file system.

    An empty `fstype` is found out from the image.
    """

    path: Path
    target: Path
    fstype: str = ""
    options: tuple[str, ...] = ()
    read_only: bool = False

    def describe(self) -> dict[str, Any]:
        return _file_system("image", self.path, self.target, self.fstype, self.options, self.read_only)


@dataclass(frozen=True, slots=True)
class BlockDevice:
    """A file system on a block device of the host."""

    path: Path
    target: Path
    fstype: str = ""
    options: tuple[str, ...] = ()
    read_only: bool = False

    def describe(self) -> dict[str, Any]:
        return _file_system("device", self.path, self.target, self.fstype, self.options, self.read_only)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder or file of the host. `recursive`: with what is mounted below it."""

    path: Path
    target: Path
    options: tuple[str, ...] = ()
    read_only: bool = False
    recursive: bool = True

    def describe(self) -> dict[str, Any]:
        flags, _ = _split(self.options)
        return {
            "kind": "folder",
            "source": str(self.path),
            "target": str(self.target),
            "flags": flags,
            "recursive": self.recursive,
            "read_only": self.read_only,
        }


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


Mount = LoopImage | BlockDevice | Folder | DeviceNodes | Memory


def _file_system(
    kind: str, path: Path, target: Path, fstype: str, options: Iterable[str], read_only: bool
) -> dict[str, Any]:
    flags, rest = _split(options)
    return {
        "kind": kind,
        "source": str(path),
        "target": str(target),
        "fstype": fstype,
        "flags": flags,
        "options": ",".join(rest),
        "read_only": read_only,
    }


def _split(options: Iterable[str]) -> tuple[int, list[str]]:
    """Options as flags of the kernel, and those that only the file system knows."""
    flags, rest = 0, []
    for option in options:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        else:
            rest.append(option)
    return flags, rest


# --- other processes' namespaces


def apart(work: Callable[[], _T]) -> _T:
    """Run `work` in a thread of its own, which may change its namespaces, user and folder: they end with it.

    `work` must not import anything: modules would be looked for where it is by then.
    """
    result: list[_T] = []
    problem: list[BaseException] = []

    def run() -> None:
        try:
            kernel.unshare(kernel.CLONE_FS)
            result.append(work())
        except BaseException as error:  # noqa: BLE001  (raised again below, in the thread that asked)
            problem.append(error)

    thread = threading.Thread(target=run, name="apart")
    thread.start()
    thread.join()
    if problem:
        raise problem[0]
    return result[0]


def in_network(pid: int, work: Callable[[], _T]) -> _T:
    """Run `work` in the network of a process. Raises Failure when the process is gone."""

    def inside() -> _T:
        kernel.enter(f"/proc/{pid}/ns/net", kernel.CLONE_NEWNET)
        return work()

    return _told(f"unable to enter the network of process {pid}", lambda: apart(inside))


def attach(pid: int, mount: Mount, target: str, *, owner: tuple[int, int] = (0, 0), mapped: bool = False) -> None:
    """Show a mount in the namespace of a running process at `target`, which is a path as that process sees it.

    Missing folders of `target` are made for `owner` (uid, gid on the host). `mapped`: the ids of its files are mapped
    through the process's user namespace. `mount.target` is where it is put together meanwhile, seen by nobody. Raises
    Failure; then nothing has changed.
    """

    def prepare() -> int:
        kernel.unshare(kernel.CLONE_NEWNS)
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_SLAVE)
        launch_view.place(mount.describe())
        return kernel.clone_tree(str(mount.target), recursive=False)

    def inside() -> None:
        tree = prepare()
        try:
            if mapped:
                _map(tree, pid)
            folder = stat.S_ISDIR(os.fstat(tree).st_mode)
            kernel.enter(f"/proc/{pid}/ns/mnt", kernel.CLONE_NEWNS)
            _as_owner(owner, lambda: _make_target(target, folder=folder))
            kernel.move_tree(tree, target)
        finally:
            os.close(tree)

    _told(f"unable to mount '{target}'", lambda: apart(inside))


def attach_node(pid: int, node: DeviceNode, spot: Path, target: str, owner: tuple[int, int]) -> None:
    """Show a device node in the namespace of a running process at `target`; `spot` is as `Mount.target`.

    Raises Failure.
    """

    def inside() -> None:
        kernel.unshare(kernel.CLONE_NEWNS)
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_SLAVE)
        launch_view.place(DeviceNodes(spot, (node,)).describe())
        tree = kernel.clone_tree(str(spot / node.name), recursive=False)
        try:
            kernel.enter(f"/proc/{pid}/ns/mnt", kernel.CLONE_NEWNS)
            _as_owner(owner, lambda: _make_target(target, folder=False))
            kernel.move_tree(tree, target)
        finally:
            os.close(tree)

    _told(f"unable to show the device '{target}'", lambda: apart(inside))


def detach(pid: int, target: str, *, lazy: bool = False) -> bool:
    """Unmount `target` in the namespace of a running process; whether it was mounted there.

    Raises Failure, "… is busy" when it is in use (unless `lazy`: then it goes when the last user lets go).
    """

    def inside() -> bool:
        kernel.enter(f"/proc/{pid}/ns/mnt", kernel.CLONE_NEWNS)
        try:
            kernel.unmount(target, kernel.UMOUNT_NOFOLLOW | (kernel.MNT_DETACH if lazy else 0))
        except StepError as error:
            if error.code in (errno.EINVAL, errno.ENOENT):  # no mount point
                return False
            raise
        return True

    return _told(f"unable to unmount '{target}'", lambda: apart(inside))


def grow(pid: int, path: Path, folder: str) -> None:
    """Let a mounted ext4 image fill its file, which has grown; process `pid` has it mounted at `folder`.

    Raises Failure. Idempotent.
    """

    def work() -> None:
        for device in kernel.loops_over(str(path)):
            kernel.notice_growth(device)
        opened = os.open(f"/proc/{pid}/root{folder}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            size = path.stat().st_size
            kernel.grow_ext4(opened, size // os.fstatvfs(opened).f_bsize)
        finally:
            os.close(opened)

    _told(f"unable to grow '{path.name}'", work)


def in_use(path: Path) -> bool:
    """Whether a loop device has this image under it."""
    try:
        return bool(kernel.loops_over(str(path)))
    except OSError:
        return False


def wait_unused(path: Path, seconds: float = _RELEASE_SECONDS) -> bool:
    """Wait until no loop device has this image under it any more; False after `seconds`."""
    end = time.monotonic() + seconds
    while in_use(path):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _map(tree: int, pid: int) -> None:
    user = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        kernel.set_attributes(tree, 0, user_namespace=user, title="map the ids of its files")
    finally:
        os.close(user)


def _as_owner(owner: tuple[int, int], work: Callable[[], None]) -> None:
    """Touch files as this user of the host: in a tree whose ids are mapped, root of the host is nobody."""
    kernel.LIBC.setfsgid(owner[1])
    kernel.LIBC.setfsuid(owner[0])
    try:
        work()
    finally:
        kernel.LIBC.setfsuid(0)
        kernel.LIBC.setfsgid(0)


def _make_target(target: str, *, folder: bool) -> None:
    parent, name = os.path.split(target.rstrip("/"))
    os.makedirs(parent or "/", mode=0o755, exist_ok=True)  # noqa: PTH103
    place = f"{parent}/{name}"
    if folder:
        if not os.path.isdir(place):  # noqa: PTH112
            os.mkdir(place, 0o755)  # noqa: PTH102
    elif not os.path.exists(place):  # noqa: PTH110
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def _told(what: str, work: Callable[[], _T]) -> _T:
    try:
        return work()
    except StepError as error:
        raise Failure(f"{what}: {error.step}: {os.strerror(error.code)}") from error
    except OSError as error:
        raise Failure(f"{what}: {error.strerror}") from error


__all__ = [
    "BlockDevice",
    "DeviceNode",
    "DeviceNodes",
    "Folder",
    "LoopImage",
    "Memory",
    "Mount",
    "apart",
    "attach",
    "attach_node",
    "detach",
    "grow",
    "in_network",
    "in_use",
    "wait_unused",
]
