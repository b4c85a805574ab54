# SPDX-License-Identifier: AGPL-3.0-or-later
"""Namespaces of running processes: mounts in them are added, removed and grown, their network is looked at.

Everything is done by a thread that enters the namespaces and ends. Paths in a container are resolved as the container
itself would, so that its links lead nowhere else; mounts are made and removed without following any, since the thread
may what the container's root may not, such as to mount over its /proc.
"""

import contextlib
import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from orrery.system import kernel, launch_view
from orrery.system.kernel import StepError
from orrery.system.mounts import DeviceNode, DeviceNodes, Mount, leave, telling

_T = TypeVar("_T")

_RELEASE_SECONDS: Final = 5.0


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

    with telling(f"unable to enter the network of process {pid}"):
        return apart(inside)


def attach(pid: int, mount: Mount, target: str, *, owner: tuple[int, int] = (0, 0), mapped: bool = False) -> None:
    """Show a mount in the namespace of a running process at `target`, which is a path as that process sees it.

    Missing folders of `target` are made for `owner` (uid, gid on the host). `mapped`: the ids of its files are mapped
    through the process's user namespace. `mount.target` is where it is put together meanwhile, seen by nobody. Raises
    Failure; then nothing has changed.
    """

    def prepare() -> int:
        leave()
        launch_view.place(mount.describe())
        return kernel.clone_tree(str(mount.target), recursive=False)

    def inside() -> None:
        tree = prepare()
        try:
            if mapped:
                _map(tree, pid)
            folder = stat.S_ISDIR(os.fstat(tree).st_mode)
            kernel.enter(f"/proc/{pid}/ns/mnt", kernel.CLONE_NEWNS)
            _move(tree, target, owner, folder=folder)
        finally:
            os.close(tree)

    with telling(f"unable to mount '{target}'"):
        apart(inside)


def attach_node(pid: int, node: DeviceNode, spot: Path, target: str, owner: tuple[int, int]) -> None:
    """Show a device node in the namespace of a running process at `target`; `spot` is as `Mount.target`.

    Raises Failure.
    """

    def inside() -> None:
        leave()
        launch_view.place(DeviceNodes(spot, (node,)).describe())
        tree = kernel.clone_tree(str(spot / node.name), recursive=False)
        try:
            kernel.enter(f"/proc/{pid}/ns/mnt", kernel.CLONE_NEWNS)
            _move(tree, target, owner, folder=False)
        finally:
            os.close(tree)

    with telling(f"unable to show the device '{target}'"):
        apart(inside)


def detach(pid: int, target: str, *, lazy: bool = False) -> bool:
    """Unmount `target` in the namespace of a running process; whether it was mounted there.

    Raises Failure, "… is busy" when it is in use (unless `lazy`: then it goes when the last user lets go).
    """

    def inside() -> bool:
        kernel.enter(f"/proc/{pid}/ns/mnt", kernel.CLONE_NEWNS)
        above, name = os.path.split(target.rstrip("/"))
        try:
            with _opened("/") as top, _closing(kernel.open_inside(top, above or "/", os.O_PATH, links=False)) as parent:
                os.fchdir(parent)
            kernel.unmount(name, kernel.UMOUNT_NOFOLLOW | (kernel.MNT_DETACH if lazy else 0))
        except StepError as error:
            if error.code in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):  # no mount point
                return False
            raise
        return True

    with telling(f"unable to unmount '{target}'"):
        return apart(inside)


def detach_node(pid: int, target: str, owner: tuple[int, int]) -> None:
    """Take back what `attach_node` or the start showed, and the empty file below it. Raises Failure."""
    if not detach(pid, target, lazy=True):
        return

    def inside() -> None:
        kernel.enter(f"/proc/{pid}/ns/mnt", kernel.CLONE_NEWNS)

        def remove() -> None:
            state = os.lstat(target)
            if stat.S_ISREG(state.st_mode) and state.st_size == 0:
                os.unlink(target)  # noqa: PTH108

        with contextlib.suppress(OSError):  # somebody inside was faster
            _as_owner(owner, remove)

    with telling(f"unable to remove the device '{target}'"):
        apart(inside)


def is_mounted(pid: int, target: str) -> bool:
    """Whether something is mounted exactly at `target` in the namespace of a process (proc(5): mountinfo)."""
    wanted = target.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011").replace("\n", "\\012")
    try:
        lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    except OSError:
        return False
    return any(line.split(" ")[4] == wanted for line in lines)


def grow(pid: int, path: Path, target: str) -> None:
    """Let a mounted ext4 image fill its file, which has grown; process `pid` has it mounted at `target`.

    Raises Failure. Idempotent.
    """

    def inside() -> int:
        kernel.enter(f"/proc/{pid}/ns/mnt", kernel.CLONE_NEWNS)
        return os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    with telling(f"unable to grow '{path.name}'"):
        devices = kernel.loops_over(str(path))
        for device in devices:
            kernel.notice_growth(device)
        opened = apart(inside)
        try:
            if os.fstat(opened).st_dev not in [Path(device).stat().st_rdev for device in devices]:
                raise StepError(f"look at '{target}'", errno.EXDEV)  # something else is mounted there
            kernel.grow_ext4(opened, path.stat().st_size // os.fstatvfs(opened).f_bsize)
        finally:
            os.close(opened)


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


def _move(tree: int, target: str, owner: tuple[int, int], *, folder: bool) -> None:
    """Attach a detached mount at `target`, which is made for `owner` where it is missing."""
    with _opened("/") as top:
        _as_owner(owner, lambda: os.close(kernel.make_inside(top, target, folder=folder, links=False)))
        with _closing(kernel.open_inside(top, target, os.O_PATH, links=False)) as spot:
            kernel.move_tree(tree, spot)


def _opened(folder: str) -> contextlib.AbstractContextManager[int]:
    return _closing(os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
