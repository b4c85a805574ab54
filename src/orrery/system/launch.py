# SPDX-License-Identifier: AGPL-3.0-or-later
# ruff: noqa: PTH101, PTH102, PTH103, PTH116, PTH120, PTH211
# Why not pathlib: importing it would cost as much time as all the rest of a start.
"""What a new child does between fork and exec: takes its descriptors, its jail and identity, and becomes the program.

Runs in a child that `orrery.system.process` forked, or, where the parent has threads (a forked Python child of such a
process may deadlock), as a program of its own: a fresh interpreter that imports this module and calls `main`. Therefore
it and what it imports of ours (`kernel`, `launch_view`) use the standard library alone. The specification is plain
JSON, made by `orrery.system.jail` and `orrery.system.mounts`:

    argv, env, cwd (None: the root)    session: own session and process group
    fds: wanted number -> present one
    parent: pid with which the child shall die (0: none), parent_signal: by which signal
    cgroups: files to write the own pid to    nice, umask, limits [[resource, limit]]
    view: None, or mounts that only the program sees, see `orrery.system.launch_view`
    jail: None, or {uid, gid, groups, capabilities, network, binds [[source, target, writable, optional]],
          folders, files {path: text}, links {path: target}, devices [name], tmp_size, proc, alone}

A failure is reported through the error descriptor as JSON {"step", "errno"}; a successful exec closes it.
"""

import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import stat
import struct
import sys
from typing import Any, NoReturn

from orrery.system import launch_view
from orrery.system.kernel import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    LIBC,
    MNT_DETACH,
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    StepError,
    call,
    clone_tree,
    mount,
    move_tree,
    unmount,
    unshare,
)

# include/uapi/linux/prctl.h, capability.h
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 1, 8, 24, 38, 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63

_EXIT_NOT_STARTED = 127


def become(spec: dict[str, Any], error_fd: int) -> NoReturn:
    """Turn this process into the program of `spec`; never returns. Signals are expected to be blocked."""
    try:
        _become(spec, error_fd)
    except StepError as error:
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
    if spec["view"] is not None:
        launch_view.show(spec["view"])
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
        call("parent-death signal", LIBC.prctl, _PR_SET_PDEATHSIG, spec["parent_signal"], 0, 0, 0)
        if os.getppid() != spec["parent"]:
            raise StepError("parent is gone", errno.ESRCH)
    os.chdir(spec["cwd"] or "/")
    error_fd = _settle(fds, error_fd)
    if jail is not None and jail["alone"]:
        _enter_alone()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        os.execve(spec["argv"][0], spec["argv"], spec["env"])  # noqa: S606  (replacing this child is its purpose)
    except OSError as error:
        _report(error_fd, f"execute {spec['argv'][0]}", error.errno or errno.EINVAL)
        os._exit(_EXIT_NOT_STARTED)


def _enter_alone() -> None:
    """Go on as the first process of a process namespace, in a child; this process waits for it and ends as it does."""
    watch, watched = os.pipe2(os.O_CLOEXEC)
    inner = os.fork()
    if inner == 0:
        os.close(watched)
        call("parent-death signal", LIBC.prctl, _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        poll = select.poll()
        poll.register(watch, 0)
        if poll.poll(0):  # hung up: the waiting process is gone, and its number could not tell
            os._exit(_EXIT_NOT_STARTED)
        os.close(watch)
        return
    os.closerange(0, watched)
    os.closerange(watched + 1, (1 << 31) - 1)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    code = os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF if code >= 0 else _EXIT_NOT_STARTED)


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
    flags = CLONE_NEWNS | CLONE_NEWIPC | (0 if jail["network"] else CLONE_NEWNET)
    flags |= CLONE_NEWPID if jail["alone"] else 0  # holds for the next child: see `_enter_alone`
    unshare(flags)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    trees = [_source(source, writable, optional) for source, _, writable, optional in jail["binds"]]
    devices = {name: os.stat(f"/dev/{name}") for name in jail["devices"]}
    # Any existing folder would do; what it hides is reached through the trees that are open by now.
    mount("orrery", "/tmp", "tmpfs", MS_NOSUID | MS_NOEXEC, "size=1m,mode=0755")  # noqa: S108
    os.chdir("/tmp")  # noqa: S108
    call("pivot_root", LIBC.pivot_root, b".", b".")
    unmount(".", MNT_DETACH)
    os.chdir("/")
    os.umask(0o022)
    for (_, target, _, _), tree in zip(jail["binds"], trees, strict=True):
        if tree is not None:
            _attach(tree, target)
    _furnish(jail, devices)
    mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC)


def _source(source: str, writable: bool, optional: bool) -> int | None:
    """A detached copy of the mounts at `source`, its rights already reduced."""
    rights = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | (0 if writable else MOUNT_ATTR_RDONLY)
    try:
        return clone_tree(source, rights)
    except StepError as error:
        if optional and error.code == errno.ENOENT:
            return None
        raise


def _attach(tree: int, target: str) -> None:
    if stat.S_ISDIR(os.fstat(tree).st_mode):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    move_tree(tree, target)
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
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "hidepid=2,subset=pid")
    if jail["tmp_size"]:
        os.mkdir("/tmp")  # noqa: S108
        options = f"size={jail['tmp_size']},mode=1777"
        mount("tmp", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)  # noqa: S108


# --- identity


def _drop(jail: dict[str, Any]) -> None:
    """Become the jail's user; keep only the capabilities named, and no way to gain others."""
    kept = jail["capabilities"]
    for capability in range(_LAST_CAPABILITY + 1):
        # EINVAL: the kernel knows no capability of that number.
        if capability not in kept and LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            if ctypes.get_errno() == errno.EINVAL:
                break
            raise StepError("drop capabilities", ctypes.get_errno())
    call("keep capabilities", LIBC.prctl, _PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups(jail["groups"])
    os.setresgid(jail["gid"], jail["gid"], jail["gid"])
    os.setresuid(jail["uid"], jail["uid"], jail["uid"])
    low = sum(1 << capability for capability in kept if capability < 32)
    high = sum(1 << capability - 32 for capability in kept if capability >= 32)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    call("set capabilities", LIBC.capset, header, struct.pack("=6I", low, low, low, high, high, high))
    for capability in kept:
        call("keep capabilities", LIBC.prctl, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)
    call("forbid new privileges", LIBC.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


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
