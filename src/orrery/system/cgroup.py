# SPDX-License-Identifier: AGPL-3.0-or-later
"""Groups of processes with limits and accounts: cgroup version 2, version 1, or both side by side (cgroups(7)).

Each guest has the group `orrery-ROOTHASH/guest-VMID` in every hierarchy that matters. A controller that is missing or
not writable never keeps a guest from running: what cannot be done comes back as warnings for the task's log.
"""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from orrery.errors import Failure
from orrery.system import host, process

_MOUNTS: Final = Path("/proc/self/mounts")
_PERIOD: Final = 100_000  # microseconds over which a CPU limit is measured
_CONTROLLERS: Final = ("cpu", "cpuacct", "cpuset", "memory")  # that a machine's group is made in
_NO_CONTROLLERS: Final = frozenset(
    ("rw", "ro", "relatime", "noatime", "nosuid", "nodev", "noexec", "xattr", "clone_children")
)
_UNIFIED: Final = ""  # our name for the hierarchy of version 2
_DEFAULT_WEIGHT: Final = 100
_DEFAULT_SHARES: Final = 1024  # what version 1 gives where version 2 gives 100
_MKDIR_ATTEMPTS: Final = 5
_REMOVE_SECONDS: Final = 2.0  # how long the kernel may take to forget the dead


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """Where the hierarchies are mounted: controllers of version 1 by name, version 2 under the empty name."""

    mounts: Mapping[str, Path]

    @property
    def version(self) -> str:
        """`v2`, `v1`, `hybrid` (controllers in version 1, version 2 beside) or `none`."""
        if not self.mounts:
            return "none"
        if _UNIFIED not in self.mounts:
            return "v1"
        return "v2" if len(self.mounts) == 1 else "hybrid"


def parse_mounts(text: str, *, everything: bool = False) -> Hierarchies:
    """Read /proc/self/mounts; the first mount of a hierarchy counts. `everything`: also those we have no use for."""
    mounts: dict[str, Path] = {}
    for line in text.splitlines():
        _, where, kind, options = line.split()[:4]
        if kind == "cgroup2":
            mounts.setdefault(_UNIFIED, Path(where))
        elif kind == "cgroup":
            for option in options.split(","):
                known = option in _CONTROLLERS or (everything and _is_controller(option))
                if known:
                    mounts.setdefault(option, Path(where))
    return Hierarchies(mounts)


def _is_controller(option: str) -> bool:
    return option not in _NO_CONTROLLERS and ("=" not in option or option.startswith("name="))


@cache
def hierarchies(*, everything: bool = False) -> Hierarchies:
    """What this machine has: the hierarchies of our own controllers, or `everything`."""
    try:
        return parse_mounts(_MOUNTS.read_text(), everything=everything)
    except OSError:
        return Hierarchies({})


@dataclass(frozen=True, slots=True)
class Usage:
    """What a group used: CPU time in nanoseconds, memory in bytes (page cache included, `cache` of it can go)."""

    cpu: int | None
    memory: int | None
    cache: int | None


