# SPDX-License-Identifier: AGPL-3.0-or-later
# ruff: noqa: PTH101, PTH102, PTH103, PTH116, PTH120, PTH211
# Why not pathlib: importing it would cost as much time as all the rest of a start.
"""What a new child does between fork and exec: takes its descriptors, its jail and identity, and becomes the program.

Runs in a child that `orrery.system.process` forked, or, where the parent has threads (a forked Python child of such a
process may deadlock), as a program of its own: `python -I -S launch.py SPEC_FD ERROR_FD`. Therefore it imports only the
standard library and nothing of ours. The specification is plain JSON, made by `orrery.system.jail`:

    argv, env, cwd (None: the root)    session: own session and process group
    fds: wanted number -> present one
    parent: pid with which the child shall die (0: none), parent_signal: by which signal
    cgroups: files to write the own pid to    nice, umask, limits [[resource, limit]]
    jail: None, or {uid, gid, groups, capabilities, network, binds [[source, target, writable, optional]],
          folders, files {path: text}, links {path: target}, devices [name], tmp_size, proc}

A failure is reported through the error descriptor as JSON {"step", "errno"}; a successful exec closes it.
"""

import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import stat
import struct
import sys
from typing import Any, NoReturn

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.prctl.argtypes = [ctypes.c_int, *(ctypes.c_ulong,) * 4]

# include/uapi/linux/sched.h
_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWNET = 0x00020000, 0x08000000, 0x40000000
# include/uapi/linux/mount.h
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = (
    *(1, 2, 4, 8, 32, 4096, 16384),
    1 << 18,
)
_MNT_DETACH = 2
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV = 1, 2, 4
# These three have the same number on every architecture.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
# include/uapi/linux/prctl.h, capability.h
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 8, 24, 38, 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63

_EXIT_NOT_STARTED = 127


class _Step(Exception):
    """A step that failed, with the system's error number."""

    def __init__(self, step: str, code: int) -> None:
        super().__init__(step)
        self.step = step
        self.code = code


def become(spec: dict[str, Any], error_fd: int) -> NoReturn:
    """Turn this process into the program of `spec`; never returns. Signals are expected to be blocked."""
    try:
        _become(spec, error_fd)
    except _Step as error:
        _report(error_fd, error.step, error.code)
    except OSError as error:
        _report(error_fd, str(error.filename or "start"), error.errno or errno.EINVAL)
    except BaseException as error:  # noqa: BLE001  (a forked child must never return into its parent's code)
        _report(error_fd, repr(error), errno.EINVAL)
    os._exit(_EXIT_NOT_STARTED)


def _report(error_fd: int, step: str, code: int) -> None:
    os.write(error_fd, json.dumps({"step": step, "errno": code}).encode())


def _become(spec: dict[str, Any], error_fd: int) -> None:
    default_signals()
    if spec["session"]:
        os.setsid()
    for file in spec["cgroups"]:
        _write(file, str(os.getpid()), os.O_WRONLY)
    if spec["nice"]:
        os.setpriority(os.PRIO_PROCESS, 0, spec["nice"])
    error_fd, fds = _lift(spec["fds"], error_fd)
    jail = spec["jail"]
    if jail is not None:
        _confine(jail)
    for which, limit in spec["limits"]:
        highest = resource.getrlimit(which)[1]
        lowered = limit if highest == resource.RLIM_INFINITY else min(limit, highest)
        resource.setrlimit(which, (lowered, lowered))
    os.umask(spec["umask"])
    if jail is not None:
        _drop(jail)
    if spec["parent"]:
        _call("parent-death signal", _LIBC.prctl, _PR_SET_PDEATHSIG, spec["parent_signal"], 0, 0, 0)
        if os.getppid() != spec["parent"]:
            raise _Step("parent is gone", errno.ESRCH)
    os.chdir(spec["cwd"] or "/")
    error_fd = _settle(fds, error_fd)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        os.execve(spec["argv"][0], spec["argv"], spec["env"])  # noqa: S606  (replacing this child is its purpose)
    except OSError as error:
        _report(error_fd, f"execute {spec['argv'][0]}", error.errno or errno.EINVAL)
        os._exit(_EXIT_NOT_STARTED)


