# SPDX-License-Identifier: AGPL-3.0-or-later
# ruff: noqa: PTH116, PTH208
# Why not pathlib: `launch` imports this in every child that it starts, and pathlib would double that time.
"""Calls of the kernel that Python does not wrap: mounts, namespaces, loop devices.

Imports the standard library only, since children use it between fork and exec. A failure is a `StepError` with the
step that failed and the system's error number. Numbers are those of the kernel's public headers (include/uapi/linux).
"""

import ctypes
import errno
import fcntl
import os
import struct
from typing import Any, Final

LIBC: Final = ctypes.CDLL(None, use_errno=True)
LIBC.prctl.argtypes = [ctypes.c_int, *(ctypes.c_ulong,) * 4]

# sched.h
CLONE_FS, CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWNET = 0x00000200, 0x00020000, 0x08000000, 0x40000000
CLONE_NEWPID = 0x20000000
# mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_NOATIME = 1, 2, 4, 8, 32, 1024
MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE, MS_LAZYTIME = 4096, 16384, 1 << 18, 1 << 19, 1 << 25
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_SYMLINKS, _MOVE_MOUNT_T_EMPTY_PATH = 4, 0x10, 0x40
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
MOUNT_ATTR_NOATIME, MOUNT_ATTR_ATIME, MOUNT_ATTR_IDMAP = 0x10, 0x70, 0x00100000
_ATTRIBUTES: Final = {
    MS_RDONLY: MOUNT_ATTR_RDONLY,
    MS_NOSUID: MOUNT_ATTR_NOSUID,
    MS_NODEV: MOUNT_ATTR_NODEV,
    MS_NOEXEC: MOUNT_ATTR_NOEXEC,
    MS_NOATIME: MOUNT_ATTR_NOATIME,
}
# These have the same number on every architecture.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_OPENAT2, _SYS_MOUNT_SETATTR = 428, 429, 437, 442
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_IN_ROOT = 0x02, 0x04, 0x10  # openat2.h
# loop.h
_LOOP_CONTROL: Final = "/dev/loop-control"
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE, _LOOP_GET_STATUS64, _LOOP_SET_CAPACITY = 0x4C82, 0x4C0A, 0x4C05, 0x4C07
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR, _LO_FLAGS_DIRECT_IO = 1, 4, 16
_LOOP_INFO: Final = struct.Struct("=5Q4I64s64s32s2Q")
_LOOP_CONFIG: Final = struct.Struct(f"=2I{_LOOP_INFO.size}s64x")
_LOOP_ATTEMPTS: Final = 200  # others may take the device that was free a moment ago
# include/uapi/linux/ext4.h: _IOW('f', 16, __u64)
_EXT4_IOC_RESIZE_FS: Final = 0x40086610


class StepError(Exception):
    """A step that failed, with the system's error number."""

    def __init__(self, step: str, code: int) -> None:
        super().__init__(f"{step}: {os.strerror(code)}")
        self.step = step
        self.code = code


def call(step: str, function: Any, *arguments: Any) -> int:
    """Call a function of the C library. Raises StepError."""
    result = int(function(*arguments))
    if result < 0:
        raise StepError(step, ctypes.get_errno())
    return result


def _syscall(*arguments: int | bytes) -> int:
    # A variadic C function: every number must be passed in full register width.
    return int(LIBC.syscall(*(ctypes.c_long(part) if isinstance(part, int) else part for part in arguments)))


# --- namespaces


def unshare(flags: int) -> None:
    """Leave the namespaces `flags` for own ones. Raises StepError."""
    call("own namespaces", LIBC.unshare, flags)