@dataclass(frozen=True, slots=True)
class Group:
    """One group with all groups below it, named below the root of every hierarchy. Make one by `guest_group`.

    `delegated`: controllers of version 2 that are passed down to it.
    """

    name: str
    mounted: Hierarchies
    delegated: tuple[str, ...] = _CONTROLLERS

    # --- where

    def _folders(self) -> dict[Path, list[str]]:
        """The group's folders with the controllers that each carries; controllers may share a mount."""
        folders: dict[Path, list[str]] = {}
        for controller, mount in self.mounted.mounts.items():
            folders.setdefault(mount / self.name, []).append(controller)
        return folders

    def _file(self, controller: str, name: str, name2: str) -> Path | None:
        """The file of a controller: `name` in version 1, `name2` in version 2."""
        if controller in self.mounted.mounts:
            return self.mounted.mounts[controller] / self.name / name
        if _UNIFIED in self.mounted.mounts:
            return self.mounted.mounts[_UNIFIED] / self.name / name2
        return None

    # --- life

    def create(self) -> list[str]:
        """Make the group (idempotent). Gives warnings about hierarchies in which it could not be made."""
        warnings = []
        for folder, controllers in self._folders().items():
            try:
                _mkdir(folder)
                if _UNIFIED in controllers:
                    self._delegate(folder)
                if "cpuset" in controllers:
                    _inherit_cpuset(folder)
            except OSError as error:
                title = ", ".join(filter(None, controllers)) or "version 2"
                warnings.append(f"no control group for {title}: {error.strerror} ('{folder}')")
        return warnings

    def _delegate(self, folder: Path) -> None:
        """Version 2: pass the controllers that there are on to the group, level by level."""
        mount = self.mounted.mounts[_UNIFIED]
        levels = [level for level in reversed(folder.parents) if level.is_relative_to(mount)]
        for level in levels:
            there = set(_read(level / "cgroup.controllers").split())
            for controller in sorted(there & set(self.delegated)):
                with contextlib.suppress(OSError):  # what is missing then shows when it is to be used
                    (level / "cgroup.subtree_control").write_text(f"+{controller}")

    def exists(self) -> bool:
        """Whether the group is there in any hierarchy."""
        return any(folder.is_dir() for folder in self._folders())

    def entrances(self) -> tuple[Path, ...]:
        """Files that take the pid of a process that is to be in the group: for `Jail.cgroups`."""
        return tuple(
            folder / "cgroup.procs" for folder in self._folders() if os.access(folder / "cgroup.procs", os.W_OK)
        )

    def add(self, pid: int) -> list[str]:
        """Put a running process with all its threads into the group."""
        return [warning for entrance in self.entrances() for warning in _write(entrance, str(pid), "the group")]

    def pids(self) -> set[int]:
        """All processes in the group and the groups below it."""
        return {int(pid) for folder in self._tree() for pid in _read(folder / "cgroup.procs").split()}

    def _tree(self) -> Iterator[Path]:
        """All folders of the group, those below first."""
        for top in self._folders():
            for folder, _, _ in os.walk(top, topdown=False):
                yield Path(folder)

    def kill(self) -> None:
        """Kill all processes in the group, also those that are being born. Raises Failure when some stay."""
        end = time.monotonic() + _REMOVE_SECONDS
        if _UNIFIED in self.mounted.mounts:
            with contextlib.suppress(OSError):  # Linux 5.14: all at once
                (self.mounted.mounts[_UNIFIED] / self.name / "cgroup.kill").write_text("1")
        while pids := self.pids():
            for found in (process.identity(pid) for pid in pids):
                if found is not None:
                    process.signal(found, signal.SIGKILL)
                    process.wait(found, 0.1)
            if time.monotonic() > end:
                raise Failure(f"processes of the group '{self.name}' cannot be killed: {sorted(pids)}")

    def remove(self) -> None:
        """Remove the group and those below it (idempotent), and the root's with its last.

        Raises Failure when it still has processes.
        """
        for folder in self._tree():
            _rmdir(folder)
        for folder in self._folders() if "/" in self.name else ():
            with contextlib.suppress(OSError):  # others are in it
                folder.parent.rmdir()

    # --- limits

    def limit_cpu(self, cores: float | None) -> list[str]:
        """Allow so many processors' worth of time; None for no limit."""
        v2 = "cpu" not in self.mounted.mounts
        quota = max(1000, round(cores * _PERIOD)) if cores else None
        if v2:
            return self._set("cpu", "", "cpu.max", f"{quota or 'max'} {_PERIOD}", "the CPU limit")
        return self._set("cpu", "cpu.cfs_period_us", "", str(_PERIOD), "the CPU limit") or self._set(
            "cpu", "cpu.cfs_quota_us", "", str(quota or -1), "the CPU limit"
        )

    def weigh_cpu(self, units: int | None) -> list[str]:
        """Share of CPU time when there is too little, 1 to 10000, usually 100; version 1 gets the same proportion."""
        weight = min(10_000, max(1, units or _DEFAULT_WEIGHT))
        if "cpu" in self.mounted.mounts:
            shares = max(2, weight * _DEFAULT_SHARES // _DEFAULT_WEIGHT)
            return self._set("cpu", "cpu.shares", "", str(shares), "the CPU weight")
        return self._set("cpu", "", "cpu.weight", str(weight), "the CPU weight")

    def pin_cpu(self, cpus: str | None) -> list[str]:
        """Run on these processors only (`0,3-5`); None for all that there are.

        In version 1 the groups below get the same ones: none may have a processor that the one above has not.
        """
        wanted = cpus or _read(Path("/sys/devices/system/cpu/online")).strip() or "0"
        if cpus is None and "cpuset" not in self.mounted.mounts:
            wanted = ""  # version 2: empty means those of the parent
            if not _read(self._file("cpuset", "", "cpuset.cpus") or Path("/")).strip():
                return []
        if "cpuset" in self.mounted.mounts:
            top = self.mounted.mounts["cpuset"] / self.name
            below = [Path(folder) for folder, _, _ in os.walk(top)][1:]
            before = _read(top / "cpuset.cpus").strip()
            if below and before:
                warnings = _write(top / "cpuset.cpus", f"{before},{wanted}\n", "the CPU affinity")
                for folder in [*below, *reversed(below)]:  # those that grow from above, those that shrink from below
                    _write(folder / "cpuset.cpus", f"{wanted}\n", "the CPU affinity")
                if warnings:
                    return warnings
        return self._set("cpuset", "cpuset.cpus", "cpuset.cpus", f"{wanted}\n", "the CPU affinity")

    def limit_memory(self, size: int | None) -> list[str]:
        """Allow so many bytes of memory; None for no limit."""
        text = str(size) if size else ("-1" if "memory" in self.mounted.mounts else "max")
        return self._set("memory", "memory.limit_in_bytes", "memory.max", text, "the memory limit")

    def limit_memory_and_swap(self, memory: int, swap: int) -> list[str]:
        """Allow so many bytes of memory, and so many of swap beside it.

        Version 1 limits the sum, which must never be below the memory: what has to come first depends on what holds.
        """
        if "memory" not in self.mounted.mounts:
            return self.limit_memory(memory) + self._set(
                "memory", "", "memory.swap.max", str(swap), "the limit of swap"
            )

        def limit_sum() -> list[str]:
            name = "memory.memsw.limit_in_bytes"
            return self._set("memory", name, "", str(memory + swap), "the limit of memory and swap")

        if limit_sum():
            return self.limit_memory(memory) + limit_sum()
        return self.limit_memory(memory)

    def limit_pids(self, count: int | None) -> list[str]:
        """Allow so many processes and threads; None for no limit."""
        return self._set("pids", "pids.max", "pids.max", str(count or "max"), "the limit of processes")

    def allow_device(self, rule: str, *, allow: bool = True) -> list[str]:
        """Version 1: allow or deny a device (`c 10:200 rw`) to the group and those below it."""
        name = "devices.allow" if allow else "devices.deny"
        folders = [Path(each) for each, _, _ in os.walk(self.mounted.mounts["devices"] / self.name)]
        return [warning for folder in folders for warning in _write(folder / name, rule, "the right to a device")]

    # --- freezing

    def freeze(self, seconds: float) -> None:
        """Stop all processes where they are. Raises Failure when that takes longer, and lets them go on."""
        end = time.monotonic() + seconds
        while True:
            for warning in self._set("freezer", "freezer.state", "cgroup.freeze", self._word(True), "the freeze"):
                raise Failure(warning)
            if self.frozen():
                return
            if time.monotonic() > end:
                self.thaw()
                raise Failure(f"the processes of the group '{self.name}' did not freeze within {seconds:g} seconds")
            time.sleep(0.01)

    def thaw(self) -> None:
        """Let all processes go on (idempotent)."""
        self._set("freezer", "freezer.state", "cgroup.freeze", self._word(False), "the thaw")

    def _word(self, frozen: bool) -> str:
        if "freezer" in self.mounted.mounts:
            return "FROZEN" if frozen else "THAWED"
        return "1" if frozen else "0"

    def frozen(self) -> bool:
        """Whether all its processes stand still by our order."""
        if "freezer" in self.mounted.mounts:
            return _read(self._file("freezer", "freezer.state", "")).strip() == "FROZEN"
        return dict(_pairs(_read(self._file("freezer", "", "cgroup.events")))).get("frozen") == 1

    def _set(self, controller: str, name: str, name2: str, text: str, title: str) -> list[str]:
        path = self._file(controller, name, name2)
        if path is None:
            return [f"{title} is not in force: this system has no control groups"]
        return _write(path, text, title)

    # --- accounts

    def usage(self) -> Usage:
        """What the group used so far; None where the kernel keeps no account."""
        memory_v1 = "memory" in self.mounted.mounts
        memory_stat = dict(_pairs(_read(self._file("memory", "memory.stat", "memory.stat"))))
        return Usage(
            cpu=self._cpu_time(),
            memory=_number(_read(self._file("memory", "memory.usage_in_bytes", "memory.current"))),
            cache=memory_stat.get("total_inactive_file" if memory_v1 else "inactive_file"),
        )

    def memory(self) -> tuple[int, int]:
        """Bytes of memory, page cache not counted, and of swap that the group has now."""
        used = _number(_read(self._file("memory", "memory.usage_in_bytes", "memory.current"))) or 0
        stat = dict(_pairs(_read(self._file("memory", "memory.stat", "memory.stat"))))
        if "memory" in self.mounted.mounts:
            cache, shared, swap = (stat.get(name, 0) for name in ("total_cache", "total_shmem", "total_swap"))
        else:
            cache, shared = stat.get("file", 0), stat.get("shmem", 0)
            swap = _number(_read(self._file("memory", "", "memory.swap.current"))) or 0
        return max(0, used - (cache - shared)), swap

    def io(self) -> tuple[int, int]:
        """Bytes that the group read from and wrote to disks so far."""
        if "blkio" in self.mounted.mounts:
            text = _read(self._file("blkio", "blkio.throttle.io_service_bytes_recursive", ""))
            fields = [line.split() for line in text.splitlines()]
            totals = [
                sum(int(each[2]) for each in fields if len(each) == 3 and each[1] == kind) for kind in ("Read", "Write")
            ]
        else:
            words = [word.partition("=") for word in _read(self._file("io", "", "io.stat")).split()]
            totals = [sum(int(value) for key, _, value in words if key == kind) for kind in ("rbytes", "wbytes")]
        return totals[0], totals[1]

    def _cpu_time(self) -> int | None:
        if "cpuacct" in self.mounted.mounts:
            return _number(_read(self._file("cpuacct", "cpuacct.usage", "")))
        microseconds = dict(_pairs(_read(self._file("cpu", "", "cpu.stat")))).get("usage_usec")
        return None if microseconds is None else microseconds * 1000

    def pressure(self, resource: str) -> host.Pressure | None:
        """Pressure of `cpu`, `memory` or `io` on the group; None where the kernel does not measure it."""
        if _UNIFIED not in self.mounted.mounts:
            return None
        text = _read(self.mounted.mounts[_UNIFIED] / self.name / f"{resource}.pressure")
        return host.parse_pressure(text) if text else None


def root_group_name(root_hash: str) -> str:
    """Name of the group that holds all groups of a root."""
    return f"orrery-{root_hash}"


def guest_group(root_hash: str, vmid: int) -> Group:
    """The group of a guest; it need not exist."""
    return Group(f"{root_group_name(root_hash)}/guest-{vmid}", hierarchies())


def container_group(root_hash: str, vmid: int) -> Group:
    """The group of a container, above all that it can change: in every hierarchy, so that nothing of it stays."""
    return _everywhere(f"{root_group_name(root_hash)}/guest-{vmid}")


def monitor_group(root_hash: str, vmid: int) -> Group:
    """The group of the process that watches a container: no limit of the container's may hit it."""
    return _everywhere(f"{root_group_name(root_hash)}/monitor-{vmid}")


def _everywhere(name: str) -> Group:
    return Group(name, hierarchies(everything=True), (*_CONTROLLERS, "pids", "io"))


def guest_groups(root_hash: str) -> dict[int, Group]:
    """All groups of guests of a root that exist now."""
    found = {
        int(folder.name.removeprefix("guest-"))
        for mount in set(hierarchies().mounts.values())
        for folder in (mount / root_group_name(root_hash)).glob("guest-*")
        if folder.name.removeprefix("guest-").isdigit()
    }
    return {vmid: guest_group(root_hash, vmid) for vmid in sorted(found)}


def remove_root(root_hash: str) -> None:
    """Remove all groups of a root. Raises Failure when processes are still in one."""
    Group(root_group_name(root_hash), hierarchies(everything=True)).remove()


# --- files of the kernel


def _read(path: Path | None) -> str:
    try:
        return path.read_text() if path else ""
    except OSError:
        return ""


def _write(path: Path, text: str, title: str) -> list[str]:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        return [f"{title} is not in force: {error.strerror} ('{path}')"]
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        return [f"{title} '{text.strip()}' is not in force: {error.strerror} ('{path}')"]
    finally:
        os.close(descriptor)
    return []


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _pairs(text: str) -> Iterator[tuple[str, int]]:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if value.strip().isdigit():
            yield key, int(value)


def _inherit_cpuset(folder: Path) -> None:
    """Version 1: a new group of `cpuset` has no processors and no memory nodes, and takes no process before it has."""
    for level in (folder.parent, folder):
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not _read(level / name).strip():
                (level / name).write_text(_read(level.parent / name))
        with contextlib.suppress(OSError):  # those that others make below have them from the beginning
            (level / "cgroup.clone_children").write_text("1")


def _mkdir(folder: Path) -> None:
    for attempt in range(_MKDIR_ATTEMPTS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # another task removed the root's group, empty then, between two steps of ours
            if attempt == _MKDIR_ATTEMPTS - 1:
                raise
        else:
            return


def _rmdir(folder: Path) -> None:
    end = time.monotonic() + _REMOVE_SECONDS
    while True:
        try:
            folder.rmdir()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EROFS):
                return
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise Failure(f"unable to remove the control group '{folder}': {error.strerror}") from error
            time.sleep(0.01)
        else:
            return