def default_signals() -> None:
    """Ignored signals survive an exec, and Python ignores SIGPIPE: give every signal its default again."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)


# --- descriptors


def _lift(fds: dict[str, int], error_fd: int) -> tuple[int, dict[int, int]]:
    """Duplicate every descriptor above all wanted numbers, so that settling them overwrites none still needed."""
    wanted = {int(number): present for number, present in fds.items()}
    floor = max([2, *wanted]) + 1
    error_fd = fcntl.fcntl(error_fd, fcntl.F_DUPFD_CLOEXEC, floor)
    lifted = {number: fcntl.fcntl(present, fcntl.F_DUPFD_CLOEXEC, floor) for number, present in wanted.items()}
    missing = {0, 1, 2} - wanted.keys()
    if missing:
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for number in missing:
            lifted[number] = fcntl.fcntl(null, fcntl.F_DUPFD_CLOEXEC, floor)
    return error_fd, lifted


def _settle(lifted: dict[int, int], error_fd: int) -> int:
    """Put the descriptors at their numbers and close all others but the error pipe."""
    for number, present in lifted.items():
        os.dup2(present, number, inheritable=True)
    previous = -1
    for number in sorted([*lifted, error_fd]):
        if number > previous + 1:  # an empty range that begins at 0 would close everything
            os.closerange(previous + 1, number)
        previous = number
    os.closerange(previous + 1, (1 << 31) - 1)
    return error_fd


# --- the view of the file system


def _confine(jail: dict[str, Any]) -> None:
    flags = _CLONE_NEWNS | _CLONE_NEWIPC | (0 if jail["network"] else _CLONE_NEWNET)
    _call("own namespaces", _LIBC.unshare, flags)
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    trees = [_clone_tree(source, writable, optional) for source, _, writable, optional in jail["binds"]]
    devices = {name: os.stat(f"/dev/{name}") for name in jail["devices"]}
    # Any existing folder would do; what it hides is reached through the trees that are open by now.
    _mount("orrery", "/tmp", "tmpfs", _MS_NOSUID | _MS_NOEXEC, "size=1m,mode=0755")  # noqa: S108
    os.chdir("/tmp")  # noqa: S108
    _call("pivot_root", _LIBC.pivot_root, b".", b".")
    _call("leave the old root", _LIBC.umount2, b".", _MNT_DETACH)
    os.chdir("/")
    os.umask(0o022)
    for (_, target, _, _), tree in zip(jail["binds"], trees, strict=True):
        if tree is not None:
            _attach(tree, target)
    _furnish(jail, devices)
    _mount("none", "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NOEXEC)


def _clone_tree(source: str, writable: bool, optional: bool) -> int | None:
    """A detached copy of the mounts at `source`, its rights already reduced."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE
    tree = _syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags)
    if tree < 0:
        code = ctypes.get_errno()
        if optional and code == errno.ENOENT:
            return None
        raise _Step(f"bind '{source}'", code)
    attributes = _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV | (0 if writable else _MOUNT_ATTR_RDONLY)
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)
    _call(
        f"bind '{source}'",
        _syscall,
        *(_SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, wanted, len(wanted)),
    )
    return tree


def _attach(tree: int, target: str) -> None:
    if stat.S_ISDIR(os.fstat(tree).st_mode):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    _call(
        f"bind at '{target}'",
        _syscall,
        *(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH),
    )
    os.close(tree)


def _furnish(jail: dict[str, Any], devices: dict[str, os.stat_result]) -> None:
    for folder in jail["folders"]:
        os.makedirs(folder, exist_ok=True)
    for path, target in jail["links"].items():
        os.symlink(target, path)
    for path, text in jail["files"].items():
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _write(path, text)
    os.makedirs("/dev", exist_ok=True)
    for name, state in devices.items():
        os.makedirs(os.path.dirname(f"/dev/{name}"), exist_ok=True)
        os.mknod(f"/dev/{name}", stat.S_IFMT(state.st_mode) | 0o666, state.st_rdev)
        os.chmod(f"/dev/{name}", 0o666)  # noqa: S103  (the child's user is a stranger to the device's group)
    os.symlink("/proc/self/fd", "/dev/fd")
    if jail["proc"]:
        os.mkdir("/proc")
        _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, "hidepid=2,subset=pid")
    if jail["tmp_size"]:
        os.mkdir("/tmp")  # noqa: S108
        options = f"size={jail['tmp_size']},mode=1777"
        _mount("tmp", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, options)  # noqa: S108


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    _call(
        f"mount {kind or 'again'} at '{target}'",
        _LIBC.mount,
        *(source.encode(), os.fsencode(target), kind.encode() if kind else None),
        ctypes.c_ulong(flags),
        options.encode() if options else None,
    )


# --- identity


def _drop(jail: dict[str, Any]) -> None:
    """Become the jail's user; keep only the capabilities named, and no way to gain others."""
    kept = jail["capabilities"]
    for capability in range(_LAST_CAPABILITY + 1):
        # EINVAL: the kernel knows no capability of that number.
        if capability not in kept and _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            if ctypes.get_errno() == errno.EINVAL:
                break
            raise _Step("drop capabilities", ctypes.get_errno())
    _call("keep capabilities", _LIBC.prctl, _PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups(jail["groups"])
    os.setresgid(jail["gid"], jail["gid"], jail["gid"])
    os.setresuid(jail["uid"], jail["uid"], jail["uid"])
    low = sum(1 << capability for capability in kept if capability < 32)
    high = sum(1 << capability - 32 for capability in kept if capability >= 32)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _call("set capabilities", _LIBC.capset, header, struct.pack("=6I", low, low, low, high, high, high))
    for capability in kept:
        _call("keep capabilities", _LIBC.prctl, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)
    _call("forbid new privileges", _LIBC.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _syscall(*arguments: int | bytes) -> int:
    # A variadic C function: every number must be passed in full register width.
    return int(_LIBC.syscall(*(ctypes.c_long(part) if isinstance(part, int) else part for part in arguments)))


def _call(step: str, function: Any, *arguments: Any) -> None:
    if function(*arguments) < 0:
        raise _Step(step, ctypes.get_errno())


def _write(path: str, text: str, flags: int = os.O_WRONLY | os.O_CREAT) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def main() -> NoReturn:
    """Entry of the program: the specification and the way to report errors come as descriptors."""
    spec_fd, error_fd = int(sys.argv[1]), int(sys.argv[2])
    with open(spec_fd, "rb") as handle:
        handle.seek(0)
        spec = json.loads(handle.read())
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    become(spec, error_fd)


if __name__ == "__main__":
    main()