def enter(path: str, kind: int) -> None:
    """Enter the namespace at `path` (`/proc/PID/ns/mnt`). Raises StepError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StepError(f"open '{path}'", error.errno or errno.EIO) from error
    try:
        call(f"enter '{path}'", LIBC.setns, descriptor, kind)
    finally:
        os.close(descriptor)


# --- mounts


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2). Raises StepError."""
    call(
        f"mount {kind or 'again'} at '{target}'",
        LIBC.mount,
        *(os.fsencode(source), os.fsencode(target), kind.encode() if kind else None),
        ctypes.c_ulong(flags),
        options.encode() if options else None,
    )


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2). Raises StepError."""
    call(f"unmount '{target}'", LIBC.umount2, os.fsencode(target), flags)


def clone_tree(source: str, attributes: int = 0, *, recursive: bool = True, title: str | None = None) -> int:
    """A detached copy of the mounts at `source`, with these MOUNT_ATTR_* set; a descriptor. Raises StepError."""
    step = title or f"bind '{source}'"
    deep = _AT_RECURSIVE if recursive else 0
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | deep
    tree = call(step, _syscall, _SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags)
    try:
        set_attributes(tree, attributes, recursive=recursive, title=step)
    except StepError:
        os.close(tree)
        raise
    return tree


def set_attributes(
    tree: int, attributes: int, *, user_namespace: int = 0, recursive: bool = False, title: str = "mount attributes"
) -> None:
    """Set attributes of a detached mount; with `user_namespace` (a descriptor) map ids through it. Raises StepError."""
    if user_namespace:
        attributes |= MOUNT_ATTR_IDMAP
    if attributes:
        cleared = MOUNT_ATTR_ATIME if attributes & MOUNT_ATTR_NOATIME else 0
        wanted = struct.pack("=QQQQ", attributes, cleared, 0, user_namespace)
        flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
        call(title, _syscall, _SYS_MOUNT_SETATTR, tree, b"", flags, wanted, len(wanted))


def move_tree(tree: int, target: str | int) -> None:
    """Attach a detached copy at `target`, a path or an open file. Raises StepError."""
    if isinstance(target, int):
        folder, path, flag = target, b"", _MOVE_MOUNT_T_EMPTY_PATH
    else:
        folder, path, flag = _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_T_SYMLINKS
    call(f"bind at '{target}'", _syscall, _SYS_MOVE_MOUNT, tree, b"", folder, path, _MOVE_MOUNT_F_EMPTY_PATH | flag)


def open_inside(top: int, path: str, flags: int, *, links: bool = True) -> int:
    """Open `path` with the open folder `top` as the root of all names and links (openat2(2)). Raises StepError.

    Without `links` a symbolic link on the way is an error (ELOOP).
    """
    resolve = _RESOLVE_IN_ROOT | (_RESOLVE_NO_MAGICLINKS if links else _RESOLVE_NO_SYMLINKS)
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, resolve)
    return call(f"open '{path}'", _syscall, _SYS_OPENAT2, top, os.fsencode(path), how, len(how))


def make_inside(top: int, path: str, *, folder: bool, links: bool = True) -> int:
    """Open a mount point below `top` as `open_inside` does, made first where it is missing. Raises StepError."""
    parts = [part for part in path.split("/") if part]
    for depth, part in enumerate(parts, 1):
        here = "/".join(parts[:depth])
        last = depth == len(parts)
        try:
            opened = open_inside(top, here, os.O_PATH, links=links)
        except StepError as error:
            if error.code != errno.ENOENT:
                raise
            above = "/".join(parts[: depth - 1]) or "."
            parent = open_inside(top, above, os.O_PATH | os.O_DIRECTORY, links=links)
            try:
                if folder or not last:
                    os.mkdir(part, 0o755, dir_fd=parent)
                else:
                    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
                    os.close(os.open(part, flags, 0o644, dir_fd=parent))
            finally:
                os.close(parent)
            opened = open_inside(top, here, os.O_PATH, links=links)
        if last:
            return opened
        os.close(opened)
    raise StepError(f"mount at '{path}'", errno.EINVAL)


def attributes_of(flags: int) -> int:
    """The MOUNT_ATTR_* that say what these MS_* say."""
    return sum(attribute for flag, attribute in _ATTRIBUTES.items() if flags & flag)


# --- loop devices


def attach_loop(image: int, *, read_only: bool) -> tuple[int, str]:
    """A loop device over an open file: its descriptor and path. It goes when nobody uses it any more.

    Reads and writes go past the page cache where the file allows it, so that nothing is kept twice. Raises StepError.
    """
    flags = _LO_FLAGS_AUTOCLEAR | _LO_FLAGS_DIRECT_IO | (_LO_FLAGS_READ_ONLY if read_only else 0)
    info = _LOOP_INFO.pack(*(0,) * 8, flags, b"", b"", b"", 0, 0)
    config = _LOOP_CONFIG.pack(image, 0, info)
    step = "find a free loop device"
    code = errno.EBUSY
    for _ in range(_LOOP_ATTEMPTS):
        try:
            control = os.open(_LOOP_CONTROL, os.O_RDWR | os.O_CLOEXEC)
            try:
                number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            finally:
                os.close(control)
            path = f"/dev/loop{number}"
            device = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        except OSError as error:
            raise StepError(step, error.errno or errno.EIO) from error
        try:
            fcntl.ioctl(device, _LOOP_CONFIGURE, config)
        except OSError as error:
            os.close(device)
            code = error.errno or errno.EIO
            if code != errno.EBUSY:
                break
        else:
            return device, path
    raise StepError("set up a loop device", code)


def loops_over(path: str) -> list[str]:
    """Loop devices that have this file under them."""
    state = os.stat(path)
    found = []
    for name in os.listdir("/sys/block"):
        if name.startswith("loop") and os.path.exists(f"/sys/block/{name}/loop"):  # noqa: PTH110
            try:
                device = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:  # it went this moment
                continue
            try:
                data = fcntl.ioctl(device, _LOOP_GET_STATUS64, bytes(_LOOP_INFO.size))
            except OSError:
                continue
            finally:
                os.close(device)
            if _LOOP_INFO.unpack(data)[:2] == (state.st_dev, state.st_ino):
                found.append(f"/dev/{name}")
    return sorted(found)


def notice_growth(device: str) -> None:
    """Let a loop device see that its file has another size now. Raises StepError."""
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _LOOP_SET_CAPACITY)
    except OSError as error:
        raise StepError(f"grow '{device}'", error.errno or errno.EIO) from error
    finally:
        os.close(descriptor)


def grow_ext4(folder: int, blocks: int) -> None:
    """Grow the mounted ext4 file system in which the open `folder` is to so many of its blocks. Raises StepError."""
    try:
        fcntl.ioctl(folder, _EXT4_IOC_RESIZE_FS, struct.pack("=Q", blocks))
    except OSError as error:
        raise StepError("grow the file system", error.errno or errno.EIO) from error
